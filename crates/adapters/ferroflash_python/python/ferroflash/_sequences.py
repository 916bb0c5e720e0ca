"""Attention over sequences of different lengths, packed or in a cache, on arrays of any package."""

import sys

from . import _native
from ._errors import InputError
from ._forward import _bounds, _new_like
from ._program import bound, of_arrays


def forward_packed(
    q,
    k,
    v,
    q_starts,
    kv_starts,
    *,
    q_used=None,
    kv_used=None,
    longest_q=None,
    longest_kv=None,
    softmax_scale=None,
    causal=False,
    window=(None, None),
    softcap=0.0,
    program=None,
    tensors=None,
    sink=None,
    splits=0,
    split_keys=None,
    out=None,
    lse=None,
    return_lse=False,
    stream=None,
    device=None,
):
    """:func:`ferroflash.forward` of each of several sequences, packed one behind the other: q ``(rows, q_heads, head_dim)``, k and v ``(rows,
    kv_heads, head_dim)``. Masks are aligned to each sequence's own last row and last key.

    The numbers stay on the GPU: no call waits for them. Whatever they are, nothing outside of the arrays is touched. Sequences may have no rows,
    on either side.

    Args:
        q_starts, kv_starts: int32 ``(batch + 1,)``: first row of each sequence and the end of the last ("cu_seqlens").
        q_used, kv_used: int32 ``(batch,)``: how many rows of each sequence are in use ("seqused"); ``None``: all.
        longest_q, longest_kv: rows of the longest sequence, where they are known: a hint that changes no result.
        splits: into how many parts the keys of a sequence are split, so that more of the GPU works on few rows; 0 is the library's choice, by
            which the last bits of a result may depend on the other sequences.
        split_keys: keys of a part, a multiple of 64: bits that do not depend on them. One of the two.
        softmax_scale, causal, window, softcap, program, tensors, sink, stream, device: as in ``forward``. A program counts rows and keys from the
            first of each sequence, in a cache from the first in use.
        out: array of q's shape and type; ``None`` makes a new one. Rows that no sequence has in use are not written, there neither.
        lse: contiguous float32 ``(q_heads, rows)``, likewise.

    Returns:
        ``out``, or ``(out, lse)`` with ``return_lse``. Gradients are those of :func:`ferroflash.backward_packed`, by autograd for tensors of PyTorch.

    Raises:
        InputError, InputTypeError, MissingFeatureError, DeviceError: before anything is launched.
    """
    program = bound(program, tensors)
    given = (q, k, v, out, lse, None, None, None, None)
    numbers = (q_starts, q_used, kv_starts, kv_used, None, None, None, None, None)
    options = (softmax_scale, bool(causal), *_bounds(window), softcap, program, sink)
    hints = (longest_q, longest_kv)
    return _forward("forward_packed", given, numbers, hints, False, _split(splits, split_keys), options, return_lse, stream, device)


