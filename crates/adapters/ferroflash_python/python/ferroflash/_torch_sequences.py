"""Attention over packed sequences and caches on tensors of PyTorch: straight to the library where nothing of PyTorch has to know of it, and as the
operations ``ferroflash::forward_packed``, ``forward_cached`` and ``forward_appending`` where it has to. Gradients of packed sequences are the
operation ``ferroflash::backward_packed``."""

import torch
from torch import Tensor

from . import _native, _torch
from ._errors import InputError, InputTypeError, missing
from ._torch import _DTYPES, _empty_like, _gathered, _is_compiling, _is_grad_enabled, _library, _modes, _place, _spread, _stream, _told, _transforms

_launch = _native.launch_sequences
_launch_backward = _native.launch_packed_backward

# The order in which the extension module takes tensors and numbers.
_TENSORS = ("q", "k", "v", "out", "lse", "the new k", "the new v", "rotary_cos", "rotary_sin")
_NUMBERS = ("q_starts", "q_used", "kv_starts", "lengths", "first", "entries", "new_starts", "rotary_positions", "pages")
# The same by the names of flash_attn.
FLASH_NUMBERS = (
    "cu_seqlens_q",
    "seqused_q",
    "cu_seqlens_k",
    "cache_seqlens",
    "cache_leftpad",
    "cache_batch_idx",
    "cu_seqlens_k_new",
    "rotary_seqlens",
    "block_table",
)


