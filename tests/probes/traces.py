"""Traces that a block must not leave behind: hooks, wrappers, changed attributes."""

import sys

from qwenlab.checkpoint.decoder import decoder_of


def traces(model):
    """All that a hook or a wrapper could have changed."""
    modeling = sys.modules[decoder_of(model).family.modeling]
    hooks = {
        f"{name}.{kind}": dict(value) if isinstance(value, dict) else value
        for name, module in model.named_modules()
        for kind, value in vars(module).items()
        if "hooks" in kind
    }
    methods = ("forward", "_call_impl")
    forwards = {(name, m): vars(module).get(m) for name, module in model.named_modules() for m in methods}
    functions = dict(modeling.ALL_ATTENTION_FUNCTIONS._local_mapping), dict(modeling.ALL_ATTENTION_FUNCTIONS)
    return hooks, forwards, dict(vars(modeling)), functions, model.config.to_dict(), model.config._attn_implementation
