"""Attention on tensors of PyTorch: straight to the library where nothing of PyTorch has to know of it, and as the operation
``ferroflash::forward`` where it has to: under torch.compile and torch.func, and for tensors that are none of the plain kind. Gradients of
those are the operation ``ferroflash::backward``."""

import torch
from torch import Tensor

from . import _native
from ._errors import InputError, InputTypeError, missing
from ._forward import _numbers, dropout_numbers

# The numbers that the extension module knows the types by.
_DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}

_empty_like = torch.empty_like
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_wants_determinism = torch.are_deterministic_algorithms_enabled
_launch_native = _native.launch
_launch_backward = _native.launch_backward
# Modes that see every operation (fake tensors, counters): they see this one as an operation, too.
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
# Whether torch.func looks on, which wants an operation, too.
_transforms = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def _stream_of(ordinal):
    return torch.cuda.current_stream(ordinal).cuda_stream


# What torch.compile's own kernels ask for: a tenth of the time of `current_stream`, which makes an object.
_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_of)


def attend(q, k, v, scale, causal, left, right, softcap, deterministic, return_lse, program=None, dropout=None, sink=None):
    """Attention as the functions of flash_attn have it: ``(out, lse)``, lse ``None`` unless it is asked for.

    Plain tensors on a GPU, which is what nearly every call has, are seen to here without another call of Python: what it takes is what a
    user waits for. `_attend_slowly` does the same for all others.
    """
    try:
        if (
            type(q) is Tensor
            and type(k) is Tensor
            and type(v) is Tensor
            and q.is_cuda
            and k.is_cuda
            and v.is_cuda
            and not _is_compiling()
            and not _modes()
            and not (_is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
            and (sink is None or (type(sink) is Tensor and not (_is_grad_enabled() and sink.requires_grad)))
        ):
            q_shape, q_strides, k_strides, v_strides = q.shape, q.stride(), k.stride(), v.stride()
            if q_strides[3] == 1 and k_strides[3] == 1 and v_strides[3] == 1 and not q_shape[3] & 7:
                dtype, ordinal = _DTYPES[q.dtype], q.get_device()
                arguments = (
                    (k.get_device(), _DTYPES[k.dtype], k.data_ptr(), k.shape, k_strides),
                    (v.get_device(), _DTYPES[v.dtype], v.data_ptr(), v.shape, v_strides),
                )
                out, lse = _empty_like(q), None
                if return_lse:
                    lse = q.new_empty((q_shape[0], q_shape[2], q_shape[1]), dtype=torch.float32)
                _launch_native(
                    _stream(ordinal),
                    (ordinal, dtype, q.data_ptr(), q_shape, q_strides),
                    *arguments,
                    (ordinal, dtype, out.data_ptr(), q_shape, out.stride()),
                    lse.data_ptr() if return_lse else 0,
                    scale,
                    causal,
                    left,
                    right,
                    softcap,
                    None if program is None else _told(program),
                    None if dropout is None else _told_dropout(dropout, q),
                    None if sink is None else _told_sink(sink),
                )
                return out, lse
    except (IndexError, KeyError):
        pass  # fewer axes, or another type: what follows says so
    return _attend_slowly(q, k, v, scale, causal, left, right, softcap, deterministic, return_lse, program, dropout, sink)


def _attend_slowly(q, k, v, scale, causal, left, right, softcap, deterministic, return_lse, program, dropout, sink):
    """Attention with what flash_attn's Python side does before: a last dim with gaps is copied, a head dim that is no multiple of 8 padded
    with zeros. As an operation of PyTorch, where PyTorch has to know of it."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}; a torch.Tensor is accepted")
        if tensor.dim() != 4:
            raise InputError(f"attention takes tensors of 4 axes (batch, row, head, dim); {tensor.dim()} were given for {name}")
    q, k, v = (tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in (q, k, v))
    head_dim = q.shape[3]
    if head_dim & 7:
        if scale is None:
            scale = head_dim**-0.5
        q, k, v = (torch.nn.functional.pad(tensor, (0, -head_dim % 8)) for tensor in (q, k, v))
    # The backward pass reads the log-sum-exp, whether the caller does or not.
    with_gradient = _is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, sink))
    is_plain = all(x is None or type(x) is Tensor for x in (q, k, v, sink)) and not (_is_compiling() or _modes() or _transforms())
    if is_plain and with_gradient:
        out, lse = _WithGradient.apply(q, k, v, sink, scale, causal, left, right, softcap, bool(deterministic), program, dropout)
    elif is_plain:
        out, lse = _run(q, k, v, None, None, scale, causal, left, right, softcap, program, dropout, sink, return_lse, None)
    else:
        with_lse = return_lse or with_gradient
        options = (scale, causal, left, right, softcap, bool(deterministic), with_lse, *_spread(program), *_spread_dropout(dropout, q), sink)
        out, lse = torch.ops.ferroflash.forward(q, k, v, *options)
    if head_dim & 7:
        out = out[..., :head_dim]
    return out, (lse if return_lse else None)


def _run(q, k, v, out, lse, scale, causal, left, right, softcap, program, dropout, sink, return_lse, stream):
    """Launches, with new tensors for the results unless they are given."""
    q_shape, q_strides = q.shape, q.stride()
    k_shape, k_strides = k.shape, k.stride()
    v_shape, v_strides = v.shape, v.stride()
    if q.is_cuda and k.is_cuda and v.is_cuda:
        q_at, k_at, v_at = q.get_device(), k.get_device(), v.get_device()
        if stream is None:
            stream = _stream(q_at)
    else:
        q_at, k_at, v_at = _place("q", q), _place("k", k), _place("v", v)
        stream = stream or 0
    if out is None:
        out = _empty_like(q)
        out_at = q_at
    else:
        out_at = _place("out", out)
    if return_lse and lse is None and len(q_shape) == 4:
        lse = q.new_empty((q_shape[0], q_shape[2], q_shape[1]), dtype=torch.float32)
    try:
        dtype = _DTYPES[q.dtype]
        _launch_native(
            stream,
            (q_at, dtype, q.data_ptr(), q_shape, q_strides),
            (k_at, _DTYPES[k.dtype], k.data_ptr(), k_shape, k_strides),
            (v_at, _DTYPES[v.dtype], v.data_ptr(), v_shape, v_strides),
            (out_at, _DTYPES[out.dtype], out.data_ptr(), out.shape, out.stride()),
            0 if lse is None else lse.data_ptr(),
            scale,
            causal,
            left,
            right,
            softcap,
            None if program is None else _told(program),
            None if dropout is None else _told_dropout(dropout, q),
            None if sink is None else _told_sink(sink),
        )
    except KeyError:
        raise _dtype_error(q, k, v, out) from None
    return out, lse


# The number of 32-bit integers, which programs read beside numbers.
_PROGRAM_DTYPES = {**_DTYPES, torch.int32: 3}


def _told(program):
    """A program as the extension module takes it."""
    if program is None:
        return None
    text, names, tensors, blocks = program
    told = []
    for name, tensor in zip(names, tensors):
        if not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}, q a torch.Tensor; all must be of one package")
        dtype = _PROGRAM_DTYPES.get(tensor.dtype)
        if dtype is None:
            accepted = "torch.float16, torch.bfloat16, torch.float32 and torch.int32"
            raise InputTypeError(f"{name} holds {tensor.dtype}; {accepted} are accepted")
        told.append((name, _place(name, tensor), dtype, tensor.data_ptr(), tensor.shape, tensor.stride()))
    return text, told, blocks


def _spread(program):
    """A program as the operations of PyTorch take it: without blocks, which change no result."""
    if program is None:
        return "", "", None
    text, names, tensors, _ = program
    return text, " ".join(names), list(tensors) or None


def _gathered(text, names, tensors):
    """The program that :func:`_spread` took apart."""
    return (text, names.split(), tensors or (), None) if text else None


def drawn(p, q, count=None):
    """Dropout of a call on q, or on the tensor of another operation that takes ``count`` numbers, whose random numbers are those that flash_attn draws: the seed of the generator of the GPU, from its offset on, which
    moves on by what the call takes. ``None`` where nothing is dropped.

    Where numbers are not to be read on the host, under torch.compile and while a graph is captured, seed and offset are drawn by an operation of
    PyTorch, on the device, and a graph draws anew whenever it is launched. On the CPU they come from PyTorch's default generator."""
    if not p:
        return None
    if not isinstance(q, Tensor) or count is None and q.dim() != 4:
        return p, (0, 0)  # refused with the other tensors
    if type(q) is not Tensor or _is_compiling() or _modes() or _transforms() or (q.is_cuda and torch.cuda.is_current_stream_capturing()):
        # The offset is a multiple of 4, as those of PyTorch's generators are.
        state = torch.randint(0, 1 << 62, (2,), dtype=torch.int64, device=q.device)
        return p, state // 4 * 4
    if not q.is_cuda:
        return p, (int(torch.randint(0, (1 << 63) - 1, (), dtype=torch.int64)), 0)
    generator = torch.cuda.default_generators[q.get_device()]
    seed, count = generator.initial_seed(), count or dropout_numbers(q.shape[0], q.shape[2])
    if hasattr(generator, "set_offset"):
        offset = generator.get_offset()
        generator.set_offset(offset + count)
        return p, (seed, offset)
    # Seed and offset are the last numbers of the state.
    state = generator.get_state()
    numbers = state[-16:].clone().view(torch.int64)
    offset = int(numbers[1])
    numbers[1] += count
    state[-16:] = numbers.view(torch.uint8)
    generator.set_state(state)
    return p, (seed, offset)


def _told_dropout(dropout, q):
    """Dropout as the extension module takes it."""
    p, state = dropout
    if not isinstance(state, Tensor):
        return _numbers(dropout)
    if state.dtype is not torch.int64:
        raise InputTypeError(f"rng_state holds {state.dtype}; torch.int64 is accepted")
    if state.shape != (2,) or not state.is_contiguous():
        raise InputError(f"rng_state has shape {tuple(state.shape)} and strides {state.stride()}; (2,), contiguous, is accepted")
    if not state.is_cuda:
        # As the bits of numbers without a sign.
        return _numbers((p, [number % (1 << 64) for number in state.tolist()]))
    if state.device != q.device:
        raise InputError(f"rng_state is on device {state.device}, q is on {q.device}; they must be on the same device")
    return float(p), state.data_ptr(), 0, True


def _spread_dropout(dropout, q):
    """Dropout as the operations of PyTorch take it."""
    if dropout is None:
        return 0.0, None
    p, state = dropout
    if not isinstance(state, Tensor):
        _, seed, offset, _ = _numbers(dropout)
        # Numbers without a sign, as those of the same bits that have one.
        signed = [number - (number >> 63 << 64) for number in (seed, offset)]
        state = torch.tensor(signed, dtype=torch.int64, device=q.device)
    return float(p), state


def _gathered_dropout(p, state):
    """The dropout that :func:`_spread_dropout` took apart."""
    return None if state is None or p == 0 else (p, state)


def prepared_sink(name, sink, q):
    """Sinks of a function of flash_attn as the library takes them: float32 and without gaps, whatever they hold. Their gradient takes the same way
    back."""
    if not isinstance(sink, Tensor):
        raise InputTypeError(f"{name} is a {type(sink).__name__}; a torch.Tensor is accepted")
    if sink.dtype not in _DTYPES:
        raise InputTypeError(f"{name} holds {sink.dtype}; torch.float16, torch.bfloat16 and torch.float32 are accepted")
    if not isinstance(q, Tensor) or q.dim() < 3:
        return None  # refused with the other tensors
    if sink.shape != (q.shape[-2],):
        raise InputError(f"{name} has shape {tuple(sink.shape)}; {(q.shape[-2],)} is accepted, a number for each head of q")
    if sink.device != q.device:
        raise InputError(f"{name} is on device {sink.device}, q is on {q.device}; they must be on the same device")
    return sink.float().contiguous()


def _told_sink(sink, name="sink"):
    """Sinks, or their gradient, as the extension module takes them."""
    dtype = _DTYPES.get(sink.dtype)
    if dtype is None:
        raise InputTypeError(f"{name} holds {sink.dtype}; torch.float32 is accepted")
    return _place(name, sink), dtype, sink.data_ptr(), sink.shape, sink.stride()


def refuse_gradients_of_programs(function, program):
    """A program's tensors have none, which nobody is to find out by missing them."""
    if program is not None and _is_grad_enabled():
        for name, tensor in zip(*program[1:3]):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                raise missing(function, f"a gradient of {name}, which a program reads")


def _place(name, tensor):
    """The number of a tensor's GPU, -1 for the CPU."""
    device = tensor.device
    if device.type == "cuda":
        return device.index
    if device.type == "cpu":
        return -1
    raise InputError(f"{name} is on device {device}; CUDA GPUs and the CPU are accepted")


def _dtype_error(*tensors, names=("q", "k", "v", "out")):
    for name, tensor in zip(names, tensors):
        if tensor.dtype not in _DTYPES:
            return InputTypeError(f"{name} holds {tensor.dtype}; torch.float16, torch.bfloat16 and torch.float32 are accepted")
    raise AssertionError("every type is known")


def forward(tensors, scale, causal, left, right, softcap, program, dropout, sink, return_lse, stream):
    """``ferroflash.forward`` for tensors of PyTorch: in place, no padding, no copies."""
    q, k, v, out, lse = tensors
    for name, tensor in zip(("q", "k", "v", "out", "lse", "sink"), (*tensors, sink)):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}, q a torch.Tensor; all must be of one package")
    refuse_gradients_of_programs("ferroflash.forward", program)
    if out is None and lse is None and stream is None:
        if any(tensor.dim() != 4 or tensor.stride(3) != 1 or tensor.shape[3] & 7 for tensor in (q, k, v)):
            # Nothing is copied here: what the library says of such tensors is raised.
            out, lse = _run(q, k, v, None, None, scale, bool(causal), left, right, softcap, program, dropout, sink, return_lse, None)
        else:
            out, lse = attend(q, k, v, scale, bool(causal), left, right, softcap, False, return_lse, program, dropout, sink)
        return (out, lse) if return_lse else out
    if _is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (*tensors, sink)):
        raise missing("ferroflash.forward", "a gradient through `out`, `lse` or `stream`")
    if lse is not None:
        _check_rows("lse", q, lse)
    out, lse = _run(q, k, v, out, lse, scale, bool(causal), left, right, softcap, program, dropout, sink, return_lse, stream)
    return (out, lse) if return_lse else out


