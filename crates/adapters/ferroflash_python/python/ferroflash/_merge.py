"""The merge of partial results, on arrays of any package."""

import sys

from . import _native
from ._errors import InputError
from ._forward import _new_like


def merge(outs, lses, *, dtype=None, out=None, lse=None, return_lse=False, stream=None, device=None):
    """Puts partial results together: attention of the same queries over disjoint sets of keys, each with its log-sum-exp, becomes attention over
    all of these keys, such as those of a prompt that sequences share and those of their own.

        lse = ln sum e^lse_i        out = sum e^(lse_i - lse) out_i

    Args:
        outs: arrays ``(batch, rows, heads, head_dim)``, or ``(rows, heads, head_dim)`` of packed rows, of one shape and type. Any number of them.
        lses: for each, contiguous float32 ``(batch, heads, rows)``, or ``(heads, rows)``: natural logarithm, as ``forward`` returns it. Where it is
            minus infinity, a row has seen no key of the part, and what the output holds there plays no part.
        dtype: type of a new ``out``, as the package of the arrays has it; ``None`` is that of ``outs``. float32 goes into every type, and every
            type into float32.
        out: array that the result is written to, apart from all parts; ``None`` makes a new one, for arrays of PyTorch, NumPy and CuPy.
        lse: contiguous float32, for the log-sum-exp of the whole.
        return_lse, stream, device: as in ``forward``.

    Returns:
        ``out``, or ``(out, lse)`` with ``return_lse``. There are no gradients yet.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched.
    """
    outs, lses = tuple(outs), tuple(lses)
    if len(outs) != len(lses):
        raise InputError(f"{len(outs)} outputs and {len(lses)} log-sum-exps were given; as many of both are accepted")
    if not outs:
        raise InputError("no partial results were given; a merge takes 1 or more")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(outs[0], torch.Tensor):
        from . import _torch_merge

        return _torch_merge.merge(outs, lses, dtype, out, lse, return_lse, stream)
    if out is None:
        out = _new_like(outs[0], getattr(outs[0], "shape", None), dtype, "part 0", "`out` (and `lse`)")
    if return_lse and lse is None:
        lse = _new_like(outs[0], lses[0].shape, "float32", "part 0", "`out` (and `lse`)")
    _native.merge(outs, lses, out, lse, stream or 0, device)
    return (out, lse) if return_lse else out


def merge_attn_states(output, prefix_output, prefix_lse, suffix_output, suffix_lse, output_lse=None):
    """:func:`ferroflash.merge` of two parts by the arguments of vLLM's function of that name: outputs ``(tokens, heads, head_dim)``, log-sum-exps
    float32 ``(heads, tokens)`` in natural logarithm. A token that saw no key of a part has minus infinity; plus infinity, by which some kernels
    say the same, is not accepted as that: it gives NaN.

    Writes ``output``, and ``output_lse`` where it is given, and returns nothing.
    """
    merge((prefix_output, suffix_output), (prefix_lse, suffix_lse), out=output, lse=output_lse)
