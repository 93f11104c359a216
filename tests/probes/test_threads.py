"""Watching and intervening while other threads run models: their own, or the same one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch

from qwenlab.capture.running_layers import followed, running_mixer
from qwenlab.capture.wrapping import _wrappers, in_this_thread, inputs, listening
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import CannotIntervene, CannotWatch
from qwenlab.interventions import NoConv, NoKeyRemoval, Scale, Zero
from qwenlab.interventions.session import intervene
from qwenlab.probes import DeltaNet
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model
from tests.probes.compare import assert_same
from tests.probes.feeding import one_by_one, recorded

LAYERS = ["linear_attention", "full_attention"]


@pytest.fixture
def models():
    """Two models of one family: their layers call the same functions of one module."""
    return [tiny_model("qwen3_5", layer_types=LAYERS, seed=seed) for seed in (0, 1)]


def in_a_thread(work, *args):
    """What work(*args) returns or raises in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *args).result(60)


def while_in(module, work, *args):
    """A hook on a module that runs work(*args) in another thread before the module runs; what work returned."""
    returned = []
    return module.register_forward_pre_hook(lambda *_: returned.append(in_a_thread(work, *args))), returned


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_another_model_in_another_thread_is_not_watched(models, text):
    """It runs after the watched layer has called its rule, and before the layer ends."""
    texts = [text(40, seed) for seed in range(4)]
    alone = recorded(models[0], one_by_one(texts))
    handle, returned = while_in(models[0].model.layers[0].linear_attn.out_proj, logits, models[1], text(40, 9)[None])
    assert_same(recorded(models[0], one_by_one(texts)), alone)
    handle.remove()
    assert len(returned) == 4


@pytest.mark.parametrize("change", [NoKeyRemoval(), NoConv(), Scale("layers.0.mixer.beta", by=0.5)], ids=str)
def test_another_model_in_another_thread_is_not_edited(models, text, change):
    """It runs before the edited layer calls its convolution and its rule, while that layer is running."""
    ids = text(40)[None]
    plain = logits(models[1], ids)
    with intervene(models[0], change):
        edited = logits(models[0], ids)
        handle, returned = while_in(models[0].model.layers[0].linear_attn.in_proj_qkv, logits, models[1], ids)
        assert torch.equal(logits(models[0], ids), edited)
        handle.remove()
    assert torch.equal(returned[0], plain)


@pytest.mark.parametrize(
    ("block", "error", "verb"),
    [
        (lambda model: watch(model, DeltaNet()), CannotWatch, "watches"),
        (lambda model: intervene(model, Scale("layers.0.mixer", by=0.5)), CannotIntervene, "intervenes on"),
    ],
    ids=["watch", "intervene"],
)
def test_a_thread_from_before_the_block_may_not_run_its_model(models, text, block, error, verb):
    ids = text(5)[None]
    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        pool.submit(models[0], ids).result()  # the thread is there
        with block(models[0]):
            message = rf"Thread 'Thread.*' runs a Qwen3_5TextModel that a block of another thread {verb}"
            with pytest.raises(error, match=message + r"[\s\S]*Open the checkpoint once per thread"):
                pool.submit(models[0], ids).result()
            models[0](ids)
        pool.submit(models[0], ids).result()


def test_a_thread_started_in_the_block_may_run_its_model(models, text):
    """As when `generate` runs in a thread of its own, with a streamer."""
    texts = [text(9)]
    alone = recorded(models[0], one_by_one(texts))
    assert_same(recorded(models[0], lambda *given: in_a_thread(one_by_one(texts), *given)), alone)


def test_two_threads_started_in_the_block_may_not_run_it_at_once(models, text):
    inside, done, errors = threading.Event(), threading.Event(), []

    def wait(*_):
        inside.set()
        done.wait(30)

    def second():
        try:
            models[0](text(5)[None])
        except CannotWatch as error:
            errors.append(error)
        done.set()

    with torch.no_grad(), watch(models[0], DeltaNet()):
        handle = models[0].model.layers[0].register_forward_pre_hook(wait)
        first = threading.Thread(target=models[0], args=(text(5)[None],))
        first.start()
        inside.wait(30)
        handle.remove()
        threading.Thread(target=second).start()
        first.join()
    assert len(errors) == 1