def _check_rows(name, q, rows):
    """Whether it is what the library takes the address of: a log-sum-exp, or its gradient."""
    expected = (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else None
    if rows.dtype is not torch.float32:
        raise InputTypeError(f"{name} holds {rows.dtype}; torch.float32 is accepted")
    if expected is not None and tuple(rows.shape) != expected:
        raise InputError(f"{name} has shape {tuple(rows.shape)}; {expected} (batch, head, row) is accepted")
    if not rows.is_contiguous():
        raise InputError(f"{name} has strides {rows.stride()}; it must be contiguous")
    if rows.device != q.device:
        raise InputError(f"{name} is on device {rows.device}, q is on {q.device}; they must be on the same device")


_READ = ("q", "k", "v", "out", "lse", "dout", "dlse")
_WRITTEN = ("dq", "dk", "dv")
_OF_SINKS = ("sink", "dsink")


def backward(read, written, scale, causal, left, right, softcap, deterministic, program, dropout, sink, dsink, stream):
    """``ferroflash.backward`` for tensors of PyTorch: in place, no padding, no copies."""
    tensors = (*read, *written, sink, dsink)
    for name, tensor in zip(_READ + _WRITTEN + _OF_SINKS, tensors):
        if tensor is None and name in ("dlse", *_WRITTEN, *_OF_SINKS):
            continue
        if not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}, q a torch.Tensor; all must be of one package")
    if _is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise missing("ferroflash.backward", "a gradient of gradients")
    if sink is not None and dsink is None:
        dsink = _empty_like(sink)
    gradients = _run_backward(read, written, scale, causal, left, right, softcap, deterministic, program, dropout, sink, dsink, stream)
    return gradients if dsink is None else (*gradients, dsink)