def attend(function, tensors, numbers, hints, interleaved, splits, options, return_lse):
    """Attention as the functions of flash_attn have it: ``(out, lse)``, lse ``None`` unless it is asked for.

    With what their Python side does before: a last dim of q, k and v with gaps is copied, a head dim that is no multiple of 8 padded with zeros; then a
    cache that is written is a padded copy, and copied back.
    """
    q, k_cache, v_cache, k, v, cos, sin = tensors
    is_packed, is_cached = numbers[0] is not None, numbers[2] is None
    for name, tensor in (("q", q), ("k", k_cache), ("v", v_cache)):
        if not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}; a torch.Tensor is accepted")
    axes = 3 if is_packed else 4
    if q.dim() != axes:
        names = "where rows are packed (row, head, dim)" if is_packed else "(batch, row, head, dim)"
        raise InputError(f"q has {q.dim()} axes; {axes} are accepted {names}")
    if is_cached:
        refuse_gradients(function, tensors)
        refuse_gradients(function, options[-1:], "sinks over a key-value cache")
    q, k, v = (x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if not is_cached:
        k_cache, v_cache = (x if x.dim() == 0 or x.stride(-1) == 1 else x.contiguous() for x in (k_cache, v_cache))
    head_dim, caches = q.shape[-1], (k_cache, v_cache)
    if head_dim & 7:
        scale, *others = options
        options = (head_dim**-0.5 if scale is None else scale, *others)
        q, k_cache, v_cache, k, v = (
            None if x is None else torch.nn.functional.pad(x, (0, -head_dim % 8)) for x in (q, k_cache, v_cache, k, v)
        )
    numbers = tuple(_contiguous(name, x) for name, x in zip(FLASH_NUMBERS, numbers))
    out, lse = _by_operation((q, k_cache, v_cache, k, v, cos, sin), numbers, hints, interleaved, splits, options, return_lse)
    if head_dim & 7:
        out = out[..., :head_dim]
        if k is not None:
            for cache, padded in zip(caches, (k_cache, v_cache)):
                cache.copy_(padded[..., :head_dim])
    return out, (lse if return_lse else None)


def refuse_gradients(function, tensors, of="a key-value cache"):
    """The original leaves gradients of caches out without a word."""
    if _wants_gradients(tensors):
        raise missing(function, f"gradients of {of}")


def _wants_gradients(tensors):
    return _is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _contiguous(name, numbers):
    """Numbers as the library takes them: without gaps, rows of a table any distance apart."""
    if numbers is None:
        return None
    _check_numbers(name, numbers)
    if numbers.dim() == 2 and numbers.stride(1) == 1 and numbers.stride(0) >= numbers.shape[1]:
        return numbers
    return numbers.contiguous()


def _check_numbers(name, numbers):
    if not isinstance(numbers, Tensor):
        raise InputTypeError(f"{name} is a {type(numbers).__name__}; a torch.Tensor is accepted")
    if numbers.dtype is not torch.int32:
        raise InputTypeError(f"{name} holds {numbers.dtype}; torch.int32 is accepted")


def _by_operation(tensors, numbers, hints, interleaved, splits, options, return_lse):
    q, k_cache, v_cache, k, v, cos, sin = tensors
    # Only packed sequences come here with any. The backward pass reads the log-sum-exp, whether the caller does or not.
    *options, program, sink = options
    with_gradient = _wants_gradients((*tensors, sink))
    if not _is_compiling() and not _modes() and not _transforms():
        if all(x is None or type(x) is Tensor for x in (*tensors, *numbers, sink)):
            if with_gradient:
                return _PackedWithGradient.apply(q, k_cache, v_cache, sink, numbers, hints, splits, (*options, program))
            told = (q, k_cache, v_cache, None, None, k, v, cos, sin)
            return _run(told, numbers, _NUMBERS, hints, interleaved, splits, (*options, program, sink), return_lse, None)
    q_starts, q_used, kv_starts, used, first, entries, new_starts, positions, pages = numbers
    program = (*_spread(program), sink)
    if kv_starts is not None:
        of_rows = (q_starts, kv_starts, q_used, used)
        with_lse = return_lse or with_gradient
        return torch.ops.ferroflash.forward_packed(q, k_cache, v_cache, *of_rows, *hints, splits, *options, with_lse, *program)
    of_cache = (q_starts, q_used, used, first, entries, pages, hints[0], splits)
    if k is None:
        return torch.ops.ferroflash.forward_cached(q, k_cache, v_cache, *of_cache, *options, return_lse, *program)
    of_new = (k, v, new_starts, cos, sin, interleaved, positions)
    return torch.ops.ferroflash.forward_appending(q, k_cache, v_cache, *of_new, *of_cache, *options, return_lse, *program)


def _run(tensors, numbers, names, hints, interleaved, splits, options, return_lse, stream):
    """Launches, with new tensors for the results unless they are given."""
    q, k, v, out, lse, *others = tensors
    if stream is None:
        stream = _stream(q.get_device()) if q.is_cuda else 0
    if out is None:
        out = _empty_like(q)
    if return_lse and lse is None:
        lse = q.new_empty(_lse_shape(q, numbers[0] is not None), dtype=torch.float32)
    given = (q, k, v, out, lse, *others)
    try:
        told = [
            None if x is None else (_at(name, x), _DTYPES[x.dtype], x.data_ptr(), x.shape, x.stride())
            for name, x in zip(_TENSORS, given)
        ]
    except KeyError:
        present = [(name, x) for name, x in zip(_TENSORS, given) if x is not None]
        raise _torch._dtype_error(*(x for _, x in present), names=[name for name, _ in present]) from None
    arrays = [None if x is None else (_at(name, x), x.data_ptr(), x.shape, x.stride()) for name, x in zip(names, numbers)]
    *options, program, sink = options
    told_options = (*options, None if program is None else _told(program), None if sink is None else _torch._told_sink(sink))
    _launch(stream, told, arrays, hints, interleaved, splits, *told_options)
    return out, lse


def _at(name, tensor):
    """The number of a tensor's GPU. That of one on a GPU is asked without an object for the device."""
    return tensor.get_device() if tensor.is_cuda else _place(name, tensor)


def _lse_shape(q, is_packed):
    if is_packed:
        rows, heads, _ = q.shape
        return heads, rows
    batch, rows, heads, _ = q.shape
    return batch, heads, rows


def forward(function, tensors, numbers, hints, interleaved, splits, options, return_lse, stream):
    """``ferroflash.forward_packed`` and ``forward_cached`` for tensors of PyTorch: in place, no padding, no copies."""
    for name, tensor in zip(_TENSORS, tensors):
        if not isinstance(tensor, Tensor) and (tensor is not None or name in ("q", "k", "v")):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}, q a torch.Tensor; all must be of one package")
    for name, array in zip(_NUMBERS, numbers):
        if array is not None:
            _check_numbers(name, array)
    q, k, v, out, lse, *of_new = tensors
    is_packed, is_cached = numbers[0] is not None, numbers[2] is None
    *_, program, sink = options
    if sink is not None and not isinstance(sink, Tensor):
        raise InputTypeError(f"sink is a {type(sink).__name__}, q a torch.Tensor; all must be of one package")
    _torch.refuse_gradients_of_programs(f"ferroflash.{function}", program)
    if is_cached:
        refuse_gradients(f"ferroflash.{function}", (*tensors, sink))
    if q.dim() != (3 if is_packed else 4):
        names = "3 are accepted where rows are packed (row, head, dim)" if is_packed else "4 are accepted (batch, row, head, dim)"
        raise InputError(f"q has {q.dim()} axes; {names}")
    if out is None and lse is None and stream is None:
        out, lse = _by_operation((q, k, v, *of_new), numbers, hints, interleaved, splits, options, return_lse)
        return (out, lse) if return_lse else out
    if _wants_gradients((*tensors, sink)):
        raise missing(f"ferroflash.{function}", "a gradient through `out`, `lse` or `stream`")
    out, lse = _run((q, k, v, out, lse, *of_new), numbers, _NUMBERS, hints, interleaved, splits, options, return_lse, stream)
    return (out, lse) if return_lse else out


