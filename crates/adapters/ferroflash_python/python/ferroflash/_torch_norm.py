"""RMSNorm and LayerNorm on tensors of PyTorch, with gradients: straight to the library where nothing but autograd has to know of it, and as the
operation ``ferroflash::norm`` where PyTorch has to. Gradients of that are the operation ``ferroflash::norm_backward``."""

import torch

from ._errors import InputError, missing
from ._torch_operators import _is_grad_enabled, check_tensors, define, is_plain, nothing, rows, wants_gradients
from .ops import layer_norm as _arrays


def layer_norm_fn(
    x,
    weight,
    bias,
    residual=None,
    x1=None,
    weight1=None,
    bias1=None,
    eps=1e-6,
    dropout_p=0.0,
    rowscale=None,
    prenorm=False,
    residual_in_fp32=False,
    zero_centered_weight=False,
    is_rms_norm=False,
    return_dropout_mask=False,
    out_dtype=None,
    out=None,
    residual_out=None,
):
    """LayerNorm of the rows of ``x + residual`` along the last axis, or RMSNorm with ``is_rms_norm``.

    Args:
        x: float16, bfloat16 or float32, of any shape. A last axis with gaps is copied.
        weight, bias: ``(columns,)``, of x's type or float32, both the same; ``None`` for none.
        residual: of x's shape, of its type or float32.
        prenorm: whether to return the sum too, which is x without a residual.
        residual_in_fp32: whether the sum is float32 where no residual says its type.
        zero_centered_weight: whether ``1 + weight`` stands for ``weight``.
        out, residual_out: tensors that results are written to, of calls that record no gradients.

    Returns:
        The result, of x's type, or ``(result, sum)`` with ``prenorm``. Both have gradients.

    Raises:
        MissingFeatureError: for ``x1``, ``weight1``, ``bias1``, ``rowscale``, ``dropout_p`` above 0, ``return_dropout_mask`` and another ``out_dtype``
            than x's.
        InputError, InputTypeError, DeviceError: before anything is launched.
    """
    name = "rms_norm_fn" if is_rms_norm else "layer_norm_fn"
    refused = [
        ("x1", x1 is not None, "a second addend"),
        ("weight1", weight1 is not None, "a second result"),
        ("bias1", bias1 is not None, "a second result"),
        ("rowscale", rowscale is not None, "a factor of each row"),
        ("dropout_p", dropout_p > 0, f"dropout before the sum, with a probability of {dropout_p}, where 0 is accepted"),
        ("return_dropout_mask", return_dropout_mask, "the mask of a dropout"),
    ]
    for argument, is_given, meaning in refused:
        if is_given:
            raise missing(name, f"{argument} ({meaning})")
    check_tensors(x=x, weight=weight, bias=bias, residual=residual, out=out, residual_out=residual_out)
    if out_dtype is not None and out_dtype != x.dtype:
        raise missing(name, f"out_dtype {out_dtype} for x of {x.dtype} (a result of another type than x)")
    options = (bool(is_rms_norm), float(eps), bool(zero_centered_weight))
    x, residual = rows(x), rows(residual)
    if residual is None and residual_out is not None:
        raise InputError(f"{name}: residual_out is given, and no residual; without one the sum is x itself")
    normalized, total = _normalize(name, x, weight, bias, residual, options, out, residual_out)
    if not prenorm:
        return normalized
    if total is None:
        total = x.float() if residual_in_fp32 else x
    return normalized, total


def rms_norm_fn(
    x,
    weight,
    bias,
    residual=None,
    x1=None,
    weight1=None,
    bias1=None,
    eps=1e-6,
    dropout_p=0.0,
    rowscale=None,
    prenorm=False,
    residual_in_fp32=False,
    zero_centered_weight=False,
    return_dropout_mask=False,
    out_dtype=None,
    out=None,
    residual_out=None,
):
    """RMSNorm of the rows of ``x + residual`` along the last axis: :func:`layer_norm_fn` with ``is_rms_norm``."""
    unlikely = (x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32, zero_centered_weight)
    return layer_norm_fn(x, weight, bias, residual, *unlikely, True, return_dropout_mask, out_dtype, out, residual_out)


