"""Types of this module; what each function does is in its own docstring."""

from typing import Any, TypeVar

from torch import Tensor
from torch import device as Device
from torch import dtype as DType
from torch.nn import Linear, Module

__all__: list[str]

Array = TypeVar("Array")

def forward(
    x: Array,
    weight: Any,
    bias: Any = None,
    residual: Any = None,
    *,
    activation: str | None = None,
    out: Array | None = None,
    z: Any = None,
    return_z: bool = False,
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any]: ...
def backward(
    x: Array,
    weight: Any,
    bias: Any,
    z: Any,
    dout: Any,
    *,
    activation: str | None = None,
    input_gradient: bool = True,
    weight_gradient: bool = True,
    bias_gradient: bool = True,
    dx: Array | None = None,
    dweight: Any = None,
    dbias: Any = None,
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array | None, Any, Any]: ...
def fused_dense_func(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    return_residual: bool = False,
    process_group: Any = None,
    sequence_parallel: bool = True,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Any: ...
def fused_mlp_func(
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    activation: str | None = "gelu_approx",
    save_pre_act: bool = True,
    return_residual: bool = False,
    checkpoint_lvl: int = 0,
    heuristic: int | str = 0,
    process_group: Any = None,
    sequence_parallel: bool = True,
    *,
    residual: Tensor | None = None,
) -> Any: ...

class FusedDense(Linear):
    return_residual: bool
    activation: str | None
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        return_residual: bool = False,
        device: Device | str | int | None = None,
        dtype: DType | None = None,
        *,
        activation: str | None = None,
    ) -> None: ...
    def forward(self, x: Tensor, process_group: Any = None, *, residual: Tensor | None = None) -> Any: ...

class FusedMLP(Module):
    activation: str | None
    return_residual: bool
    checkpoint_lvl: int
    heuristic: int | str
    fc1: Linear
    fc2: Linear
    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        bias1: bool = True,
        bias2: bool = True,
        activation: str | None = "gelu_approx",
        return_residual: bool = False,
        checkpoint_lvl: int = 0,
        heuristic: int | str = "auto",
        device: Device | str | int | None = None,
        dtype: DType | None = None,
    ) -> None: ...
    def forward(self, x: Tensor, process_group: Any = None, *, residual: Tensor | None = None) -> Any: ...