def _run_backward(read, written, scale, causal, left, right, softcap, deterministic, program, dropout, sink, dsink, stream):
    """Launches, with new tensors for the gradients of q, k and v that are not given."""
    # Asked when the gradients are computed, as PyTorch's own operations do: a program may set it after the forward pass or a compilation.
    deterministic = deterministic or _wants_determinism()
    q, k, v, out, lse, dout, dlse = read
    _check_rows("lse", q, lse)
    if dlse is not None:
        _check_rows("dlse", q, dlse)
    dq, dk, dv = (_empty_like(of) if given is None else given for of, given in zip((q, k, v), written))
    names, tensors = ("q", "k", "v", "out", "dout", "dq", "dk", "dv"), (q, k, v, out, dout, dq, dk, dv)
    places = [_place(name, tensor) for name, tensor in zip(names, tensors)]
    if stream is None:
        stream = _stream(places[0]) if places[0] >= 0 else 0
    try:
        told = [(at, _DTYPES[x.dtype], x.data_ptr(), x.shape, x.stride()) for at, x in zip(places, tensors)]
    except KeyError:
        raise _dtype_error(*tensors, names=names) from None
    dlse_address = 0 if dlse is None else dlse.data_ptr()
    options = (scale, causal, left, right, softcap, deterministic, _told(program), None if dropout is None else _told_dropout(dropout, q))
    sinks = [None if x is None else _told_sink(x, name) for name, x in zip(_OF_SINKS, (sink, dsink))]
    _launch_backward(stream, *told[:4], lse.data_ptr(), told[4], dlse_address, *told[5:], *options, *sinks)
    return dq, dk, dv


