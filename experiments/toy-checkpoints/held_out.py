"""Write the held-out text of each domain to qwenlab/tasks/data: `python held_out.py`. Training never sees it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from corpus import HELD_OUT_BYTES, HELD_OUT_SEED, arithmetic, code, prose, recall

import qwenlab.tasks
from qwenlab.tasks.held_out import SEPARATOR

PAIRS = (2, 4, 8, 12, 16, 24)


def gather(texts: Iterable[str], limit: int) -> str:
    """Texts up to `limit` bytes, none longer than a fortieth of it."""
    kept, size = [], 0
    for text in texts:
        text = text[: limit // 40]
        size += len(text.encode()) + len(SEPARATOR)
        if size > limit:
            break
        kept.append(text)
    return SEPARATOR.join(kept)


def main() -> None:
    rng = random.Random(HELD_OUT_SEED)
    held_out_code = code()[1]
    rng.shuffle(held_out_code)
    sums = arithmetic(HELD_OUT_SEED)
    domains = {
        "code": gather(held_out_code, HELD_OUT_BYTES),
        "prose": gather(prose()[1], HELD_OUT_BYTES),
        "arithmetic": gather((next(sums) for _ in range(10_000)), HELD_OUT_BYTES // 2),
        "recall": gather((recall(rng, PAIRS, 128) for _ in range(10_000)), HELD_OUT_BYTES // 2),
    }
    folder = Path(qwenlab.tasks.__path__[0]) / "data"
    folder.mkdir(exist_ok=True)
    for name, text in domains.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
        print(f"{name}: {len(text.encode()):,} bytes, {text.count(SEPARATOR) + 1} texts")


if __name__ == "__main__":
    main()
