"""Shards: their defects are found before a model is loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenlab.checkpoint.weights.shards import read_weights
from qwenlab.errors import BrokenWeights, MissingShard, NonFiniteWeights, NoWeights, PickleWeights, TruncatedShard
from qwenlab.testing.checkpoints import save_shards

INDEX = "model.safetensors.index.json"


@pytest.fixture
def tensors():
    return {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(5, dtype=torch.bfloat16),
        "c": torch.zeros(4, 4).to(torch.float8_e4m3fn),
        "d": torch.arange(3),
    }


@pytest.fixture
def folder(tmp_path, tensors):
    save_shards(tensors, tmp_path, shards=2)
    return tmp_path


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_headers_describe_the_tensors_in_the_shards(tmp_path, tensors, shards):
    save_shards(tensors, tmp_path, shards)
    weights = read_weights(tmp_path)
    assert {name: stored.shape for name, stored in weights.tensors.items()} == {
        "a": (2, 3), "b": (5,), "c": (4, 4), "d": (3,)
    }  # fmt: skip
    assert [weights.tensors[name].dtype for name in "abcd"] == ["F32", "BF16", "F8_E4M3", "I64"]
    assert len(weights.shards) == shards
    assert weights.size == sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    for name, tensor in weights.read("dca"):
        assert torch.equal(tensor.float(), tensors[name].float())


def test_offsets_are_where_the_bytes_are(folder, tensors):
    stored = read_weights(folder).tensors["a"]
    assert stored.shard.read_bytes()[stored.start : stored.end] == tensors["a"].numpy().tobytes()


def test_one_file_counts_before_an_index(folder):
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    assert list(read_weights(folder).tensors) == ["other"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickles_are_rejected(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(PickleWeights, match=rf"(?s){tmp_path} has only pickled weights \({name}\).*save_pretrained"):
        read_weights(tmp_path)


def test_a_pickle_next_to_safetensors_is_ignored(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert set(read_weights(folder).tensors) == set("abcd")


def test_no_weights(tmp_path):
    with pytest.raises(NoWeights, match=r"(?s)neither model.safetensors nor .*index.json.\nPass a folder"):
        read_weights(tmp_path)


def test_shards_without_their_index(folder):
    (folder / INDEX).unlink()
    with pytest.raises(NoWeights, match=r"model-00001-of-00002.safetensors.*but no .*index.json.\nDownload the index"):
        read_weights(folder)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": null}', '{"weight_map": ["a"]}'])
def test_an_index_that_cannot_be_read(folder, index):
    (folder / INDEX).write_text(index)
    with pytest.raises(BrokenWeights, match=r"index.json is not an index.*\nDownload it again"):
        read_weights(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingShard) as caught:
        read_weights(folder)
    assert str(caught.value) == (
        f"{folder} lacks 1 of the 2 shards in {INDEX}:\n  model-00002-of-00002.safetensors\n"
        "Download them; `hf download` continues where it stopped."
    )


@pytest.mark.parametrize("cut", [1, 10])
def test_a_shard_cut_in_its_data(folder, cut):
    shard = folder / "model-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-cut])
    with pytest.raises(TruncatedShard, match=rf"{shard.name} has {len(whole) - cut} bytes, .* describes {len(whole)}"):
        read_weights(folder)


HEADERLESS = {
    "empty": b"",
    "short": b"short",
    "no header": b"\x00" * 8,
    "cut in its header": b"\x40" + b"\x00" * 7 + b'{"a": ',
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
}


@pytest.mark.parametrize("content", HEADERLESS.values(), ids=HEADERLESS)
def test_a_shard_without_a_header(folder, content):
    (folder / "model-00001-of-00002.safetensors").write_bytes(content)
    with pytest.raises(
        TruncatedShard, match=rf"(?s)not a complete safetensors file: its {len(content)} bytes.*git lfs pull"
    ):
        read_weights(folder)


def test_a_shard_with_bytes_to_spare(folder):
    with (folder / "model-00001-of-00002.safetensors").open("ab") as shard:
        shard.write(b"more")
    with pytest.raises(TruncatedShard, match="truncated or overwritten"):
        read_weights(folder)


def test_an_index_of_another_version(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lost"] = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        BrokenWeights, match=r"(?s)do not contain:\n  lost \(in model-00002-of-00002.*download both again"
    ):
        read_weights(folder)


def test_finite_weights_pass(folder):
    read_weights(folder).require_finite()


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_nan_is_named(folder, name):
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        if name in tensors:
            tensors[name].view(-1)[1] = float("nan")
            save_file(tensors, shard)
            where = shard.name
    with pytest.raises(NonFiniteWeights) as caught:
        read_weights(folder).require_finite()
    count = {"a": 6, "b": 5, "c": 16}[name]
    assert f"\n  {name} in {where}: 1 of {count} values\nDownload the shard again" in str(caught.value)


def test_an_infinity_is_named(tmp_path):
    save_shards({f"w{i}": torch.tensor([1.0, -torch.inf]) for i in range(10)}, tmp_path)
    with pytest.raises(NonFiniteWeights, match=r"(?s)w0 in model.safetensors: 1 of 2 values.*and 2 more"):
        read_weights(tmp_path).require_finite()


def test_reading_headers_reads_no_weights(folder):
    """A shard whose data are replaced by a hole of the same size still has a header."""
    before = read_weights(folder)
    for shard in before.shards:
        start = min(stored.start for stored in before.tensors.values() if stored.shard == shard)
        whole = shard.read_bytes()
        shard.write_bytes(whole[:start] + b"\xff" * (len(whole) - start))
    assert read_weights(folder).tensors == before.tensors


def test_a_folder_of_links_is_read_through(folder, tmp_path_factory):
    """The cache of the hub links from snapshots to blobs."""
    linked = tmp_path_factory.mktemp("snapshot")
    blobs = tmp_path_factory.mktemp("blobs")
    for number, file in enumerate(folder.iterdir()):
        shutil.copy(file, blobs / str(number))
        (linked / file.name).symlink_to(blobs / str(number))
    assert read_weights(linked).size == read_weights(folder).size
