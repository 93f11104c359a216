"""Passes of other threads, which began before a block, end without touching those of the block."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event, current_thread, main_thread

import torch
import xarray as xr

import qwenlab as ql
from qwenlab.capture.running_layers import followed
from qwenlab.checkpoint.decoder import decoder_of


def test_a_pass_from_before_the_block_may_end_inside_one(moe):
    started, go_on = Event(), Event()
    ids = torch.arange(1, 13)[None]

    def wait(module, args):
        if current_thread() is not main_thread():
            started.set()
            assert go_on.wait(30)

    def let_the_other_end(module, args):
        if current_thread() is main_thread() and not go_on.is_set():
            go_on.set()
            other.result(30)

    def other_pass():
        decoder = decoder_of(moe)
        with (
            followed(decoder, 0),
            torch.no_grad(),
        ):  # so that its call is wrapped from the start
            moe(ids + 1)

    def recorded():
        with ql.watch(moe, ql.probes.Residual(every=1)) as seen, torch.no_grad():
            moe(ids)
        return seen.recording()["residual"]

    alone = recorded()
    hooks = [
        moe.model.layers[0].register_forward_pre_hook(wait),
        moe.model.layers[2].register_forward_pre_hook(let_the_other_end),
    ]
    try:
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(other_pass)
            assert started.wait(30)
            xr.testing.assert_identical(recorded(), alone)
    finally:
        for hook in hooks:
            hook.remove()
