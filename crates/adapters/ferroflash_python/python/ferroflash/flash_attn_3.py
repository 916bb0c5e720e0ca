"""The functions of FlashAttention-3's ``flash_attn_interface`` (the hopper folder of flash-attn 2.8), with their names and arguments.

Which kernel runs is ferroflash's choice: FlashAttention-3's on compute capability 9.0, wherever addresses and strides permit it.
"""

from . import flash_attn_interface as _interface
from ._errors import InputError, missing

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]


def _check(function, qv, descales, attention_chunk):
    for feature, given in (
        ("a second part of q for MLA (qv)", qv is not None),
        ("fp8 (q_descale, k_descale, v_descale)", any(descale is not None for descale in descales)),
        ("attention in chunks (attention_chunk)", bool(attention_chunk)),
    ):
        if given:
            raise missing(function, feature)


def flash_attn_func(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """Attention, as :func:`ferroflash.flash_attn_func`. ``num_splits``, ``pack_gqa`` and ``sm_margin`` change no result and are
    not asked.

    Returns:
        ``out``, or ``(out, softmax_lse)`` with ``return_attn_probs``.
    """
    _check("flash_attn_func", qv, (q_descale, k_descale, v_descale), attention_chunk)
    left, right = window_size
    try:
        out, lse = _interface._attend(q, k, v, softmax_scale, causal, left, right, max(softcap, 0.0), deterministic, return_attn_probs)
    except InputError:
        # The original takes them. Asked only now, because a call that is right is not to wait for it.
        if v.shape[-1] != k.shape[-1]:
            raise missing("flash_attn_func", "a head dim of v that is not that of q and k") from None
        raise
    return (out, lse) if return_attn_probs else out


def flash_attn_qkvpacked_func(
    qkv,
    softmax_scale=None,
    causal=False,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    deterministic=False,
    num_heads_q=None,
    sm_margin=0,
    return_attn_probs=False,
):
    """:func:`flash_attn_func` with q, k and v in one tensor: ``(batch, seqlen, 3, nheads, headdim)``, or ``(batch, seqlen, num_heads_q + 2 *
    nheads_k, headdim)`` with ``num_heads_q``. Nothing is copied."""
    _check("flash_attn_qkvpacked_func", None, (q_descale, k_descale, v_descale), attention_chunk)
    if num_heads_q is None:
        q, k, v = qkv.unbind(2)
    else:
        kv_heads = (qkv.shape[2] - num_heads_q) // 2
        q, k, v = qkv.split((num_heads_q, kv_heads, kv_heads), dim=2)
    left, right = window_size
    out, lse = _interface._attend(q, k, v, softmax_scale, causal, left, right, max(softcap, 0.0), deterministic, return_attn_probs)
    return (out, lse) if return_attn_probs else out


def flash_attn_varlen_func(*arguments, **named):
    """Attention of packed sequences. Raises :class:`ferroflash.MissingFeatureError`, until there is one."""
    raise missing("flash_attn_varlen_func", "variable sequence lengths (cu_seqlens)")


def flash_attn_with_kvcache(*arguments, **named):
    """Attention over a cache. Raises :class:`ferroflash.MissingFeatureError`, until there is one."""
    raise missing("flash_attn_with_kvcache", "a key-value cache (cache_seqlens, page_table)")


def flash_attn_combine(*arguments, **named):
    """Merges partial results. Raises :class:`ferroflash.MissingFeatureError`, until there is one."""
    raise missing("flash_attn_combine", "merging of partial results (flash_attn_combine)")


def get_scheduler_metadata(*arguments, **named):
    """A schedule made ahead for a cache. Raises :class:`ferroflash.MissingFeatureError`, until there is one."""
    raise missing("get_scheduler_metadata", "a key-value cache (cache_seqlens, page_table)")
