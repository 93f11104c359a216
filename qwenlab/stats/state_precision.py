"""Error of DeltaNet states in low precision."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.sums import Estimate, estimates
from qwenlab.stats.base.variables import result
from qwenlab.stats.states import growth

_ERRORS = {
    "error": Estimate("1", "error of the state, of its norm"),
    "growth": Estimate(
        "1", "growth of the error by an octave of position", least=-np.inf, sums=("error_sum", "tokens"), of=growth
    ),
}


@statistic
def state_precision(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Error of states in low precision: means over tokens by [layer, format, head, position_bin].

    error    ||S' - S|| / ||S||, S' being the state rounded to the format every `after` tokens (attr sample) from the
             beginning of the text on, and S the state in float32; with an interval
    growth   log2 of the mean error over that of the octave before: 0 if errors decay as fast as they arise, 1/2 if
             independent errors add up; from position 2 on
    """
    data = read(source, "state_precision", "error_sum", "tokens", by_label=by_label)
    return result(data, estimates(data, _ERRORS, level))
