"""Arithmetic as text: running sums, so that all of a line but its second number follows from the text before it."""

from __future__ import annotations

import random


def arithmetic_text(lines: int, rng: random.Random) -> str:
    """`lines` lines such as `37 + 45 = 82`; each starts from the result of the one before, wrapping below 100."""
    total, out = rng.randrange(10, 100), []
    for _ in range(lines):
        if total >= 50 and rng.random() < 0.5:
            step = rng.randrange(2, min(total - 10, 40))
            result, sign = total - step, "-"
        else:
            step = rng.randrange(2, 40)
            result, sign = total + step, "+"
        out.append(f"{total} {sign} {step} = {result}\n")
        total = result if 10 <= result < 100 else rng.randrange(10, 100)
    return "".join(out)
