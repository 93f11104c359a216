"""Tiny models that the tests share; none of them may be changed."""

import pytest
import torch

from qwenlab.testing.models import tiny_model

FAMILIES = {
    "dense": dict(family="qwen3_5", num_key_value_heads=1, linear_num_key_heads=4, linear_num_value_heads=8),
    "moe": dict(family="qwen3_5_moe", linear_value_head_dim=8),
    # Layer 1 is dense, and the weights of the top k are used as they come.
    "next": dict(family="qwen3_next", mlp_only_layers=[1], norm_topk_prob=False),
    # As it is published, with negative eigenvalues and without positions; and with neither of the two.
    "olmo": dict(family="olmo_hybrid", linear_value_head_dim=24),
    "olmo_with_positions": dict(
        family="olmo_hybrid",
        linear_allow_neg_eigval=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}


@pytest.fixture(scope="session", params=FAMILIES)
def model(request):
    """Each family: three DeltaNet layers and one of attention."""
    return tiny_model(**FAMILIES[request.param])


@pytest.fixture(scope="session")
def moe():
    return tiny_model("qwen3_5_moe")


@pytest.fixture(scope="session")
def small():
    """The quickest model with all parts: one layer of each kind, routed experts."""
    return tiny_model("qwen3_5_moe", layer_types=["linear_attention", "full_attention"], hidden_size=32, head_dim=32)


@pytest.fixture(scope="session")
def dense():
    return tiny_model("qwen3_5", layer_types=["linear_attention", "full_attention"], hidden_size=32, head_dim=32)


@pytest.fixture(scope="session")
def text():
    """text(n, seed) -> n token ids, never the one that ends a text."""

    def draw(tokens, seed=0):
        return torch.randint(1, 280, (tokens,), generator=torch.Generator().manual_seed(seed))

    return draw
