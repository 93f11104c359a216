"""Write a trained toy in the layout of the published checkpoints: `python export.py RUN --out FOLDER`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizer import END_OF_TEXT, END_OF_TURN
from tokenizers import Tokenizer
from trunk import SHAPES

ROOTS = {
    "toy-dense": ("Qwen3_5ForConditionalGeneration", "qwen3_5"),
    "toy-moe": ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe"),
}
# Fields of the published text configs that transformers' config classes do not write back.
PUBLISHED = {
    "attn_output_gate": True,
    "full_attention_interval": 4,
    "mamba_ssm_dtype": "float32",
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "partial_rotary_factor": 0.25,
}
DROPPED = ("_name_or_path", "architectures", "transformers_version", "chunk_size_feed_forward", "is_encoder_decoder")


def published_tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Target model and head under the published names, in bfloat16."""
    tensors = {}
    for name, tensor in state["trunk"].items():
        tensors[name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name] = tensor
    tensors |= {f"mtp.{name}": tensor for name, tensor in state["head"].items()}
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def save_shards(tensors: dict[str, torch.Tensor], folder: Path, shards: int = 2) -> None:
    """Shards of about equal size and their index."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    parts: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in sorted(tensors.items()):
        if sum(t.nbytes for t in parts[-1].values()) >= total / shards and len(parts) < shards:
            parts.append({})
        parts[-1][name] = tensor
    names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def text_config(name: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """The published `text_config` of this toy."""
    _, config_class, shape = SHAPES[name]
    config = config_class(**shape).to_diff_dict() | shape
    rope = config["rope_parameters"]
    end = tokenizer.token_to_id(END_OF_TEXT)
    config |= PUBLISHED | {
        "rope_parameters": rope | {"partial_rotary_factor": 0.25},
        "bos_token_id": end,
        "eos_token_id": end,
    }
    config |= {"model_type": config_class.model_type, "hidden_act": "silu", "rms_norm_eps": 1e-6, "pad_token_id": None}
    return {key: config[key] for key in sorted(config) if key not in DROPPED}


def export(run: Path, name: str, folder: Path) -> None:
    """The folder that `qwenlab.open` and `AutoModelForCausalLM.from_pretrained` read."""
    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(run / "state.pt", map_location="cpu", weights_only=True)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    architecture, model_type = ROOTS[name]
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "text_config": text_config(name, tokenizer),
        "tie_word_embeddings": False,
    }
    ends = [tokenizer.token_to_id(token) for token in (END_OF_TURN, END_OF_TEXT)]
    generation = {"bos_token_id": ends[1], "do_sample": False, "eos_token_id": ends, "pad_token_id": ends[1]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_shards(published_tensors(state), folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(run / file, folder / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    name = json.loads((arguments.run / "recipe.json").read_text())["name"]
    export(arguments.run, name, arguments.out)
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{name}: {size / 1e6:.2f} MB in {arguments.out}")


if __name__ == "__main__":
    main()
