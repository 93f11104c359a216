"""A whole checkpoint with random weights: it opens, is the same everywhere, and is never half there."""

import json
import shutil
from hashlib import sha256

import pytest
import torch

import qwenlab as ql
from qwenlab.checkpoint.random_weights import folder as module
from qwenlab.checkpoint.random_weights.folder import write_random_checkpoint
from qwenlab.errors import (
    BadArgument,
    BadConfig,
    DiskTooSmall,
    UnknownCheckpoint,
    UnreadableConfig,
    UnsupportedFamily,
)
from qwenlab.testing.models import tiny_config

HASH = "5046e48b48d3163739bcafa8ecb0885aed65393a295618524d114ca782a78f57"
"""Of the only shard, for seed 0."""


def write(geometry, folder, **options):
    return write_random_checkpoint(geometry, folder, progress=False, **options)


@pytest.fixture(scope="module")
def made(geometry, tmp_path_factory):
    """Four of the eight layers."""
    return write(geometry, tmp_path_factory.mktemp("made") / "four", layers=4)


@pytest.fixture(scope="module")
def checkpoint(made):
    return ql.open(made, strict=True)


class TestFiles:
    def test_are_the_same_on_every_machine(self, made):
        (shard,) = made.glob("*.safetensors")
        assert sha256(shard.read_bytes()).hexdigest() == HASH

    def test_have_the_layers_that_are_asked_for(self, made):
        text = json.loads((made / "config.json").read_text())["text_config"]
        assert text["num_hidden_layers"] == len(text["layer_types"]) == 4
        assert text["dtype"] == "bfloat16"
        anatomy = ql.anatomy(str(made))
        assert (anatomy.layers("linear_attention"), anatomy.layers("full_attention")) == ((0, 1, 2), (3,))
        assert anatomy.config.vision is None and anatomy.config.mtp_num_hidden_layers == 1

    def test_have_a_vision_tower_on_request(self, geometry, tmp_path):
        folder = write(geometry, tmp_path / "seeing", layers=1, vision=True)
        names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        assert sum(name.startswith("model.visual.") for name in names) == 21
        assert ql.open(folder).anatomy.config.vision.depth == 1

    def test_of_a_layer_do_not_depend_on_the_others(self, made, checkpoint, geometry, tmp_path):
        fewer = ql.open(write(geometry, tmp_path / "two", layers=2)).model.state_dict()
        assert all(torch.equal(value, checkpoint.model.state_dict()[name]) for name, value in fewer.items())
        other = ql.open(write(geometry, tmp_path / "other", layers=2, seed=1)).model.state_dict()
        assert not any(torch.equal(value, other[name]) for name, value in fewer.items())


