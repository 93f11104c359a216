"""Known config fields of each family, from the published config.json files and the classes of transformers.

Any other field may change what a model computes: `read_config` warns about it, or raises when strict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwenlab.checkpoint.families import Family


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields that any config may carry: those of transformers' base class, its older names, and quantised releases.
_ANY = _words("""
    architectures bos_token_id chunk_size_feed_forward dtype eos_token_id id2label is_encoder_decoder label2id
    model_type output_attentions output_hidden_states pad_token_id problem_type quantization_config return_dict
    torch_dtype transformers_version use_cache
""")

_ROOT = _ANY | _words("""
    image_token_id language_model_only mtp_num_hidden_layers text_config tie_word_embeddings video_token_id
    vision_config vision_end_token_id vision_start_token_id
""")

_TEXT = _ANY | _words("""
    attention_bias attention_dropout head_dim hidden_act hidden_size initializer_range intermediate_size layer_types
    linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads linear_num_value_heads linear_value_head_dim
    max_position_embeddings num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps rope_parameters
    tie_word_embeddings vocab_size
""")

_QWEN = _words("""
    attn_output_gate full_attention_interval mamba_ssm_dtype mlp_only_layers mtp_layer_types mtp_num_hidden_layers
    mtp_use_dedicated_embeddings num_mtp_layers output_gate_type partial_rotary_factor rope_scaling rope_theta
""")

_OLMO_HYBRID = _words("""
    linear_a_log_max linear_a_log_min linear_allow_neg_eigval linear_dt_init_floor linear_dt_max linear_dt_min
""")

_SPARSE = _words("""
    moe_intermediate_size num_experts num_experts_per_tok output_router_logits router_aux_loss_coef
    shared_expert_intermediate_size
""")

_QWEN3_NEXT = _words("decoder_sparse_step norm_topk_prob num_nextn_predict_layers use_sliding_window")

_VISION = _ANY | _words("""
    deepstack_visual_indexes depth hidden_act hidden_size in_channels initializer_range intermediate_size num_heads
    num_position_embeddings out_hidden_size patch_size rope_parameters spatial_merge_size temporal_patch_size
""")


def unknown_fields(family: Family, raw: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of the fields of `raw` that are not known for `family`, in the order of the config."""
    known_text = _TEXT.union(
        _OLMO_HYBRID if family.name == "olmo_hybrid" else _QWEN,
        _SPARSE if family.sparse else (),
        _QWEN3_NEXT if family.dense_layers else (),
    )
    if raw.get("model_type") == family.text_type:
        return list(_outside(known_text, raw, ""))
    text, vision = raw.get("text_config"), raw.get("vision_config")
    return [
        *_outside(_ROOT, raw, ""),
        *_outside(known_text, text or {}, "text_config."),
        *_outside(_VISION, vision or {}, "vision_config."),
    ]


def _outside(known: frozenset[str], fields: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield names in `fields` but not in `known`; private ones (`_name_or_path`) belong to transformers."""
    return (prefix + name for name in fields if name not in known and not name.startswith("_"))
