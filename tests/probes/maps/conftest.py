"""Texts that the tests of maps share."""

import pytest

from tests.probes.mapping import drawn_texts


@pytest.fixture(scope="session")
def texts(model):
    return drawn_texts(model)
