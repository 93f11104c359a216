import json
import random

import pytest
from hypothesis import given, strategies as st

from qwenlab.checkpoint.anatomy import costs
from qwenlab.checkpoint.anatomy.anatomy import anatomy, catalogue
from qwenlab.errors import BadArgument, UnknownQuantization

MILLION, GIGA, MIB = 1e6, 1e9, 2**20


@pytest.fixture
def hand_counted(tiny_moe):
    """The 17.6 million parameters whose FLOPs were counted by hand, 512 tokens read."""
    return anatomy(tiny_moe)


def test_it_is_the_model_that_was_counted(hand_counted):
    assert hand_counted.total == pytest.approx(17.6 * MILLION, rel=0.005)


@pytest.mark.parametrize(
    ("term", "layers", "by_hand"),
    [
        (("linear_attention", "projections"), 6, 272.6),
        (("linear_attention", "convolution"), 6, 2.1),
        (("linear_attention", "rule"), 6, 75.5),
        (("linear_attention", "solves"), 6, 16.8),
    ],
)
def test_each_term_of_a_deltanet_layer_is_that_counted_by_hand(hand_counted, term, layers, by_hand):
    counted = hand_counted.flops(context=512).terms[term] / layers
    assert counted == pytest.approx(by_hand * MILLION, rel=0.01)


def test_each_layer_and_the_whole_model_are_those_counted_by_hand(hand_counted):
    cost = hand_counted.flops(context=512)
    assert cost.parts["linear_attention"] / 6 == pytest.approx(367.0 * MILLION, rel=0.001)
    assert cost.parts["full_attention"] / 2 == pytest.approx(402.9 * MILLION, rel=0.001)
    moe = cost.parts["router"] + cost.parts["experts"] + cost.parts["shared_expert"]
    assert moe / 8 == pytest.approx(507.8 * MILLION, rel=0.001)
    assert cost.total == pytest.approx(8.14 * GIGA, rel=0.001)


def test_the_recurrent_rule_is_that_counted_by_hand(hand_counted):
    step = hand_counted.flops("decode", context=100)
    assert step.terms["linear_attention", "rule"] == 6 * 57_344
    assert ("linear_attention", "solves") not in step.terms
    prompt = hand_counted.flops("prefill", context=512, rule="recurrent")
    assert prompt.terms["linear_attention", "rule"] / 6 == pytest.approx(29 * MILLION, rel=0.02)


def test_the_rule_counts_what_a_slow_loop_does(tiny_moe):
    """One token of the recurrence on plain numbers, every operation on the state counted as it happens."""
    sizes = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 3,
        "linear_value_head_dim": 5,
    }
    done = 0
    for _ in range(2):  # heads
        state = [[random.random() for _ in range(5)] for _ in range(3)]
        predicted, output = [0.0] * 5, [0.0] * 5
        for i in range(3):
            for j in range(5):
                state[i][j] *= 0.9  # decay
                predicted[j] += state[i][j] * 0.5  # S^T k
                done += 3
        for i in range(3):
            for j in range(5):
                state[i][j] += 0.5 * (1.0 - predicted[j])  # k delta^T
                output[j] += state[i][j] * 0.5  # S^T q
                done += 4
    cost = anatomy(tiny_moe | sizes | {"num_hidden_layers": 1}).flops("decode", context=1)
    assert cost.terms["linear_attention", "rule"] == done


@pytest.mark.parametrize("tokens", [64, 200])
@pytest.mark.parametrize("fixture", ["tiny_moe", "tiny_dense", "tiny_next", "tiny_olmo"])
def test_matrix_products_are_those_torch_counts(fixture, tokens, request):
    """torch's counter misses the solves and counts attention over the full square: those two are set right by hand."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = request.getfixturevalue(fixture)
    fields = {name: value for name, value in raw.items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(raw["model_type"], **fields), attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.randint(0, 4096, (1, tokens)), use_cache=False)

    cost = anatomy(raw).flops(context=tokens)
    full_square = cost.terms["full_attention", "scores"] * 2 * tokens / (tokens + 1)
    expected = cost.total - cost.terms["linear_attention", "solves"]
    expected += full_square - cost.terms["full_attention", "scores"]
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


@given(context=st.integers(1, 300), batch=st.integers(1, 5))
def test_a_batch_costs_its_sequences(context, batch):
    toy = anatomy("Qwen3.5-0.8B")
    for phase in ("prefill", "decode"):
        one, many = toy.flops(phase, context=context), toy.flops(phase, context=context, batch=batch)
        assert many.total == batch * one.total
        assert many.per_token == pytest.approx(one.per_token)


@given(pieces=st.lists(st.integers(1, 50), min_size=1), batch=st.integers(1, 4))
def test_reading_in_pieces_scores_each_pair_once(pieces, batch):
    read = [costs.CostedPass(new, sum(pieces[:piece]), batch) for piece, new in enumerate(pieces)]
    assert sum(step.pairs for step in read) == costs.CostedPass(sum(pieces), batch=batch).pairs


def test_logits_of_the_last_token_only(hand_counted):
    every, last = (hand_counted.flops(context=512, logits=which).parts["lm_head"] for which in ("all", "last"))
    assert every == 512 * last == 512 * 2 * 256 * 4096


def test_a_tied_head_is_computed_and_read_as_a_head():
    tied = anatomy("Qwen3.5-0.8B")
    assert tied.flops("decode", context=1).parts["lm_head"] == 2 * 248320 * 1024
    assert tied.bytes_moved("decode", context=1).parts["lm_head"] == 2 * 248320 * 1024
    assert tied.bytes_moved("decode", context=1).parts["embedding"] == 2 * 1024


def test_bytes_of_a_decode_step_counted_by_hand():
    """Qwen3.6-27B: every weight but vision, MTP and the embedding's other rows; the cache once; the states twice."""
    whole = anatomy("Qwen3.6-27B")
    moved = whole.bytes_moved("decode", context=4096)
    weights = 2 * (25_624_600_064 - 1_271_398_400 + 1_271_398_400)
    assert moved.total == weights + 2 * 5120 + 65_536 * 4096 + 2 * (144 * MIB + 3.75 * MIB)
    assert moved.terms["full_attention", "cache read"] == 65_536 * 4095
    assert moved.terms["full_attention", "cache written"] == 65_536


