"""What passes of a streamed checkpoint cost: bytes read, seconds at the disk's speed, FLOPs and memory."""

from __future__ import annotations

from dataclasses import dataclass

from qwenlab.arguments import integer
from qwenlab.checkpoint.anatomy.costs import item_bytes
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.streaming.disk_speed import DiskSpeed, disk_speed
from qwenlab.checkpoint.streaming.memory_size import size_text
from qwenlab.checkpoint.streaming.stream import streamed_layers
from qwenlab.errors import BadArgument


@dataclass(frozen=True, slots=True)
class StreamingCost:
    """The cost of passes over a streamed checkpoint, before they run. `print` shows it.

    passes          forward passes
    together        whether they go through each layer together, which is then read once for all of them
    bytes_read      from the files, in all passes
    disk            the measured speed of the disk
    flops           of all passes, as `Anatomy.flops` counts them
    weights_memory  bytes that weights take at most
    pass_memory     bytes of logits and caches of one pass, or of the hidden states of all; other activations are not
                    counted
    """

    passes: int
    together: bool
    bytes_read: int
    disk: DiskSpeed
    flops: float
    weights_memory: int
    pass_memory: int

    @property
    def read_seconds(self) -> float:
        """Seconds that reading takes at the speed of the disk."""
        return self.bytes_read / self.disk.bytes_per_second

    @property
    def peak_memory(self) -> int:
        """Bytes of weights, and of logits and caches or hidden states, at most."""
        return self.weights_memory + self.pass_memory

    def __str__(self) -> str:
        disk = self.disk
        passes = "1 pass" if self.passes == 1 else f"{self.passes:,} passes"
        passes += ", layer by layer" * self.together
        kept = "hidden states" if self.together else "logits and caches"
        return (
            f"{passes}: {size_text(self.bytes_read)} to read, {self.read_seconds:,.1f} s at "
            f"{disk.bytes_per_second / 1e9:.2f} GB/s (measured over {size_text(disk.read)}, {disk.how}); "
            f"{self.flops / 1e12:,.3g} TFLOP; peak memory {size_text(self.peak_memory)} "
            f"({size_text(self.weights_memory)} of weights, {size_text(self.pass_memory)} of {kept})"
        )


def streaming_cost(
    checkpoint: Checkpoint, *, context: int, batch: int = 1, passes: int = 1, together: bool = False
) -> StreamingCost:
    """Cost of `passes` forward passes over `batch` sequences of `context` tokens each; reads up to 256 MiB of the disk.

    checkpoint  one that was opened with `memory=`
    together    whether the passes go through each layer together and leave the lm_head out, as in `tasks.feed`

    Raises BadArgument for a checkpoint in memory.
    """
    stream = streamed_layers(checkpoint.model)
    if stream is None:
        raise BadArgument(
            f"{checkpoint.facts.source} is in memory and reads nothing from the disk.\nOpen it with memory='8GiB'; "
            "checkpoint.anatomy.cost gives the FLOPs and bytes of a model in memory."
        )
    for name, value in (("context", context), ("batch", batch), ("passes", passes)):
        integer("streaming_cost", name, value, least=1)
    anatomy, config = checkpoint.anatomy, checkpoint.anatomy.config
    embedded = min(batch * context, config.vocab_size) * config.hidden_size * item_bytes(config.dtype)
    flops = anatomy.flops("prefill", context=context, batch=batch)
    if together:  # a pass waits with its hidden state and its embeddings; those that do not fit wait in files
        waiting = passes * 2 * batch * context * config.hidden_size * item_bytes(config.dtype)
        per_pass, kept = flops.total - flops.parts["lm_head"], min(waiting, stream.spare)
    else:
        logits = batch * context * config.vocab_size * item_bytes(config.dtype)
        per_pass, kept = flops.total, logits + anatomy.kv_bytes(context, batch) + anatomy.state_bytes(batch)
    layers, head = (sum(unit.stored_bytes for unit in units) for units in (stream.layers, stream.head))
    return StreamingCost(
        passes=passes,
        together=together,
        bytes_read=passes * embedded + (layers if together else passes * (layers + head)),
        disk=disk_speed(stream.files),
        flops=passes * per_pass,
        weights_memory=stream.peak,
        pass_memory=kept,
    )
