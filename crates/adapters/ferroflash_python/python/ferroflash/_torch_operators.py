"""Tensors of PyTorch, as the operators hand them to the extension module, and what their functions with gradients share."""

import torch
from torch import Tensor

from ._errors import InputTypeError, missing
from ._torch import _DTYPES, _is_compiling, _is_grad_enabled, _library, _modes, _place, _stream, _told_dropout, _transforms

# The extension module knows 32-bit integers and booleans by the numbers behind those of the types of tensors.
_ALL_DTYPES = {**_DTYPES, torch.int32: 3, torch.bool: 4}
_OF_NAMES = {"float32": torch.float32}


def told(function, named):
    """The tensors as the extension module takes them, in their order, with a name each for messages."""
    found, records = [], _is_grad_enabled()
    for name, tensor in named:
        if tensor is None:
            found.append(None)
            continue
        if not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}, {named[0][0]} a torch.Tensor; all must be of one package")
        if records and tensor.requires_grad:
            raise missing(function, f"recording a gradient of {name}")
        dtype = _ALL_DTYPES.get(tensor.dtype)
        if dtype is None:
            accepted = "torch.float16, torch.bfloat16 and torch.float32 are accepted, torch.int32 for whole numbers, and torch.bool for masks"
            raise InputTypeError(f"{name} holds {tensor.dtype}; {accepted}")
        found.append((_place(name, tensor), dtype, tensor.data_ptr(), tensor.shape, tensor.stride()))
    return found


def new_like(tensor, shape, name, given, dtype=None):
    """A new tensor, with the strides of this one if it has its shape."""
    dtype = _OF_NAMES.get(dtype, dtype)
    if shape == tensor.shape:
        return torch.empty_like(tensor, dtype=dtype)
    return tensor.new_empty(shape, dtype=dtype)


def stream_of(first, stream):
    if stream is None and first.is_cuda:
        return _stream(first.get_device())
    return stream or 0


def dropout_of(dropout, first):
    """Dropout of a call on this tensor, as the extension module takes it."""
    return None if dropout is None else _told_dropout(dropout, first)


# Counts writes to tensors, by which autograd finds out that one that it keeps is not what it was.
mark_written = getattr(torch.autograd.graph, "increment_version", lambda tensors: None)


def is_plain(*tensors):
    """Whether nothing of PyTorch has to know of a call on these tensors, but for autograd."""
    return all(x is None or type(x) is Tensor for x in tensors) and not (_is_compiling() or _modes() or _transforms())


def wants_gradients(*tensors):
    return _is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)


def check_tensors(**tensors):
    """Whether all that are given are tensors of PyTorch."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}; a torch.Tensor is accepted")


def refuse_gradients(function, **tensors):
    """Gradients that there are not, which nobody is to find out by missing them."""
    for name, tensor in tensors.items():
        if wants_gradients(tensor):
            raise missing(function, f"a gradient of {name}")


def refuse_shared(function, process_group):
    """What tensors that are shared out between processes would take."""
    if process_group is not None:
        processes = torch.distributed.get_world_size(process_group)
        if processes > 1:
            raise missing(function, f"a process_group of {processes} processes; one process is accepted")


def rows(tensor):
    """The tensor with its last axis contiguous: one with gaps is copied."""
    return tensor if tensor is None or tensor.dim() == 0 or tensor.stride(-1) == 1 else tensor.contiguous()


def matrix(tensor):
    """The tensor as products take it: one stride steps through all rows, whose elements lie one by one. Others are copied."""
    tensor = rows(tensor)
    if tensor is None or tensor.dim() < 3 or tensor.is_contiguous():
        return tensor
    return tensor.flatten(0, -2).view(tensor.shape)


def of_autocast(*tensors):
    """The tensors in the type that they take under ``torch.autocast`` where the first is; where there is none, as they are."""
    kind = tensors[0].device.type
    if kind not in ("cuda", "cpu") or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    # Other types are refused as ever.
    return tuple(tensor.to(dtype) if tensor is not None and tensor.dtype in _DTYPES else tensor for tensor in tensors)


def nothing(of):
    """What operations of PyTorch return where there is nothing."""
    return of.new_empty((0,), dtype=torch.float32)


def fakes_of(tensors, wanted, of):
    """What an operation returns that makes gradients of these tensors, of those that are wanted."""
    pairs = zip(tensors, wanted)
    return tuple(torch.empty_like(tensor) if is_wanted and tensor is not None else nothing(of) for tensor, is_wanted in pairs)


def define(name, arguments, results, eager, fake, gradients=None, keep=None):
    """An operation of PyTorch, `ferroflash::name`. Without `gradients` it has none, and says so to who asks for some."""
    _library.define(f"{name}({arguments}) -> {results}", tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CUDA", "CPU"):
        _library.impl(name, eager, device)
    torch.library.register_fake(f"ferroflash::{name}", fake, lib=_library)
    torch.library.register_autograd(f"ferroflash::{name}", gradients or _no_gradients, setup_context=keep, lib=_library)


def _no_gradients(ctx, *gradients):
    raise missing("ferroflash", "a gradient of gradients (create_graph=True)")
