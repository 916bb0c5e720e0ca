"""Types of this module; what each function does is in its own docstring."""

from typing import Any, TypeVar

from torch import Tensor, device as Device, dtype as DType
from torch.nn import Module, Parameter

__all__: list[str]

Array = TypeVar("Array")

def forward(
    ids: Any,
    table: Array,
    *,
    scale: float = 1.0,
    padding: int | None = None,
    out: Array | None = None,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
def backward(
    ids: Any,
    table: Array,
    dout: Any,
    *,
    scale: float = 1.0,
    padding: int | None = None,
    accumulate: bool = False,
    dtable: Array | None = None,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, *, scale: float = 1.0) -> Tensor: ...

class Embedding(Module):
    weight: Parameter
    padding_idx: int | None
    scale: float
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        scale: float = 1.0,
        device: Device | str | int | None = None,
        dtype: DType | None = None,
    ) -> None: ...
    def reset_parameters(self) -> None: ...
    def forward(self, input: Tensor) -> Tensor: ...
