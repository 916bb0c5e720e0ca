"""Types of the package; what each function does is in its own docstring."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar, overload

from torch import Tensor

from . import ops as ops, optim as optim

__version__: str
__all__: list[str]

Array = TypeVar("Array")

class Error(Exception): ...
class InputError(Error, ValueError): ...
class InputTypeError(Error, TypeError): ...
class MissingFeatureError(Error, NotImplementedError): ...
class DeviceError(Error, RuntimeError): ...
class EmulatorWarning(UserWarning): ...

class _Bool:
    def __and__(self, other: _Bool | bool) -> _Bool: ...
    def __rand__(self, other: _Bool | bool) -> _Bool: ...
    def __or__(self, other: _Bool | bool) -> _Bool: ...
    def __ror__(self, other: _Bool | bool) -> _Bool: ...
    def __invert__(self) -> _Bool: ...

# As tensors of PyTorch have them, whose functions of these names values take, too.
class _Methods:
    def exp(self) -> _Float: ...
    def log(self) -> _Float: ...
    def sqrt(self) -> _Float: ...
    def tanh(self) -> _Float: ...
    def sigmoid(self) -> _Float: ...
    def abs(self) -> Any: ...
    def float(self) -> _Float: ...
    def clamp(self, min: _Number | None = None, max: _Number | None = None) -> Any: ...
    def minimum(self, other: _Number) -> Any: ...
    def maximum(self, other: _Number) -> Any: ...
    def where(self, condition: _Bool | bool, other: _Number) -> Any: ...

class _Float(_Methods):
    def __add__(self, other: _Number) -> _Float: ...
    def __radd__(self, other: _Number) -> _Float: ...
    def __sub__(self, other: _Number) -> _Float: ...
    def __rsub__(self, other: _Number) -> _Float: ...
    def __mul__(self, other: _Number) -> _Float: ...
    def __rmul__(self, other: _Number) -> _Float: ...
    def __truediv__(self, other: _Number) -> _Float: ...
    def __rtruediv__(self, other: _Number) -> _Float: ...
    def __neg__(self) -> _Float: ...
    def __abs__(self) -> _Float: ...
    def __lt__(self, other: _Number) -> _Bool: ...
    def __le__(self, other: _Number) -> _Bool: ...
    def __gt__(self, other: _Number) -> _Bool: ...
    def __ge__(self, other: _Number) -> _Bool: ...

# Of two of them, or with an `int`, operators give one; with a number, a number.
class _Int(_Methods):
    def __add__(self, other: _Number) -> Any: ...
    def __radd__(self, other: _Number) -> Any: ...
    def __sub__(self, other: _Number) -> Any: ...
    def __rsub__(self, other: _Number) -> Any: ...
    def __mul__(self, other: _Number) -> Any: ...
    def __rmul__(self, other: _Number) -> Any: ...
    def __truediv__(self, other: _Number) -> _Float: ...
    def __rtruediv__(self, other: _Number) -> _Float: ...
    def __floordiv__(self, other: int) -> _Int: ...
    def __mod__(self, other: int) -> _Int: ...
    def __neg__(self) -> _Int: ...
    def __abs__(self) -> _Int: ...
    def __eq__(self, other: _Int | int) -> _Bool: ...  # type: ignore[override]
    def __ne__(self, other: _Int | int) -> _Bool: ...  # type: ignore[override]
    def __lt__(self, other: _Number) -> _Bool: ...
    def __le__(self, other: _Number) -> _Bool: ...
    def __gt__(self, other: _Number) -> _Bool: ...
    def __ge__(self, other: _Number) -> _Bool: ...

_Number = _Float | _Int | float
_Value = TypeVar("_Value", _Float, _Int)

class _Tensor(Generic[_Value]):
    def __getitem__(self, index: _Int | int | tuple[_Int | int, ...]) -> _Value: ...

class Scope:
    @property
    def score(self) -> _Float: ...
    @property
    def batch(self) -> _Int: ...
    @property
    def head(self) -> _Int: ...
    @property
    def row(self) -> _Int: ...
    @property
    def key(self) -> _Int: ...
    @property
    def q_rows(self) -> _Int: ...
    @property
    def kv_rows(self) -> _Int: ...
    @property
    def position(self) -> _Int: ...
    @property
    def hidden(self) -> _Float: ...
    def floats(self, name: str) -> _Tensor[_Float]: ...
    def ints(self, name: str) -> _Tensor[_Int]: ...
    def where(self, condition: _Bool | bool, yes: _Number, no: _Number) -> Any: ...
    def minimum(self, a: _Number, b: _Number) -> Any: ...
    def maximum(self, a: _Number, b: _Number) -> Any: ...
    def exp(self, x: _Number) -> _Float: ...
    def log(self, x: _Number) -> _Float: ...
    def sqrt(self, x: _Number) -> _Float: ...
    def tanh(self, x: _Number) -> _Float: ...
    def sigmoid(self, x: _Number) -> _Float: ...

class ScoreProgram:
    name: str
    def __init__(self, write: Callable[[Scope], _Number], name: str | None = None) -> None: ...
    @classmethod
    def alibi(cls) -> ScoreProgram: ...
    @classmethod
    def mask(cls, sees: Callable[[Scope], _Bool | bool], name: str | None = None) -> ScoreProgram: ...

_ScoreMod = Callable[[Any, Any, Any, Any, Any], Any]

class BlockMask:
    mask_mod: Callable[[Any, Any, Any, Any], Any]
    shape: tuple[int, int, int, int]

def create_block_mask(
    mask_mod: Callable[[Any, Any, Any, Any], Any],
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: Any = None,
) -> BlockMask: ...
@overload
def flex_attention(
    query: Array,
    key: Any,
    value: Any,
    score_mod: _ScoreMod | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[False] = False,
) -> Array: ...
@overload
def flex_attention(
    query: Array,
    key: Any,
    value: Any,
    score_mod: _ScoreMod | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    return_lse: Literal[True],
) -> tuple[Array, Any]: ...
def devices() -> list[tuple[str, str]]: ...
def dropout_numbers(batch: int, heads: int) -> int: ...
def install_as(name: Literal["flash_attn", "flash_attn_interface"] = "flash_attn") -> None: ...
@overload
def forward(
    q: Array,
    k: Any,
    v: Any,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float = 0.0,
    program: ScoreProgram | None = None,
    tensors: Mapping[str, Any] | None = None,
    dropout_p: float = 0.0,
    rng_state: Any = None,
    sink: Any = None,
    out: Array | None = None,
    lse: Any = None,
    return_lse: Literal[False] = False,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
@overload
def forward(
    q: Array,
    k: Any,
    v: Any,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float = 0.0,
    program: ScoreProgram | None = None,
    tensors: Mapping[str, Any] | None = None,
    dropout_p: float = 0.0,
    rng_state: Any = None,
    sink: Any = None,
    out: Array | None = None,
    lse: Any = None,
    return_lse: Literal[True],
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any]: ...
@overload
def merge(
    outs: Sequence[Array],
    lses: Sequence[Any],
    *,
    dtype: Any = None,
    out: Array | None = None,
    lse: Any = None,
    return_lse: Literal[False] = False,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
@overload
def merge(
    outs: Sequence[Array],
    lses: Sequence[Any],
    *,
    dtype: Any = None,
    out: Array | None = None,
    lse: Any = None,
    return_lse: Literal[True],
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any]: ...
def merge_attn_states(
    output: Array,
    prefix_output: Array,
    prefix_lse: Any,
    suffix_output: Array,
    suffix_lse: Any,
    output_lse: Any = None,
) -> None: ...
@overload
def forward_packed(
    q: Array,
    k: Any,
    v: Any,
    q_starts: Any,
    kv_starts: Any,
    *,
    q_used: Any = None,
    kv_used: Any = None,
    longest_q: int | None = None,
    longest_kv: int | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float = 0.0,
    program: ScoreProgram | None = None,
    tensors: Mapping[str, Any] | None = None,
    sink: Any = None,
    splits: int = 0,
    split_keys: int | None = None,
    out: Array | None = None,
    lse: Any = None,
    return_lse: Literal[False] = False,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
@overload
def forward_packed(
    q: Array,
    k: Any,
    v: Any,
    q_starts: Any,
    kv_starts: Any,
    *,
    q_used: Any = None,
    kv_used: Any = None,
    longest_q: int | None = None,
    longest_kv: int | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float = 0.0,
    program: ScoreProgram | None = None,
    tensors: Mapping[str, Any] | None = None,
    sink: Any = None,
    splits: int = 0,
    split_keys: int | None = None,
    out: Array | None = None,
    lse: Any = None,
    return_lse: Literal[True],
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any]: ...
@overload
def forward_cached(
    q: Array,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    *,
    lengths: Any = None,
    first: Any = None,
    entries: Any = None,
    pages: Any = None,
    q_starts: Any = None,
    q_used: Any = None,
    longest_q: int | None = None,
    new_starts: Any = None,
    rotary_cos: Any = None,
    rotary_sin: Any = None,
    rotary_interleaved: bool = False,
    rotary_positions: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float = 0.0,
    program: ScoreProgram | None = None,
    tensors: Mapping[str, Any] | None = None,
    sink: Any = None,
    splits: int = 0,
    split_keys: int | None = None,
    out: Array | None = None,
    lse: Any = None,
    return_lse: Literal[False] = False,
    stream: int | None = None,
    device: int | None = None,
) -> Array: ...
@overload
def forward_cached(
    q: Array,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    *,
    lengths: Any = None,
    first: Any = None,
    entries: Any = None,
    pages: Any = None,
    q_starts: Any = None,
    q_used: Any = None,
    longest_q: int | None = None,
    new_starts: Any = None,
    rotary_cos: Any = None,
    rotary_sin: Any = None,
    rotary_interleaved: bool = False,
    rotary_positions: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float = 0.0,
    program: ScoreProgram | None = None,
    tensors: Mapping[str, Any] | None = None,
    sink: Any = None,
    splits: int = 0,
    split_keys: int | None = None,
    out: Array | None = None,
    lse: Any = None,
    return_lse: Literal[True],
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any]: ...

@overload
def backward(
    q: Array,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    dout: Any,
    *,
    dlse: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float = 0.0,
    program: ScoreProgram | None = None,
    tensors: Mapping[str, Any] | None = None,
    dropout_p: float = 0.0,
    rng_state: Any = None,
    sink: None = None,
    deterministic: bool = False,
    dq: Array | None = None,
    dk: Any = None,
    dv: Any = None,
    dsink: None = None,
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any, Any]: ...
@overload
def backward(
    q: Array,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    dout: Any,
    *,
    dlse: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float = 0.0,
    program: ScoreProgram | None = None,
    tensors: Mapping[str, Any] | None = None,
    dropout_p: float = 0.0,
    rng_state: Any = None,
    sink: Any,
    deterministic: bool = False,
    dq: Array | None = None,
    dk: Any = None,
    dv: Any = None,
    dsink: Any = None,
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any, Any, Any]: ...

@overload
def backward_packed(
    q: Array,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    dout: Any,
    q_starts: Any,
    kv_starts: Any,
    *,
    q_used: Any = None,
    kv_used: Any = None,
    dlse: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float = 0.0,
    program: ScoreProgram | None = None,
    tensors: Mapping[str, Any] | None = None,
    sink: None = None,
    dq: Array | None = None,
    dk: Any = None,
    dv: Any = None,
    dsink: None = None,
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any, Any]: ...
@overload
def backward_packed(
    q: Array,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    dout: Any,
    q_starts: Any,
    kv_starts: Any,
    *,
    q_used: Any = None,
    kv_used: Any = None,
    dlse: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float = 0.0,
    program: ScoreProgram | None = None,
    tensors: Mapping[str, Any] | None = None,
    sink: Any,
    dq: Array | None = None,
    dk: Any = None,
    dv: Any = None,
    dsink: Any = None,
    stream: int | None = None,
    device: int | None = None,
) -> tuple[Array, Any, Any, Any]: ...

# With `return_attn_probs`: (out, softmax_lse, S_dmask).
_Result = Tensor | tuple[Tensor, Tensor, Tensor]

def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Result: ...
def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Result: ...
def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Result: ...
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> _Result: ...
def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Result: ...
def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Result: ...
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]: ...
