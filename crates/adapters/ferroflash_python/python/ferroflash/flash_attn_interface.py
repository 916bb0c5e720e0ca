"""The functions of ``flash_attn.flash_attn_interface``, version 2.8, with their names, arguments, defaults and results.

What ferroflash does not do yet is a ``MissingFeatureError`` that names it. Beyond the original, float32 is accepted.
"""

try:
    import torch
except ImportError as error:
    raise ImportError("the functions of flash_attn take tensors of PyTorch, which is not installed; `ferroflash.forward` needs none") from error

from . import _torch, _torch_sequences
from ._errors import InputError, InputTypeError, missing

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
_drawn = _torch.drawn
_attend_sequences = _torch_sequences.attend


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
        dropout_p: probability with which each probability of a row is dropped, behind the softmax; those that are kept are multiplied with
            ``1 / (1 - dropout_p)``. On a GPU the numbers are those that flash_attn draws: the same seed of ``torch.manual_seed`` drops the same ones, and
            moves the generator on as far. While a graph is captured, and under torch.compile, they are drawn on the device, by PyTorch.
        softmax_scale: factor on the scores; ``None`` is ``headdim ** -0.5``.
        causal: row ``i`` sees the keys up to ``i + seqlen_k - seqlen_q``: the mask ends at the last row and the last key.
        window_size: ``(left, right)``: row ``i`` sees the keys from ``i + seqlen_k - seqlen_q - left`` to ``i + seqlen_k - seqlen_q + right``;
            a negative number is no bound.
        softcap: scores ``s`` become ``softcap * tanh(s / softcap)`` before the mask; 0 and below is no bound.
        alibi_slopes: float32 ``(nheads,)`` or ``(batch, nheads)`` on the tensors' device: the score of row ``i`` and key ``j`` is lowered by the slope
            of its head times ``|i + seqlen_k - seqlen_q - j|``, behind the softcap. Slopes get no gradient; q, k and v get theirs, but with slopes
            and a softcap ``backward`` is a :class:`ferroflash.MissingFeatureError`.
        deterministic: whether the same tensors have to give the same gradients to the bit, by kernels that are slower on compute capability
            9.0; else dq may differ there in the last bits from run to run. ``torch.use_deterministic_algorithms(True)`` says the same. The
            forward pass gives the same bits, always.
        return_attn_probs: whether to return the log-sum-exp, too.

    Differentiable, the log-sum-exp too: q, k and v get gradients where they require one.

    Returns:
        ``out`` of q's shape; with ``return_attn_probs`` ``(out, softmax_lse, S_dmask)``: ``softmax_lse`` float32 ``(batch, nheads,
        seqlen_q)``, minus infinity for a row that sees no key; ``S_dmask`` is empty, with dropout too.
    """
    left, right = window_size
    if softcap < 0.0:
        softcap = 0.0
    program = None if alibi_slopes is None else _alibi(alibi_slopes, q)
    dropout = _drawn(dropout_p, q) if dropout_p else None
    out, lse = _attend(q, k, v, softmax_scale, causal, left, right, softcap, deterministic, return_attn_probs, program, dropout)
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
    k, v = kv.unbind(2)
    left, right = window_size
    if softcap < 0.0:
        softcap = 0.0
    program = None if alibi_slopes is None else _alibi(alibi_slopes, q)
    dropout = _drawn(dropout_p, q) if dropout_p else None
    out, lse = _attend(q, k, v, softmax_scale, causal, left, right, softcap, deterministic, return_attn_probs, program, dropout)
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
    q, k, v = qkv.unbind(2)
    left, right = window_size
    if softcap < 0.0:
        softcap = 0.0
    program = None if alibi_slopes is None else _alibi(alibi_slopes, q)
    dropout = _drawn(dropout_p, q) if dropout_p else None
    out, lse = _attend(q, k, v, softmax_scale, causal, left, right, softcap, deterministic, return_attn_probs, program, dropout)
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
    """:func:`flash_attn_func` of each of several sequences, packed one behind the other: q ``(total_q, nheads, headdim)``, k and v ``(total_k,
    nheads_k, headdim)``. Masks end at each sequence's own last row and last key.

    Args:
        cu_seqlens_q, cu_seqlens_k: int32 ``(batch + 1,)`` on the tensors' device: first row of each sequence, and the end of the last. Sequences may
            have no rows. The numbers are not waited for.
        max_seqlen_q, max_seqlen_k: rows of the longest sequence: hints, with no influence on what is computed.
        block_table: int32 ``(batch, max_num_blocks_per_seq)``: k and v are pages ``(num_blocks, page_block_size, nheads_k, headdim)`` of any size, and
            row ``t`` of sequence ``b`` is row ``t % page_block_size`` of page ``block_table[b, t // page_block_size]``. ``cu_seqlens_k`` then says
            how many rows each sequence has, and where it starts plays no part.

    Returns:
        ``out`` of q's shape; with ``return_attn_probs`` ``(out, softmax_lse, S_dmask)``, ``softmax_lse`` float32 ``(nheads, total_q)``. Rows of no
        sequence are not written, and have gradients of 0. With ``block_table`` tensors that ask for gradients are a
        :class:`ferroflash.MissingFeatureError`.
    """
    if dropout_p:
        raise missing("flash_attn_varlen_func", _DROPOUT)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    options = (softmax_scale, causal, window_size, softcap, alibi_slopes)
    return _varlen("flash_attn_varlen_func", q, k, v, lengths, block_table, options, return_attn_probs)


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
    """:func:`flash_attn_varlen_func` with k and v in one tensor ``(total_k, 2, nheads_k, headdim)``. Nothing is copied."""
    if dropout_p:
        raise missing("flash_attn_varlen_kvpacked_func", _DROPOUT)
    k, v = kv.unbind(1)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    options = (softmax_scale, causal, window_size, softcap, alibi_slopes)
    return _varlen("flash_attn_varlen_kvpacked_func", q, k, v, lengths, None, options, return_attn_probs)


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
    """:func:`flash_attn_varlen_func` with q, k and v in one tensor ``(total, 3, nheads, headdim)``. Nothing is copied."""
    if dropout_p:
        raise missing("flash_attn_varlen_qkvpacked_func", _DROPOUT)
    q, k, v = qkv.unbind(1)
    lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    options = (softmax_scale, causal, window_size, softcap, alibi_slopes)
    return _varlen("flash_attn_varlen_qkvpacked_func", q, k, v, lengths, None, options, return_attn_probs)


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
    """Attention of q ``(batch, seqlen_q, nheads, headdim)`` over keys and values in a cache ``(batch_cache, seqlen_cache, nheads_k, headdim)``, or in
    pages ``(num_blocks, page_block_size, nheads_k, headdim)`` of any size. Masks end at the last row of q and the last key in use.

    Args:
        k, v: new keys and values ``(batch, seqlen_new, nheads_k, headdim)``, which are written to the cache behind the rows in use, and attended to
            as well. Rows without room are left out.
        rotary_cos, rotary_sin: contiguous ``(seqlen_ro, rotary_dim / 2)``, at least as many rows as the cache: new keys, and q, are turned by their
            position. That of a new key is its row; that of row ``i`` of q is ``cache_seqlens + i``, or ``cache_seqlens`` without a mask.
        cache_seqlens: an int, or int32 ``(batch,)`` on the tensors' device: rows in use, without new ones; needed with k and v. It stays as it is, and
            is not waited for.
        cache_batch_idx: int32 ``(batch,)``: entry of the cache of each sequence.
        cache_leftpad: int32 ``(batch,)``: first row in use.
        block_table: int32 ``(batch, max_num_blocks_per_seq)``: pages of each sequence; those behind the rows in use are never followed.
        rotary_interleaved: whether columns ``2 i`` and ``2 i + 1`` are turned together; else ``i`` and ``rotary_dim / 2 + i``.
        num_splits: parts that the keys of a sequence are split into; 0 is ferroflash's choice.

    Returns:
        ``out``, or ``(out, softmax_lse)`` with ``return_softmax_lse``: float32 ``(batch, nheads, seqlen_q)``.

    Tensors that ask for gradients are a :class:`ferroflash.MissingFeatureError`, but for whole caches without any of this.
    """
    program = None if alibi_slopes is None else _alibi(alibi_slopes, q)
    left, right = window_size
    softcap = max(softcap, 0.0)
    others = (k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx, cache_leftpad, block_table)
    is_one_row = q.dim() == 4 and q.shape[1] == 1 and not any(x.requires_grad for x in (q, k_cache, v_cache))
    if all(x is None for x in others) and num_splits <= 1 and not is_one_row:
        # Whole caches are uniform sequences, with gradients. But the keys of a single row are split, so that more of the GPU works on it.
        out, lse = _attend(q, k_cache, v_cache, softmax_scale, causal, left, right, softcap, False, return_softmax_lse, program)
        return (out, lse) if return_softmax_lse else out
    tensors = (q, k_cache, v_cache, k, v, rotary_cos, rotary_sin)
    numbers = (None, None, None, cache_seqlens, cache_leftpad, cache_batch_idx, None, None, block_table)
    options = (softmax_scale, causal, left, right, softcap, program, None)
    out, lse = _cached("flash_attn_with_kvcache", tensors, numbers, None, rotary_interleaved, num_splits, options, return_softmax_lse)
    return (out, lse) if return_softmax_lse else out


def _varlen(function, q, k, v, lengths, block_table, options, return_attn_probs):
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k = lengths
    scale, causal, window_size, softcap, alibi_slopes = options
    left, right = window_size
    if block_table is None:
        numbers = (cu_seqlens_q, None, cu_seqlens_k, None, None, None, None, None, None)
    else:
        # Computed where they are: nothing waits for them.
        used = cu_seqlens_k[1:] - cu_seqlens_k[:-1]
        numbers = (cu_seqlens_q, None, None, used, None, None, None, None, block_table)
    tensors, hints = (q, k, v, None, None, None, None), (max_seqlen_q, max_seqlen_k)
    program = None if alibi_slopes is None else _alibi(alibi_slopes, q, cu_seqlens_q.shape[0] - 1)
    options = (scale, causal, left, right, max(softcap, 0.0), program, None)
    out, lse = _attend_sequences(function, tensors, numbers, hints, False, 0, options, return_attn_probs)
    return (out, lse, q.new_empty((0,))) if return_attn_probs else out


def _cached(function, tensors, numbers, max_seqlen_q, rotary_interleaved, num_splits, options, return_lse):
    """Attention over a cache: what the original checks, as far as the library does not."""
    q, k_cache, _, k, v, cos, _ = tensors
    q_starts, _, _, lengths, _, _, new_starts, positions, table = numbers
    if (k is None) != (v is None):
        raise InputError(f"{function}: k and v are given together")
    if k is not None and lengths is None:
        raise InputError(f"{function}: k and v are written behind the rows in use; cache_seqlens must be given, too")
    if k is None and cos is not None:
        raise InputError(f"{function}: rotary_cos and rotary_sin turn new keys, and q with them; k and v must be given, too")
    if num_splits < 0:
        raise InputError(f"{function}: num_splits is {num_splits}; numbers from 0 on are accepted")
    rows = k_cache.shape[1] * (1 if table is None else table.shape[-1])
    if isinstance(lengths, int):
        new = 0 if k is None or new_starts is not None else k.shape[1]
        if not 0 <= lengths <= rows - new:
            raise InputError(f"{function}: cache_seqlens {lengths} and {new} new rows are not in the {rows} rows of the cache")
        batch = q.shape[0] if q_starts is None else q_starts.shape[0] - 1
        lengths = q.new_full((batch,), lengths, dtype=torch.int32)
        numbers = (*numbers[:3], lengths, *numbers[4:])
    if cos is not None and positions is None and cos.shape[0] < rows:
        raise InputError(f"{function}: rotary_cos has {cos.shape[0]} rows, the cache {rows}; every row needs one")
    hints = (max_seqlen_q, None)
    return _attend_sequences(function, tensors, numbers, hints, rotary_interleaved, num_splits, options, return_lse)


_DROPOUT = "dropout (dropout_p)"


def _alibi(slopes, q, batch=None):
    """The program of slopes, ``(heads,)`` or ``(batch, heads)``. They get no gradient, as in the original."""
    if not isinstance(slopes, torch.Tensor):
        raise InputTypeError(f"alibi_slopes is a {type(slopes).__name__}; a torch.Tensor is accepted")
    if slopes.dtype is not torch.float32:
        raise InputTypeError(f"alibi_slopes holds {slopes.dtype}; torch.float32 is accepted")
    if not isinstance(q, torch.Tensor) or q.dim() < 3:
        return None  # refused with the other tensors
    batch, heads = q.shape[0] if batch is None else batch, q.shape[-2]
    if slopes.shape == (heads,):
        slopes = slopes.unsqueeze(0)
    elif slopes.shape != (batch, heads):
        accepted = f"{(heads,)} (head) and {(batch, heads)} (batch, head) are accepted"
        raise InputError(f"alibi_slopes has shape {tuple(slopes.shape)}; {accepted}")
    return "alibi", ("slopes",), (slopes.detach(),), None
