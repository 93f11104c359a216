"""Types of the parameters of recipes, from which their commands are made; opening checkpoints and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qwenlab import tasks
from qwenlab.errors import BadArgument

if TYPE_CHECKING:
    from qwenlab.checkpoint.checkpoint import Checkpoint

# A text after a type is the help text of parameters that recipes share, or of those without one in a docstring.
CheckpointInput = Annotated[
    "str | Path | Checkpoint", "checkpoint: a shipped toy, a folder, or a name on the hub such as Qwen/Qwen3.6-35B-A3B"
]
GeometryInput = Annotated[
    "str | Path", "geometry: a name in the catalog such as Qwen3.6-27B, or the path of a folder or config.json"
]
LabelledTexts = Mapping[str, str | Sequence[str]]
"""By label, a list of texts, or one long text, which is cut into passages."""

FolderPath = Annotated[str | Path, "folder for the recording (recording.nc), figures and reports"]
FilePath = Annotated[str | Path, "file to write"]
Device = Annotated[str, "where the model goes, such as cuda; by default the CPU"]
Dtype = Annotated[str, "number format of the weights in memory, such as bfloat16; by default the checkpoint's own"]
MemoryBudget = Annotated[
    str, "memory for the weights of a checkpoint bigger than memory, such as 8GiB: layers are read as they run"
]
Progress = Annotated[bool, "show progress bars"]
NonNegative = Annotated[int, range(2**63)]
Positive = Annotated[int, range(1, 2**63)]
TwoOrMore = Annotated[int, range(2, 2**63)]


def opened(source: CheckpointInput, device: str | None, dtype: str | None, memory: str | None = None) -> Checkpoint:
    """The checkpoint itself if it is open already, else opened with these options."""
    from qwenlab.checkpoint.checkpoint import Checkpoint
    from qwenlab.checkpoint.open import open  # loads torch, which takes seconds

    return source if isinstance(source, Checkpoint) else open(source, device=device, dtype=dtype, memory=memory)


def texts_or_shipped(recipe: str, texts: LabelledTexts | None, count: int) -> LabelledTexts:
    """The texts, or for None the first `count` held-out texts of each domain. Raises BadArgument for no text."""
    if texts is None:
        return {domain: tasks.texts(domain, count) for domain in tasks.DOMAINS}
    if not texts:
        raise BadArgument(f"{recipe}(texts={{}}): give at least one label and its texts.")
    return texts


def passages_of(checkpoint: Checkpoint, texts: str | Sequence[str], tokens: int, count: int) -> Sequence[str]:
    """The first `count` passages of `tokens` tokens of a long text, or the first `count` texts of a list."""
    return tasks.passages(checkpoint, texts, tokens=tokens, count=count) if isinstance(texts, str) else texts[:count]
