"""Arrays of any package, as the operators hand them to the extension module. `_torch_operators` has the same functions for tensors of PyTorch."""

import sys

from ._errors import InputTypeError
from ._forward import _new_like, _numbers


def package_of(first):
    """The module that knows arrays of this one's package."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(first, torch.Tensor):
        from . import _torch_operators

        return _torch_operators
    return sys.modules[__name__]


def shape_of(name, array):
    """The extents of an array, of whatever package."""
    shape = getattr(array, "shape", None)
    if shape is None:
        raise InputTypeError(f"{name} is a {type(array).__qualname__}; arrays that speak DLPack or `__cuda_array_interface__`, with a shape, are accepted")
    return tuple(shape)


def told(function, named):
    """The arrays as the extension module takes them, in their order: it asks them itself."""
    for name, array in named:
        # By tuples it is told of tensors of PyTorch, addresses and all.
        if isinstance(array, tuple):
            raise InputTypeError(f"{name} is a tuple; arrays that speak DLPack or `__cuda_array_interface__` are accepted")
    return [array for _, array in named]


def new_like(array, shape, name, given, dtype=None):
    """A new array of this one's package, of its type unless another is named. ``given`` is what a caller would have to give instead."""
    return _new_like(array, shape, dtype, name, given)


def stream_of(first, stream):
    """The stream of a call on arrays of which this is the first."""
    return stream or 0


def dropout_of(dropout, first):
    """Dropout as the extension module takes it."""
    return _numbers(dropout)
