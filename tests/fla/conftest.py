"""Tests on flash-linear-attention: its kernels in Triton's interpreter, and models on the CPU without that."""

import importlib.util
import os

import pytest

from tests.fla import interpreter

INSTALLED = importlib.util.find_spec("fla") is not None
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    interpreter.prepare()


@pytest.fixture(autouse=True, scope="session")  # before the fixtures that run processes
def _flash_linear_attention():
    if not INSTALLED:
        pytest.skip("flash-linear-attention is not installed; `make fla` makes an environment that has it")


@pytest.fixture
def interpreted():
    """fla's kernels run on the CPU."""
    if not INTERPRETED:
        pytest.skip("needs Triton's interpreter, set before fla is imported; `make fla` sets it")


@pytest.fixture(params=["ieee", "tf32"])
def rounding(request, interpreted):
    """Products in IEEE float32, then as an NVIDIA GPU makes them."""
    if request.param == "ieee":
        yield request.param
        return
    with interpreter.tf32():
        yield request.param
