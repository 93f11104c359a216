"""Differences that a change is meant to make: each with its reason, counted and printed, and no failure.

Empty this table when the checkout before already has them: a row hides what matches it.
"""

from __future__ import annotations

import re

INTENDED = {
    r" @checkpoint: 'TEMPORARY/before/": "a toy's folder is that of its checkout",
    r"@cropped_(tokens|labels): extra after": "recordings say how many tokens were cropped from their caches",
}
"""Pattern of "case: path: difference" -> reason."""


def reason(difference: str) -> str:
    """Why this difference is meant; "" if it is not."""
    return next((why for pattern, why in INTENDED.items() if re.search(pattern, difference)), "")
