"""Differences that a change is meant to make: each with its reason, counted and printed, and no failure.

Empty this table when the checkout before already has them: a row hides what matches it.
"""

from __future__ import annotations

import re

INTENDED = {
    r" @(interval|resamples|seed|draws|level): |_interval( @?\w+)?: ": (
        "intervals have one home: Wilson's score, the jackknife or the expanded bootstrap"
    ),
    r"_(low|high)( @?\w+)?: missing|/tables/\d (coords|variables): |/tables/\d/bound( dims)?: extra": (
        "ablation_table has its intervals along `bound`"
    ),
    r" @units: '(nat|byte|tokens|text)' became ": "one unit per quantity: nat/token, token, B",
    r"[ /]@?chance\b|coords: .*\bchance\b": "chance is a coordinate or a variable, not an attribute",
    r" @\w+: extra after$": "functions that measure return provenance under the names of a recording",
    r"^made/recording ": "the probes sum made recordings: float32 sums, and the tiny model's memory",
    r"^decoding/.*/audit: .*diagnosis: ": "the audit's sentence names its new interval",
    r"depth=0\.5|/task: \d+ of \d+ texts|labels: ": "needle(depth=) is needle(position=)",
    r" @checkpoint: 'TEMPORARY/before/": "a toy's folder is that of its checkout",
}
"""Pattern of "case: path: difference" -> reason."""


def reason(difference: str) -> str:
    """Why this difference is meant; "" if it is not."""
    return next((why for pattern, why in INTENDED.items() if re.search(pattern, difference)), "")
