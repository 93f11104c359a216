"""Which changes of a library are reported, and which a library may do itself."""

import functools
from types import ModuleType

import numpy as np
import pytest

from qwenlab.execution.kernel_reset.namespaces import Namespace, Table
from qwenlab.execution.kernel_reset.origin import is_code, is_foreign, is_library


def module_from(code: str, name: str = "lib") -> ModuleType:
    """A module without a file, which counts as a library unless it is `__main__`."""
    module = ModuleType(name)
    exec(code, vars(module))
    return module


NOTEBOOK = module_from(
    "import functools\n"
    "def function(*args): pass\n"
    "class Callable:\n"
    "    def __call__(self): pass\n"
    "    def method(self): pass\n"
    "class Layer: pass\n",
    "__main__",
)
LIBRARY = (
    "import functools, math\n"
    "def one(): pass\n"
    "def two(): pass\n"
    "class Base:\n"
    "    size = 1\n"
    "    def run(self): pass\n"
    "class Layer(Base): pass\n"
    "empty, _private, LIMIT, text, table = None, 1, 1.5, 'a', {}\n"
)


def foreign():
    """Code of a notebook, in each form in which it can be put into a library."""
    names = vars(NOTEBOOK)
    return [
        names["function"],
        names["Layer"],
        names["Callable"](),
        names["Callable"]().method,
        functools.partial(max, key=names["function"]),
        functools.cache(names["function"]),
        staticmethod(names["function"]),
        property(names["function"]),
    ]


@pytest.mark.parametrize("value", foreign(), ids=lambda value: type(value).__name__)
def test_code_of_a_notebook_is_known(value, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "__main__", NOTEBOOK)
    assert is_code(value) or isinstance(value, (staticmethod, property))
    assert is_foreign(value)


@pytest.mark.parametrize("value", [len, np.mean, np.add, functools.partial(max, 1), np.ndarray, property(len), 1, None])
def test_code_of_a_library_is_not_a_notebooks(value):
    assert not is_foreign(value)


def test_modules_of_libraries_are_known(tmp_path):
    file, folder = ModuleType("file"), ModuleType("folder")
    file.__file__, folder.__path__ = str(tmp_path / "file.py"), [str(tmp_path)]
    assert [is_library(each) for each in (np, __import__("sys"), file, folder, NOTEBOOK)] == [
        *(True, True, False, False, False)
    ]


def changes(change, owner: str | None = None) -> list[str]:
    module = module_from(LIBRARY)
    thing = getattr(module, owner) if owner else module
    space = Namespace(thing.__name__, vars(thing), thing)
    assert space.is_unchanged()
    change(thing)
    assert not space.is_unchanged()
    return sorted(space.changes())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("one", lambda module: NOTEBOOK.function),
        ("one", lambda module: module.two),  # code of the library itself
        ("one", lambda module: 1),
        ("Layer", lambda module: module.Base),
        ("math", lambda module: functools),
        ("LIMIT", lambda module: 2.5),
        ("LIMIT", lambda module: np.zeros(2)),
        ("text", lambda module: "b"),
        ("table", lambda module: {1: 2}),
        ("empty", lambda module: NOTEBOOK.function),
        ("new", lambda module: NOTEBOOK.function),
        ("print", lambda module: module.two),  # hides the built-in one
    ],
)
def test_what_is_a_change(name, value):
    assert changes(lambda module: setattr(module, name, value(module))) == [f"lib.{name}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("empty", 1), ("empty", len), ("_private", 2), ("new", 3), ("new", len), ("new", NOTEBOOK)],
)
def test_changes_by_the_library_itself_are_not_reported(name, value):
    assert changes(lambda module: setattr(module, name, value)) == []


def test_a_deleted_name_is_a_change():
    assert changes(lambda module: delattr(module, "one")) == ["lib.one"]


@pytest.mark.parametrize(
    ("name", "value"), [("size", 2), ("run", len), ("__call__", NOTEBOOK.function), ("__repr__", object.__str__)]
)
def test_what_is_a_change_of_a_class(name, value):
    assert changes(lambda layer: setattr(layer, name, value), "Base") == [f"Base.{name}"]


def test_a_method_that_hides_an_inherited_one_is_a_change():
    assert changes(lambda layer: setattr(layer, "run", len), "Layer") == ["Layer.run"]


def test_a_lazily_imported_name_is_not_a_change():
    lazy = module_from("def __getattr__(name): return {'open': len}[name]")
    space = Namespace("lazy", vars(lazy), lazy)
    lazy.open = len
    assert list(space.changes()) == []
    lazy.open = max
    assert list(space.changes()) == ["lazy.open"]


def test_a_private_constant_of_qwenlab_is_compared():
    module = module_from(LIBRARY)
    space = Namespace("qwenlab.made", vars(module), module)
    module._private = 2
    assert list(space.changes()) == ["qwenlab.made._private"]


def test_changes_by_an_import_are_accepted():
    module = module_from(LIBRARY)
    space = Namespace("lib", vars(module), module)
    module.two = NOTEBOOK.function  # by the notebook
    earlier = dict(vars(module))
    module.one, module.added = len, len  # by the import
    del module.Layer
    space.absorb(earlier)
    assert list(space.changes()) == ["lib.two"]
    module.one = max
    assert sorted(space.changes()) == ["lib.one", "lib.two"]
    space.absorb()
    assert space.is_unchanged()


def test_a_table_is_compared_by_the_code_in_it():
    entries = {"a": len, "b": 1}
    table = Table("lib.table", entries)
    entries |= {"b": 2, "c": max}
    assert list(table.changes()) == []
    entries["a"] = max
    assert list(table.changes()) == ["lib.table['a']"]
    table.absorb()
    assert table.is_unchanged()
    entries["d"] = NOTEBOOK.function
    assert list(table.changes()) == ["lib.table['d']"]
    entries.clear()
    assert list(table.changes()) == ["lib.table['a']", "lib.table['c']"]


def test_a_table_that_computes_its_values_is_not_triggered():
    class Lazy(dict):
        def values(self):
            raise ImportError

        items = __getitem__ = get = __iter__ = __len__ = values

    table = Table("lib.table", Lazy(a=len))
    assert table.is_unchanged()
    assert list(table.changes()) == []
