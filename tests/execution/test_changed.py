"""A warm kernel is replaced if a notebook changed a library, the environment or a hook."""

import psutil
import pytest

from qwenlab.errors import CellFailed
from qwenlab.execution.engine import release
from tests.execution.conftest import printed

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started

PID = "import os; print(os.getpid())"


def used(notebook):
    return notebook.metadata.papermill["qwenlab"]


def images(notebook):
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_a_patched_function_is_named_and_costs_the_kernel(run):
    mean = "import numpy as np; print(np.mean([1.0, 2.0]))"
    release()
    first = run("import numpy as np; np.mean = lambda *args: 42.0", mean, PID)
    second = run(mean, PID)
    assert [printed(each).split()[0] for each in (first, second)] == ["42.0", "1.5"]
    assert printed(first).split()[1] != printed(second).split()[1]
    assert [used(each)["changed"] for each in (first, second)] == [["numpy.mean"], []]


def test_each_kind_of_change_is_named(run, tmp_path):
    """Each line of code, and the name that is reported for it."""
    (tmp_path / "helper.py").write_text(
        "import torch\n"
        "def function(*args): pass\n"
        "class Visitor:\n"
        "    def __call__(self): pass\n"
        "    def visit(self, node): return node\n"
        "torch.nn.functional.gelu = function\n"  # the name is in the line that imports the module
    )
    changes = {
        "from helper import function, Visitor": "torch.nn.functional.gelu",
        "qwen.F.silu = lambda x, *args, **kwargs: x": "torch.nn.functional.silu",
        "nn.Linear.forward = lambda self, x: x": "torch.nn.modules.linear.Linear.forward",
        "nn.Linear.__call__ = nn.Module.forward": "torch.nn.modules.linear.Linear.__call__",  # hides an inherited one
        "torch.Tensor.__add__ = torch.Tensor.__mul__": "torch.Tensor.__add__",
        "torch.softmax = torch.sigmoid": "torch.softmax",
        "del torch.cumsum": "torch.cumsum",
        "nn.functional.softmax.__defaults__ = (1, 2, 3)": "torch.nn.functional.softmax",
        "nn.modules.module.register_module_forward_hook(function)": (
            "hooks: torch.nn.modules.module._global_forward_hooks"
        ),
        "llama.rotate_half = function": "transformers.models.llama.modeling_llama.rotate_half",  # imported only now
        "llama.repeat_kv = llama.eager_attention_forward": "transformers.models.llama.modeling_llama.repeat_kv",
        "qwen.print = function": "transformers.models.qwen3_5.modeling_qwen3_5.print",  # hides a built-in one
        "transformers.activations.ACT2CLS['silu'] = nn.Identity": "transformers.activations.ACT2CLS['silu']",
        "qwen.ALL_ATTENTION_FUNCTIONS['sdpa'] = function": (
            "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS._local_mapping['sdpa']"
        ),
        "random.random = functools.partial(max, 1, 2)": "random.random",
        "math.pi = 3": "math.pi",
        "xr.DataArray.mine = Visitor()": "xarray.core.dataarray.DataArray.mine",
        "model_cache.CHUNK = 7": "qwenlab.checkpoint.model_cache.CHUNK",
        "ql.watch = function": "qwenlab.watch",
        "ql.intervene = ql.open": "qwenlab.intervene",  # not imported before, so the name is new
        "os.environ['HF_HOME'] = 'elsewhere'": "environment: HF_HOME",
        "del os.environ['HOME']": "environment: HOME",
        "torch.backends.cudnn.benchmark = True": "setting: torch.backends.cudnn.benchmark",
        "sys.setrecursionlimit(5000)": "setting: sys.setrecursionlimit",
        "get_ipython().ast_transformers.append(Visitor())": "hooks: IPython.ast_transformers",
        "sys.modules['json'] = random": "sys.modules.json",
        # Otherwise 20 are named, and the rest are counted.
        "initial_state._NAMED = 100": "qwenlab.execution.kernel_reset.initial_state._NAMED",
    }
    imports = (
        "import functools, math, os, random, sys\n"
        "import torch, transformers, xarray as xr\n"
        "from torch import nn\n"
        "import transformers.models.qwen3_5.modeling_qwen3_5 as qwen\n"
        "import transformers.models.llama.modeling_llama as llama\n"
        "import qwenlab as ql\n"
        "from qwenlab.checkpoint import model_cache\n"
        "from qwenlab.execution.kernel_reset import initial_state\n"
    )
    release()
    found = used(run(imports, "\n".join(changes)))["changed"]
    assert {*found} - {"torch.nn.modules.module._global_forward_hooks[0]"} == {*changes.values()}


