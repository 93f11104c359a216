"""The shipped toys and texts for them; none of them may be changed."""

import pytest

import qwenlab as ql


@pytest.fixture(scope="session", params=["toy-dense", pytest.param("toy-moe", marks=pytest.mark.slow)])
def checkpoint(request):
    return ql.open(request.param)


@pytest.fixture(scope="session")
def dense():
    return ql.open("toy-dense")


@pytest.fixture(scope="session")
def headless(tmp_path_factory):
    """A checkpoint without `mtp.*` weights."""
    from qwenlab.testing.checkpoints import tiny_checkpoint

    return ql.open(tiny_checkpoint(tmp_path_factory.mktemp("headless"), "qwen3_5", mtp=None))


@pytest.fixture(scope="session")
def prompts():
    """prompts(checkpoint, count, length, domain) -> token lists."""

    def cut(checkpoint, count=2, length=32, domain="code"):
        return [checkpoint.tokenizer(text)["input_ids"][:length] for text in ql.tasks.texts(domain, count)]

    return cut
