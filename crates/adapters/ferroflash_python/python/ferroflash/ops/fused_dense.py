"""Dense layers, with biases, an activation and a residual behind the product. Forward alone: there are no gradients yet.

``fused_dense_func`` and ``fused_mlp_func`` are those of ``flash_attn.ops.fused_dense``, on tensors of PyTorch. ``forward`` takes any arrays.
"""

from .. import _native
from .._arrays import package_of, shape_of
from .._errors import InputError, InputTypeError

_OF_TORCH = ("fused_dense_func", "fused_mlp_func")

__all__ = ["forward", *_OF_TORCH]

# What else activations are called: by nothing, and by flash_attn and PyTorch.
_NAMES = {None: "identity", "gelu_approx": "gelu_tanh", "gelu": "gelu_erf"}


def forward(x, weight, bias=None, residual=None, *, activation=None, out=None, z=None, return_z=False, stream=None, device=None):
    """A dense layer of rows::

        z = x weight^T + bias          out = activation(z) + residual

    Args:
        x: float16, bfloat16 or float32 ``(.., k)``. One stride steps through all rows.
        weight: ``(n, k)``; of ``swiglu`` ``(2 n, k)``, the rows of the gate first. All arrays have x's type.
        bias: contiguous, one for each row of the weights.
        residual: ``(.., n)``.
        activation: ``None``, "relu", "gelu" (by erf; "gelu_erf" is the same), "gelu_tanh" ("gelu_approx"), "silu", or "swiglu", ``silu(gate) up``.
        out: ``(.., n)``; ``None`` makes a new array, for those of PyTorch, NumPy and CuPy.
        z: ``(.., n)``, of ``swiglu`` ``(.., 2 n)``: the sums before the activation.
        return_z: whether to make ``z`` where it is not given.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``(out, z)``, where z is ``None`` unless it is asked for. On a GPU the call returns before the work is done.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    package, activation = package_of(x), activation_of(activation)
    sums, columns = sums_and_columns(weight, activation)
    rows = shape_of("x", x)[:-1]
    if out is None:
        out = package.new_like(x, (*rows, columns), "x", "`out`")
    if return_z and z is None:
        z = package.new_like(x, (*rows, sums), "x", "`z`")
    named = [("x", x), ("weight", weight), ("bias", bias), ("residual", residual), ("out", out), ("z", z)]
    _native.dense(package.told("ferroflash.ops.fused_dense.forward", named), package.stream_of(x, stream), device, activation)
    return out, z


def activation_of(activation):
    """The library's name of an activation."""
    if activation is not None and not isinstance(activation, str):
        raise InputTypeError(f"activation is a {type(activation).__name__}; a name is accepted, and None")
    return _NAMES.get(activation, activation)


def sums_and_columns(weight, activation):
    """The sums of a row, and the columns that they make."""
    shape = shape_of("weight", weight)
    if len(shape) != 2:
        raise InputError(f"weight has {len(shape)} axes; 2 (n, k) are accepted")
    return shape[0], shape[0] // 2 if activation == "swiglu" else shape[0]


def __getattr__(name):
    if name in _OF_TORCH:
        from .. import _torch_dense

        return getattr(_torch_dense, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
