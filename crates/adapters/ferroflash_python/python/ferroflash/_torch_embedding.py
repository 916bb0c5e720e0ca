"""Embedding tables of PyTorch, with gradients: straight to the library where nothing but autograd has to know of it, and as the operation
``ferroflash::embedding`` where PyTorch has to. Its gradient is the operation ``ferroflash::embedding_backward``."""

import torch

from ._errors import InputError, InputTypeError
from ._torch_operators import _is_grad_enabled, check_tensors, define, is_plain, rows, wants_gradients
from .ops import embedding as _arrays


def embedding(input, weight, padding_idx=None, *, scale=1.0):
    """The rows of ``weight`` that ``input`` names, times ``scale``, as ``torch.nn.functional.embedding``.

    Args:
        input: int64 or int32, of any shape. A number below 0 is taken for 0, and one behind the table for its last row: nobody reads them on the host.
        weight: float16, bfloat16 or float32 ``(vocabulary, columns)``.
        padding_idx: row of the table that gets no gradient; below 0 it is counted from the end.

    Returns:
        Of the shape of ``input`` and ``(columns,)`` behind. The gradient of ``weight`` has the same bits from run to run.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched.
    """
    check_tensors(input=input, weight=weight)
    if input.dtype not in (torch.int64, torch.int32):
        raise InputTypeError(f"input holds {input.dtype}; torch.int64 and torch.int32 are accepted")
    if weight.dim() != 2:
        raise InputError(f"weight has {weight.dim()} axes; 2 (vocabulary, columns) are accepted")
    vocabulary = weight.shape[0]
    if padding_idx is not None:
        if not -vocabulary <= padding_idx < vocabulary:
            raise InputError(f"padding_idx is {padding_idx}; weight has {vocabulary} rows, and {-vocabulary} to {vocabulary - 1} are accepted")
        padding_idx %= vocabulary
    if input.dtype is torch.int64:
        # A number that 32 bits do not hold is behind the table, and must not become one within.
        input = input.clamp(0, max(vocabulary - 1, 0)).to(torch.int32)
    input, weight, options = input.contiguous(), rows(weight), (float(scale), padding_idx)
    if not is_plain(input, weight):
        return torch.ops.ferroflash.embedding(input, weight, *options)
    if wants_gradients(weight):
        return _WithGradients.apply(input, weight, *options)
    return _run(input, weight, *options)


class Embedding(torch.nn.Module):
    """A table of ``num_embeddings`` rows of ``embedding_dim`` columns, as ``torch.nn.Embedding``; rows are multiplied with ``scale``."""

    def __init__(self, num_embeddings, embedding_dim, padding_idx=None, *, scale=1.0, device=None, dtype=None):
        super().__init__()
        self.padding_idx, self.scale = padding_idx, scale
        self.weight = torch.nn.Parameter(torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self):
        """Normal numbers, and zeros in the row of the padding."""
        torch.nn.init.normal_(self.weight)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].zero_()

    def forward(self, input):
        """The rows that ``input`` names."""
        return embedding(input, self.weight, self.padding_idx, scale=self.scale)

    def extra_repr(self):
        rows, columns = self.weight.shape
        return f"{rows}, {columns}, padding_idx={self.padding_idx}, scale={self.scale}"


def _run(ids, table, scale, padding):
    return _arrays.forward(ids, table, scale=scale, padding=padding)


def _run_backward(ids, table, dout, scale, padding):
    # Autograd hands over gradients as they come: that of a sum is one number, repeated with strides of 0.
    return _arrays.backward(ids, table, rows(dout), scale=scale, padding=padding)


class _WithGradients(torch.autograd.Function):
    """The operation for plain tensors: the same launches, without what an operation of torch.library takes for its gradient."""

    @staticmethod
    def forward(ctx, ids, table, *options):
        ctx.save_for_backward(ids, table)
        ctx.options = options
        return _run(ids, table, *options)

    @staticmethod
    def backward(ctx, dout):
        compute = torch.ops.ferroflash.embedding_backward if _is_grad_enabled() else _run_backward
        return None, compute(*ctx.saved_tensors, dout, *ctx.options), None, None


def _keep(ctx, inputs, output):
    ids, table, *options = inputs
    ctx.save_for_backward(ids, table)
    ctx.options = tuple(options)


def _gradients(ctx, dout):
    return None, torch.ops.ferroflash.embedding_backward(*ctx.saved_tensors, dout, *ctx.options), None, None


define(
    "embedding",
    "Tensor ids, Tensor table, float scale, SymInt? padding",
    "Tensor",
    _run,
    lambda ids, table, *options: table.new_empty((*ids.shape, table.shape[1])),
    _gradients,
    _keep,
)
define(
    "embedding_backward",
    "Tensor ids, Tensor table, Tensor dout, float scale, SymInt? padding",
    "Tensor",
    _run_backward,
    lambda ids, table, *others: torch.empty_like(table),
)
