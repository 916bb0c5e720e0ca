"""Rows of an embedding table.

``embedding`` and ``Embedding`` take tensors of PyTorch, and have gradients. ``forward`` and ``backward`` take any arrays.
"""

from .. import _native
from .._arrays import package_of, shape_of

_OF_TORCH = ("Embedding", "embedding")

__all__ = ["backward", "forward", *_OF_TORCH]


def forward(ids, table, *, scale=1.0, padding=None, out=None, stream=None, device=None):
    """The rows of a table that numbers name: ``out[token] = scale table[ids[token]]``.

    Args:
        ids: contiguous int32, of any shape. One below 0 is taken for 0, and one behind the table for its last row.
        table: float16, bfloat16 or float32 ``(vocabulary, columns)``, columns contiguous.
        padding: row of the table that gets no gradient.
        out: of the shape of ids and ``(columns,)`` behind, of the table's type; ``None`` makes a new array, for those of PyTorch, NumPy and CuPy.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``out``. On a GPU the call returns before the work is done.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    package = package_of(table)
    if out is None:
        out = package.new_like(table, shape_of("ids", ids) + shape_of("table", table)[-1:], "table", "`out`")
    tensors = package.told("ferroflash.ops.embedding.forward", [("table", table), ("ids", ids), ("out", out)])
    _native.embedding(tensors, package.stream_of(table, stream), device, float(scale), padding)
    return out


def backward(ids, table, dout, *, scale=1.0, padding=None, accumulate=False, dtable=None, stream=None, device=None):
    """The gradient of :func:`forward` with respect to the table: ``dtable[id] = scale (sum of dout over the tokens that name id)``. The same arrays
    give the same bits.

    Args:
        ids, table, scale, padding: as in the call of ``forward``.
        dout: gradient with respect to ``out``, of its shape and type.
        accumulate: whether to add to ``dtable``.
        dtable: of the table's shape, of its type or float32; ``None`` makes a new array of its type.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``dtable``.
    """
    package = package_of(table)
    if dtable is None and not accumulate:
        dtable = package.new_like(table, shape_of("table", table), "table", "`dtable`")
    named = [("table", table), ("ids", ids), ("dout", dout), ("dtable", dtable)]
    tensors = package.told("ferroflash.ops.embedding.backward", named)
    _native.embedding_backward(tensors, package.stream_of(table, stream), device, float(scale), padding, bool(accumulate))
    return dtable


def __getattr__(name):
    if name in _OF_TORCH:
        from .. import _torch_embedding

        return getattr(_torch_embedding, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
