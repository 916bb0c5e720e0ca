"""Cross-entropy of the logits of a dense layer on tensors of PyTorch, with gradients: straight to the library where nothing but autograd has to know of it,
and as the operation ``ferroflash::linear_cross_entropy`` where PyTorch has to. Gradients of that are ``ferroflash::linear_cross_entropy_backward``."""

import torch

from ._torch_cross_entropy import OPTIONS, check_reduction, named, reduced, targets_of
from ._torch_operators import (
    _is_grad_enabled,
    check_tensors,
    define,
    fakes_of,
    is_plain,
    matrix,
    nothing,
    of_autocast,
    rows,
    wants_gradients,
)
from .ops import linear_cross_entropy as _arrays
from .ops.cross_entropy import options_of


def linear_cross_entropy(
    x,
    weight,
    target,
    bias=None,
    *,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    logit_scale=1.0,
    lse_square_scale=0.0,
    return_z_loss=False,
    chunk_bytes=None,
):
    """Cross-entropy of the logits ``x weight^T + bias``, which are never in memory, in float32.

    Args:
        x: float16, bfloat16 or float32 ``(.., k)``. What no single stride steps through row by row is copied.
        weight: ``(classes, k)``; bias ``(classes,)``. All have x's type; under ``torch.autocast`` they take that one's.
        target: int64 or int32 of the shape of x without the last axis. One that is neither a class nor ``ignore_index`` makes the loss NaN, and the
            gradients of its row.
        ignore_index: rows with this target have a loss and gradients of 0, and are none of those that the mean is over; ``None`` is for no target.
        reduction: "mean", "sum" or "none".
        label_smoothing: share of a target that all classes have alike, from 0 to 1.
        logit_scale: factor on the logits, above 0.
        lse_square_scale: factor on the squares of the log-sum-exps, which are added to the losses.
        return_z_loss: whether to return the part that is of the log-sum-exps too, which has no gradients.
        chunk_bytes: bytes of gradients of logits that there are at a time, at most, or those of 256 classes. ``None`` is 512 MiB, or x in float32.

    Returns:
        The loss, or ``(loss, z_loss)`` with ``return_z_loss``: numbers, or of the target's shape without a reduction. The same tensors give the same bits, in
        gradients too.

    Raises:
        MissingFeatureError: for gradients of gradients.
        InputError, InputTypeError, DeviceError: before anything is launched.
    """
    check_tensors(x=x, weight=weight, target=target, bias=bias)
    check_reduction(reduction)
    # Whether they fit is said before targets are looked at.
    options_of(label_smoothing, logit_scale, lse_square_scale, ignore_index)
    targets = targets_of("targets", target, "x", x)
    x, weight, bias = of_autocast(x, weight, bias)
    options = (float(label_smoothing), float(logit_scale), float(lse_square_scale), ignore_index, _arrays.checked_bytes(chunk_bytes))
    call = (matrix(x), rows(weight), bias, targets, *options)
    if not is_plain(x, weight, bias, targets):
        losses, _, z_losses = torch.ops.ferroflash.linear_cross_entropy(*call)
    elif wants_gradients(x, weight, bias):
        losses, _, z_losses = _WithGradients.apply(*call)
    else:
        losses, _, z_losses = _run(*call)
    return reduced((losses, z_losses.detach()), target, ignore_index, reduction, return_z_loss)


class FusedLinearCrossEntropyLoss(torch.nn.Module):
    """:func:`linear_cross_entropy` as a module, whose call takes the weights first, as Liger Kernel's does."""

    def __init__(
        self,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="mean",
        return_z_loss=False,
        *,
        logit_scale=1.0,
        chunk_bytes=None,
    ):
        super().__init__()
        check_reduction(reduction)
        self.options = {
            "ignore_index": ignore_index,
            "reduction": reduction,
            "label_smoothing": label_smoothing,
            "logit_scale": logit_scale,
            "lse_square_scale": lse_square_scale,
            "return_z_loss": return_z_loss,
            "chunk_bytes": chunk_bytes,
        }

    def forward(self, lin_weight, input, target, bias=None):
        """The loss of logits ``input lin_weight^T + bias``."""
        return linear_cross_entropy(input, lin_weight, target, bias, **self.options)


