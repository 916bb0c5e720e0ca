"""The functions of FlashAttention-3's ``flash_attn_interface`` (the hopper folder of flash-attn 2.8), with their names and arguments.

Which kernel runs is ferroflash's choice: FlashAttention-3's on compute capability 9.0, wherever addresses and strides permit it.
"""

import torch

from . import flash_attn_interface as _interface
from ._errors import InputError, missing
from ._torch import prepared_sink as _prepared_sink

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
    s_aux=None,
):
    """Attention, as :func:`ferroflash.flash_attn_func`. ``num_splits``, ``pack_gqa`` and ``sm_margin`` change no result and are
    not asked. ``s_aux`` is vLLM's: a logit of each head of q, ``(nheads,)``, that takes part in the softmax of its rows and has no value; here it gets a
    gradient.

    Returns:
        ``out``, or ``(out, softmax_lse)`` with ``return_attn_probs``.
    """
    _check("flash_attn_func", qv, (q_descale, k_descale, v_descale), attention_chunk)
    left, right = window_size
    sink = None if s_aux is None else _prepared_sink("s_aux", s_aux, q)
    options = (softmax_scale, causal, left, right, max(softcap, 0.0), deterministic, return_attn_probs)
    try:
        out, lse = _interface._attend(q, k, v, *options, None, None, sink)
    except InputError:
        # The original takes them. Asked only now, because a call that is right is not to wait for it.
        if v.shape[-1] != k.shape[-1]:
            raise missing("flash_attn_func", _DIFFERENT_DIMS) from None
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


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
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
    s_aux=None,
):
    """Attention of packed sequences, as :func:`ferroflash.flash_attn_varlen_func`, of which only the first ``seqused_q`` rows and ``seqused_k`` keys
    are in use, int32 ``(batch,)`` each. ``num_splits`` of 0 is ferroflash's choice; ``pack_gqa`` and ``sm_margin`` change no result and are not asked.
    ``s_aux`` is as in :func:`flash_attn_func`.

    Returns:
        ``out``, or ``(out, softmax_lse)`` with ``return_attn_probs``. Rows that are not in use are not written.
    """
    _check("flash_attn_varlen_func", qv, (q_descale, k_descale, v_descale), attention_chunk)
    _check_head_dims("flash_attn_varlen_func", k, v)
    left, right = window_size
    numbers = (cu_seqlens_q, seqused_q, cu_seqlens_k, seqused_k, None, None, None, None, None)
    tensors, hints = (q, k, v, None, None, None, None), (max_seqlen_q, max_seqlen_k)
    sink = None if s_aux is None else _prepared_sink("s_aux", s_aux, q)
    options = (softmax_scale, causal, left, right, max(softcap, 0.0), None, sink)
    out, lse = _interface._attend_sequences(
        "flash_attn_varlen_func", tensors, numbers, hints, False, num_splits, options, return_attn_probs
    )
    return (out, lse) if return_attn_probs else out


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    qv=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    page_table=None,
    cu_seqlens_q=None,
    cu_seqlens_k_new=None,
    max_seqlen_q=None,
    rotary_seqlens=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    rotary_interleaved=True,
    scheduler_metadata=None,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
    return_softmax_lse=False,
    s_aux=None,
):
    """Attention over a cache, as :func:`ferroflash.flash_attn_with_kvcache`; ``page_table`` is its ``block_table``, whose rows ``cache_batch_idx``
    chooses where both are given.

    With ``cu_seqlens_q``, int32 ``(batch + 1,)``, q is packed, ``(total_q, nheads, headdim)``, its longest sequence of ``max_seqlen_q`` rows; with
    ``cu_seqlens_k_new`` k and v are. ``rotary_seqlens``, int32 ``(batch,)``, is the position of the first new key where that is not
    ``cache_seqlens``. ``scheduler_metadata``, ``pack_gqa`` and ``sm_margin`` change no result and are not asked. ``s_aux`` is as in
    :func:`flash_attn_func`, without a gradient.

    Returns:
        ``out``, or ``(out, softmax_lse)`` with ``return_softmax_lse``: ``(batch, nheads, seqlen_q)``, ``(nheads, total_q)`` for a packed q.
    """
    _check("flash_attn_with_kvcache", qv, (q_descale, k_descale, v_descale), attention_chunk)
    _check_head_dims("flash_attn_with_kvcache", k_cache, v_cache)
    if page_table is not None and cache_batch_idx is not None:
        # Entries of the cache are rows of the table here.
        page_table, cache_batch_idx = page_table.index_select(0, cache_batch_idx), None
    if rotary_cos is None:
        rotary_seqlens = None
    left, right = window_size
    tensors = (q, k_cache, v_cache, k, v, rotary_cos, rotary_sin)
    of_cache = (cache_seqlens, cache_leftpad, cache_batch_idx, cu_seqlens_k_new, rotary_seqlens, page_table)
    numbers = (cu_seqlens_q, None, None, *of_cache)
    sink = None if s_aux is None else _prepared_sink("s_aux", s_aux, q)
    options = (softmax_scale, causal, left, right, max(softcap, 0.0), None, sink)
    out, lse = _interface._cached(
        "flash_attn_with_kvcache", tensors, numbers, max_seqlen_q, rotary_interleaved, num_splits, options, return_softmax_lse
    )
    return (out, lse) if return_softmax_lse else out


def _check_head_dims(function, k, v):
    if v.shape[-1] != k.shape[-1]:
        raise missing(function, _DIFFERENT_DIMS)


_DIFFERENT_DIMS = "a head dim of v that is not that of q and k"


def flash_attn_combine(*arguments, **named):
    """Merges partial results. Raises :class:`ferroflash.MissingFeatureError`, until there is one."""
    raise missing("flash_attn_combine", "merging of partial results (flash_attn_combine)")


def get_scheduler_metadata(
    batch_size,
    max_seqlen_q,
    max_seqlen_k,
    num_heads_q,
    num_heads_kv,
    headdim,
    cache_seqlens,
    qkv_dtype=torch.bfloat16,
    headdim_v=None,
    cu_seqlens_q=None,
    cu_seqlens_k_new=None,
    cache_leftpad=None,
    page_size=None,
    max_seqlen_k_new=0,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    has_softcap=False,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
):
    """What :func:`flash_attn_with_kvcache` takes as ``scheduler_metadata``: an empty int32 tensor. A call of ferroflash needs no schedule that was
    made ahead."""
    return cache_seqlens.new_empty((0,), dtype=torch.int32)
