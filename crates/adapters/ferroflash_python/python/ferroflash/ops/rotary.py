"""Rotary embedding of queries and keys.

``apply_rotary_emb`` is that of ``flash_attn.layers.rotary``, on tensors of PyTorch and with gradients. ``forward`` takes any arrays.
"""

from .. import _native
from .._arrays import package_of, shape_of
from .._errors import InputError

_OF_TORCH = ("apply_rotary_emb",)

__all__ = ["forward", *_OF_TORCH]


def forward(
    x,
    cos,
    sin,
    *,
    interleaved=False,
    conjugate=False,
    offset=0,
    offsets=None,
    positions=None,
    starts=None,
    inplace=False,
    out=None,
    stream=None,
    device=None,
):
    """Turns the pairs of the first columns of each row and head by the angles that the tables have for the row's position::

        x' = x cos - y sin        y' = x sin + y cos

    Args:
        x: float16, bfloat16 or float32 ``(batch, rows, heads, columns)`` or ``(rows, heads, columns)``. Columns are contiguous; other strides are free.
        cos, sin: contiguous ``(positions, turned / 2)``, of x's type or float32, both the same. ``turned`` columns are turned, those behind copied.
        interleaved: whether neighbours are pairs (GPT-J); without it, columns ``i`` and ``turned / 2 + i`` are (GPT-NeoX).
        conjugate: whether to turn the other way, which takes a turn back: that of the gradient.
        offset: position of the first row of each batch entry or sequence.
        offsets: the same for each of them, int32, in place of ``offset``.
        positions: of each row of all batch entries, int32, in place of both.
        starts: int32 first rows of sequences that x ``(rows, heads, columns)`` holds one behind the other, and the number of all rows behind the last.
        inplace: whether x is turned where it is.
        out: of x's shape and type; ``None`` makes a new array, for those of PyTorch, NumPy and CuPy.
        stream, device: as in :func:`ferroflash.forward`.

    Numbers of arrays are not read on the host: a position below 0 is taken for 0, and one behind the tables for their last.

    Returns:
        ``out``, or x with ``inplace``. On a GPU the call returns before the work is done.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    package = package_of(x)
    if inplace and out is not None:
        raise InputError("inplace and out are given; one of the two is accepted")
    given = [name for name, of in (("offset", offset or None), ("offsets", offsets), ("positions", positions)) if of is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are given; one of them is accepted")
    if offset < 0:
        raise InputError(f"offset is {offset}; 0 or above is accepted")
    if out is None and not inplace:
        out = package.new_like(x, shape_of("x", x), "x", "`out`")
    named = [("x", x), ("cos", cos), ("sin", sin), ("offsets", offsets), ("positions", positions), ("starts", starts), ("out", out)]
    tensors = package.told("ferroflash.ops.rotary.forward", named)
    _native.rotary(tensors, package.stream_of(x, stream), device, offset, bool(interleaved), bool(conjugate))
    return x if inplace else out


def __getattr__(name):
    if name in _OF_TORCH:
        from .. import _torch_rotary

        return getattr(_torch_rotary, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
