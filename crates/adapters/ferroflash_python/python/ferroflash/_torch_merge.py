"""The merge of partial results on tensors of PyTorch: straight to the library where nothing of PyTorch has to know of it, and as the operation
``ferroflash::merge`` where it has to."""

import torch
from torch import Tensor

from . import _native, _torch
from ._errors import InputTypeError, missing
from ._torch import _DTYPES, _is_compiling, _is_grad_enabled, _library, _modes, _place, _stream, _transforms


def merge(outs, lses, dtype, out, lse, return_lse, stream):
    named = [(f"part {i}", x) for i, x in enumerate(outs)] + [(f"the log-sum-exp of part {i}", x) for i, x in enumerate(lses)]
    for name, tensor in (*named, ("out", out), ("lse", lse)):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}, part 0 a torch.Tensor; all must be of one package")
    if _is_grad_enabled() and any(x.requires_grad for x in (*outs, *lses)):
        raise missing("ferroflash.merge", "gradients of a merge")
    is_plain = all(type(x) is Tensor for x in (*outs, *lses)) and not (_is_compiling() or _modes() or _transforms())
    if is_plain or out is not None or lse is not None or stream is not None:
        out, lse = _run(outs, lses, dtype, out, lse, return_lse, stream)
    else:
        out, lse = torch.ops.ferroflash.merge(outs, lses, dtype)
    return (out, lse) if return_lse else out


def _run(outs, lses, dtype, out, lse, return_lse, stream):
    """Launches, with new tensors for the results unless they are given."""
    first = outs[0]
    if out is None:
        out = torch.empty_like(first, dtype=dtype)
    if return_lse and lse is None:
        lse = torch.empty_like(lses[0])
    if stream is None:
        stream = _stream(first.get_device()) if first.is_cuda else 0
    names = [f"part {i}" for i in range(len(outs))]
    names += [f"the log-sum-exp of {name}" for name in names] + ["out", "lse"]
    try:
        told = [
            None if x is None else (_place(name, x), _DTYPES[x.dtype], x.data_ptr(), x.shape, x.stride())
            for name, x in zip(names, (*outs, *lses, out, lse))
        ]
    except KeyError:
        present = [(name, x) for name, x in zip(names, (*outs, *lses, out, lse)) if x is not None]
        raise _torch._dtype_error(*(x for _, x in present), names=[name for name, _ in present]) from None
    count = len(outs)
    _native.launch_merge(stream, told[:count], told[count : 2 * count], told[-2], told[-1])
    return out, lse


_library.define(
    "merge(Tensor[] outs, Tensor[] lses, ScalarType? dtype) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _eager(outs, lses, dtype):
    return _run(tuple(outs), tuple(lses), dtype, None, None, True, None)


def _fake(outs, lses, dtype):
    return torch.empty_like(outs[0], dtype=dtype), torch.empty_like(lses[0])


def _no_gradients(ctx, *gradients):
    raise missing("ferroflash", "gradients of a merge")


for _device in ("CUDA", "CPU"):
    _library.impl("merge", _eager, _device)
torch.library.register_fake("ferroflash::merge", _fake, lib=_library)
torch.library.register_autograd("ferroflash::merge", _no_gradients, lib=_library)
