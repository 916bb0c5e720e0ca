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
    """Attention of plain tensors with any head dim and any strides: ``(out, lse)``, lse ``None`` unless it is asked for."""
    kind = type(q)
    if (
        _is_compiling()
        or kind is not Tensor
        or type(k) is not Tensor
        or type(v) is not Tensor
        or _modes()
        or (_is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
    ):
        return _as_operation(q, k, v, scale, causal, left, right, softcap, return_lse)
    return _run(q, k, v, None, None, scale, causal, left, right, softcap, return_lse, None)


def _as_operation(q, k, v, scale, causal, left, right, softcap, return_lse):
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} is a {type(tensor).__name__}; a torch.Tensor is accepted")
    out, lse = torch.ops.ferroflash.forward(q, k, v, scale, causal, left, right, softcap, return_lse)
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
