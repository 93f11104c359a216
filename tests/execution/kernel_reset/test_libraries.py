"""The libraries of this very process, patched and put back; and imports of a library that patches another."""

import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import transformers.activations

import qwenlab.checkpoint.model_cache
from qwenlab.execution.kernel_reset import origin
from qwenlab.execution.kernel_reset.initial_state import ImportWatch
from qwenlab.execution.kernel_reset.libraries import Libraries


@pytest.fixture(scope="module")
def libraries():
    return Libraries()


@pytest.fixture
def changes(libraries):
    """Names changed since this test began, without those of pytest and hypothesis, which change in every test."""
    before = {*libraries.changes()}
    own = ("_pytest.", "pytest.", "hypothesis.")
    return lambda: sorted(name for name in {*libraries.changes()} - before if not name.startswith(own))


def mine(*args):
    return 42.0


PATCHES = [
    (np, "mean", "numpy.mean"),
    (torch.nn.functional, "silu", "torch.nn.functional.silu"),
    (torch.nn.Linear, "forward", "torch.nn.modules.linear.Linear.forward"),
    (torch.nn.Linear, "__call__", "torch.nn.modules.linear.Linear.__call__"),
    (qwenlab.checkpoint.model_cache, "CHUNK", "qwenlab.checkpoint.model_cache.CHUNK"),
    (torch.nn.functional.softmax, "__defaults__", "torch.nn.functional.softmax"),
    (torch.nn.functional.softmax, "__code__", "torch.nn.functional.softmax"),
]


@pytest.mark.parametrize(("owner", "attribute", "name"), PATCHES, ids=lambda each: each if type(each) is str else "")
def test_a_patch_is_named_until_it_is_undone(changes, owner, attribute, name):
    with pytest.MonkeyPatch.context() as patch:
        value = {"__defaults__": (1, 2, 3), "__code__": mine.__code__, "CHUNK": 7}.get(attribute, mine)
        patch.setattr(owner, attribute, value, raising=False)
        assert changes() == [name]
    assert changes() == []


def test_an_entry_of_a_registry_is_compared(changes, monkeypatch):
    monkeypatch.setitem(transformers.activations.ACT2CLS, "silu", torch.nn.Identity)
    assert changes() == ["transformers.activations.ACT2CLS['silu']"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules that count as installed, and forget them afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(origin, "_libraries", {*origin._libraries, tmp_path})
    monkeypatch.syspath_prepend(tmp_path)
    origin.is_installed.cache_clear()
    yield lambda name, text: (tmp_path / f"{name}.py").write_text(text)
    origin.is_installed.cache_clear()
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def watched():
    """Watch imports, with these functions before and after each."""
    watches = []

    def watched(before, after):
        @contextmanager
        def context():
            before()
            try:
                yield
            finally:
                after()

        watches.append(ImportWatch(context))
        sys.meta_path.insert(0, watches[0])

    yield watched
    sys.meta_path.remove(watches[0])


def test_an_import_is_distinguished_from_a_patch(package, watched):
    """One library patches another when it is imported, between two patches that are a notebook's."""
    package("patched", "def one(): pass\ndef two(): pass\ndef three(): pass\n")
    package("inner", "import patched\npatched.one = lambda: 1\n")
    package("patching", "import inner\ndef mine(): pass\n")
    import patched

    libraries = Libraries()
    watched(libraries.before_import, libraries.after_import)

    patched.two = mine
    import patching

    assert "exec_module" not in vars(patching.__loader__)
    assert libraries.changes() == ["patched.two"]
    patched.three = mine
    patching.mine = patched.one
    assert libraries.changes() == ["patched.three", "patched.two", "patching.mine"]


def test_an_import_that_fails_is_watched_no_longer(package, watched):
    package("broken", "import absent_module\n")
    calls = []
    watched(lambda: calls.append("before"), lambda: calls.append("after"))
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            import broken  # noqa: F401
    assert calls == ["before", "after"] * 2
