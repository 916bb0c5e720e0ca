"""Dense layers, with biases, an activation and a residual behind the product.

``fused_dense_func``, ``fused_mlp_func``, ``FusedDense`` and ``FusedMLP`` are those of ``flash_attn.ops.fused_dense``, on tensors of PyTorch and with
gradients. ``forward`` and ``backward`` take any arrays.
"""

from .. import _native
from .._arrays import package_of, shape_of
from .._errors import InputError, InputTypeError

_OF_TORCH = ("FusedDense", "FusedMLP", "fused_dense_func", "fused_mlp_func")

__all__ = ["backward", "forward", *_OF_TORCH]

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
        z: ``(.., n)``, of ``swiglu`` ``(.., 2 n)``: the sums before the activation, from which gradients are computed.
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


def backward(
    x,
    weight,
    bias,
    z,
    dout,
    *,
    activation=None,
    input_gradient=True,
    weight_gradient=True,
    bias_gradient=True,
    dx=None,
    dweight=None,
    dbias=None,
    stream=None,
    device=None,
):
    """Gradients of :func:`forward`; that of ``residual`` is ``dout``. The same arrays give the same bits::

        dz = dout activation'(z)      dx = dz weight      dweight = dz^T x      dbias = sum over rows of dz

    Args:
        x, weight, bias, activation: as in the call of ``forward``.
        z: what it returned, with ``return_z``. ``None`` computes it again, by a product more; without an activation it must be.
        dout: gradient with respect to ``out``, of its shape and type.
        input_gradient, weight_gradient, bias_gradient: whether to make ``dx``, ``dweight`` and ``dbias`` where they are not given.
        dx, dweight, dbias: arrays that gradients are written to, of the shapes of x, weight and bias. ``None`` makes a new one where there is what it
            is the gradient of.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``(dx, dweight, dbias)``, with ``None`` for what there is not. On a GPU the call returns before the work is done.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    package, activation = package_of(x), activation_of(activation)
    wanted = (input_gradient, weight_gradient, bias_gradient)
    dx, dweight, dbias = gradients_of(package, (x, weight, bias), wanted, (dx, dweight, dbias))
    named = [("x", x), ("weight", weight), ("bias", bias), ("z", z), ("dout", dout), ("dx", dx), ("dweight", dweight), ("dbias", dbias)]
    tensors = package.told("ferroflash.ops.fused_dense.backward", named)
    _native.dense_backward(tensors, package.stream_of(x, stream), device, activation)
    return dx, dweight, dbias


def gradients_of(package, layer, wanted, given):
    """The arrays of the gradients of a layer, x, weights and biases: those that are given, and new ones of what is wanted."""
    return (
        package.new_like(of, shape_of(name, of), name, f"`d{name}`") if is_wanted and of is not None and gradient is None else gradient
        for name, of, is_wanted, gradient in zip(("x", "weight", "bias"), layer, wanted, given)
    )


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