_library = torch.library.Library("ferroflash", "DEF")
_OPTIONS = "float? softmax_scale, bool causal, SymInt window_left, SymInt window_right, float softcap, bool deterministic"
# The names with spaces between them. Without defaults, which PyTorch would leave out of what it hands to autograd.
_DROPOUT = "float dropout_p, Tensor? rng_state"
_PROGRAM = "str program, str program_names, Tensor[]? program_tensors"
_library.define(
    f"forward(Tensor q, Tensor k, Tensor v, {_OPTIONS}, bool return_lse, {_PROGRAM}, {_DROPOUT}, Tensor? sink) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# The gradient of sinks is empty where it is not asked for.
_library.define(
    f"backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor dout, Tensor? dlse, {_OPTIONS}, {_PROGRAM}, {_DROPOUT}, Tensor? sink, "
    "bool return_dsink) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _eager(q, k, v, scale, causal, left, right, softcap, deterministic, return_lse, text, names, tensors, dropout_p, rng_state, sink):
    # The forward pass gives the same bits by every kernel: `deterministic` is for the gradients.
    program, dropout = _gathered(text, names, tensors), _gathered_dropout(dropout_p, rng_state)
    out, lse = _run(q, k, v, None, None, scale, causal, left, right, softcap, program, dropout, sink, return_lse, None)
    return out, (q.new_empty((0,), dtype=torch.float32) if lse is None else lse)


def _fake(q, k, v, scale, causal, left, right, softcap, deterministic, return_lse, *program):
    batch, rows, heads, _ = q.shape
    lse = q.new_empty((batch, heads, rows) if return_lse else (0,), dtype=torch.float32)
    return _empty_like(q), lse


def _eager_backward(
    q, k, v, out, lse, dout, dlse, scale, causal, left, right, softcap, deterministic, text, names, tensors, dropout_p, rng_state, sink, return_dsink
):
    # Autograd hands over gradients as they come: that of a sum is one number, repeated with strides of 0.
    if dout.dim() == 4 and dout.stride(3) != 1:
        dout = dout.contiguous()
    if dlse is not None:
        dlse = dlse.contiguous()
    read = (q, k, v, out, lse.contiguous(), dout, dlse)
    options = (scale, causal, left, right, softcap, deterministic, _gathered(text, names, tensors), _gathered_dropout(dropout_p, rng_state))
    dsink = _empty_like(sink) if return_dsink else None
    gradients = _run_backward(read, (None, None, None), *options, sink, dsink, None)
    return *gradients, _no_dsink(q) if dsink is None else dsink


def _no_dsink(q):
    return q.new_empty((0,), dtype=torch.float32)


def _fake_backward(q, k, v, *others):
    *_, sink, return_dsink = others
    return _empty_like(q), _empty_like(k), _empty_like(v), _empty_like(sink) if return_dsink else _no_dsink(q)


# PyTorch calls it with these names.
def _keep(ctx, inputs, output):
    """What the backward pass takes: it is kept only where a gradient is wanted, because PyTorch asks for it only there."""
    q, k, v, *ctx.options, ctx.has_lse, ctx.text, ctx.names, tensors, ctx.dropout_p, rng_state, sink = inputs
    ctx.save_for_backward(q, k, v, *output, rng_state, sink, *(tensors or ()))
    # A gradient that nobody wants is none, not zeros.
    ctx.set_materialize_grads(False)


def _gradients(ctx, dout, dlse):
    q, k, v, out, lse, rng_state, sink, *tensors = ctx.saved_tensors
    program = (ctx.text, ctx.names, tensors or None, ctx.dropout_p, rng_state, sink)
    if not ctx.has_lse:
        # The operation was called without one, which the functions of this package do not do for tensors with gradients.
        _, lse = torch.ops.ferroflash.forward(q, k, v, *ctx.options, True, *program)
        dlse = None
    if dout is None:
        dout = torch.zeros_like(out)
    return_dsink = sink is not None and ctx.needs_input_grad[-1]
    dq, dk, dv, dsink = torch.ops.ferroflash.backward(q, k, v, out, lse, dout, dlse, *ctx.options, *program, return_dsink)
    return dq, dk, dv, *(None,) * 9, [None] * len(tensors) or None, None, None, dsink if return_dsink else None


class _WithGradient(torch.autograd.Function):
    """The operation for plain tensors: the same two launches, without the 300 us that an operation of torch.library takes for its gradient."""

    @staticmethod
    def forward(ctx, q, k, v, sink, *options):
        *ctx.options, program, dropout = options
        scale, causal, left, right, softcap, _ = ctx.options
        out, lse = _run(q, k, v, None, None, scale, causal, left, right, softcap, program, dropout, sink, True, None)
        ctx.dropout_p, ctx.state = dropout or (0.0, None)
        on_device = ctx.state if isinstance(ctx.state, Tensor) else None
        ctx.text, ctx.names, tensors = _spread(program)
        ctx.save_for_backward(q, k, v, out, lse, on_device, sink, *(tensors or ()))
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        q, k, v, out, lse, on_device, sink, *tensors = ctx.saved_tensors
        if dout is None:
            dout = torch.zeros_like(out)
        # Gradients are recorded here only for a gradient of gradients: the operation says that there is none.
        compute = torch.ops.ferroflash.backward if _is_grad_enabled() else _eager_backward
        state = ctx.state if on_device is None else on_device
        if _is_grad_enabled() and state is not None:
            _, state = _spread_dropout((ctx.dropout_p, state), q)
        return_dsink = sink is not None and ctx.needs_input_grad[3]
        options = (*ctx.options, ctx.text, ctx.names, tensors or None, ctx.dropout_p, state, sink, return_dsink)
        dq, dk, dv, dsink = compute(q, k, v, out, lse, dout, dlse, *options)
        return dq, dk, dv, dsink if return_dsink else None, *(None,) * 8


def _second_gradients(ctx, *gradients):
    raise missing("ferroflash", "a gradient of gradients (create_graph=True)")


for _device in ("CUDA", "CPU"):
    _library.impl("forward", _eager, _device)
    _library.impl("backward", _eager_backward, _device)
torch.library.register_fake("ferroflash::forward", _fake, lib=_library)
torch.library.register_fake("ferroflash::backward", _fake_backward, lib=_library)
torch.library.register_autograd("ferroflash::forward", _gradients, setup_context=_keep, lib=_library)
torch.library.register_autograd("ferroflash::backward", _second_gradients, lib=_library)
