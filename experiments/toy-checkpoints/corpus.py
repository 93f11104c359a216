"""The training text of the toy checkpoints, by domain, and the split that keeps the held-out text apart.

code        CPython's standard library (PSF licence), the one of the running interpreter, tests left out
prose       the King James Bible (public domain), by the `bible` program of Debian's package bible-kjv
arithmetic  running sums, generated (qwenlab.tasks.arithmetic)
recall      key:value pairs, later asked for, generated (qwenlab.tasks.recall)
"""

from __future__ import annotations

import random
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from qwenlab.tasks.arithmetic import arithmetic_text
from qwenlab.tasks.recall import recall_text

HELD_OUT_BOOKS = ("Ruth", "Jonah", "Eccl", "Acts")
HELD_OUT_BYTES = 120_000
HELD_OUT_SEED, TRAINING_SEED = "held-out", "training"


def code() -> tuple[list[str], list[str]]:
    """Training and held-out files of the standard library; every twentieth file is held out."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "test", "tests", "idle_test", "pydoc_data", "lib2to3", "encodings", "__pycache__"}
    paths = [p for p in sorted(root.rglob("*.py")) if not skipped & set(p.relative_to(root).parts)]
    texts = [p.read_text(encoding="utf-8", errors="ignore") for p in paths]
    texts = [re.sub(r"[^\x09\x0a\x20-\x7e]", "", text) for text in texts if 500 < len(text) < 200_000]
    return [t for i, t in enumerate(texts) if i % 20], [t for i, t in enumerate(texts) if not i % 20]


def prose() -> tuple[list[str], list[str]]:
    """Training and held-out chapters; the held-out ones are whole books."""
    try:
        found = subprocess.run(
            ["bible", "-f", "-l", "99999", "gen1:1-rev22:21"], capture_output=True, text=True, check=True
        )
    except FileNotFoundError as missing:
        raise SystemExit(
            "The prose comes from the `bible` program: `apt-get install bible-kjv` brings it."
        ) from missing
    chapters: dict[str, list[str]] = {}
    for line in found.stdout.splitlines():
        place, _, verse = line.partition(" ")
        chapters.setdefault(place.partition(":")[0], []).append(verse)
    texts = {chapter: " ".join(verses) + "\n" for chapter, verses in chapters.items()}
    held_out = re.compile(f"({'|'.join(HELD_OUT_BOOKS)})[0-9]+")
    kept = [text for chapter, text in texts.items() if not held_out.fullmatch(chapter)]
    away = [text for chapter, text in texts.items() if held_out.fullmatch(chapter)]
    assert away, "no chapter matched the held-out books"
    return kept, away


def arithmetic(seed: str) -> Iterator[str]:
    """Endless sequences of running sums."""
    rng = random.Random(f"arithmetic-{seed}")
    while True:
        yield arithmetic_text(24, rng)


def recall(rng: random.Random, pairs: tuple[int, ...], tokens: int) -> str:
    """A recall sequence of one of these pair counts, with as many questions as fit into `tokens` tokens."""
    count = rng.choice(pairs)
    return recall_text(count, (tokens - 2 - 3 * count) // 3, rng)
