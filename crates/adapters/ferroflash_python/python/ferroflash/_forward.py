"""Attention on arrays of any package."""

import sys

from . import _native
from ._errors import InputError, InputTypeError
from ._program import bound, of_arrays


def forward(
    q,
    k,
    v,
    *,
    softmax_scale=None,
    causal=False,
    window=(None, None),
    softcap=0.0,
    program=None,
    tensors=None,
    dropout_p=0.0,
    rng_state=None,
    sink=None,
    out=None,
    lse=None,
    return_lse=False,
    stream=None,
    device=None,
):
    """``softmax(softmax_scale * q @ k.T + mask) @ v`` for q ``(batch, q_rows, q_heads, head_dim)`` and k, v ``(batch, kv_rows, kv_heads,
    head_dim)``, all float16, bfloat16 or float32, where ``q_heads`` is a multiple of ``kv_heads``.

    The arrays may be of any package that speaks DLPack or ``__cuda_array_interface__``, on one CUDA GPU or on the CPU, where the emulator
    computes. They are used in place; any strides with a contiguous last axis are accepted.

    Args:
        softmax_scale: factor on the scores; ``None`` is ``head_dim ** -0.5``.
        causal: row ``i`` sees the keys up to ``i + kv_rows - q_rows``: the mask ends at the last row and the last key.
        window: row ``i`` sees ``window[0]`` keys before and ``window[1]`` keys behind key ``i + kv_rows - q_rows``, and that one. ``None`` is
            no bound. A causal mask has none behind.
        softcap: scores ``s`` become ``softcap * tanh(s / softcap)`` before the mask; 0 is no bound.
        program: :class:`ferroflash.ScoreProgram` that scores pass through, behind the softcap and before the mask.
        tensors: arrays that it reads, by name.
        dropout_p: probability with which each probability of a row is dropped, behind the softmax; those that are kept are multiplied with
            ``1 / (1 - dropout_p)``. The log-sum-exp knows nothing of it. 0 drops none.
        rng_state: ``(seed, offset)``, two whole numbers from 0 to below 2**64 that say which are dropped, the same as in FlashAttention-2 and
            PyTorch: :func:`ferroflash.dropout_numbers` says how many numbers behind ``offset`` a call takes. For tensors of PyTorch also an int64
            tensor of both on q's device. ``backward`` is given the same.
        sink: contiguous float32 array ``(q_heads,)``: a logit of each head that takes part in the softmax of its rows and has no value. With scores
            ``s`` a row gives ``sum(exp(s) * v) / (sum(exp(s)) + exp(sink))``, and the logarithm of that denominator as its log-sum-exp. It is not
            multiplied with ``softmax_scale``; minus infinity is none.
        out: array of q's shape and type that the result is written to. ``None`` makes a new one, for arrays of PyTorch, NumPy and CuPy.
        lse: contiguous float32 array ``(batch, q_heads, q_rows)`` that the log-sum-exp of every row is written to: natural logarithm,
            minus infinity, or the sink, for a row that sees no key, whose result is 0.
        return_lse: whether to return the log-sum-exp, in a new array unless ``lse`` is one.
        stream: ``CUstream`` as a number, 0 for the default stream. ``None`` is PyTorch's current stream for its tensors, else 0.
        device: number of the GPU, for ``__cuda_array_interface__``, which does not say it.

    Returns:
        ``out``, or ``(out, lse)`` with ``return_lse``. On a GPU the call returns before the work is done.

    Raises:
        InputError, InputTypeError, MissingFeatureError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    left, right = _bounds(window)
    program = bound(program, tensors)
    dropout = _dropout(dropout_p, rng_state)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(q, torch.Tensor):
        from . import _torch

        tensors = (q, k, v, out, lse)
        return _torch.forward(tensors, softmax_scale, causal, left, right, softcap, program, dropout, sink, return_lse, stream)
    if out is None:
        out = _new_like(q, q.shape if hasattr(q, "shape") else None, None)
    if return_lse and lse is None:
        shape = tuple(q.shape)
        if len(shape) != 4:
            raise InputError(f"attention takes tensors of 4 axes (batch, row, head, dim); {len(shape)} were given")
        lse = _new_like(q, (shape[0], shape[2], shape[1]), "float32")
    options = (softmax_scale, bool(causal), left, right, softcap, of_arrays(program), _numbers(dropout), sink)
    _native.forward(q, k, v, out, lse, stream or 0, device, *options)
    return (out, lse) if return_lse else out


def _bounds(window):
    """The bounds of a window, with -1 for none."""
    left, right = window
    for name, bound in (("left", left), ("right", right)):
        if bound is not None and bound < 0:
            raise InputError(f"window: the {name} bound is {bound}; numbers of keys from 0 on are accepted, and None for no bound")
    return (-1 if left is None else left, -1 if right is None else right)


def _dropout(p, state):
    """``(p, state)``, or ``None`` where nothing is dropped. What is no probability the library refuses."""
    if p == 0:
        return None
    if state is None:
        raise InputError(f"dropout_p is {p}; rng_state must be given, too: (seed, offset)")
    return p, state


def _numbers(dropout):
    """Dropout as the extension module takes it, with seed and offset as numbers."""
    if dropout is None:
        return None
    p, state = dropout
    try:
        seed, offset = (int(number) for number in state)
    except (TypeError, ValueError):
        raise InputTypeError(f"rng_state is {state!r}; (seed, offset) is accepted, two whole numbers") from None
    for name, number in (("seed", seed), ("offset", offset)):
        if not 0 <= number < 1 << 64:
            raise InputError(f"rng_state: the {name} is {number}; numbers from 0 to below 2**64 are accepted")
    return float(p), seed, offset, False


def dropout_numbers(batch, heads):
    """Random numbers that a call with dropout takes, of so many batch entries and query heads: what lies between the offsets of two calls that
    are to drop independently."""
    return 32 * batch * heads


def _new_like(array, shape, dtype, name="q", given="`out` (and `lse`)"):
    """A new array of the package of this one; only packages that are imported already can have made it."""
    for package in (sys.modules.get("numpy"), sys.modules.get("cupy")):
        if package is not None and isinstance(array, package.ndarray):
            return package.empty(shape, dtype or array.dtype)
    raise InputTypeError(
        f"{name} is a {type(array).__module__}.{type(array).__qualname__}; new arrays are made for those of PyTorch, NumPy and CuPy, and for "
        f"others {given} must be given"
    )
