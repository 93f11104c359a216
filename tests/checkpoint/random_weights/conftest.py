"""A geometry with every part of the published ones, of 2 MB."""

import json

import pytest

from qwenlab.testing.models import tiny_config


@pytest.fixture(scope="session")
def geometry(tmp_path_factory):
    """The path of a config.json: routed experts, vision tower and MTP head; eight layers."""
    text = tiny_config(layers=8, vocab_size=512, num_experts=32).to_dict() | {"mtp_num_hidden_layers": 1}
    for name in ("architectures", "_name_or_path", "transformers_version"):
        text.pop(name, None)
    vision = dict(depth=1, hidden_size=32, intermediate_size=64, num_heads=2, num_position_embeddings=16)
    vision |= dict(in_channels=3, out_hidden_size=64, patch_size=4, temporal_patch_size=2, spatial_merge_size=2)
    root = {"model_type": "qwen3_5_moe", "text_config": text, "vision_config": vision, "image_token_id": 9}
    file = tmp_path_factory.mktemp("small-moe") / "config.json"
    file.write_text(json.dumps(root))
    return file