def _normalize(name, x, weight, bias, residual, options, out, residual_out):
    """The result, and its sum with the residual, if there is one."""
    tensors = (x, weight, bias, residual)
    with_gradients = wants_gradients(*tensors, out, residual_out)
    if out is not None or residual_out is not None:
        if with_gradients:
            raise missing(name, "a gradient through `out` or `residual_out`")
        return _run(*tensors, *options, out=out, residual_out=residual_out)[:2]
    if not is_plain(*tensors):
        normalized, total, _, _ = torch.ops.ferroflash.norm(*tensors, *options)
        return normalized, None if residual is None else total
    if with_gradients:
        return _WithGradients.apply(*tensors, *options)
    return _run(*tensors, *options)[:2]


def _run(x, weight, bias, residual, is_rms_norm, eps, zero_centered_weight, **given):
    named = {"is_rms_norm": is_rms_norm, "eps": eps, "zero_centered_weight": zero_centered_weight}
    return _arrays.forward(x, weight, bias, residual, **named, **given)


class _WithGradients(torch.autograd.Function):
    """The operation for plain tensors: the same launches, without what an operation of torch.library takes for its gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, *options):
        out, total, mean, rstd = _run(x, weight, bias, residual, *options, return_statistics=True)
        ctx.options = options
        ctx.save_for_backward(x if total is None else total, weight, bias, mean, rstd)
        ctx.dtype, ctx.has_residual = x.dtype, residual is not None
        ctx.set_materialize_grads(False)
        return out, total

    @staticmethod
    def backward(ctx, dout, dtotal):
        return _gradients(ctx, dout, dtotal, torch.ops.ferroflash.norm_backward if _is_grad_enabled() else _eager_backward)


def _gradients(ctx, dout, dtotal, compute):
    normalized, weight, bias, mean, rstd = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(normalized, dtype=ctx.dtype)
    # Frozen weights take no sums over the rows.
    of_weight, of_bias = ctx.needs_input_grad[1:3]
    options = (*ctx.options, of_weight or of_bias)
    dx, dresidual, dweight, dbias = compute(normalized, weight, bias, mean, rstd, dout, dtotal, *options)
    if ctx.has_residual and normalized.dtype == ctx.dtype:
        dresidual = dx
    keep = (True, of_weight, of_bias, ctx.has_residual)
    return *(x if kept else None for x, kept in zip((dx, dweight, dbias, dresidual), keep)), None, None, None


def _eager(x, *arguments):
    found = _run(x, *arguments, return_statistics=True)
    return tuple(nothing(x) if tensor is None else tensor for tensor in found)


def _fake(x, weight, bias, residual, is_rms_norm, eps, zero_centered_weight):
    statistics = x.new_empty(x.shape[:-1], dtype=torch.float32)
    total = nothing(x) if residual is None else torch.empty_like(x, dtype=residual.dtype)
    return torch.empty_like(x), total, nothing(x) if is_rms_norm else statistics, torch.empty_like(statistics)


def _keep(ctx, inputs, output):
    x, weight, bias, residual, *options = inputs
    _, total, mean, rstd = output
    ctx.options = tuple(options)
    ctx.save_for_backward(x if residual is None else total, weight, bias, None if options[0] else mean, rstd)
    ctx.dtype, ctx.has_residual = x.dtype, residual is not None
    ctx.set_materialize_grads(False)


def _gradients_of_operation(ctx, dout, dtotal, dmean, drstd):
    # Without a residual, the sum is an empty tensor.
    return _gradients(ctx, dout, dtotal if ctx.has_residual else None, torch.ops.ferroflash.norm_backward)


def _eager_backward(normalized, weight, bias, mean, rstd, dout, dtotal, is_rms_norm, eps, zero_centered_weight, weight_gradients):
    options = {"is_rms_norm": is_rms_norm, "eps": eps, "zero_centered_weight": zero_centered_weight, "weight_gradients": weight_gradients}
    # Autograd hands over gradients as they come: that of a sum is one number, repeated with strides of 0.
    found = _arrays.backward(normalized, weight, bias, mean, rstd, rows(dout), rows(dtotal), **options)
    dx, dresidual, dweight, dbias = found
    # An operation returns no tensor twice.
    dresidual = None if dresidual is dx else dresidual
    return tuple(nothing(dout) if tensor is None else tensor for tensor in (dx, dresidual, dweight, dbias))


def _fake_backward(normalized, weight, bias, mean, rstd, dout, dtotal, *options):
    dx = torch.empty_like(rows(dout))
    dresidual = None if normalized.dtype == dout.dtype else torch.empty_like(dx, dtype=normalized.dtype)
    of_columns = (torch.empty_like(x) if options[-1] and x is not None else None for x in (weight, bias))
    return tuple(nothing(dout) if tensor is None else tensor for tensor in (dx, dresidual, *of_columns))


_OPTIONS = "bool is_rms_norm, float eps, bool zero_centered_weight"
_FOUR = "(Tensor, Tensor, Tensor, Tensor)"
define(
    "norm", f"Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, {_OPTIONS}", _FOUR, _eager, _fake, _gradients_of_operation, _keep
)
define(
    "norm_backward",
    f"Tensor normalized, Tensor? weight, Tensor? bias, Tensor? mean, Tensor rstd, Tensor dout, Tensor? dtotal, {_OPTIONS}, bool weight_gradients",
    _FOUR,
    _eager_backward,
    _fake_backward,
)


class _Norm(torch.nn.Module):
    _IS_RMS = False

    def __init__(self, hidden_size, eps, dropout_p, zero_centered_weight, bias, device, dtype):
        super().__init__()
        if dropout_p > 0:
            raise missing(type(self).__name__, f"dropout_p {dropout_p} (dropout before the sum); 0 is accepted")
        self.eps, self.zero_centered_weight = eps, zero_centered_weight
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", torch.nn.Parameter(torch.empty_like(self.weight)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self):
        """Weights of 1, and biases of 0."""
        (torch.nn.init.zeros_ if self.zero_centered_weight else torch.nn.init.ones_)(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(self, x, residual=None, prenorm=False, residual_in_fp32=False):
        """The rows of ``x + residual``, normalised; with ``prenorm`` also the sum."""
        return layer_norm_fn(
            x,
            self.weight,
            self.bias,
            residual,
            eps=self.eps,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
            zero_centered_weight=self.zero_centered_weight,
            is_rms_norm=self._IS_RMS,
        )

    def extra_repr(self):
        more = ", zero_centered_weight=True" if self.zero_centered_weight else ""
        return f"{self.weight.shape[0]}, eps={self.eps}{more}"


class RMSNorm(_Norm):
    """RMSNorm of rows of ``hidden_size`` columns, with weights and without biases."""

    _IS_RMS = True

    def __init__(self, hidden_size, eps=1e-5, dropout_p=0.0, zero_centered_weight=False, device=None, dtype=None):
        super().__init__(hidden_size, eps, dropout_p, zero_centered_weight, False, device, dtype)


class LayerNorm(_Norm):
    """LayerNorm of rows of ``hidden_size`` columns, with weights and, with ``bias``, biases."""

    def __init__(self, hidden_size, eps=1e-5, dropout_p=0.0, zero_centered_weight=False, bias=True, device=None, dtype=None):
        super().__init__(hidden_size, eps, dropout_p, zero_centered_weight, bias, device, dtype)
