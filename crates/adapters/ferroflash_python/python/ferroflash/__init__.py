"""Exact attention by ferroflash, whose GPU kernels are written in Rust.

``forward``, ``forward_packed``, ``forward_cached``, ``merge``, ``backward`` and ``backward_packed`` take any arrays that speak DLPack or
``__cuda_array_interface__``. The functions of ``flash_attn`` take tensors of PyTorch, which is imported when the first of them is asked for. What a model
computes around attention is in ``ferroflash.ops``, and its optimiser in ``ferroflash.optim``.
"""

from . import ops, optim
from ._backward import backward, backward_packed
from ._errors import (
    DeviceError,
    EmulatorWarning,
    Error,
    InputError,
    InputTypeError,
    MissingFeatureError,
)
from ._flex import BlockMask, create_block_mask, flex_attention
from ._forward import dropout_numbers, forward
from ._merge import merge, merge_attn_states
from ._native import __version__, devices
from ._program import Scope, ScoreProgram
from ._sequences import forward_cached, forward_packed
from ._stand_in import install_as

_OF_TORCH = (
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
)

__all__ = [
    "BlockMask",
    "DeviceError",
    "EmulatorWarning",
    "Error",
    "InputError",
    "InputTypeError",
    "MissingFeatureError",
    "Scope",
    "ScoreProgram",
    "backward",
    "backward_packed",
    "create_block_mask",
    "devices",
    "dropout_numbers",
    "flex_attention",
    "forward",
    "forward_cached",
    "forward_packed",
    "install_as",
    "merge",
    "merge_attn_states",
    *_OF_TORCH,
]


def __getattr__(name):
    if name in _OF_TORCH:
        from . import flash_attn_interface

        function = getattr(flash_attn_interface, name)
        globals()[name] = function
        return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_OF_TORCH})
