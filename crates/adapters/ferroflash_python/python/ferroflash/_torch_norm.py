"""RMSNorm and LayerNorm on tensors of PyTorch, with gradients: straight to the library where nothing but autograd has to know of it, and as the
operation ``ferroflash::norm`` where PyTorch has to. Gradients of that are the operation ``ferroflash::norm_backward``."""

import torch

from ._errors import InputError, missing
from ._torch import _gathered_dropout, _spread_dropout, drawn
from ._torch_operators import _is_grad_enabled, check_tensors, define, is_plain, nothing, refuse_gradients, rows, wants_gradients
from .ops import layer_norm as _arrays

# A call takes one number; the offsets of PyTorch's generators are multiples of four.
_NUMBERS = 4


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
    """LayerNorm of the rows of ``dropout(rowscale x) + residual`` along the last axis, or RMSNorm with ``is_rms_norm``.

    Args:
        x: float16, bfloat16 or float32, of any shape. A last axis with gaps is copied.
        weight, bias: ``(columns,)``, of x's type or float32, both the same; ``None`` for none.
        residual: of x's shape, of its type or float32.
        dropout_p: probability with which each element of x is dropped before the sum; others are multiplied with ``1 / (1 - dropout_p)``. Seed and offset
            come from PyTorch's generator, as those of attention do. Which elements are dropped is not the original's choice, which draws a seed a row.
        rowscale: factors of the rows of x, of its shape without the last axis or ``(rows,)``, taken as float32; they get no gradient.
        prenorm: whether to return the sum too, which is x where nothing is added, dropped or scaled.
        residual_in_fp32: whether the sum is float32 where no residual says its type.
        zero_centered_weight: whether ``1 + weight`` stands for ``weight``.
        out, residual_out: tensors that results are written to, of calls that record no gradients.

    Returns:
        The result, of x's type, or ``(result, sum)`` with ``prenorm``. Both have gradients.

    Raises:
        MissingFeatureError: for ``x1``, ``weight1``, ``bias1``, ``return_dropout_mask`` and another ``out_dtype`` than x's, and for a gradient of
            ``rowscale``.
        InputError, InputTypeError, DeviceError: before anything is launched.
    """
    name = "rms_norm_fn" if is_rms_norm else "layer_norm_fn"
    refused = [
        ("x1", x1 is not None, "a second addend"),
        ("weight1", weight1 is not None, "a second result"),
        ("bias1", bias1 is not None, "a second result"),
        ("return_dropout_mask", return_dropout_mask, "the mask of a dropout"),
    ]
    for argument, is_given, meaning in refused:
        if is_given:
            raise missing(name, f"{argument} ({meaning})")
    check_tensors(x=x, weight=weight, bias=bias, residual=residual, rowscale=rowscale, out=out, residual_out=residual_out)
    refuse_gradients(name, rowscale=rowscale)
    if out_dtype is not None and out_dtype != x.dtype:
        raise missing(name, f"out_dtype {out_dtype} for x of {x.dtype} (a result of another type than x)")
    options = (bool(is_rms_norm), float(eps), bool(zero_centered_weight))
    x, residual = rows(x), rows(residual)
    if rowscale is not None:
        if rowscale.numel() != x[..., 0].numel():
            raise InputError(f"{name}: rowscale has shape {tuple(rowscale.shape)}; x makes it {tuple(x.shape[:-1])}, or all of its rows in one axis")
        rowscale = rowscale.float().reshape(x.shape[:-1]).contiguous()
    dropout = drawn(dropout_p, x, _NUMBERS)
    if residual is None and rowscale is None and dropout is None and residual_out is not None:
        raise InputError(f"{name}: residual_out is given, and no residual; without one the sum is x itself")
    normalized, total = _normalize(name, x, weight, bias, residual, rowscale, dropout, options, out, residual_out)
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


