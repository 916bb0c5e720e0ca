"""The functions of FlashAttention-4's ``flash_attn.cute``, with their names and arguments.

Functions that the CuTe DSL compiles (``score_mod``, ``mask_mod``) are a :class:`ferroflash.MissingFeatureError`: a :class:`ferroflash.ScoreProgram` is
the same here. Beyond the original, gradients go through a softcap, and keys are split on every GPU.
"""

from . import flash_attn_3 as _hopper
from . import flash_attn_interface as _interface
from ._errors import missing
from ._torch import prepared_sink as _prepared_sink

__all__ = ["flash_attn_func", "flash_attn_varlen_func"]


def _check(function, of_cute, of_blocks):
    for feature, given in (
        ("functions that the CuTe DSL compiles (score_mod, mask_mod, aux_tensors); ferroflash.ScoreProgram is the same for ferroflash.forward", of_cute),
        ("blocks of keys as tensors", of_blocks),
    ):
        if any(x is not None for x in given):
            raise missing(function, feature)


def _bounds(function, causal, window_size):
    """The bounds of a window, with -1 for none, by the rules of the original: bounds between which no key lies are no bounds at all."""
    left, right = window_size
    if causal:
        right = 0
    if left is not None and right is not None and left + right < 0:
        left = right = None
    if any(bound is not None and bound < 0 for bound in (left, right)):
        raise missing(function, f"a window with a bound below 0 ({tuple(window_size)})")
    return (-1 if left is None else left, -1 if right is None else right)


def flash_attn_func(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    window_size=(None, None),
    learnable_sink=None,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    mask_mod=None,
    full_block_cnt=None,
    full_block_idx=None,
    mask_block_cnt=None,
    mask_block_idx=None,
    block_size=None,
    return_lse=False,
):
    """Attention, as :func:`ferroflash.flash_attn_func`. ``num_splits`` and ``pack_gqa`` change no result and are not asked.

    Args:
        window_size: ``(left, right)``, both inclusive; ``None`` is no bound.
        learnable_sink: float16, bfloat16 or float32 ``(nheads,)``: a logit of each head of q that takes part in the softmax of its rows and has no
            value. With scores ``s`` a row gives ``sum(exp(s) * v) / (sum(exp(s)) + exp(sink))``, and the logarithm of that denominator as its
            log-sum-exp. It is not multiplied with ``softmax_scale``, and gets a gradient where it requires one.

    Returns:
        ``(out, softmax_lse)``; ``softmax_lse`` is float32 ``(batch, nheads, seqlen_q)`` with ``return_lse``, else ``None``.
    """
    of_blocks = (full_block_cnt, full_block_idx, mask_block_cnt, mask_block_idx, block_size)
    _check("flash_attn_func", (mask_mod,), of_blocks)
    left, right = _bounds("flash_attn_func", causal, window_size)
    sink = None if learnable_sink is None else _prepared_sink("learnable_sink", learnable_sink, q)
    _hopper._check_head_dims("flash_attn_func", k, v)
    return _interface._attend(q, k, v, softmax_scale, causal, left, right, max(softcap, 0.0), deterministic, return_lse, None, None, sink)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    seqused_q=None,
    seqused_k=None,
    page_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(None, None),
    learnable_sink=None,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    score_mod=None,
    mask_mod=None,
    block_sparse_tensors=None,
    cu_total_m_blocks=None,
    cu_total_n_blocks=None,
    aux_tensors=None,
    return_lse=False,
):
    """Attention of packed sequences, as FlashAttention-3's :func:`ferroflash.flash_attn_3.flash_attn_varlen_func`, and of sequences in a cache: without
    ``cu_seqlens_k``, k and v are ``(batch, seqlen_k, nheads_k, headdim)``, or pages of it with ``page_table``, of which ``seqused_k`` keys are in use;
    without ``cu_seqlens_q``, q is ``(batch, seqlen_q, nheads, headdim)``. ``window_size`` and ``learnable_sink`` are as in :func:`flash_attn_func`.
    ``num_splits`` of 0 is ferroflash's choice. Packed sequences have gradients, caches have none.

    Returns:
        ``(out, softmax_lse)``; ``softmax_lse`` is ``None`` without ``return_lse``. Rows that are not in use are not written.
    """
    name = "flash_attn_varlen_func"
    _check(name, (score_mod, mask_mod, aux_tensors), (block_sparse_tensors, cu_total_m_blocks, cu_total_n_blocks))
    left, right = _bounds(name, causal, window_size)
    sink = None if learnable_sink is None else _prepared_sink("learnable_sink", learnable_sink, q)
    _hopper._check_head_dims(name, k, v)
    softcap = max(softcap, 0.0)
    if all(x is None for x in (cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, page_table)):
        return _interface._attend(q, k, v, softmax_scale, causal, left, right, softcap, deterministic, return_lse, None, None, sink)
    tensors, hints = (q, k, v, None, None, None, None), (max_seqlen_q, max_seqlen_k)
    numbers = (cu_seqlens_q, seqused_q, cu_seqlens_k, seqused_k, None, None, None, None, page_table)
    options = (softmax_scale, causal, left, right, softcap, None, sink)
    return _interface._attend_sequences(name, tensors, numbers, hints, False, num_splits, options, return_lse)
