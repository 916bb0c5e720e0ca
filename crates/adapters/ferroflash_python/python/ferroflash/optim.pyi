"""Types of this module; what each function does is in its own docstring."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.optim import Optimizer

__all__: list[str]

Array = TypeVar("Array")

def step(
    parameters: Sequence[Any],
    gradients: Sequence[Any],
    moments: Sequence[Any],
    second_moments: Sequence[Any],
    number: int | Any,
    *,
    masters: Sequence[Any] | None = None,
    lr: float | Any = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    gradient_scale: float = 1.0,
    gradient_factor: Any = None,
    stream: int | None = None,
    device: int | None = None,
) -> None: ...
def norm(
    gradients: Sequence[Array],
    *,
    max_norm: float | None = None,
    gradient_scale: float = 1.0,
    out: Array | None = None,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
def gradient_norm(parameters: Tensor | Iterable[Tensor], max_norm: float | None = None) -> tuple[Tensor, Tensor]: ...
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor: ...

class AdamW(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        master_weights: bool = True,
    ) -> None: ...
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        gradient_scale: float = 1.0,
        gradient_factor: Tensor | None = None,
    ) -> Any: ...
