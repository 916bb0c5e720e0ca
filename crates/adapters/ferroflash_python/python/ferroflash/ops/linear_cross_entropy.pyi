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
    targets: Any,
    bias: Any = None,
    *,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    ignore_index: int | None = -100,
    loss: Array | None = None,
    lse: Array | None = None,
    z_losses: Array | None = None,
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Array, Array]: ...
def backward(
    x: Array,
    weight: Any,
    targets: Any,
    bias: Any,
    lse: Any,
    dloss: Any,
    *,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    ignore_index: int | None = -100,
    chunk_bytes: int | None = None,
    input_gradient: bool = True,
    weight_gradient: bool = True,
    bias_gradient: bool = True,
    dx: Array | None = None,
    dweight: Any = None,
    dbias: Any = None,
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array | None, Any, Any]: ...
def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    return_z_loss: bool = False,
    chunk_bytes: int | None = None,
) -> Any: ...

class FusedLinearCrossEntropyLoss(Module):
    def __init__(
        self,
        ignore_index: int | None = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        return_z_loss: bool = False,
        *,
        logit_scale: float = 1.0,
        chunk_bytes: int | None = None,
    ) -> None: ...
    def forward(self, lin_weight: Tensor, input: Tensor, target: Tensor, bias: Tensor | None = None) -> Any: ...

class LinearCrossEntropy(Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: Device | str | int | None = None,
        dtype: DType | None = None,
        *,
        ignore_index: int | None = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        logit_scale: float = 1.0,
        lse_square_scale: float = 0.0,
        return_z_loss: bool = False,
        chunk_bytes: int | None = None,
    ) -> None: ...
    def forward(self, input: Tensor, target: Tensor | None = None) -> Tensor: ...