class LinearCrossEntropy(torch.nn.Linear):
    """The last layer of a model and its loss: a ``torch.nn.Linear``, whose call with a target gives :func:`linear_cross_entropy`, and without one the logits.

    Args:
        in_features, out_features, bias, device, dtype: as those of ``torch.nn.Linear``; ``out_features`` are the classes.
        options: those of :func:`linear_cross_entropy`.
    """

    def __init__(self, in_features, out_features, bias=False, device=None, dtype=None, **options):
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.loss = FusedLinearCrossEntropyLoss(**options)

    def forward(self, input, target=None):
        """The loss of ``input`` with these targets, or its logits."""
        if target is None:
            return super().forward(input)
        return self.loss(self.weight, input, target, self.bias)


def _run(x, weight, bias, targets, *options):
    *options, _ = options
    return _arrays.forward(x, weight, targets, bias, **named(*options))


class _WithGradients(torch.autograd.Function):
    """The operation for plain tensors: the same launches, without what an operation of torch.library takes for its gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets, *options):
        losses, lse, z_losses = _run(x, weight, bias, targets, *options)
        ctx.save_for_backward(x, weight, bias, targets, lse)
        ctx.options = options
        ctx.mark_non_differentiable(lse, z_losses)
        return losses, lse, z_losses

    @staticmethod
    def backward(ctx, dlosses, *_):
        return _gradients(ctx, dlosses, torch.ops.ferroflash.linear_cross_entropy_backward if _is_grad_enabled() else _eager_backward)


def _gradients(ctx, dlosses, compute):
    wanted = tuple(ctx.needs_input_grad[:3])
    found = compute(*ctx.saved_tensors, dlosses, *ctx.options, *wanted)
    return *(gradient if is_wanted else None for gradient, is_wanted in zip(found, wanted)), *(None,) * 6


def _fake(x, weight, bias, targets, *options):
    losses = x.new_empty(x.shape[:-1], dtype=torch.float32)
    return losses, torch.empty_like(losses), torch.empty_like(losses)


def _keep(ctx, inputs, output):
    *tensors, ctx.options = *inputs[:4], tuple(inputs[4:])
    ctx.save_for_backward(*tensors, output[1])


def _gradients_of_operation(ctx, dlosses, *_):
    return _gradients(ctx, dlosses, torch.ops.ferroflash.linear_cross_entropy_backward)


def _eager_backward(x, weight, bias, targets, lse, dlosses, *options):
    *options, chunk_bytes, of_x, of_weight, of_bias = options
    options = {**named(*options), "chunk_bytes": chunk_bytes}
    options.update(input_gradient=of_x, weight_gradient=of_weight, bias_gradient=of_bias)
    # Autograd hands over gradients as they come: that of a sum is one number, repeated with strides of 0.
    found = _arrays.backward(x, weight, targets, bias, lse, dlosses.contiguous(), **options)
    return tuple(nothing(x) if tensor is None else tensor for tensor in found)


def _fake_backward(x, weight, bias, targets, lse, dlosses, *options):
    return fakes_of((x, weight, bias), options[-3:], x)


_OPTIONS = f"{OPTIONS}, int? chunk_bytes"
define(
    "linear_cross_entropy",
    f"Tensor x, Tensor weight, Tensor? bias, Tensor targets, {_OPTIONS}",
    "(Tensor, Tensor, Tensor)",
    _run,
    _fake,
    _gradients_of_operation,
    _keep,
)
define(
    "linear_cross_entropy_backward",
    f"Tensor x, Tensor weight, Tensor? bias, Tensor targets, Tensor lse, Tensor dlosses, {_OPTIONS}, bool of_x, bool of_weight, bool of_bias",
    "(Tensor, Tensor, Tensor)",
    _eager_backward,
    _fake_backward,
)
