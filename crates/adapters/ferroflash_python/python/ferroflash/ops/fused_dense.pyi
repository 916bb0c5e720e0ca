"""Types of this module; what each function does is in its own docstring."""

from typing import Any, TypeVar

from torch import Tensor

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
    activation: str = "gelu_approx",
    save_pre_act: bool = True,
    return_residual: bool = False,
    checkpoint_lvl: int = 0,
    heuristic: int = 0,
    process_group: Any = None,
    sequence_parallel: bool = True,
    *,
    residual: Tensor | None = None,
) -> Any: ...