ORDINARY = [
    "import logging, os, tempfile, warnings\n"
    "import numpy as np, pandas as pd, scipy.stats, torch, transformers, xarray as xr, matplotlib.pyplot as plt\n"
    "from tqdm.auto import tqdm\n"
    "import qwenlab as ql\n"
    "print(os.getpid())",
    "from dataclasses import dataclass\n"
    "@dataclass\n"
    "class Point:\n"
    "    x: float = scipy.stats.norm.cdf(0.5)\n"
    "frame = pd.DataFrame({'x': np.arange(4.0), 'day': pd.date_range('2026-01-01', periods=4)})\n"
    "print(Point(), frame.groupby('day').mean().to_xarray())",
    "figure, axes = plt.subplots()\n"
    "axes.imshow(np.eye(3))\n"
    "frame.plot(x='day', y='x')\n"
    "for kind in ('png', 'svg', 'pdf'):\n"
    "    figure.savefig(tempfile.mktemp(suffix='.' + kind))",
    "ckpt = ql.open('toy-moe')\n"
    "inputs = ckpt.tokenizer(ql.tasks.texts('code', 1)[0][:600], return_tensors='pt')\n"
    "with torch.no_grad(), ql.watch(ckpt, *ql.probes.defaults(ckpt)) as seen:\n"
    "    ckpt.model(**inputs)\n"
    "print(ql.stats.layer_table(seen.recording()))\n"
    "with ql.intervene(ckpt, ql.interventions.Zero('layers.3.mixer')):\n"
    "    import transformers.models.gpt2.modeling_gpt2\n"  # while functions of transformers are wrapped
    "    print(ckpt.model.generate(**inputs, max_new_tokens=3))",
    "class Net(torch.nn.Linear):\n"
    "    def forward(self, x): return super().forward(x).relu()\n"
    "net = Net(2, 2)\n"
    "net.register_forward_hook(lambda *args: None)\n"
    "optimizer = torch.optim.AdamW(net.parameters())\n"
    "for _ in tqdm(range(2)):\n"
    "    net(torch.rand(2, 2)).sum().backward()\n"
    "    optimizer.step()\n"
    "with torch.profiler.profile(), torch.autocast('cpu'): net(torch.rand(2, 2))",
    "from unittest import mock\n"
    "with mock.patch('torch.nn.functional.relu'), warnings.catch_warnings(): warnings.simplefilter('error')\n"
    "logging.basicConfig(level=10); torch.backends.cuda.matmul.allow_tf32 = True",
]


def test_an_ordinary_notebook_keeps_its_kernel(run):
    release()
    done = [run(*ORDINARY) for _ in range(3)]
    assert [used(each)["changed"] for each in done] == [[], [], []]
    assert [used(each)["runs_in_kernel"] for each in done] == [1, 2, 3]
    assert len({printed(each).split()[0] for each in done}) == 1


def test_figures_are_shown_in_every_notebook(run, monkeypatch):
    release()
    monkeypatch.delenv("MPLBACKEND", raising=False)  # as it is for users: Jupyter's own
    draw = "import matplotlib.pyplot as plt; plt.plot([1, 2])"
    shown = [images(run(draw)), images(run(draw)), images(run(f"import matplotlib; matplotlib.use('agg'); {draw}"))]
    assert [*shown, images(run(draw))] == [1, 1, 0, 1]
    assert used(run("1"))["runs_in_kernel"] == 5
    release()


def test_a_folder_of_modules_of_the_notebook_is_read_again(run, tmp_path):
    (tmp_path / "helpers").mkdir()  # without an __init__.py
    inner = tmp_path / "helpers" / "inner.py"
    inner.write_text("value = 1")
    look = "from helpers import inner; print(inner.value)"
    release()
    assert printed(run(look)) == "1"
    inner.write_text("value = 22")
    after = run(look)
    assert (printed(after), used(after)["runs_in_kernel"]) == ("22", 2)


def test_a_cell_that_raised_costs_the_kernel(run):
    release()
    run("1")
    with pytest.raises(CellFailed, match="ValueError: boom"):
        run("raise ValueError('boom')")
    assert used(run("1"))["runs_in_kernel"] == 1


def test_a_cell_that_raised_is_the_reason_though_the_kernel_cannot_answer(run):
    release()
    with pytest.raises(CellFailed, match="ValueError: boom"):
        run("import psutil; psutil.Process = None", "raise ValueError('boom')")
    assert used(run("1"))["runs_in_kernel"] == 1


def test_a_kernel_that_died_after_its_notebook_is_replaced(run):
    release()
    process = psutil.Process(int(printed(run(PID))))
    process.kill()
    process.wait(60)
    assert used(run("1"))["runs_in_kernel"] == 1


def test_a_kernel_that_cannot_be_prepared_is_replaced(run):
    release()
    run("import ctypes; ctypes.CDLL.__init__.__code__ = (lambda *args, **kwargs: 1 / 0).__code__")
    assert used(run("1"))["runs_in_kernel"] == 1


def test_a_cold_run_leaves_the_warm_kernel_as_it_is(run):
    release()
    run("1")
    cold = run("import numpy as np; np.mean = None", warm=False)
    assert used(run("1"))["runs_in_kernel"] == 2
    assert used(cold)["changed"] == []
