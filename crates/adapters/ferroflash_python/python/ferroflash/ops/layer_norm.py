"""RMSNorm and LayerNorm, with an addition before them.

``rms_norm_fn``, ``layer_norm_fn`` and ``RMSNorm`` are those of ``flash_attn.ops.triton.layer_norm``, on tensors of PyTorch and with gradients.
``forward`` and ``backward`` take any arrays.
"""

from .. import _native
from .._arrays import package_of, shape_of
from .._forward import _dropout

_OF_TORCH = ("LayerNorm", "RMSNorm", "layer_norm_fn", "rms_norm_fn")

__all__ = ["backward", "forward", *_OF_TORCH]


def forward(
    x,
    weight=None,
    bias=None,
    residual=None,
    *,
    eps=1e-6,
    is_rms_norm=False,
    zero_centered_weight=False,
    dropout_p=0.0,
    rng_state=None,
    rowscale=None,
    out=None,
    residual_out=None,
    mean=None,
    rstd=None,
    return_statistics=False,
    stream=None,
    device=None,
):
    """Normalises the rows along the last axis of x, or of its sum with ``residual``::

        h = dropout(rowscale x) + residual
        LayerNorm    rstd = 1 / sqrt(mean((h - mean)^2) + eps)    out = (h - mean) rstd weight + bias
        RMSNorm      rstd = 1 / sqrt(mean(h^2) + eps)             out = h rstd weight + bias

    Args:
        x: float16, bfloat16 or float32, of any shape. Columns are contiguous; other strides are free.
        weight, bias: ``(columns,)``, of x's type or float32, both the same.
        residual: of x's shape, of its type or float32.
        zero_centered_weight: whether ``1 + weight`` stands for ``weight``.
        dropout_p: probability with which each element of x is dropped before the sum; those that are kept are multiplied with ``1 / (1 - dropout_p)``.
        rng_state: ``(seed, offset)``, two whole numbers from 0 to below 2**64 that say which are dropped. A call takes one number behind ``offset``. For
            tensors of PyTorch also an int64 tensor of the two.
        rowscale: contiguous float32 of x's shape without its last axis: factors of the rows of x, before they are dropped.
        out: of x's shape and type; ``None`` makes a new array, for those of PyTorch, NumPy and CuPy.
        residual_out: of x's shape and the residual's type, for ``h``; there is one where there is a residual, dropout or ``rowscale``.
        mean, rstd: contiguous float32 of x's shape without its last axis. RMSNorm has no mean.
        return_statistics: whether to make ``mean`` and ``rstd`` where they are not given: gradients are computed from them.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``(out, residual_out, mean, rstd)``, with ``None`` for what there is not. On a GPU the call returns before the work is done.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    package = package_of(x)
    shape = shape_of("x", x)
    if out is None:
        out = package.new_like(x, shape, "x", "`out`")
    dropout = _dropout(dropout_p, rng_state)
    if residual_out is None and (residual is not None or dropout or rowscale is not None):
        residual_out = package.new_like(x, shape, "x", "`residual_out`", getattr(residual, "dtype", None))
    if return_statistics:
        if mean is None and not is_rms_norm:
            mean = package.new_like(x, shape[:-1], "x", "`mean`", "float32")
        if rstd is None:
            rstd = package.new_like(x, shape[:-1], "x", "`rstd`", "float32")
    named = [("x", x), ("weight", weight), ("bias", bias), ("residual", residual), ("rowscale", rowscale)]
    named += [("out", out), ("residual_out", residual_out), ("mean", mean), ("rstd", rstd)]
    tensors = package.told("ferroflash.ops.layer_norm.forward", named)
    options = (bool(is_rms_norm), float(eps), bool(zero_centered_weight), package.dropout_of(dropout, x))
    _native.norm(tensors, package.stream_of(x, stream), device, *options)
    return out, residual_out, mean, rstd


def backward(
    normalized,
    weight,
    bias,
    mean,
    rstd,
    dout,
    dresidual_out=None,
    *,
    eps=1e-6,
    is_rms_norm=False,
    zero_centered_weight=False,
    dropout_p=0.0,
    rng_state=None,
    rowscale=None,
    residual_gradient=True,
    weight_gradients=True,
    dx=None,
    dresidual=None,
    dweight=None,
    dbias=None,
    stream=None,
    device=None,
):
    """Gradients of :func:`forward`. The same arrays give the same bits.

    Args:
        normalized: what was normalised: x, or ``residual_out``.
        weight, bias, eps, is_rms_norm, zero_centered_weight, dropout_p, rng_state, rowscale: as in the call of ``forward``.
        mean, rstd: what it returned, with ``return_statistics``.
        dout: gradient with respect to ``out``, of its shape and type.
        dresidual_out: gradient with respect to ``residual_out``, of its type; ``None`` is 0.
        residual_gradient: whether to make ``dresidual`` where it is not given and dropout or ``rowscale`` makes it another than ``dx``.
        weight_gradients: whether to make ``dweight`` and ``dbias`` where they are not given, which takes sums over all rows.
        dx, dresidual, dweight, dbias: arrays that gradients are written to. ``None`` makes a new one where there is what it is the gradient of.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``(dx, dresidual, dweight, dbias)``. Without dropout and ``rowscale``, ``dresidual`` is ``dx`` where both have one type: x and the residual are
        addends of one sum.
    """
    package = package_of(dout)
    shape = shape_of("dout", dout)
    # Told apart by whatever the package calls its types.
    is_wide = getattr(normalized, "dtype", None) != getattr(dout, "dtype", None)
    if dx is None:
        dx = package.new_like(dout, shape, "dout", "`dx`")
    dropout = _dropout(dropout_p, rng_state)
    has_branch = dropout is not None or rowscale is not None
    if dresidual is None and (is_wide or has_branch and residual_gradient):
        dresidual = package.new_like(dout, shape, "dout", "`dresidual`", normalized.dtype)
    if weight_gradients and weight is not None and dweight is None:
        dweight = package.new_like(weight, shape_of("weight", weight), "weight", "`dweight`")
    if weight_gradients and bias is not None and dbias is None:
        dbias = package.new_like(bias, shape_of("bias", bias), "bias", "`dbias`")
    named = [("normalized", normalized), ("weight", weight), ("bias", bias), ("mean", mean), ("rstd", rstd), ("dout", dout)]
    named += [("dresidual_out", dresidual_out), ("rowscale", rowscale), ("dx", dx), ("dresidual", dresidual), ("dweight", dweight), ("dbias", dbias)]
    tensors = package.told("ferroflash.ops.layer_norm.backward", named)
    options = (bool(is_rms_norm), float(eps), bool(zero_centered_weight), package.dropout_of(dropout, dout))
    _native.norm_backward(tensors, package.stream_of(dout, stream), device, *options)
    return dx, dx if dresidual is None and not has_branch else dresidual, dweight, dbias


def __getattr__(name):
    if name in _OF_TORCH:
        from .. import _torch_norm

        return getattr(_torch_norm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