@pytest.mark.parametrize("nested", [False, True])
def test_one_model_is_in_the_blocks_of_one_thread(models, text, nested):
    def enter():
        with torch.no_grad(), intervene(models[0], Scale("layers.0.mixer", by=0.5)):
            models[0](text(5)[None])

    with torch.no_grad(), watch(models[0], DeltaNet()):
        models[0](text(5)[None])
        with pytest.raises(
            CannotIntervene, match=r"^Thread .* enters a block on .*, but thread 'MainThread' has an active block"
        ):
            in_a_thread(enter)
        if nested:
            enter()
    in_a_thread(enter)


@pytest.mark.parametrize("change", [Zero("layers.1.mixer"), Scale("layers.1.mixer.query", by=3.0)], ids=str)
def test_a_pass_that_was_under_way_when_the_block_began_is_not_edited(models, text, change):
    """Another thread has run layer 0, and runs layer 1 while the block's thread is in its own pass."""
    model, ids = models[0], text(9)[None]
    plain, own = logits(model, ids), threading.current_thread()
    with intervene(model, change):
        edited = logits(model, ids)
    ready, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def wait(*_):
        if threading.current_thread() is not own:
            ready.set()
            go_on.wait(30)
        else:
            go_on.set()
            done.wait(30)

    def under_way():
        returned.append(logits(model, ids))
        done.set()

    returned = []
    handle = model.model.layers[1].register_forward_pre_hook(wait)
    thread = threading.Thread(target=under_way)
    thread.start()
    ready.wait(30)
    with intervene(model, change):
        assert torch.equal(logits(model, ids), edited)
    thread.join()
    handle.remove()
    assert torch.equal(returned[0], plain)


def test_wrappers_of_threads_that_come_and_go(impatient):
    """Whatever the order of entering and leaving, each listener hears its calls, and nothing is left behind."""

    def original(word):
        return word

    namespace, before = {"name": original}, len(_wrappers)

    def work(number):
        for turn in range(200):
            heard = []
            keep = in_this_thread(lambda args, kwargs, result, heard=heard: heard.append(result))
            with listening(namespace, "name", keep):
                namespace["name"]((number, turn))
            assert heard == [(number, turn)]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert namespace == {"name": original} and len(_wrappers) == before


def test_a_running_layer_is_seen_by_its_thread_alone():
    decoder = decoder_of(tiny_model("qwen3_5"))
    layer = decoder.layers_of(DELTANET)[1]
    seen = []

    def look(args, kwargs):
        seen.append((running_mixer(), in_a_thread(running_mixer)))

    with ExitStack() as hooks:
        hooks.enter_context(followed(decoder, layer))
        hooks.enter_context(inputs(decoder.part(layer, "mlp_norm"), look))
        hooks.enter_context(inputs(decoder.mixer(layer).norm, look))
        decoder.module(torch.ones(1, 3, dtype=torch.long))
    assert seen == [(decoder.mixer(layer), None), (None, None)]


def test_a_layer_that_raised_is_not_running_in_the_next_pass():
    decoder = decoder_of(tiny_model("qwen3_5"))
    first = decoder.layers_of(DELTANET)[0]

    def fail(args, kwargs):
        raise RuntimeError("stop")

    with ExitStack() as hooks:
        hooks.enter_context(followed(decoder, first))
        with pytest.raises(RuntimeError, match="stop"), inputs(decoder.mixer(first).norm, fail):
            decoder.module(torch.ones(1, 3, dtype=torch.long))
        seen = []
        hooks.enter_context(inputs(decoder.part(0, "mixer_norm"), lambda *_: seen.append(running_mixer())))
        decoder.module(torch.ones(1, 3, dtype=torch.long))
    assert seen == [None]
