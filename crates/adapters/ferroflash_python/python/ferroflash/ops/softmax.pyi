"""Types of this module; what each function does is in its own docstring."""

from typing import Any, TypeVar

from torch import Tensor

__all__: list[str]

Array = TypeVar("Array")

def forward(
    x: Array,
    *,
    log: bool = False,
    scale: float = 1.0,
    mask: Any = None,
    causal: bool = False,
    out: Array | None = None,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
def backward(
    out: Array,
    dout: Any,
    *,
    log: bool = False,
    scale: float = 1.0,
    dx: Array | None = None,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
def softmax(x: Tensor, *, scale: float = 1.0, mask: Tensor | None = None, causal: bool = False) -> Tensor: ...
def log_softmax(x: Tensor, *, scale: float = 1.0, mask: Tensor | None = None, causal: bool = False) -> Tensor: ...
