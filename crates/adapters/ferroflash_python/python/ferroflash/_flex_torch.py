"""What of flex_attention is PyTorch's: its compiler sees nothing of it, and blocks are found behind the work of the stream."""

import torch

from . import _flex, _native
from ._torch import _told

# Functions are read by other functions with the same code, which torch.compile does not follow.
flex_attention = torch.compiler.disable(_flex._attend)


def find_blocks(program, device, shape):
    """The blocks of a program on tensors of PyTorch."""
    *_, tensors, _ = program
    if device is None and tensors:
        device = tensors[0].device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    ordinal = _flex._ordinal(device, torch.cuda.current_device() if torch.cuda.is_available() else 0)
    if ordinal >= 0:
        # They are found on the default stream.
        torch.cuda.current_stream(ordinal).synchronize()
    return _native.find_torch_blocks(_told(program), ordinal, shape)