def forward_cached(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    *,
    lengths=None,
    first=None,
    entries=None,
    pages=None,
    q_starts=None,
    q_used=None,
    longest_q=None,
    new_starts=None,
    rotary_cos=None,
    rotary_sin=None,
    rotary_interleaved=False,
    rotary_positions=None,
    softmax_scale=None,
    causal=False,
    window=(None, None),
    softcap=0.0,
    program=None,
    tensors=None,
    sink=None,
    splits=0,
    split_keys=None,
    out=None,
    lse=None,
    return_lse=False,
    stream=None,
    device=None,
):
    """Attention of q ``(batch, q_rows, q_heads, head_dim)`` over keys and values in a cache ``(entries, rows, kv_heads, head_dim)`` with room for
    more rows than are there, or in pages ``(pages, page_rows, kv_heads, head_dim)``. What lies in rows that are not in use plays no part. Masks are
    aligned to the last row of q and the last key in use.

    With k and v ``(batch, new_rows, kv_heads, head_dim)`` these are written to the cache first, behind the rows in use, and attended to as well. Rows
    without room are left out. ``lengths`` stays as it is: who counts adds the new rows.

    Args:
        lengths: int32 ``(batch,)``: rows in use of each sequence, without new ones ("cache_seqlens"); ``None``: all. With k and v it is needed.
        first: int32 ``(batch,)``: first row in use ("cache_leftpad").
        entries: int32 ``(batch,)``: entry of the cache of each sequence ("cache_batch_idx").
        pages: int32 ``(batch, width)``: row ``t`` of sequence ``b`` is row ``t % page_rows`` of page ``pages[b, t // page_rows]`` ("block_table").
            Numbers behind the rows in use are never followed.
        q_starts, q_used, longest_q: as in :func:`ferroflash.forward_packed`, for q ``(rows, q_heads, head_dim)``.
        new_starts: int32 ``(batch + 1,)``: k and v are packed, ``(rows, kv_heads, head_dim)``, and start here.
        rotary_cos, rotary_sin: contiguous ``(positions, turned_dims / 2)`` of q's type: new keys, and q, are turned by their position. That of a new
            key is its row in the cache; that of row ``i`` of q is that of the first new key, plus ``i`` where there is a mask.
        rotary_interleaved: whether neighbouring columns are turned together (GPT-J); else the two halves of the turned columns (GPT-NeoX).
        rotary_positions: int32 ``(batch,)``: position of the first new key; ``None``: ``lengths``.
        softmax_scale, causal, window, softcap, program, tensors, sink, splits, split_keys, stream, device: as in
            :func:`ferroflash.forward_packed`.
        out: array of q's shape and type; ``None`` makes a new one.
        lse: contiguous float32 ``(batch, q_heads, q_rows)``, or ``(q_heads, rows)`` with ``q_starts``.

    Returns:
        ``out``, or ``(out, lse)`` with ``return_lse``. There are no gradients yet.

    Raises:
        InputError, InputTypeError, MissingFeatureError, DeviceError: before anything is launched.
    """
    program = bound(program, tensors)
    given = (q, k_cache, v_cache, out, lse, k, v, rotary_cos, rotary_sin)
    numbers = (q_starts, q_used, None, lengths, first, entries, new_starts, rotary_positions, pages)
    options = (softmax_scale, bool(causal), *_bounds(window), softcap, program, sink)
    interleaved, split = bool(rotary_interleaved), _split(splits, split_keys)
    return _forward("forward_cached", given, numbers, (longest_q, None), interleaved, split, options, return_lse, stream, device)


def _split(splits, split_keys):
    """How keys are split, as the extension module takes it: a number of parts, or the keys of a part below 0."""
    if splits < 0:
        raise InputError(f"splits is {splits}; numbers from 0 on are accepted, and 0 for the library's choice")
    if split_keys is None:
        return splits
    if splits:
        raise InputError(f"splits is {splits} and split_keys {split_keys}; one of the two is accepted")
    if split_keys <= 0:
        raise InputError(f"split_keys is {split_keys}; multiples of 64 are accepted")
    return -split_keys


def _forward(function, tensors, numbers, hints, interleaved, splits, options, return_lse, stream, device):
    q, k, v, out, lse, *of_new = tensors
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(q, torch.Tensor):
        from . import _torch_sequences

        return _torch_sequences.forward(function, tensors, numbers, hints, interleaved, splits, options, return_lse, stream)
    is_packed = numbers[0] is not None
    if out is None:
        out = _new_like(q, getattr(q, "shape", None), None)
    if return_lse and lse is None:
        shape = tuple(q.shape)
        if len(shape) != (3 if is_packed else 4):
            accepted = "3 axes where rows are packed (row, head, dim)" if is_packed else "4 axes (batch, row, head, dim)"
            raise InputError(f"q has {len(shape)} axes; {accepted} are accepted")
        lse = _new_like(q, (shape[1], shape[0]) if is_packed else (shape[0], shape[2], shape[1]), "float32")
    *options, program, sink = options
    given = (q, k, v, out, lse, *of_new)
    _native.forward_sequences(given, numbers, stream or 0, device, hints, interleaved, splits, *options, of_arrays(program), sink)
    return (out, lse) if return_lse else out
