"""Cross-entropy of the logits of a dense layer, which are never in memory: the last layer of a language model, and its loss.

``linear_cross_entropy``, ``FusedLinearCrossEntropyLoss`` and ``LinearCrossEntropy`` take tensors of PyTorch, and have gradients. ``forward`` and ``backward``
take any arrays.
"""

from .. import _native
from .._arrays import package_of
from .._errors import InputError
from .cross_entropy import numbers_of, options_of
from .fused_dense import gradients_of

_OF_TORCH = ("FusedLinearCrossEntropyLoss", "LinearCrossEntropy", "linear_cross_entropy")

__all__ = ["backward", "forward", *_OF_TORCH]


def forward(
    x,
    weight,
    targets,
    bias=None,
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
    """Losses of rows of logits with a target class each, without the logits::

        logits = x weight^T + bias        y = logit_scale logits        lse = ln(sum(exp(y)))
        loss = (1 - label_smoothing) (lse - y[target]) + label_smoothing (lse - mean(y)) + lse_square_scale lse^2

    Args:
        x: float16, bfloat16 or float32 ``(.., k)``. One stride steps through all rows.
        weight: ``(classes, k)``, of x's type.
        targets: contiguous int32, one for each row, in their order. One that is neither a class nor ignored makes its loss NaN.
        bias: contiguous ``(classes,)``, of x's type.
        logit_scale: above 0.
        ignore_index: rows with this target have a loss and gradients of 0; ``None`` is for no target.
        loss, lse, z_losses: contiguous float32 of the shape of x without the last axis; ``None`` makes a new array, for those of PyTorch, NumPy and
            CuPy. ``z_losses`` is the part of the losses that is of the log-sum-exps, ``lse_square_scale lse^2``.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``(loss, lse, z_losses)``. On a GPU the call returns before the work is done.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    package = package_of(x)
    loss, lse, z_losses = numbers_of(package, "x", x, loss, lse, z_losses)
    named = [("x", x), ("weight", weight), ("bias", bias), ("targets", targets), ("loss", loss), ("lse", lse), ("z_losses", z_losses)]
    tensors = package.told("ferroflash.ops.linear_cross_entropy.forward", named)
    options = options_of(label_smoothing, logit_scale, lse_square_scale, ignore_index)
    _native.linear_cross_entropy(tensors, package.stream_of(x, stream), device, options)
    return loss, lse, z_losses


def backward(
    x,
    weight,
    targets,
    bias,
    lse,
    dloss,
    *,
    label_smoothing=0.0,
    logit_scale=1.0,
    lse_square_scale=0.0,
    ignore_index=-100,
    chunk_bytes=None,
    input_gradient=True,
    weight_gradient=True,
    bias_gradient=True,
    dx=None,
    dweight=None,
    dbias=None,
    stream=None,
    device=None,
):
    """Gradients of :func:`forward`. The same arrays give the same bits::

        dlogits = logit_scale dloss (exp(y - lse) (1 + 2 lse_square_scale lse) - label_smoothing / classes - (1 - label_smoothing) [class = target])
        dx = dlogits weight        dweight = dlogits^T x        dbias = sum over rows of dlogits

    Args:
        x, weight, targets, bias, label_smoothing, logit_scale, lse_square_scale, ignore_index: as in the call of ``forward``.
        lse: what it returned.
        dloss: gradient with respect to the losses, contiguous float32 of their shape. Gradients of logits are rounded to x's type: of float16, those
            below 2^-25 are 0, so that a factor on the loss belongs here.
        chunk_bytes: bytes of gradients of logits that there are at a time, at most, or those of 256 classes. ``None`` is 512 MiB, or dx in float32.
        input_gradient, weight_gradient, bias_gradient: whether to make ``dx``, ``dweight`` and ``dbias`` where they are not given.
        dx, dweight, dbias: arrays that gradients are written to, of the shapes and types of x, weight and bias. ``None`` makes a new one where there is
            what it is the gradient of.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``(dx, dweight, dbias)``, with ``None`` for what there is not. On a GPU the call returns before the work is done.
    """
    package = package_of(x)
    wanted = (input_gradient, weight_gradient, bias_gradient)
    dx, dweight, dbias = gradients_of(package, (x, weight, bias), wanted, (dx, dweight, dbias))
    named = [("x", x), ("weight", weight), ("bias", bias), ("targets", targets), ("lse", lse), ("dloss", dloss)]
    named += [("dx", dx), ("dweight", dweight), ("dbias", dbias)]
    tensors = package.told("ferroflash.ops.linear_cross_entropy.backward", named)
    options = options_of(label_smoothing, logit_scale, lse_square_scale, ignore_index)
    chunk_bytes = checked_bytes(chunk_bytes)
    _native.linear_cross_entropy_backward(tensors, package.stream_of(x, stream), device, options, chunk_bytes)
    return dx, dweight, dbias


def checked_bytes(chunk_bytes):
    """The bound on gradients of logits, if it is one."""
    if chunk_bytes is not None and not 0 <= chunk_bytes < 1 << 63:
        raise InputError(f"chunk_bytes is {chunk_bytes}; numbers from 0 to 2^63 - 1 are accepted, and None")
    return chunk_bytes


def __getattr__(name):
    if name in _OF_TORCH:
        from .. import _torch_linear_cross_entropy

        return getattr(_torch_linear_cross_entropy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
