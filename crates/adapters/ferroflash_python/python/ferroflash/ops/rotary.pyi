"""Types of this module; what each function does is in its own docstring."""

from typing import Any, TypeVar

from torch import Tensor

__all__: list[str]

Array = TypeVar("Array")

def forward(
    x: Array,
    cos: Any,
    sin: Any,
    *,
    interleaved: bool = False,
    conjugate: bool = False,
    offset: int = 0,
    offsets: Any = None,
    positions: Any = None,
    starts: Any = None,
    inplace: bool = False,
    out: Array | None = None,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor: ...
