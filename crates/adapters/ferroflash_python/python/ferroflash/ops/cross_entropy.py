"""Cross-entropy of rows of logits.

``cross_entropy_loss`` is that of ``flash_attn.ops.triton.cross_entropy``, and ``CrossEntropyLoss`` that of ``flash_attn.losses.cross_entropy``, on tensors
of PyTorch and with gradients. ``forward`` and ``backward`` take any arrays.
"""

from .. import _native
from .._arrays import package_of, shape_of
from .._errors import InputError

_OF_TORCH = ("CrossEntropyLoss", "cross_entropy_loss")

__all__ = ["backward", "forward", *_OF_TORCH]


def forward(
    logits,
    targets,
    *,
    label_smoothing=0.0,
    logit_scale=1.0,
    lse_square_scale=0.0,
    ignore_index=-100,
    loss=None,
    lse=None,
    z_losses=None,
    stream=None,
    device=None,
):
    """Losses of rows of logits with a target class each::

        y = logit_scale logits        lse = ln(sum(exp(y)))
        loss = (1 - label_smoothing) (lse - y[target]) + label_smoothing (lse - mean(y)) + lse_square_scale lse^2

    Args:
        logits: float16, bfloat16 or float32 ``(.., classes)``. Classes are contiguous; other strides are free.
        targets: contiguous int32, one for each row, in their order. One that is neither a class nor ignored makes its loss NaN.
        logit_scale: above 0.
        ignore_index: rows with this target have a loss and gradients of 0; ``None`` is for no target.
        loss, lse, z_losses: contiguous float32 of the shape of logits without the last axis; ``None`` makes a new array, for those of PyTorch, NumPy
            and CuPy. ``z_losses`` is the part of the losses that is of the log-sum-exps, ``lse_square_scale lse^2``.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``(loss, lse, z_losses)``. On a GPU the call returns before the work is done.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    package = package_of(logits)
    loss, lse, z_losses = numbers_of(package, "logits", logits, loss, lse, z_losses)
    named = [("logits", logits), ("targets", targets), ("loss", loss), ("lse", lse), ("z_losses", z_losses)]
    tensors = package.told("ferroflash.ops.cross_entropy.forward", named)
    options = options_of(label_smoothing, logit_scale, lse_square_scale, ignore_index)
    _native.cross_entropy(tensors, package.stream_of(logits, stream), device, options)
    return loss, lse, z_losses


def backward(
    logits,
    targets,
    lse,
    dloss,
    *,
    label_smoothing=0.0,
    logit_scale=1.0,
    lse_square_scale=0.0,
    ignore_index=-100,
    dlogits=None,
    stream=None,
    device=None,
):
    """Gradients of :func:`forward` with respect to the logits::

        dlogits = logit_scale dloss (exp(y - lse) (1 + 2 lse_square_scale lse) - label_smoothing / classes - (1 - label_smoothing) [class = target])

    Args:
        logits, targets, label_smoothing, logit_scale, lse_square_scale, ignore_index: as in the call of ``forward``.
        lse: what it returned.
        dloss: gradient with respect to the losses, contiguous float32 of their shape.
        dlogits: of the shape and type of logits, or the logits themselves, which are gone then; ``None`` makes a new array.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``dlogits``.
    """
    package = package_of(logits)
    if dlogits is None:
        dlogits = package.new_like(logits, shape_of("logits", logits), "logits", "`dlogits`")
    named = [("logits", logits), ("targets", targets), ("lse", lse), ("dloss", dloss), ("dlogits", dlogits)]
    tensors = package.told("ferroflash.ops.cross_entropy.backward", named)
    options = options_of(label_smoothing, logit_scale, lse_square_scale, ignore_index)
    _native.cross_entropy_backward(tensors, package.stream_of(logits, stream), device, options)
    return dlogits


def numbers_of(package, name, rows, loss, lse, z_losses):
    """The arrays of a number a row: those that are given, and new ones."""
    shape = shape_of(name, rows)[:-1]
    return (
        package.new_like(rows, shape, name, f"`{of}`", "float32") if given is None else given
        for of, given in (("loss", loss), ("lse", lse), ("z_losses", z_losses))
    )


def options_of(label_smoothing, logit_scale, lse_square_scale, ignore_index):
    """The options as the extension module takes them."""
    if ignore_index is not None and not -(1 << 31) <= ignore_index < 1 << 31:
        raise InputError(f"ignore_index is {ignore_index}; numbers of 32 bits with a sign are accepted, as targets are, and None")
    return float(logit_scale), float(label_smoothing), float(lse_square_scale), ignore_index


def __getattr__(name):
    if name in _OF_TORCH:
        from .. import _torch_cross_entropy

        return getattr(_torch_cross_entropy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