_READ = ("q", "k", "v", "out", "lse", "dout", "dlse")
_WRITTEN = ("dq", "dk", "dv", "dsink")
_STARTS = ("q_starts", "kv_starts", "q_used", "kv_used")


def backward(read, numbers, written, options, stream):
    """``ferroflash.backward_packed`` for tensors of PyTorch: in place, no padding, no copies."""
    sink = options[-1]
    tensors = (*read, *written, sink)
    for name, tensor in zip((*_READ, *_WRITTEN, "sink"), tensors):
        if not isinstance(tensor, Tensor) and (tensor is not None or name not in ("dlse", *_WRITTEN, "sink")):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}, q a torch.Tensor; all must be of one package")
    for name, array in zip(_STARTS, numbers):
        if array is not None:
            _check_numbers(name, array)
    if _wants_gradients(tensors):
        raise missing("ferroflash.backward_packed", "a gradient of gradients")
    gradients = _run_backward(read, numbers, written, options, sink is not None, stream)
    return gradients[:3] if gradients[3] is None else gradients


def _run_backward(read, numbers, written, options, return_dsink, stream):
    """Launches, with new tensors for the gradients that are not given: those of rows that are not in use are 0. That of the sinks is made where it is
    asked for."""
    *options, program, sink = options
    q, k, v = read[:3]
    if stream is None:
        stream = _stream(q.get_device()) if q.is_cuda else 0
    *written, dsink = written
    written = tuple(torch.zeros_like(of) if given is None else given for of, given in zip((q, k, v), written))
    if dsink is None and return_dsink:
        dsink = _empty_like(sink)
    written = (*written, dsink)
    tensors, names = (*read, *written), _READ + _WRITTEN
    try:
        told = [
            None if x is None else (_at(name, x), _DTYPES[x.dtype], x.data_ptr(), x.shape, x.stride())
            for name, x in zip(names, tensors)
        ]
    except KeyError:
        present = [(name, x) for name, x in zip(names, tensors) if x is not None]
        raise _torch._dtype_error(*(x for _, x in present), names=[name for name, _ in present]) from None
    arrays = [None if x is None else (_at(name, x), x.data_ptr(), x.shape, x.stride()) for name, x in zip(_STARTS, numbers)]
    _launch_backward(stream, told, arrays, *options, _told(program), None if sink is None else _torch._told_sink(sink))
    return written


