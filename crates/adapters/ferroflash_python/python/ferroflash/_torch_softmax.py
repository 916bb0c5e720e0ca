"""Softmax of tensors of PyTorch, with gradients: straight to the library where nothing but autograd has to know of it, and as the operation
``ferroflash::softmax`` where PyTorch has to. Gradients of that are the operation ``ferroflash::softmax_backward``."""

import torch

from ._errors import InputError
from ._torch_operators import _is_grad_enabled, check_tensors, define, is_plain, refuse_gradients, rows, wants_gradients
from .ops import softmax as _arrays


def softmax(x, *, scale=1.0, mask=None, causal=False):
    """Softmax of ``scale x + mask`` along the last axis.

    Args:
        x: float16, bfloat16 or float32, of any shape. A last axis with gaps is copied.
        scale: any finite number.
        mask: of a shape that goes into x's as PyTorch's operations have it. One of x's type or float32 is added: minus infinity hides a column. One of
            torch.bool shows the columns where it is true, as that of ``scaled_dot_product_attention`` does. It has no gradient.
        causal: whether row ``i`` of the ``rows`` along the axis before the last sees the first ``i + 1 + columns - rows`` columns alone.

    Returns:
        Of x's shape and type. A row that sees nothing is zeros.

    Raises:
        InputError, InputTypeError, MissingFeatureError, DeviceError: before anything is launched.
    """
    return _softmax("softmax", x, False, scale, mask, causal)


def log_softmax(x, *, scale=1.0, mask=None, causal=False):
    """The logarithm of :func:`softmax`. A row that sees nothing is minus infinities."""
    return _softmax("log_softmax", x, True, scale, mask, causal)


def _softmax(name, x, is_log, scale, mask, causal):
    check_tensors(x=x, mask=mask)
    refuse_gradients(name, mask=mask)
    if mask is not None:
        try:
            mask = rows(mask).expand(x.shape)
        except RuntimeError:
            shapes = f"{tuple(mask.shape)} does not go into {tuple(x.shape)}"
            raise InputError(f"{name}: mask of shape {shapes}, that of x; extents of 1 and axes in front may be missing alone") from None
        # One number for all columns is repeated along them, which no stride does.
        mask = rows(mask)
    x, options = rows(x), (is_log, float(scale), bool(causal))
    if not is_plain(x, mask):
        return torch.ops.ferroflash.softmax(x, mask, *options)
    if wants_gradients(x):
        return _WithGradients.apply(x, mask, *options)
    return _run(x, mask, *options)


def _run(x, mask, is_log, scale, causal):
    return _arrays.forward(x, log=is_log, scale=scale, mask=mask, causal=causal)


class _WithGradients(torch.autograd.Function):
    """The operation for plain tensors: the same launches, without what an operation of torch.library takes for its gradient."""

    @staticmethod
    def forward(ctx, x, mask, *options):
        out = _run(x, mask, *options)
        ctx.save_for_backward(out)
        ctx.is_log, ctx.scale, _ = options
        return out

    @staticmethod
    def backward(ctx, dout):
        compute = torch.ops.ferroflash.softmax_backward if _is_grad_enabled() else _run_backward
        return compute(*ctx.saved_tensors, dout, ctx.is_log, ctx.scale), *(None,) * 4


def _run_backward(out, dout, is_log, scale):
    # Autograd hands over gradients as they come: that of a sum is one number, repeated with strides of 0.
    return _arrays.backward(out, rows(dout), log=is_log, scale=scale)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(output)
    _, _, ctx.is_log, ctx.scale, _ = inputs


def _gradients(ctx, dout):
    return torch.ops.ferroflash.softmax_backward(*ctx.saved_tensors, dout, ctx.is_log, ctx.scale), *(None,) * 4


_OPTIONS = "bool log, float scale"
define(
    "softmax",
    f"Tensor x, Tensor? mask, {_OPTIONS}, bool causal",
    "Tensor",
    _run,
    lambda x, *others: torch.empty_like(x),
    _gradients,
    _keep,
)
define(
    "softmax_backward",
    f"Tensor out, Tensor dout, {_OPTIONS}",
    "Tensor",
    _run_backward,
    lambda out, *others: torch.empty_like(out),
)
