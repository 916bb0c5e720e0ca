"""The functions of ``flash_attn.flash_attn_interface``, version 2.8, with their names, arguments, defaults and results.

What ferroflash does not do yet is a ``MissingFeatureError`` that names it. Beyond the original, float32 is accepted.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("the functions of flash_attn take tensors of PyTorch, which is not installed; `ferroflash.forward` needs none") from error

from . import _torch
from ._errors import missing

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]

_attend = _torch.attend
_VARLEN = "variable sequence lengths (cu_seqlens)"


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """Attention of q ``(batch, seqlen_q, nheads, headdim)`` and k, v ``(batch, seqlen_k, nheads_k, headdim)``, where ``nheads`` is a multiple
    of ``nheads_k``.

    Args:
        dropout_p: 0.0, until there is dropout.
        softmax_scale: factor on the scores; ``None`` is ``headdim ** -0.5``.
        causal: row ``i`` sees the keys up to ``i + seqlen_k - seqlen_q``: the mask ends at the last row and the last key.
        window_size: ``(left, right)``: row ``i`` sees the keys from ``i + seqlen_k - seqlen_q - left`` to ``i + seqlen_k - seqlen_q + right``;
            a negative number is no bound.
        softcap: scores ``s`` become ``softcap * tanh(s / softcap)`` before the mask; 0 and below is no bound.
        alibi_slopes: ``None``, until there is ALiBi.
        deterministic: whether the same tensors have to give the same gradients to the bit, by kernels that are slower on compute capability
            9.0; else dq may differ there in the last bits from run to run. ``torch.use_deterministic_algorithms(True)`` says the same. The
            forward pass gives the same bits, always.
        return_attn_probs: whether to return the log-sum-exp, too.

    Differentiable, the log-sum-exp too: q, k and v get gradients where they require one.

    Returns:
        ``out`` of q's shape; with ``return_attn_probs`` ``(out, softmax_lse, S_dmask)``: ``softmax_lse`` float32 ``(batch, nheads,
        seqlen_q)``, minus infinity for a row that sees no key; ``S_dmask`` is empty, as without dropout in the original.
    """
    if dropout_p or alibi_slopes is not None:
        raise _missing("flash_attn_func", dropout_p)
    left, right = window_size
    if softcap < 0.0:
        softcap = 0.0
    out, lse = _attend(q, k, v, softmax_scale, causal, left, right, softcap, deterministic, return_attn_probs)
    return (out, lse, q.new_empty((0,))) if return_attn_probs else out


def flash_attn_kvpacked_func(
    q,
    kv,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """:func:`flash_attn_func` with k and v in one tensor ``(batch, seqlen_k, 2, nheads_k, headdim)``. Nothing is copied."""
    if dropout_p or alibi_slopes is not None:
        raise _missing("flash_attn_kvpacked_func", dropout_p)
    k, v = kv.unbind(2)
    left, right = window_size
    if softcap < 0.0:
        softcap = 0.0
    out, lse = _attend(q, k, v, softmax_scale, causal, left, right, softcap, deterministic, return_attn_probs)
    return (out, lse, q.new_empty((0,))) if return_attn_probs else out


def flash_attn_qkvpacked_func(
    qkv,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """:func:`flash_attn_func` with q, k and v in one tensor ``(batch, seqlen, 3, nheads, headdim)``. Nothing is copied."""
    if dropout_p or alibi_slopes is not None:
        raise _missing("flash_attn_qkvpacked_func", dropout_p)
    q, k, v = qkv.unbind(2)
    left, right = window_size
    if softcap < 0.0:
        softcap = 0.0
    out, lse = _attend(q, k, v, softmax_scale, causal, left, right, softcap, deterministic, return_attn_probs)
    return (out, lse, q.new_empty((0,))) if return_attn_probs else out


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """Attention of sequences packed one behind the other. Raises :class:`ferroflash.MissingFeatureError`, until there is one."""
    raise missing("flash_attn_varlen_func", _VARLEN)


def flash_attn_varlen_kvpacked_func(
    q,
    kv,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """:func:`flash_attn_varlen_func` with k and v in one tensor."""
    raise missing("flash_attn_varlen_kvpacked_func", _VARLEN)


def flash_attn_varlen_qkvpacked_func(
    qkv,
    cu_seqlens,
    max_seqlen,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """:func:`flash_attn_varlen_func` with q, k and v in one tensor."""
    raise missing("flash_attn_varlen_qkvpacked_func", _VARLEN)


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    """Attention of q ``(batch, seqlen_q, nheads, headdim)`` over whole caches ``(batch, seqlen_cache, nheads_k, headdim)``. What makes caches
    caches (lengths, new keys and values, pages, rotary embedding) is a :class:`ferroflash.MissingFeatureError` each, until there is one.

    ``num_splits`` changes no result and is not asked.
    """
    for feature, argument in (
        ("a key-value cache with new keys and values (k, v)", k if k is not None else v),
        ("rotary embedding (rotary_cos, rotary_sin)", rotary_cos if rotary_cos is not None else rotary_sin),
        ("a key-value cache with lengths (cache_seqlens)", cache_seqlens),
        ("a key-value cache in another order (cache_batch_idx)", cache_batch_idx),
        ("a key-value cache with padding on the left (cache_leftpad)", cache_leftpad),
        ("a key-value cache in pages (block_table)", block_table),
        (_ALIBI, alibi_slopes),
    ):
        if argument is not None:
            raise missing("flash_attn_with_kvcache", feature)
    left, right = window_size
    out, lse = _attend(q, k_cache, v_cache, softmax_scale, causal, left, right, max(softcap, 0.0), False, return_softmax_lse)
    return (out, lse) if return_softmax_lse else out


_ALIBI = "ALiBi (alibi_slopes)"


def _missing(function, dropout_p):
    return missing(function, "dropout (dropout_p)" if dropout_p else _ALIBI)
