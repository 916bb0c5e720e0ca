"""Dense layers on tensors of PyTorch, with gradients: straight to the library where nothing but autograd has to know of it, and as the operation
``ferroflash::dense`` where PyTorch has to. Gradients of that are the operation ``ferroflash::dense_backward``."""

import torch

from ._errors import InputError, missing
from ._torch_operators import (
    _is_grad_enabled,
    check_tensors,
    define,
    fakes_of,
    is_plain,
    matrix,
    nothing,
    of_autocast,
    refuse_shared,
    rows,
    wants_gradients,
)
from .ops import fused_dense as _arrays


def fused_dense_func(
    x, weight, bias=None, return_residual=False, process_group=None, sequence_parallel=True, *, activation=None, residual=None
):
    """``activation(x weight^T + bias) + residual``, by one launch.

    Args:
        x: float16, bfloat16 or float32 ``(.., k)``. What no single stride steps through row by row is copied.
        weight: ``(n, k)``, and of ``swiglu`` ``(2 n, k)``; bias one for each of its rows. All tensors have x's type; under ``torch.autocast`` they
            take that one's.
        return_residual: whether to return x too.
        sequence_parallel: is of process groups and not asked without one.
        activation: ``None``, "relu", "gelu", "gelu_approx", "silu" or "swiglu".
        residual: ``(.., n)``.

    Returns:
        ``(.., n)``, or that and x with ``return_residual``. The same tensors give the same bits, in gradients too.

    Raises:
        MissingFeatureError: for the activation "sqrelu", a ``process_group`` of more than one process, and gradients of gradients.
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
    """Two dense layers, ``activation(x weight1^T + bias1) weight2^T + bias2 + residual``, by two launches.

    Args:
        save_pre_act: whether gradients find the sums before the activation kept; without them, they compute these again, by a product more.
        checkpoint_lvl: above 0 is as without ``save_pre_act``. What the activation gives is kept in each case.
        heuristic: changes no result and is not asked.

    Other arguments, results and errors are as those of :func:`fused_dense_func`.
    """
    refuse_shared("fused_mlp_func", process_group)
    check_level(checkpoint_lvl)
    hidden = _layer("fused_mlp_func", x, weight1, bias1, None, activation, save_pre_act and checkpoint_lvl == 0)
    out = _layer("fused_mlp_func", hidden, weight2, bias2, residual, None)
    return (out, x) if return_residual else out


def check_level(level):
    if level not in (0, 1, 2):
        raise InputError(f"checkpoint_lvl is {level}; 0, 1 and 2 are accepted")


def check_activation(name, activation):
    if activation == "sqrelu":
        raise missing(name, "the activation 'sqrelu' (the square of relu)")
    return _arrays.activation_of(activation)


def _layer(name, x, weight, bias, residual, activation, keeps_sums=True):
    check_tensors(x=x, weight=weight, bias=bias, residual=residual)
    activation = check_activation(name, activation)
    x, weight, bias, residual = of_autocast(x, weight, bias, residual)
    tensors = (matrix(x), rows(weight), bias, matrix(residual))
    # The slopes of the identity are 1, and the residual is added behind the activation: neither asks for sums.
    keeps_sums = keeps_sums and activation != "identity" and wants_gradients(x, weight, bias)
    if not is_plain(*tensors):
        return torch.ops.ferroflash.dense(*tensors, activation, keeps_sums)[0]
    if wants_gradients(*tensors):
        return _WithGradients.apply(*tensors, activation, keeps_sums)
    return _run(*tensors, activation, keeps_sums)[0]


def _run(x, weight, bias, residual, activation, keeps_sums):
    return _arrays.forward(x, weight, bias, residual, activation=activation, return_z=keeps_sums)


class _WithGradients(torch.autograd.Function):
    """The operation for plain tensors: the same launches, without what an operation of torch.library takes for its gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, activation, keeps_sums):
        out, z = _run(x, weight, bias, residual, activation, keeps_sums)
        ctx.save_for_backward(x, weight, bias, z)
        ctx.activation = activation
        return out

    @staticmethod
    def backward(ctx, dout):
        return _gradients(ctx, dout, torch.ops.ferroflash.dense_backward if _is_grad_enabled() else _eager_backward)


def _gradients(ctx, dout, compute):
    of_inputs, of_residual = tuple(ctx.needs_input_grad[:3]), ctx.needs_input_grad[3]
    found = (None, None, None)
    if any(of_inputs):
        found = compute(*ctx.saved_tensors, dout, ctx.activation, *of_inputs)
    asked = (gradient if wanted else None for gradient, wanted in zip(found, of_inputs))
    return *asked, dout if of_residual else None, None, None


