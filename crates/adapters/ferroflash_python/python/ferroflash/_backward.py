"""Gradients of attention on arrays of any package."""

import sys

from . import _native
from ._forward import _bounds, _dropout, _new_like, _numbers
from ._program import bound, of_arrays


def backward(
    q,
    k,
    v,
    out,
    lse,
    dout,
    *,
    dlse=None,
    softmax_scale=None,
    causal=False,
    window=(None, None),
    softcap=0.0,
    program=None,
    tensors=None,
    dropout_p=0.0,
    rng_state=None,
    sink=None,
    deterministic=False,
    dq=None,
    dk=None,
    dv=None,
    dsink=None,
    stream=None,
    device=None,
):
    """The gradients of a number with respect to q, k and v, given those with respect to what :func:`ferroflash.forward` made of them.

    The same arrays give the same bits of dk and dv, always; those of dq may differ in the last bits from run to run on GPUs of compute
    capability 9.0, unless ``deterministic``. Arrays are of the kinds that ``forward`` takes, and used in place.

    Args:
        q, k, v, softmax_scale, causal, window, softcap, program, tensors, dropout_p, rng_state, sink: as in the call of ``forward``. A softcap and a program
            together are a :class:`ferroflash.MissingFeatureError`: a program may bound scores itself, with ``tanh``. There are no gradients of
            ``tensors``.
        out, lse: what ``forward`` returned for them, with ``return_lse``.
        dout: gradient with respect to ``out``, of its shape and type.
        dlse: gradient with respect to ``lse``, contiguous float32 of its shape; ``None`` is 0.
        deterministic: whether the same arrays have to give the same bits of dq, too, by kernels that are slower on compute capability 9.0. For
            tensors of PyTorch, ``torch.use_deterministic_algorithms(True)`` says the same.
        dq, dk, dv: arrays of the shapes and the type of q, k and v that the gradients are written to. ``None`` makes a new one, for arrays of
            PyTorch, NumPy and CuPy. Gradients of k and v are summed over the query heads that share a head.
        dsink: where there is a ``sink``, the same for its gradient, which is float32.
        stream, device: as in ``forward``.

    Returns:
        ``(dq, dk, dv)``, with a ``sink`` ``(dq, dk, dv, dsink)``. On a GPU the call returns before the work is done. A row that sees no key, and a key
        that no row sees, get 0.

    Raises:
        InputError, InputTypeError, MissingFeatureError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    left, right = _bounds(window)
    program = bound(program, tensors)
    dropout = _dropout(dropout_p, rng_state)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(q, torch.Tensor):
        from . import _torch

        read, written = (q, k, v, out, lse, dout, dlse), (dq, dk, dv)
        options = (softmax_scale, bool(causal), left, right, softcap, bool(deterministic), program, dropout, sink, dsink)
        return _torch.backward(read, written, *options, stream)
    dq, dk, dv = (
        _new_like(of, getattr(of, "shape", None), None, name, f"`d{name}`") if given is None else given
        for name, given, of in (("q", dq, q), ("k", dk, k), ("v", dv, v))
    )
    dsink = _dsink_like(sink, dsink)
    arrays = (q, k, v, out, lse, dout, dlse, dq, dk, dv)
    options = (softmax_scale, bool(causal), left, right, softcap, bool(deterministic), of_arrays(program), _numbers(dropout))
    _native.backward(*arrays, stream or 0, device, *options, sink, dsink)
    return (dq, dk, dv) if dsink is None else (dq, dk, dv, dsink)


def _dsink_like(sink, dsink):
    """The array for the gradient of sinks: a new one where there are sinks and none is given."""
    if sink is None or dsink is not None:
        return dsink
    return _new_like(sink, getattr(sink, "shape", None), "float32", "sink", "`dsink`")


def backward_packed(
    q,
    k,
    v,
    out,
    lse,
    dout,
    q_starts,
    kv_starts,
    *,
    q_used=None,
    kv_used=None,
    dlse=None,
    softmax_scale=None,
    causal=False,
    window=(None, None),
    softcap=0.0,
    program=None,
    tensors=None,
    sink=None,
    dq=None,
    dk=None,
    dv=None,
    dsink=None,
    stream=None,
    device=None,
):
    """:func:`ferroflash.backward` of each of several sequences, packed one behind the other: the gradients of what
    :func:`ferroflash.forward_packed` made of them. The same arrays give the same bits.

    Args:
        q, k, v, q_starts, kv_starts, q_used, kv_used, softmax_scale, causal, window, softcap, program, tensors, sink: as in the call of
            ``forward_packed``. A softcap and a program together are a :class:`ferroflash.MissingFeatureError`. There are no gradients of
            ``tensors``.
        out, lse: what it returned for them, with ``return_lse``.
        dout: gradient with respect to ``out``, of its shape and type.
        dlse: gradient with respect to ``lse``, contiguous float32 ``(q_heads, rows)``; ``None`` is 0.
        dq, dk, dv: arrays of the shapes and the type of q, k and v that the gradients are written to; rows that no sequence has in use are not.
            ``None`` makes a new one, for arrays of PyTorch, NumPy and CuPy, in which they are 0.
        dsink: where there is a ``sink``, the array of its gradient, summed over all sequences.
        stream, device: as in ``forward``.

    Returns:
        ``(dq, dk, dv)``, with a ``sink`` ``(dq, dk, dv, dsink)``. On a GPU the call returns before the work is done.

    Raises:
        InputError, InputTypeError, MissingFeatureError, DeviceError: before anything is launched.
    """
    options = (softmax_scale, bool(causal), *_bounds(window), softcap)
    program = bound(program, tensors)
    numbers = (q_starts, kv_starts, q_used, kv_used)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(q, torch.Tensor):
        from . import _torch_sequences

        return _torch_sequences.backward((q, k, v, out, lse, dout, dlse), numbers, (dq, dk, dv, dsink), (*options, program, sink), stream)
    dq, dk, dv = (
        _zeros_like(of, name) if given is None else given for name, given, of in (("q", dq, q), ("k", dk, k), ("v", dv, v))
    )
    dsink = _dsink_like(sink, dsink)
    arrays = (q, k, v, out, lse, dout, dlse, dq, dk, dv, dsink)
    _native.backward_packed(arrays, numbers, stream or 0, device, *options, of_arrays(program), sink)
    return (dq, dk, dv) if dsink is None else (dq, dk, dv, dsink)


def _zeros_like(of, name):
    new = _new_like(of, getattr(of, "shape", None), None, name, f"`d{name}`")
    new.fill(0)
    return new
