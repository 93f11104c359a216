"""Patch Triton's interpreter for flash-linear-attention's kernels: three gaps of triton 3.7.1, and emulated TF32.

Call `prepare()` before fla, or a modeling file of transformers, is imported.
"""

import ast
import os
from contextlib import contextmanager

import numpy as np

_rounding = False


def prepare():
    """Run Triton's kernels in its interpreter from now on; raises RuntimeError if fla is already imported."""
    import sys

    if "fla" in sys.modules:
        raise RuntimeError("fla was imported before the interpreter was prepared: its kernels are compiled ones.")
    os.environ["TRITON_INTERPRET"] = "1"

    from triton.runtime import autotuner, interpreter

    # On a GPU, candidate block sizes of a kernel are timed; here the first one is used.
    autotuner.Autotuner._bench = lambda self, *args, config, **kwargs: [0.0]

    # In compiled code a loop counter is a tensor; in the interpreter it is a plain int without `.to`.
    interpreter.ASTTransformer.visit_For = _with_a_tensor_as_counter

    # The interpreter's product of float32 factors ignores the requested precision.
    product = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, precision, imprecise):
        if _rounding and precision == interpreter._ir.INPUT_PRECISION.TF32:
            a, b = (_rounded(each, interpreter.TensorHandle) for each in (a, b))
        return product(self, a, b, d, precision, imprecise)

    interpreter.InterpreterBuilder.create_dot = create_dot


@contextmanager
def tf32():
    """Context manager that rounds the factors of products like TF32 on an NVIDIA GPU, where fla allows TF32."""
    global _rounding
    from fla.ops.gated_delta_rule import chunk_fwd
    from triton.language import constexpr

    # On a GPU with TF32, fla requests it explicitly for the triangular solve.
    previous, chunk_fwd.SOLVE_TRIL_DOT_PRECISION = chunk_fwd.SOLVE_TRIL_DOT_PRECISION, constexpr("tf32")
    _rounding = True
    try:
        yield
    finally:
        _rounding, chunk_fwd.SOLVE_TRIL_DOT_PRECISION = False, previous


def _with_a_tensor_as_counter(self, node):
    self.generic_visit(node)
    if isinstance(node.target, ast.Name):
        counter = node.target.id
        node.body.insert(0, ast.parse(f"{counter} = interpreter_semantic.to_tensor({counter}, False)").body[0])
    return node


def _rounded(handle, made):
    """Round float32 to a mantissa of 10 bits, to nearest even."""
    if handle.data.dtype != np.float32:
        return handle
    bits = np.ascontiguousarray(handle.data).view(np.uint32)
    odd = (bits >> 13) & 1
    return made(((bits + 0x0FFF + odd) & np.uint32(0xFFFFE000)).view(np.float32), handle.dtype)