class TestOpened:
    def test_gives_finite_logits_of_size_one(self, checkpoint):
        ids = checkpoint.tokenizer(list(ql.tasks.texts("code", 2)), return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            logits = checkpoint.model(**ids).logits.float()
        assert torch.isfinite(logits).all()
        assert 0.5 < float(logits.std()) < 2
        assert checkpoint.mtp is not None

    def test_statistics_are_not_flat(self, checkpoint):
        ids = torch.randint(3, 272, (4, 128), generator=torch.Generator().manual_seed(0))
        squares = []
        norm = checkpoint.model.model.layers[1].linear_attn.norm
        hook = norm.register_forward_pre_hook(lambda module, args: squares.append(args[0].float().pow(2).mean(-1)))
        with torch.no_grad(), ql.watch(checkpoint.model, *ql.probes.thorough(checkpoint.model)) as seen:
            checkpoint.model(ids)
        hook.remove()
        assert float(squares[0].flatten().quantile(0.05)) > 1e-5  # ten times the eps of the norm
        recording = seen.recording()
        half_life = ql.stats.half_life(recording)["half_life"].values
        assert half_life.min() < 10 and half_life.max() > 5 * half_life.min()
        assert ql.stats.attention_distance(recording)["entropy"].values.max() < 3  # nats; 3.9 for even weights
        share = 32 * ql.stats.expert_load(recording)["share"].values  # 1 where experts are used evenly
        assert (share.max(axis=-1) > 2).all() and (share.min(axis=-1) < 0.5).all()


class TestRefuses:
    def test_a_folder_that_exists(self, geometry, tmp_path):
        with pytest.raises(BadArgument, match=r"exists already.\nDelete it, or choose another folder with out"):
            write(geometry, tmp_path)

    def test_more_layers_than_there_are(self, geometry, tmp_path):
        with pytest.raises(BadArgument, match=r"make_checkpoint\(layers=9\): give an integer, from 1 to 8"):
            write(geometry, tmp_path / "x", layers=9)

    def test_a_seed_below_zero(self, geometry, tmp_path):
        with pytest.raises(BadArgument, match=r"make_checkpoint\(seed=-1\): give an integer, 0 or more"):
            write(geometry, tmp_path / "x", seed=-1)

    def test_an_unknown_geometry(self, tmp_path):
        with pytest.raises(UnknownCheckpoint, match=r"Did you mean.*\nThe catalog contains|The catalog contains Qwen3"):
            write("Qwen3.6-28B", tmp_path / "x")

    def test_a_quantised_release(self, tmp_path):
        with pytest.raises(BadArgument, match="FP8 stores its weights as fp8; random weights are written in bfloat16"):
            write("Qwen3.6-27B-FP8", tmp_path / "x")

    def test_a_tower_that_the_geometry_lacks(self, tmp_path):
        with pytest.raises(BadArgument, match=r"vision=True\): toy-moe has no vision tower"):
            write("toy-moe", tmp_path / "x", vision=True)

    def test_another_family(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(tiny_config("olmo_hybrid").to_dict()))
        with pytest.raises(UnsupportedFamily, match="is olmo_hybrid; random checkpoints can be made of qwen3_5, "):
            write(tmp_path, tmp_path / "x")

    def test_a_vocabulary_below_the_tokenizer(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(tiny_config(vocab_size=100).to_dict()))
        with pytest.raises(BadConfig, match="is 100, but the byte-level tokenizer that is written with random weights"):
            write(tmp_path, tmp_path / "x")


class TestDisk:
    @pytest.fixture
    def free(self, monkeypatch):
        def free(size):
            monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(size, 0, size))

        return free

    def test_that_is_too_small_names_the_layers_that_fit(self, geometry, tmp_path, free, made):
        free(sum(file.stat().st_size for file in made.iterdir()) + 2**20)
        target = tmp_path / "new" / "x"
        with pytest.raises(DiskTooSmall) as error:
            write(geometry, target)
        assert str(error.value).startswith(f"{target} needs ")
        assert str(error.value).endswith("The largest number of layers that fits is 4: layers=4 (--layers 4).")
        assert not target.parent.exists()
        write(geometry, target, layers=4)

    def test_that_fits_no_layer(self, geometry, tmp_path, free):
        free(2**20)
        with pytest.raises(DiskTooSmall, match=r"has 1,048,576 free.\nNot even one layer fits: choose"):
            write(geometry, tmp_path / "x")


class TestInterrupted:
    def test_leaves_nothing(self, geometry, tmp_path, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "write_index", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(geometry, tmp_path / "x", layers=1)
        assert list(tmp_path.iterdir()) == []

    def test_by_a_kill_does_not_open_and_is_written_again(self, geometry, tmp_path, made):
        part = tmp_path / "x.part"
        shutil.copytree(made, part)
        (part / "config.json").unlink()
        with pytest.raises(UnreadableConfig):
            ql.open(part)
        write(geometry, tmp_path / "x", layers=4)
        assert not part.exists()
        assert {file.name for file in (tmp_path / "x").iterdir()} == {file.name for file in made.iterdir()}

    @pytest.mark.parametrize("is_folder", [True, False])
    def test_never_deletes_what_is_not_its_own(self, geometry, tmp_path, is_folder):
        part = tmp_path / "x.part"
        own = part / "thesis.tex" if is_folder else part
        own.parent.mkdir(exist_ok=True)
        own.write_text("")
        with pytest.raises(BadArgument, match=f"until it is complete, but has {own.name}"):
            write(geometry, tmp_path / "x")
        assert own.exists()


@pytest.mark.slow
def test_a_cut_of_a_published_geometry_opens(tmp_path):
    checkpoint = ql.open(write("Qwen3.5-0.8B", tmp_path / "x", layers=4))
    assert checkpoint.facts.parameters == 337_299_424 + 20_452_864
    ids = checkpoint.tokenizer("the gate then writes", return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(checkpoint.model(**ids).logits).all()
