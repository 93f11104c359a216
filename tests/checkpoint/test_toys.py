"""Requirements of the shipped toys, checked on the shipped files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.stats import entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import qwenlab as ql
from qwenlab.checkpoint.decoder import decoder_of

TOYS = ("toy-dense", "toy-moe")
HERE = Path(ql.checkpoint.__path__[0]) / "toys"
TOKENS = 256


@pytest.fixture(scope="module", params=TOYS)
def checkpoint(request):
    return ql.open(request.param)


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_small_and_laid_out_as_the_published_ones(name):
    folder = HERE / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"][0].endswith("ForConditionalGeneration")
    assert config["text_config"]["layer_types"] == ["linear_attention"] * 3 + ["full_attention"] + [
        "linear_attention"
    ] * 3 + ["full_attention"]
    assert config["text_config"]["linear_key_head_dim"] == config["text_config"]["linear_value_head_dim"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 2
    for file in set(index["weight_map"].values()):
        with safe_open(folder / file, "pt") as shard:
            assert {index["weight_map"][name] for name in shard.keys()} == {file}  # noqa: SIM118
    prefixes = {name.split(".")[0] for name in index["weight_map"]}
    assert prefixes == {"model", "lm_head", "mtp"}
    assert not any("visual" in name for name in index["weight_map"])
    if name == "toy-moe":
        assert "mtp.layers.0.mlp.experts.gate_up_proj" in index["weight_map"]
        assert config["text_config"]["num_experts"] >= 16
        assert config["text_config"]["num_experts_per_tok"] == 4
    assert len(json.loads((folder / "generation_config.json").read_text())["eos_token_id"]) == 2


@pytest.mark.parametrize("name", TOYS)
def test_plain_transformers_opens_it_without_a_missing_key(name):
    _, report = AutoModelForCausalLM.from_pretrained(HERE / name, output_loading_info=True)
    assert not any(report.values())


@pytest.mark.parametrize("name", TOYS)
def test_text_survives_the_tokenizer(name):
    tokenizer = AutoTokenizer.from_pretrained(HERE / name)
    # transformers 5.17 still builds what the files name; the pre-tokenizer is the same.
    assert type(tokenizer).__name__ in {"Qwen3_5Tokenizer", "Qwen2Tokenizer"}
    assert len(tokenizer) == 2048
    for text in [*(ql.tasks.texts(domain)[0] for domain in ql.tasks.DOMAINS), "é ü 漢字 🙂\r\n\t 'tis  12345 \n\n end"]:
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert max(ids) < 2048
    assert tokenizer("<|im_end|>").input_ids == [tokenizer.eos_token_id]


@pytest.mark.slow
@pytest.mark.parametrize("domain", ql.tasks.DOMAINS)
def test_held_out_loss_is_far_under_the_unigram_entropy(checkpoint, domain):
    texts = ql.tasks.texts(domain)[:24]
    score = ql.tasks.measure(checkpoint, [ql.tasks.text_task(checkpoint, texts, max_tokens=TOKENS)])
    ids = np.concatenate([checkpoint.tokenizer(text).input_ids[1:TOKENS] for text in texts])
    assert score["loss"].weighted(score["asked"]).mean() < 0.65 * entropy(np.bincount(ids))


@pytest.mark.slow
def test_recall_is_learnt_and_depends_on_the_mixers(checkpoint):
    tasks = {
        pairs: ql.tasks.recall_task(checkpoint, ql.tasks.recall_texts(pairs, 48, seed=1), name=f"{pairs} pairs")
        for pairs in (4, 8)
    }
    accuracy = ql.tasks.measure(checkpoint, list(tasks.values()))["accuracy"].groupby("task").mean()
    assert (accuracy >= 0.9).all()
    decoder = decoder_of(checkpoint.model)
    hooks = [
        decoder.part(layer, "mixer").register_forward_hook(lambda module, args, out: torch.zeros_like(out))
        for layer in decoder.layers_of("linear_attention")
    ]
    try:
        without = ql.tasks.measure(checkpoint, [tasks[8]])["accuracy"].mean()
    finally:
        for hook in hooks:
            hook.remove()
    assert without < 0.3


def agreement(checkpoint, texts, **control):
    """Teacher-forced agreement of the first draft, mean over texts."""
    ids = [checkpoint.tokenizer(text).input_ids[:TOKENS] for text in texts]
    labels = [str(number) for number in range(len(texts))]
    trace = ql.speculative.trace(checkpoint, ids, depth=1, labels=labels, progress=False, **control)
    return ql.stats.agreement(trace.recording(), by_label=True)["teacher_forced"].mean()


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "least"), [("code", 0.5), ("arithmetic", 0.6)])
def test_the_head_drafts_what_the_model_would_write(checkpoint, domain, least):
    texts = ql.tasks.texts(domain)[:24]
    true = agreement(checkpoint, texts)
    everything = [text for name in ql.tasks.DOMAINS for text in ql.tasks.texts(name)[:8]]
    donors = [checkpoint.tokenizer(text).input_ids[:TOKENS] for text in everything]  # of the same positions
    control = agreement(checkpoint, texts, donors=donors)
    assert true >= least
    assert true >= 3 * control
    if domain == "arithmetic":  # on code the stricter control is not met: REPORT.md, "Drafts of the MTP head"
        shuffled = agreement(checkpoint, texts, shuffled=True)
        assert true >= 3 * shuffled


@pytest.mark.slow
def test_every_expert_is_used_and_domains_route_apart():
    checkpoint = ql.open("toy-moe")
    with ql.watch(checkpoint.model, ql.probes.Routing()) as seen:
        for domain in ql.tasks.DOMAINS:
            with seen.label(domain):
                ql.tasks.feed(checkpoint, ql.tasks.texts(domain)[:24], max_tokens=TOKENS)
    recording = seen.recording()
    assert (recording["routing"]["load"].sum(("label", "fold")) > 0).all()
    found = ql.stats.specialisation(recording)
    assert (found["p_value"] <= 0.05).all()
