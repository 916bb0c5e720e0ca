"""Rotary embedding of tensors of PyTorch, with gradients: straight to the library where nothing but autograd has to know of it, and as the operation
``ferroflash::rotary`` where PyTorch has to. Its gradient is the opposite turn, the operation itself."""

import torch
from torch import Tensor

from ._errors import InputError, InputTypeError
from ._torch_operators import check_tensors, define, is_plain, mark_written, refuse_gradients, rows, wants_gradients
from .ops import rotary as _arrays


def apply_rotary_emb(x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None):
    """Turns the first columns of each head of x by the angles of its row's position.

    Args:
        x: float16, bfloat16 or float32 ``(batch, seqlen, nheads, headdim)``, or ``(total, nheads, headdim)`` with ``cu_seqlens``. A last axis with
            gaps is copied, unless it is ``inplace``.
        cos, sin: ``(positions, turned / 2)``, of x's type or float32, both the same. They have no gradients.
        interleaved: whether neighbours are pairs (GPT-J); without it, columns ``i`` and ``turned / 2 + i`` are (GPT-NeoX).
        inplace: whether x is turned where it is.
        seqlen_offsets: position of the first row, or an int32 or int64 tensor with that of each batch entry or sequence.
        cu_seqlens: int32 ``(batch + 1,)``, first rows of packed sequences.
        max_seqlen: rows of the longest sequence; it changes no result.

    Returns:
        The turned rows, in x's shape and type; x itself with ``inplace``.

    Raises:
        InputError, InputTypeError, MissingFeatureError, DeviceError: before anything is launched.
    """
    check_tensors(x=x, cos=cos, sin=sin, cu_seqlens=cu_seqlens)
    refuse_gradients("apply_rotary_emb", cos=cos, sin=sin)
    axes = 4 if cu_seqlens is None else 3
    if x.dim() != axes:
        accepted = "(batch, seqlen, nheads, headdim) is" if axes == 4 else "(total, nheads, headdim) is, with cu_seqlens,"
        raise InputError(f"x has {x.dim()} axes; {accepted} accepted")
    if cu_seqlens is not None and cu_seqlens.dtype is not torch.int32:
        raise InputTypeError(f"cu_seqlens holds {cu_seqlens.dtype}; torch.int32 is accepted")
    offset, offsets = seqlen_offsets, None
    if isinstance(seqlen_offsets, Tensor):
        if seqlen_offsets.dtype not in (torch.int32, torch.int64):
            raise InputTypeError(f"seqlen_offsets holds {seqlen_offsets.dtype}; torch.int32 and torch.int64 are accepted")
        offset, offsets = 0, seqlen_offsets.to(torch.int32).contiguous()
    elif offset < 0:
        raise InputError(f"seqlen_offsets is {offset}; 0 or above is accepted")
    tables = (cos.contiguous(), sin.contiguous(), offsets, None if cu_seqlens is None else cu_seqlens.contiguous())
    if not inplace:
        x = rows(x)
    elif x.dim() and x.stride(-1) != 1 and x.shape[-1] > 1:
        raise InputError(f"the last axis of x has stride {x.stride(-1)}; with inplace it must be contiguous (stride 1)")
    options = (offset, bool(interleaved), False)
    if not is_plain(x, *tables):
        turned = torch.ops.ferroflash.rotary(x, *tables, *options)
        return x.copy_(turned) if inplace else turned
    if wants_gradients(x):
        return _WithGradients.apply(x, inplace, *tables, *options)
    if inplace:
        mark_written(x)
    return _run(x, *tables, *options, inplace=inplace)


def _run(x, cos, sin, offsets, starts, offset, interleaved, conjugate, inplace=False):
    named = {"offset": offset, "interleaved": interleaved, "conjugate": conjugate, "inplace": inplace}
    return _arrays.forward(x, cos, sin, offsets=offsets, starts=starts, **named)


class _WithGradients(torch.autograd.Function):
    """The operation for plain tensors: the same launches, without what an operation of torch.library takes for its gradient."""

    @staticmethod
    def forward(ctx, x, inplace, *arguments):
        *tables, ctx.offset, ctx.interleaved, ctx.conjugate = arguments
        ctx.save_for_backward(*tables)
        if inplace:
            ctx.mark_dirty(x)
        return _run(x, *arguments, inplace=inplace)

    @staticmethod
    def backward(ctx, dout):
        # Where gradients of gradients are recorded, they are those of this turn.
        options = (ctx.offset, ctx.interleaved, not ctx.conjugate)
        tables, dout = ctx.saved_tensors, rows(dout)
        dx = _WithGradients.apply(dout, False, *tables, *options) if wants_gradients(dout) else _run(dout, *tables, *options)
        return dx, *(None,) * 8


def _keep(ctx, inputs, output):
    _, *tables, ctx.offset, ctx.interleaved, ctx.conjugate = inputs
    ctx.save_for_backward(*tables)


def _gradients(ctx, dout):
    options = (ctx.offset, ctx.interleaved, not ctx.conjugate)
    return torch.ops.ferroflash.rotary(dout, *ctx.saved_tensors, *options), *(None,) * 7


def _eager(x, *arguments):
    # Autograd hands over gradients as they come: that of a sum is one number, repeated with strides of 0.
    return _run(rows(x), *arguments)


define(
    "rotary",
    "Tensor x, Tensor cos, Tensor sin, Tensor? offsets, Tensor? starts, SymInt offset, bool interleaved, bool conjugate",
    "Tensor",
    _eager,
    lambda x, *others: torch.empty_like(rows(x)),
    _gradients,
    _keep,
)