def _normalize(name, x, weight, bias, residual, rowscale, dropout, options, out, residual_out):
    """The result, and the sum that it is of, unless that is x."""
    tensors = (x, weight, bias, residual, rowscale)
    with_gradients = wants_gradients(*tensors, out, residual_out)
    if out is not None or residual_out is not None:
        if with_gradients:
            raise missing(name, "a gradient through `out` or `residual_out`")
        return _run(*tensors, dropout, *options, out=out, residual_out=residual_out)[:2]
    if not is_plain(*tensors):
        normalized, total, _, _ = torch.ops.ferroflash.norm(*tensors, *_spread_dropout(dropout, x), *options)
        return normalized, total if _has_total(residual, rowscale, dropout) else None
    if with_gradients:
        return _WithGradients.apply(*tensors, dropout, *options)
    return _run(*tensors, dropout, *options)[:2]


def _has_total(residual, rowscale, dropout):
    """Whether what is normalised is another tensor than x."""
    return residual is not None or rowscale is not None or dropout is not None


def _named(rowscale, dropout, is_rms_norm, eps, zero_centered_weight):
    p, state = dropout or (0.0, None)
    named = {"is_rms_norm": is_rms_norm, "eps": eps, "zero_centered_weight": zero_centered_weight}
    return {**named, "dropout_p": p, "rng_state": state, "rowscale": rowscale}


def _run(x, weight, bias, residual, rowscale, dropout, *options, **given):
    return _arrays.forward(x, weight, bias, residual, **_named(rowscale, dropout, *options), **given)


