"""Types of this module; what each function does is in its own docstring."""

from typing import Any, Literal, TypeVar, overload

from torch import Tensor, device as Device, dtype as DType
from torch.nn import Module, Parameter

__all__: list[str]

Array = TypeVar("Array")

def forward(
    x: Array,
    weight: Any = None,
    bias: Any = None,
    residual: Any = None,
    *,
    eps: float = 1e-6,
    is_rms_norm: bool = False,
    zero_centered_weight: bool = False,
    out: Array | None = None,
    residual_out: Any = None,
    mean: Any = None,
    rstd: Any = None,
    return_statistics: bool = False,
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any, Any, Any]: ...
def backward(
    normalized: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    rstd: Any,
    dout: Array,
    dresidual_out: Any = None,
    *,
    eps: float = 1e-6,
    is_rms_norm: bool = False,
    zero_centered_weight: bool = False,
    weight_gradients: bool = True,
    dx: Array | None = None,
    dresidual: Any = None,
    dweight: Any = None,
    dbias: Any = None,
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any, Any, Any]: ...
@overload
def layer_norm_fn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: None = None,
    weight1: None = None,
    bias1: None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: None = None,
    prenorm: Literal[False] = False,
    residual_in_fp32: bool = False,
    zero_centered_weight: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: Literal[False] = False,
    out_dtype: DType | None = None,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> Tensor: ...
@overload
def layer_norm_fn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: None = None,
    weight1: None = None,
    bias1: None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: None = None,
    *,
    prenorm: Literal[True],
    residual_in_fp32: bool = False,
    zero_centered_weight: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: Literal[False] = False,
    out_dtype: DType | None = None,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def rms_norm_fn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: None = None,
    weight1: None = None,
    bias1: None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: None = None,
    prenorm: Literal[False] = False,
    residual_in_fp32: bool = False,
    zero_centered_weight: bool = False,
    return_dropout_mask: Literal[False] = False,
    out_dtype: DType | None = None,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> Tensor: ...
@overload
def rms_norm_fn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: None = None,
    weight1: None = None,
    bias1: None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: None = None,
    *,
    prenorm: Literal[True],
    residual_in_fp32: bool = False,
    zero_centered_weight: bool = False,
    return_dropout_mask: Literal[False] = False,
    out_dtype: DType | None = None,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...

class _Norm(Module):
    eps: float
    zero_centered_weight: bool
    weight: Parameter
    bias: Parameter | None
    def reset_parameters(self) -> None: ...
    @overload
    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: Literal[False] = False, residual_in_fp32: bool = False
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, prenorm: Literal[True], residual_in_fp32: bool = False
    ) -> tuple[Tensor, Tensor]: ...

class RMSNorm(_Norm):
    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        zero_centered_weight: bool = False,
        device: Device | str | int | None = None,
        dtype: DType | None = None,
    ) -> None: ...

class LayerNorm(_Norm):
    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        zero_centered_weight: bool = False,
        bias: bool = True,
        device: Device | str | int | None = None,
        dtype: DType | None = None,
    ) -> None: ...
