"""The tiny models of all tests of hooks."""

from tests.tiny_models import dense, model, moe, small, text  # noqa: F401
