"""The tiny models of all tests of hooks, and inputs of several lengths."""

import pytest

from tests.capture.in_turns import LENGTHS
from tests.probes.feeding import batch
from tests.tiny_models import dense, model, moe, small, text  # noqa: F401


@pytest.fixture
def texts(text):  # noqa: F811
    """Inputs of texts of several lengths, and of a batch that is padded on the left."""
    ids, mask = batch([text(12, 7), text(20, 8), text(5, 9)], "left")
    return [dict(input_ids=text(n, n)[None]) for n in LENGTHS] + [dict(input_ids=ids, attention_mask=mask)]
