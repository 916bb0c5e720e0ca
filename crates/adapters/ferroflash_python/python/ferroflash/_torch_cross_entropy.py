"""Cross-entropy on tensors of PyTorch, with gradients: straight to the library where nothing but autograd has to know of it, and as the operation
``ferroflash::cross_entropy`` where PyTorch has to. Gradients of that are the operation ``ferroflash::cross_entropy_backward``."""

import torch

from ._errors import InputError, InputTypeError, missing
from ._torch_operators import _is_grad_enabled, check_tensors, define, is_plain, refuse_shared, rows, wants_gradients
from .ops import cross_entropy as _arrays


def cross_entropy_loss(
    logits,
    labels,
    precomputed_lse=None,
    label_smoothing=0.0,
    logit_scale=1.0,
    lse_square_scale=0.0,
    ignore_index=-100,
    inplace_backward=False,
    process_group=None,
):
    """Cross-entropy of rows of logits, in float32.

    Args:
        logits: float16, bfloat16 or float32 ``(.., classes)``. A last axis with gaps is copied.
        labels: int64 or int32 of the shape of logits without the last axis. One that is neither a class nor ``ignore_index`` makes its loss and the
            gradients of its row NaN.
        label_smoothing: share of a label that all classes have alike, from 0 to 1.
        logit_scale: factor on the logits, above 0.
        lse_square_scale: factor on the squares of the log-sum-exps, which are added to the losses.
        ignore_index: rows with this label have a loss of 0, and gradients of 0.
        inplace_backward: whether gradients may take the place of the logits: then they are computed once. Under torch.compile they do not.

    Returns:
        ``(losses, z_losses)``, float32, of the shape of the labels. ``z_losses`` is the part that is of the log-sum-exps, without gradients.

    Raises:
        MissingFeatureError: for ``precomputed_lse``, and a ``process_group`` of more than one process.
        InputError, InputTypeError, DeviceError: before anything is launched.
    """
    check_tensors(logits=logits, labels=labels, precomputed_lse=precomputed_lse)
    if precomputed_lse is not None:
        raise missing("cross_entropy_loss", "precomputed_lse (log-sum-exps that are computed already)")
    refuse_shared("cross_entropy_loss", process_group)
    # Whether they fit is said before labels are looked at.
    _arrays.options_of(label_smoothing, logit_scale, lse_square_scale, ignore_index)
    labels = targets_of("labels", labels, "logits", logits)
    logits = rows(logits)
    options = (float(label_smoothing), float(logit_scale), float(lse_square_scale), ignore_index)
    if not is_plain(logits, labels):
        losses, _, z_losses = torch.ops.ferroflash.cross_entropy(logits, labels, *options)
    elif wants_gradients(logits):
        losses, _, z_losses = _WithGradients.apply(logits, labels, bool(inplace_backward), *options)
    else:
        losses, _, z_losses = _run(logits, labels, *options)
    return losses, z_losses.detach()


class CrossEntropyLoss(torch.nn.Module):
    """:func:`cross_entropy_loss`, and what becomes of the losses of rows: their mean over those that count, their sum, or nothing.

    Args:
        reduction: "mean", "sum" or "none".
        return_z_loss: whether to return the part that is of the log-sum-exps too.
    """

    def __init__(
        self,
        ignore_index=-100,
        reduction="mean",
        label_smoothing=0.0,
        logit_scale=1.0,
        lse_square_scale=0.0,
        inplace_backward=False,
        process_group=None,
        return_z_loss=False,
    ):
        super().__init__()
        check_reduction(reduction)
        self.reduction, self.return_z_loss, self.ignore_index = reduction, return_z_loss, ignore_index
        self.options = {
            "label_smoothing": label_smoothing,
            "logit_scale": logit_scale,
            "lse_square_scale": lse_square_scale,
            "ignore_index": ignore_index,
            "inplace_backward": inplace_backward,
            "process_group": process_group,
        }

    def forward(self, input, target, precomputed_lse=None):
        """The loss of logits ``(.., classes)`` with these targets; with ``return_z_loss`` ``(loss, z_loss)``."""
        losses = cross_entropy_loss(input, target, precomputed_lse, **self.options)
        return reduced(losses, target, self.ignore_index, self.reduction, self.return_z_loss)


