"""Dense layers on tensors of PyTorch: straight to the library where nothing of PyTorch has to know of it, and as the operation ``ferroflash::dense``
where it has to."""

import torch

from ._errors import missing
from ._torch_operators import check_tensors, define, is_plain, refuse_shared, rows, wants_gradients
from .ops import fused_dense as _arrays


def fused_dense_func(
    x, weight, bias=None, return_residual=False, process_group=None, sequence_parallel=True, *, activation=None, residual=None
):
    """``activation(x weight^T + bias) + residual``, by one launch.

    Args:
        x: float16, bfloat16 or float32 ``(.., k)``. A last axis with gaps is copied.
        weight: ``(n, k)``, and of ``swiglu`` ``(2 n, k)``; bias one for each of its rows. All tensors have x's type.
        return_residual: whether to return x too.
        sequence_parallel: is of process groups and not asked without one.
        activation: ``None``, "relu", "gelu", "gelu_approx", "silu" or "swiglu".
        residual: ``(.., n)``.

    Returns:
        ``(.., n)``, or that and x with ``return_residual``.

    Raises:
        MissingFeatureError: for tensors that require gradients, and a ``process_group`` of more than one process.
        InputError, InputTypeError, DeviceError: before anything is launched.
    """
    refuse_shared("fused_dense_func", process_group)
    out = _layer("fused_dense_func", x, weight, bias, residual, activation)
    return (out, x) if return_residual else out


def fused_mlp_func(
    x,
    weight1,
    weight2,
    bias1=None,
    bias2=None,
    activation="gelu_approx",
    save_pre_act=True,
    return_residual=False,
    checkpoint_lvl=0,
    heuristic=0,
    process_group=None,
    sequence_parallel=True,
    *,
    residual=None,
):
    """Two dense layers, ``activation(x weight1^T + bias1) weight2^T + bias2 + residual``, by two launches. ``save_pre_act`` and ``checkpoint_lvl`` are of
    gradients, which there are not yet, and ``heuristic`` changes no result: they are not asked.

    Arguments, results and errors are as those of :func:`fused_dense_func`.
    """
    refuse_shared("fused_mlp_func", process_group)
    hidden = _layer("fused_mlp_func", x, weight1, bias1, None, activation)
    out = _layer("fused_mlp_func", hidden, weight2, bias2, residual, None)
    return (out, x) if return_residual else out


def _layer(name, x, weight, bias, residual, activation):
    check_tensors(x=x, weight=weight, bias=bias, residual=residual)
    tensors = (x, weight, bias, residual)
    if wants_gradients(*tensors):
        raise missing(name, "a gradient of a dense layer (it computes under torch.no_grad(), and for tensors that require none)")
    activation = _arrays.activation_of(activation)
    x, weight, residual = rows(x), rows(weight), rows(residual)
    if is_plain(*tensors):
        return _run(x, weight, bias, residual, activation)
    return torch.ops.ferroflash.dense(x, weight, bias, residual, activation)


def _run(x, weight, bias, residual, activation):
    return _arrays.forward(x, weight, bias, residual, activation=activation)[0]


def _fake(x, weight, bias, residual, activation):
    _, columns = _arrays.sums_and_columns(weight, activation)
    shape = (*x.shape[:-1], columns)
    return torch.empty_like(x) if shape == x.shape else x.new_empty(shape)


def _no_gradients(ctx, *gradients):
    raise missing("ferroflash", "a gradient of a dense layer")


define("dense", "Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation", "Tensor", _run, _fake, _no_gradients)
