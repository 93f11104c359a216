"""Shards of random weights: files that the safetensors library reads, in the order of the stack."""

import json

import torch
from safetensors import safe_open
from tqdm import tqdm

from qwenlab.checkpoint.anatomy.tensors import tensors
from qwenlab.checkpoint.config import read_config
from qwenlab.checkpoint.random_weights.block import RandomBlock
from qwenlab.checkpoint.random_weights.shard_files import data_bytes, shard_files, write_index


def test_the_library_reads_what_is_written(geometry, tmp_path):
    config = read_config(geometry)
    listed = list(tensors(config))
    shards, block = shard_files(listed, limit=300_000), RandomBlock(0)
    assert len(shards) > 3
    for shard in shards:
        shard.write(tmp_path, config, block, tqdm(disable=True))
        assert (tmp_path / shard.name).stat().st_size == shard.bytes
    write_index(shards, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == data_bytes(listed) == 2 * sum(tensor.size for tensor in listed)
    assert list(index["weight_map"]) == [tensor.name for tensor in listed]
    for tensor in listed:
        with safe_open(tmp_path / index["weight_map"][tensor.name], framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            values = file.get_tensor(tensor.name)
        assert values.shape == tensor.shape and values.dtype == torch.bfloat16
        assert torch.isfinite(values).all()
        if values.ndim > 1 and values.numel() > 2000 and not tensor.name.endswith("mlp.gate.weight"):
            fan_in = values[0].numel() if "visual" in tensor.name else values.shape[-1]
            deviation = 1 if "conv1d" in tensor.name else fan_in**-0.5
            assert 0.9 < float(values.float().std()) / deviation < 1.1, tensor.name


def test_shards_have_up_to_the_limit_and_every_tensor(geometry):
    listed = list(tensors(read_config(geometry)))
    shards = shard_files(listed, limit=300_000)
    assert [tensor for shard in shards for tensor in shard.tensors] == listed
    assert all(data_bytes(shard.tensors) <= 300_000 or len(shard.tensors) == 1 for shard in shards)
    assert [shard.name for shard in shard_files(listed)] == ["model-00001-of-00001.safetensors"]


def test_a_large_tensor_has_a_shard_of_its_own(geometry):
    listed = list(tensors(read_config(geometry)))
    assert [len(shard.tensors) for shard in shard_files(listed, limit=1)] == [1] * len(listed)