_MASK = "float? softmax_scale, bool causal, SymInt window_left, SymInt window_right, float softcap"
_OPTIONS = f"{_MASK}, bool return_lse, {_torch._PROGRAM}, Tensor? sink"
_CACHE = "Tensor? q_starts, Tensor? q_used, Tensor? lengths, Tensor? first, Tensor? entries, Tensor? pages, SymInt? longest_q, int splits"
_NEW = "Tensor k, Tensor v, Tensor? new_starts, Tensor? cos, Tensor? sin, bool interleaved, Tensor? positions"
_library.define(
    "forward_packed(Tensor q, Tensor k, Tensor v, Tensor q_starts, Tensor kv_starts, Tensor? q_used, Tensor? kv_used, SymInt? longest_q, "
    f"SymInt? longest_kv, int splits, {_OPTIONS}) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    f"forward_cached(Tensor q, Tensor k_cache, Tensor v_cache, {_CACHE}, {_OPTIONS}) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    f"forward_appending(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, {_NEW}, {_CACHE}, {_OPTIONS}) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _told_apart(options):
    """Options with their program, and whether the log-sum-exp is wanted, from what an operation is given behind its tensors."""
    scale, causal, left, right, softcap, return_lse, *program, sink = options
    return (scale, causal, left, right, softcap, _gathered(*program), sink), return_lse


def _eager(tensors, numbers, hints, interleaved, splits, options):
    q = tensors[0]
    numbers = tuple(_contiguous(name, x) for name, x in zip(_NUMBERS, numbers))
    options, return_lse = _told_apart(options)
    out, lse = _run(tensors, numbers, _NUMBERS, hints, interleaved, splits, options, return_lse, None)
    return out, (q.new_empty((0,), dtype=torch.float32) if lse is None else lse)


def _eager_packed(q, k, v, q_starts, kv_starts, q_used, kv_used, longest_q, longest_kv, splits, *options):
    numbers = (q_starts, q_used, kv_starts, kv_used, None, None, None, None, None)
    tensors = (q, k, v, None, None, None, None, None, None)
    return _eager(tensors, numbers, (longest_q, longest_kv), False, splits, options)


def _eager_cached(q, k_cache, v_cache, q_starts, q_used, lengths, first, entries, pages, longest_q, splits, *options):
    numbers = (q_starts, q_used, None, lengths, first, entries, None, None, pages)
    tensors = (q, k_cache, v_cache, None, None, None, None, None, None)
    return _eager(tensors, numbers, (longest_q, None), False, splits, options)


def _eager_appending(q, k_cache, v_cache, k, v, new_starts, cos, sin, interleaved, positions, *of_cache):
    q_starts, q_used, lengths, first, entries, pages, longest_q, splits, *options = of_cache
    numbers = (q_starts, q_used, None, lengths, first, entries, new_starts, positions, pages)
    tensors = (q, k_cache, v_cache, None, None, k, v, cos, sin)
    return _eager(tensors, numbers, (longest_q, None), interleaved, splits, options)


def _fake(q, *arguments):
    # A q of three axes is packed.
    *_, return_lse, _, _, _, _ = arguments
    lse = _lse_shape(q, q.dim() == 3) if return_lse else (0,)
    return _empty_like(q), q.new_empty(lse, dtype=torch.float32)


def _no_gradients(ctx, *gradients):
    raise missing("ferroflash", "gradients of key-value caches")


_library.define(
    "backward_packed(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor dout, Tensor? dlse, Tensor q_starts, Tensor kv_starts, "
    f"Tensor? q_used, Tensor? kv_used, {_MASK}, {_torch._PROGRAM}, Tensor? sink, bool return_dsink) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _eager_backward(q, k, v, out, lse, dout, dlse, q_starts, kv_starts, q_used, kv_used, *options):
    # Autograd hands over gradients as they come: that of a sum is one number, repeated with strides of 0.
    if dout.dim() == 3 and dout.stride(2) != 1:
        dout = dout.contiguous()
    if dlse is not None:
        dlse = dlse.contiguous()
    read = (q, k, v, out, lse.contiguous(), dout, dlse)
    numbers = tuple(_contiguous(name, x) for name, x in zip(_STARTS, (q_starts, kv_starts, q_used, kv_used)))
    scale, causal, left, right, softcap, *program, sink, return_dsink = options
    options = (scale, causal, left, right, softcap, _gathered(*program), sink)
    *gradients, dsink = _run_backward(read, numbers, (None,) * 4, options, return_dsink, None)
    return *gradients, _torch._no_dsink(q) if dsink is None else dsink


def _fake_backward(q, k, v, *others):
    *_, sink, return_dsink = others
    of_sinks = _empty_like(sink) if return_dsink else _torch._no_dsink(q)
    return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), of_sinks


def _keep(ctx, inputs, output):
    """What the backward pass takes: it is kept only where a gradient is wanted, because PyTorch asks for it only there."""
    q, k, v, q_starts, kv_starts, q_used, kv_used, longest_q, longest_kv, ctx.splits, *others = inputs
    *ctx.options, ctx.has_lse, ctx.text, ctx.names, tensors, sink = others
    ctx.hints = (longest_q, longest_kv)
    ctx.save_for_backward(q, k, v, *output, sink, q_starts, kv_starts, q_used, kv_used, *(tensors or ()))
    # A gradient that nobody wants is none, not zeros.
    ctx.set_materialize_grads(False)


def _gradients(ctx, dout, dlse):
    q, k, v, out, lse, sink, *numbers = ctx.saved_tensors
    numbers, tensors = numbers[:4], numbers[4:]
    program = (ctx.text, ctx.names, tensors or None, sink)
    if not ctx.has_lse:
        # The operation was called without one, which the functions of this package do not do for tensors with gradients.
        _, lse = torch.ops.ferroflash.forward_packed(q, k, v, *numbers, *ctx.hints, ctx.splits, *ctx.options, True, *program)
        dlse = None
    if dout is None:
        dout = torch.zeros_like(out)
    return_dsink = sink is not None and ctx.needs_input_grad[-1]
    operation = torch.ops.ferroflash.backward_packed
    *gradients, dsink = operation(q, k, v, out, lse, dout, dlse, *numbers, *ctx.options, *program, return_dsink)
    return *gradients, *(None,) * 15, [None] * len(tensors) or None, dsink if return_dsink else None


class _PackedWithGradient(torch.autograd.Function):
    """The operation for plain tensors: the same launches, without the time that an operation of torch.library takes for its gradient."""

    @staticmethod
    def forward(ctx, q, k, v, sink, numbers, hints, splits, options):
        tensors = (q, k, v, None, None, None, None, None, None)
        out, lse = _run(tensors, numbers, _NUMBERS, hints, False, splits, (*options, sink), True, None)
        q_starts, q_used, kv_starts, kv_used, *_ = numbers
        *ctx.options, program = options
        ctx.text, ctx.names, of_program = _spread(program)
        ctx.save_for_backward(q, k, v, out, lse, sink, q_starts, kv_starts, q_used, kv_used, *(of_program or ()))
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        q, k, v, out, lse, sink, *numbers = ctx.saved_tensors
        numbers, of_program = numbers[:4], numbers[4:]
        if dout is None:
            dout = torch.zeros_like(out)
        # Gradients are recorded here only for a gradient of gradients: the operation says that there is none.
        compute = torch.ops.ferroflash.backward_packed if _is_grad_enabled() else _eager_backward
        return_dsink = sink is not None and ctx.needs_input_grad[3]
        options = (*ctx.options, ctx.text, ctx.names, of_program or None, sink, return_dsink)
        *gradients, dsink = compute(q, k, v, out, lse, dout, dlse, *numbers, *options)
        return *gradients, dsink if return_dsink else None, None, None, None, None


for _name, _function in (
    ("forward_packed", _eager_packed),
    ("forward_cached", _eager_cached),
    ("forward_appending", _eager_appending),
):
    for _device in ("CUDA", "CPU"):
        _library.impl(_name, _function, _device)
    torch.library.register_fake(f"ferroflash::{_name}", _fake, lib=_library)
    if _name == "forward_cached":  # autograd has no place for what `forward_appending` writes
        torch.library.register_autograd(f"ferroflash::{_name}", _no_gradients, lib=_library)

for _device in ("CUDA", "CPU"):
    _library.impl("backward_packed", _eager_backward, _device)
torch.library.register_fake("ferroflash::backward_packed", _fake_backward, lib=_library)
torch.library.register_autograd("ferroflash::forward_packed", _gradients, setup_context=_keep, lib=_library)
torch.library.register_autograd("ferroflash::backward_packed", _torch._second_gradients, lib=_library)
