"""Types of this module; what each function does is in its own docstring."""

from typing import Any, TypeVar

from torch import Tensor
from torch.nn import Module

__all__: list[str]

Array = TypeVar("Array")

def forward(
    logits: Array,
    targets: Any,
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
    logits: Array,
    targets: Any,
    lse: Any,
    dloss: Any,
    *,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    ignore_index: int | None = -100,
    dlogits: Array | None = None,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
def cross_entropy_loss(
    logits: Tensor,
    labels: Tensor,
    precomputed_lse: None = None,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    process_group: Any = None,
) -> tuple[Tensor, Tensor]: ...

class CrossEntropyLoss(Module):
    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        logit_scale: float = 1.0,
        lse_square_scale: float = 0.0,
        inplace_backward: bool = False,
        process_group: Any = None,
        return_z_loss: bool = False,
    ) -> None: ...
    def forward(self, input: Tensor, target: Tensor, precomputed_lse: None = None) -> Any: ...