def check_reduction(reduction):
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f"reduction is {reduction!r}; 'mean', 'sum' and 'none' are accepted")


def reduced(losses, target, ignore_index, reduction, return_z_loss):
    """What becomes of the losses of rows and their part of the log-sum-exp, ``(losses, z_losses)``."""
    if reduction != "none":
        losses = [x.sum() for x in losses]
    if reduction == "mean":
        counted = target.numel() if ignore_index is None else (target != ignore_index).sum()
        losses = [x / counted for x in losses]
    loss, z_loss = losses
    return (loss, z_loss) if return_z_loss else loss


def targets_of(name, targets, of, rows):
    """Targets of these rows, which are called ``of``, as the library takes them."""
    if targets.dtype not in (torch.int64, torch.int32):
        raise InputTypeError(f"{name} hold {targets.dtype}; torch.int64 and torch.int32 are accepted")
    if rows.dim() == 0 or targets.shape != rows.shape[:-1]:
        shape = tuple(rows.shape)
        raise InputError(f"{name} have shape {tuple(targets.shape)}, {of} {shape}; one for each row, {shape[:-1]}, is accepted")
    if targets.dtype is torch.int64:
        # One that 32 bits do not hold is no class, and must not become one.
        targets = targets.clamp(-(1 << 31), (1 << 31) - 1).to(torch.int32)
    return targets.contiguous()


def named(label_smoothing, logit_scale, lse_square_scale, ignore_index):
    return {
        "label_smoothing": label_smoothing,
        "logit_scale": logit_scale,
        "lse_square_scale": lse_square_scale,
        "ignore_index": ignore_index,
    }


def _run(logits, targets, *options):
    return _arrays.forward(logits, targets, **named(*options))


class _WithGradients(torch.autograd.Function):
    """The operation for plain tensors: the same launches, without what an operation of torch.library takes for its gradient."""

    @staticmethod
    def forward(ctx, logits, labels, in_place, *options):
        losses, lse, z_losses = _run(logits, labels, *options)
        ctx.save_for_backward(logits, labels, lse)
        ctx.in_place, ctx.options, ctx.is_spent = in_place, options, False
        ctx.mark_non_differentiable(lse, z_losses)
        return losses, lse, z_losses

    @staticmethod
    def backward(ctx, dlosses, *_):
        logits, labels, lse = ctx.saved_tensors
        nothing = (None,) * 6
        if _is_grad_enabled():
            return torch.ops.ferroflash.cross_entropy_backward(logits, labels, lse, dlosses, *ctx.options), *nothing
        if ctx.is_spent:
            raise InputError("cross_entropy_loss: with inplace_backward gradients are computed once; the logits are gone")
        ctx.is_spent = ctx.in_place
        dlogits = logits.detach() if ctx.in_place else None
        return _run_backward(logits, labels, lse, dlosses, *ctx.options, dlogits=dlogits), *nothing


def _run_backward(logits, labels, lse, dlosses, *options, dlogits=None):
    # Autograd hands over gradients as they come: that of a sum is one number, repeated with strides of 0.
    return _arrays.backward(logits, labels, lse, dlosses.contiguous(), **named(*options), dlogits=dlogits)


def _fake(logits, targets, *options):
    losses = logits.new_empty(logits.shape[:-1], dtype=torch.float32)
    return losses, torch.empty_like(losses), torch.empty_like(losses)


def _keep(ctx, inputs, output):
    logits, targets, *options = inputs
    ctx.save_for_backward(logits, targets, output[1])
    ctx.options = tuple(options)


def _gradients(ctx, dlosses, *_):
    return torch.ops.ferroflash.cross_entropy_backward(*ctx.saved_tensors, dlosses, *ctx.options), *(None,) * 5


OPTIONS = "float label_smoothing, float logit_scale, float lse_square_scale, int? ignore_index"
define("cross_entropy", f"Tensor logits, Tensor targets, {OPTIONS}", "(Tensor, Tensor, Tensor)", _run, _fake, _gradients, _keep)
define(
    "cross_entropy_backward",
    f"Tensor logits, Tensor targets, Tensor lse, Tensor dlosses, {OPTIONS}",
    "Tensor",
    _run_backward,
    lambda logits, *others: torch.empty_like(logits),
)