def _eager(x, *arguments):
    out, z = _run(x, *arguments)
    return out, nothing(x) if z is None else z


def _fake(x, weight, bias, residual, activation, keeps_sums):
    sums, columns = _arrays.sums_and_columns(weight, activation)
    new = lambda count: torch.empty_like(x) if (*x.shape[:-1], count) == x.shape else x.new_empty((*x.shape[:-1], count))
    return new(columns), new(sums) if keeps_sums else nothing(x)


def _keep(ctx, inputs, output):
    x, weight, bias, _, activation, keeps_sums = inputs
    ctx.save_for_backward(x, weight, bias, output[1] if keeps_sums else None)
    ctx.activation = activation
    ctx.set_materialize_grads(False)


def _gradients_of_operation(ctx, dout, dz):
    return _gradients(ctx, dout, torch.ops.ferroflash.dense_backward)


def _eager_backward(x, weight, bias, z, dout, activation, *wanted):
    names = ("input_gradient", "weight_gradient", "bias_gradient")
    # Autograd hands over gradients as they come: that of a sum is one number, repeated with strides of 0.
    found = _arrays.backward(x, weight, bias, z, matrix(dout), activation=activation, **dict(zip(names, wanted)))
    return tuple(nothing(x) if tensor is None else tensor for tensor in found)


def _fake_backward(x, weight, bias, z, dout, activation, *wanted):
    return fakes_of((x, weight, bias), wanted, x)


define(
    "dense",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation, bool keeps_sums",
    "(Tensor, Tensor)",
    _eager,
    _fake,
    _gradients_of_operation,
    _keep,
)
define(
    "dense_backward",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? z, Tensor dout, str activation, bool of_x, bool of_weight, bool of_bias",
    "(Tensor, Tensor, Tensor)",
    _eager_backward,
    _fake_backward,
)


def _rows_of(features, activation):
    """Rows of the weights that make so many columns."""
    return 2 * features if activation == "swiglu" else features


class FusedDense(torch.nn.Linear):
    """A dense layer as ``torch.nn.Linear``, with :func:`fused_dense_func`; of ``swiglu`` the weights have ``2 out_features`` rows."""

    def __init__(
        self, in_features, out_features, bias=True, return_residual=False, device=None, dtype=None, *, activation=None
    ):
        check_activation("FusedDense", activation)
        super().__init__(in_features, _rows_of(out_features, activation), bias=bias, device=device, dtype=dtype)
        self.return_residual, self.activation = return_residual, activation

    def forward(self, x, process_group=None, *, residual=None):
        """The layer's rows; with ``return_residual`` also x."""
        more = {"process_group": process_group, "activation": self.activation, "residual": residual}
        return fused_dense_func(x, self.weight, self.bias, self.return_residual, **more)


class FusedMLP(torch.nn.Module):
    """Two dense layers with an activation between them, ``fc1`` and ``fc2``, with :func:`fused_mlp_func`; of ``swiglu`` the weights of the first have
    ``2 hidden_features`` rows. ``hidden_features`` is ``4 in_features`` unless it is given, and ``out_features`` is ``in_features``."""

    def __init__(
        self,
        in_features,
        hidden_features=None,
        out_features=None,
        bias1=True,
        bias2=True,
        activation="gelu_approx",
        return_residual=False,
        checkpoint_lvl=0,
        heuristic="auto",
        device=None,
        dtype=None,
    ):
        super().__init__()
        check_activation("FusedMLP", activation)
        check_level(checkpoint_lvl)
        hidden = 4 * in_features if hidden_features is None else hidden_features
        out_features = in_features if out_features is None else out_features
        self.activation, self.return_residual = activation, return_residual
        self.checkpoint_lvl, self.heuristic = checkpoint_lvl, heuristic
        self.fc1 = torch.nn.Linear(in_features, _rows_of(hidden, activation), bias=bias1, device=device, dtype=dtype)
        self.fc2 = torch.nn.Linear(hidden, out_features, bias=bias2, device=device, dtype=dtype)

    def forward(self, x, process_group=None, *, residual=None):
        """The second layer's rows; with ``return_residual`` also x."""
        return fused_mlp_func(
            x,
            self.fc1.weight,
            self.fc2.weight,
            self.fc1.bias,
            self.fc2.bias,
            self.activation,
            return_residual=self.return_residual,
            checkpoint_lvl=self.checkpoint_lvl,
            heuristic=self.heuristic,
            process_group=process_group,
            residual=residual,
        )

    def extra_repr(self):
        return f"activation={self.activation!r}, checkpoint_lvl={self.checkpoint_lvl}"
