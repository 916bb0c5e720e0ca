"""Softmax of rows, and its logarithm.

``softmax`` and ``log_softmax`` take tensors of PyTorch, and have gradients. ``forward`` and ``backward`` take any arrays.
"""

from .. import _native
from .._arrays import package_of, shape_of

_OF_TORCH = ("log_softmax", "softmax")

__all__ = ["backward", "forward", *_OF_TORCH]


def forward(x, *, log=False, scale=1.0, mask=None, causal=False, out=None, stream=None, device=None):
    """Softmax along the last axis, or its logarithm with ``log``::

        y = scale x + mask        out = exp(y) / sum(exp(y))        its logarithm: out = y - ln(sum(exp(y)))

    Args:
        x: float16, bfloat16 or float32, of any shape. Columns are contiguous; other strides are free.
        scale: any finite number.
        mask: of x's shape. One of x's type or float32 is added: minus infinity hides a column. One of booleans shows the columns where it is true, and
            hides what is in the others, NaN too. Rows may share its memory, by strides of 0.
        causal: whether row ``i`` of the ``rows`` along the axis before the last sees the first ``i + 1 + columns - rows`` columns alone.
        out: of x's shape and type; ``None`` makes a new array, for those of PyTorch, NumPy and CuPy.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``out``. A row that sees nothing is zeros, or minus infinities of the logarithm. On a GPU the call returns before the work is done.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    package = package_of(x)
    if out is None:
        out = package.new_like(x, shape_of("x", x), "x", "`out`")
    tensors = package.told("ferroflash.ops.softmax.forward", [("x", x), ("mask", mask), ("out", out)])
    _native.softmax(tensors, package.stream_of(x, stream), device, bool(log), float(scale), bool(causal))
    return out


def backward(out, dout, *, log=False, scale=1.0, dx=None, stream=None, device=None):
    """Gradients of :func:`forward` with respect to x::

        dx = scale out (dout - sum(out dout))        of the logarithm: dx = scale (dout - exp(out) sum(dout))

    Args:
        out: what ``forward`` returned.
        dout: gradient with respect to it, of its shape and type.
        log, scale: as in the call of ``forward``. Mask and causal rows are in ``out``.
        dx: of the shape and type of ``out``; ``None`` makes a new array.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``dx``.
    """
    package = package_of(out)
    if dx is None:
        dx = package.new_like(out, shape_of("out", out), "out", "`dx`")
    tensors = package.told("ferroflash.ops.softmax.backward", [("out", out), ("dout", dout), ("dx", dx)])
    _native.softmax_backward(tensors, package.stream_of(out, stream), device, bool(log), float(scale))
    return dx


def __getattr__(name):
    if name in _OF_TORCH:
        from .. import _torch_softmax

        return getattr(_torch_softmax, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