def test_a_prefill_reads_weights_once_and_writes_its_caches():
    whole = anatomy("Qwen3.6-27B")
    moved = whole.bytes_moved("prefill", context=1000, batch=3)
    assert moved.terms["mlp", "weights"] == 2 * 17_112_760_320
    assert moved.terms["full_attention", "cache read"] == moved.terms["linear_attention", "state read"] == 0
    assert moved.terms["full_attention", "cache written"] == 3 * 1000 * 65_536
    assert moved.terms["linear_attention", "state written"] == 3 * whole.state_bytes()


def test_one_token_reads_its_own_experts_and_many_read_most():
    moe = anatomy("Qwen3.6-35B-A3B")
    every = 2 * 32_212_254_720
    assert moe.bytes_moved("decode", context=1).parts["experts"] == pytest.approx(every * 8 / 256)
    assert moe.bytes_moved("prefill", context=4096).parts["experts"] == pytest.approx(every)


@pytest.mark.parametrize("tokens", [2, 7, 40])
def test_experts_touched_are_those_of_random_choices(tokens):
    moe = anatomy("Qwen3.6-35B-A3B")
    share = moe.bytes_moved("decode", context=1, batch=tokens).parts["experts"] / (2 * 32_212_254_720)
    draws = random.Random(0)
    seen = [len({expert for _ in range(tokens) for expert in draws.sample(range(256), 8)}) / 256 for _ in range(400)]
    assert share == pytest.approx(sum(seen) / len(seen), rel=0.02)


def test_fp8_files_are_as_large_as_published():
    """Payloads of the published shards: a DeltaNet layer, an attention layer, the MTP head, all the rest."""
    stored = anatomy("Qwen3.6-27B-FP8")
    sizes: dict[object, int] = {}
    for tensor in stored.tensors:
        place = tensor.layer if tensor.layer is not None else tensor.part == "mtp"
        key = ("layer", place) if tensor.layer is not None else ("mtp" if place else "outside")
        sizes[key] = sizes.get(key, 0) + costs.stored_bytes(tensor, stored.config)
    assert sizes["layer", 0] == 383_862_848
    assert sizes["layer", 3] == 372_311_424
    assert sizes["mtp"] == 477_199_744
    assert sizes["outside"] == 6_007_064_032
    assert stored.weight_bytes() == sum(sizes.values())
    assert stored.weight_bytes("bfloat16") == 2 * stored.total


def test_the_9b_files_are_as_large_as_published():
    assert anatomy("Qwen3.5-9B").weight_bytes() + 7_680 == 19_306_216_416  # 7,680 B: A_log and norm are float32 there


def test_bytes_of_an_unknown_quantisation_are_an_error():
    raw = json.loads(catalogue()["Qwen3.6-27B"].read_text()) | {"quantization_config": {"quant_method": "awq"}}
    odd = anatomy(raw)
    with pytest.raises(UnknownQuantization, match=r"stored as 'awq'[\s\S]*dtype='bfloat16'"):
        odd.weight_bytes()
    assert odd.weight_bytes("bfloat16") == 2 * odd.total
    assert odd.bytes_moved("decode", context=1, dtype="bfloat16").total > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_caches_hold_the_bytes_that_are_predicted(tiny_moe, dtype):
    """Against all cache tensors of a forward pass of transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in tiny_moe.items() if name != "model_type"}
    config = AutoConfig.for_model(tiny_moe["model_type"], **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        cache = model(input_ids=torch.randint(0, 4096, (3, 100)), use_cache=True).past_key_values

    kv = state = convolution = 0
    for layer in cache.layers:
        if hasattr(layer, "recurrent_states"):
            state += sum(tensor.nbytes for tensor in layer.recurrent_states.values())
            convolution += sum(tensor.nbytes for tensor in layer.conv_states.values())
        else:
            kv += layer.keys.nbytes + layer.values.nbytes
    predicted = anatomy(model)
    assert kv == predicted.kv_bytes(100, batch=3)
    assert state == predicted.recurrent_bytes(batch=3)
    assert convolution == predicted.convolution_bytes(batch=3)


def test_an_unknown_dtype_is_an_error():
    with pytest.raises(BadArgument, match=r"dtype 'int3' is unknown\.\nUse one of float64, float32"):
        anatomy("Qwen3.6-27B").kv_bytes(1, dtype="int3")