class _WithGradients(torch.autograd.Function):
    """The operation for plain tensors: the same launches, without what an operation of torch.library takes for its gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, rowscale, dropout, *options):
        out, total, mean, rstd = _run(x, weight, bias, residual, rowscale, dropout, *options, return_statistics=True)
        ctx.options, ctx.dropout = options, dropout
        ctx.save_for_backward(x if total is None else total, weight, bias, mean, rstd, rowscale)
        ctx.dtype, ctx.has_residual = x.dtype, residual is not None
        ctx.set_materialize_grads(False)
        return out, total

    @staticmethod
    def backward(ctx, dout, dtotal):
        compute = torch.ops.ferroflash.norm_backward if _is_grad_enabled() else _eager_backward
        return *_gradients(ctx, dout, dtotal, compute), None, None, None, None, None


def _gradients(ctx, dout, dtotal, compute):
    normalized, weight, bias, mean, rstd, rowscale = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(normalized, dtype=ctx.dtype)
    # Frozen weights take no sums over the rows.
    of_weight, of_bias = ctx.needs_input_grad[1:3]
    branch = (rowscale, *_spread_dropout(ctx.dropout, dout))
    options = (*ctx.options, ctx.has_residual, of_weight or of_bias)
    dx, dresidual, dweight, dbias = compute(normalized, weight, bias, mean, rstd, dout, dtotal, *branch, *options)
    if ctx.has_residual and normalized.dtype == ctx.dtype and not _has_total(None, rowscale, ctx.dropout):
        dresidual = dx
    keep = (True, of_weight, of_bias, ctx.has_residual)
    return *(x if kept else None for x, kept in zip((dx, dweight, dbias, dresidual), keep)),


def _eager(x, weight, bias, residual, rowscale, dropout_p, rng_state, *options):
    dropout = _gathered_dropout(dropout_p, rng_state)
    found = _run(x, weight, bias, residual, rowscale, dropout, *options, return_statistics=True)
    return tuple(nothing(x) if tensor is None else tensor for tensor in found)


def _fake(x, weight, bias, residual, rowscale, dropout_p, rng_state, is_rms_norm, eps, zero_centered_weight):
    statistics = x.new_empty(x.shape[:-1], dtype=torch.float32)
    has_total = _has_total(residual, rowscale, _gathered_dropout(dropout_p, rng_state))
    total = torch.empty_like(x, dtype=(x if residual is None else residual).dtype) if has_total else nothing(x)
    return torch.empty_like(x), total, nothing(x) if is_rms_norm else statistics, torch.empty_like(statistics)


def _keep(ctx, inputs, output):
    x, weight, bias, residual, rowscale, dropout_p, rng_state, *options = inputs
    _, total, mean, rstd = output
    ctx.options, ctx.dropout = tuple(options), _gathered_dropout(dropout_p, rng_state)
    ctx.has_total = _has_total(residual, rowscale, ctx.dropout)
    ctx.save_for_backward(total if ctx.has_total else x, weight, bias, None if options[0] else mean, rstd, rowscale)
    ctx.dtype, ctx.has_residual = x.dtype, residual is not None
    ctx.set_materialize_grads(False)


def _gradients_of_operation(ctx, dout, dtotal, dmean, drstd):
    # Where what is normalised is x, the sum is an empty tensor.
    found = _gradients(ctx, dout, dtotal if ctx.has_total else None, torch.ops.ferroflash.norm_backward)
    return *found, *[None] * 6


def _eager_backward(normalized, weight, bias, mean, rstd, dout, dtotal, rowscale, dropout_p, rng_state, *options):
    *options, residual_gradient, weight_gradients = options
    options = _named(rowscale, _gathered_dropout(dropout_p, rng_state), *options)
    options.update(residual_gradient=residual_gradient, weight_gradients=weight_gradients)
    # Autograd hands over gradients as they come: that of a sum is one number, repeated with strides of 0.
    found = _arrays.backward(normalized, weight, bias, mean, rstd, rows(dout), rows(dtotal), **options)
    dx, dresidual, dweight, dbias = found
    # An operation returns no tensor twice.
    dresidual = None if dresidual is dx else dresidual
    return tuple(nothing(dout) if tensor is None else tensor for tensor in (dx, dresidual, dweight, dbias))


def _fake_backward(normalized, weight, bias, mean, rstd, dout, dtotal, rowscale, dropout_p, rng_state, *options):
    dx = torch.empty_like(rows(dout))
    apart = _has_total(None, rowscale, _gathered_dropout(dropout_p, rng_state)) and options[-2]
    dresidual = torch.empty_like(dx, dtype=normalized.dtype) if apart or normalized.dtype != dout.dtype else None
    of_columns = (torch.empty_like(x) if options[-1] and x is not None else None for x in (weight, bias))
    return tuple(nothing(dout) if tensor is None else tensor for tensor in (dx, dresidual, *of_columns))


_OPTIONS = "bool is_rms_norm, float eps, bool zero_centered_weight"
_BRANCH = "Tensor? rowscale, float dropout_p, Tensor? rng_state"
_FOUR = "(Tensor, Tensor, Tensor, Tensor)"
define(
    "norm",
    f"Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, {_BRANCH}, {_OPTIONS}",
    _FOUR,
    _eager,
    _fake,
    _gradients_of_operation,
    _keep,
)
define(
    "norm_backward",
    f"Tensor normalized, Tensor? weight, Tensor? bias, Tensor? mean, Tensor rstd, Tensor dout, Tensor? dtotal, {_BRANCH}, {_OPTIONS}, "
    "bool residual_gradient, bool weight_gradients",
    _FOUR,
    _eager_backward,
    _fake_backward,
)


class _Norm(torch.nn.Module):
    _IS_RMS = False

    def __init__(self, hidden_size, eps, dropout_p, zero_centered_weight, bias, device, dtype):
        super().__init__()
        self.dropout_p = dropout_p
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
        """The rows of ``dropout(x) + residual``, normalised; with ``prenorm`` also the sum. Nothing is dropped but in training."""
        return layer_norm_fn(
            x,
            self.weight,
            self.bias,
            residual,
            eps=self.eps,
            dropout_p=self.dropout_p if self.training else 0.0,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
            zero_centered_weight=self.zero_centered_weight,
            is_rms_norm=self._IS_RMS,
        )

    def extra_repr(self):
        more = ", zero_centered_weight=True" if self.zero_centered_weight else ""
        more += f", dropout_p={self.dropout_p}" if self.dropout_p else ""
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
