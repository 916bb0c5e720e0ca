"""Attention on tensors of PyTorch: straight to the library where nothing of PyTorch has to know of it, and as the operation
``ferroflash::forward`` where it has to: under torch.compile, for tensors that are none of the plain kind, and for gradients."""

import torch
from torch import Tensor

from . import _native
from ._errors import InputError, InputTypeError, missing

# The numbers that the extension module knows the types by.
_DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}

_empty_like = torch.empty_like
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_launch_native = _native.launch
# Modes that see every operation (fake tensors, counters): they see this one as an operation, too.
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)


def _stream_of(ordinal):
    return torch.cuda.current_stream(ordinal).cuda_stream


# What torch.compile's own kernels ask for: a tenth of the time of `current_stream`, which makes an object.
_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_of)


def attend(q, k, v, scale, causal, left, right, softcap, return_lse):
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
                )
                return out, lse
    except (IndexError, KeyError):
        pass  # fewer axes, or another type: what follows says so
    return _attend_slowly(q, k, v, scale, causal, left, right, softcap, return_lse)


def _attend_slowly(q, k, v, scale, causal, left, right, softcap, return_lse):
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
    if all(type(tensor) is Tensor for tensor in (q, k, v)) and not (
        _is_compiling() or _modes() or (_is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v)))
    ):
        out, lse = _run(q, k, v, None, None, scale, causal, left, right, softcap, return_lse, None)
    else:
        out, lse = torch.ops.ferroflash.forward(q, k, v, scale, causal, left, right, softcap, return_lse)
    if head_dim & 7:
        out = out[..., :head_dim]
    return out, (lse if return_lse else None)


def _run(q, k, v, out, lse, scale, causal, left, right, softcap, return_lse, stream):
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
        )
    except KeyError:
        raise _dtype_error(q, k, v, out) from None
    return out, lse


def _place(name, tensor):
    """The number of a tensor's GPU, -1 for the CPU."""
    device = tensor.device
    if device.type == "cuda":
        return device.index
    if device.type == "cpu":
        return -1
    raise InputError(f"{name} is on device {device}; CUDA GPUs and the CPU are accepted")


def _dtype_error(*tensors):
    for name, tensor in zip(("q", "k", "v", "out"), tensors):
        if tensor.dtype not in _DTYPES:
            return InputTypeError(f"{name} holds {tensor.dtype}; torch.float16, torch.bfloat16 and torch.float32 are accepted")
    raise AssertionError("every type is known")


def forward(tensors, scale, causal, left, right, softcap, return_lse, stream):
    """``ferroflash.forward`` for tensors of PyTorch: in place, no padding, no copies."""
    q, k, v, out, lse = tensors
    for name, tensor in zip(("q", "k", "v", "out", "lse"), tensors):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}, q a torch.Tensor; all must be of one package")
    if out is None and lse is None and stream is None:
        if any(tensor.dim() != 4 or tensor.stride(3) != 1 or tensor.shape[3] & 7 for tensor in (q, k, v)):
            # Nothing is copied here: what the library says of such tensors is raised.
            out, lse = _run(q, k, v, None, None, scale, bool(causal), left, right, softcap, return_lse, None)
        else:
            out, lse = attend(q, k, v, scale, bool(causal), left, right, softcap, return_lse)
        return (out, lse) if return_lse else out
    if _is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise missing("ferroflash.forward", "a gradient through `out`, `lse` or `stream`")
    if lse is not None:
        _check_lse(q, lse)
    out, lse = _run(q, k, v, out, lse, scale, bool(causal), left, right, softcap, return_lse, stream)
    return (out, lse) if return_lse else out


def _check_lse(q, lse):
    expected = (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else None
    if lse.dtype is not torch.float32:
        raise InputTypeError(f"lse holds {lse.dtype}; torch.float32 is accepted")
    if expected is not None and tuple(lse.shape) != expected:
        raise InputError(f"lse has shape {tuple(lse.shape)}; {expected} (batch, head, row) is accepted")
    if not lse.is_contiguous():
        raise InputError(f"lse has strides {lse.stride()}; it must be contiguous")
    if lse.device != q.device:
        raise InputError(f"lse is on device {lse.device}, q is on {q.device}; they must be on the same device")


_library = torch.library.Library("ferroflash", "DEF")
_library.define(
    "forward(Tensor q, Tensor k, Tensor v, float? softmax_scale, bool causal, SymInt window_left, SymInt window_right, float softcap, "
    "bool return_lse) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _eager(q, k, v, scale, causal, left, right, softcap, return_lse):
    out, lse = _run(q, k, v, None, None, scale, causal, left, right, softcap, return_lse, None)
    return out, (q.new_empty((0,), dtype=torch.float32) if lse is None else lse)


def _fake(q, k, v, scale, causal, left, right, softcap, return_lse):
    batch, rows, heads, _ = q.shape
    lse = q.new_empty((batch, heads, rows) if return_lse else (0,), dtype=torch.float32)
    return _empty_like(q), lse


def _backward(context, *gradients):
    raise missing("ferroflash", "the backward pass (gradients of q, k and v)")


_library.impl("forward", _eager, "CUDA")
_library.impl("forward", _eager, "CPU")
torch.library.register_fake("ferroflash::forward", _fake, lib=_library)
torch.library.register_autograd("ferroflash::forward", _backward, lib=_library)
