"""The hash of a checkpoint: equal for equal bytes, different for every change that it promises to detect."""

import shutil

import pytest
from hypothesis import given, strategies as st

from qwenlab.checkpoint.weights import fingerprint as module
from qwenlab.checkpoint.weights.fingerprint import fingerprint
from qwenlab.checkpoint.weights.shards import read_weights
from qwenlab.testing.checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("fingerprint"), "qwen3_5", layers=2)


@pytest.fixture
def large(monkeypatch):
    """Any checkpoint counts as large."""
    monkeypatch.setattr(module, "SMALL", 0)


def of(folder):
    return fingerprint(read_weights(folder))


def copied(folder, to):
    return shutil.copytree(folder, to, dirs_exist_ok=True)


def test_the_prefix_of_a_full_hash(folder):
    kind, digest = of(folder).split(":")
    assert kind == "sha256"
    assert len(digest) == 64


def test_the_prefix_of_a_sampled_hash(folder, large):
    assert of(folder).startswith("sampled-sha256:")


def test_it_does_not_depend_on_the_path(folder, tmp_path):
    assert of(copied(folder, tmp_path)) == of(folder)


@given(data=st.data())
def test_any_byte_of_the_weights_changes_it(folder, tmp_path_factory, data):
    other = copied(folder, tmp_path_factory.mktemp("copy"))
    shard = data.draw(st.sampled_from(sorted(other.glob("*.safetensors"))))
    start = min(stored.start for stored in read_weights(other).tensors.values() if stored.shard == shard)
    content = bytearray(shard.read_bytes())
    content[data.draw(st.integers(start, len(content) - 1))] ^= 1
    shard.write_bytes(content)
    assert of(other) != of(folder)


def test_the_middle_of_any_tensor_changes_the_sampled_one(folder, tmp_path, large):
    before = of(folder)
    other = copied(folder, tmp_path)
    for stored in read_weights(other).tensors.values():
        whole = stored.shard.read_bytes()
        content = bytearray(whole)
        content[(stored.start + stored.end) // 2] ^= 1
        stored.shard.write_bytes(content)
        assert of(other) != before
        stored.shard.write_bytes(whole)
    assert of(other) == before


@pytest.mark.parametrize("sampled", [False, True])
def test_the_config_changes_it(folder, tmp_path, sampled, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0 if sampled else 2**30)
    before, other = of(folder), copied(folder, tmp_path)
    (other / "config.json").write_text((other / "config.json").read_text().replace("10000.0", "20000.0"))
    assert of(other) != before
