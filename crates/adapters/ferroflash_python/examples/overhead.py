"""What a call costs on the host, beside flash_attn's own interface and PyTorch's own flash attention, in microseconds.

    python overhead.py

16 query rows and keys of one head, so that the GPU is done before the next call comes: what is left is Python, checks, the output's memory and
the launch. Rows are as many as keys, because PyTorch's flash attention takes no other causal mask. "And gradients" is a call and its backward
pass by autograd. Every function is called in turns with the others; the smallest of the samples counts, because the rest of the machine only
adds. A sample has fewer calls than a stream holds launches that wait, of which there are 1024.
"""

import functools
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import ferroflash

CALLS, ROUNDS = 500, 15


def candidates(q, k, v):
    qkv = torch.stack((q, q, q), dim=2)
    found = {
        "ferroflash.flash_attn_func": functools.partial(ferroflash.flash_attn_func, q, k, v, causal=True),
        "ferroflash.flash_attn_qkvpacked_func": functools.partial(ferroflash.flash_attn_qkvpacked_func, qkv, causal=True),
        "ferroflash.forward(out=)": functools.partial(ferroflash.forward, q, k, v, causal=True, out=torch.empty_like(q)),
        "torch.ops.ferroflash.forward": functools.partial(torch.ops.ferroflash.forward, q, k, v, None, True, -1, -1, 0.0, False, False, "", "", None, 0.0, None, None),
    }
    try:
        import flash_attn

        found["flash_attn.flash_attn_func"] = functools.partial(flash_attn.flash_attn_func, q, k, v, causal=True)
        found["flash_attn.flash_attn_qkvpacked_func"] = functools.partial(flash_attn.flash_attn_qkvpacked_func, qkv, causal=True)
    except ImportError as error:
        print(f"without flash_attn: {error}")
    try:
        import flash_attn_interface

        found["flash_attn_interface.flash_attn_func"] = functools.partial(flash_attn_interface.flash_attn_func, q, k, v, causal=True)
    except ImportError as error:
        print(f"without FlashAttention-3: {error}")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    transposed = [x.transpose(1, 2) for x in (q, k, v)]
    found["torch scaled_dot_product_attention"] = functools.partial(sdpa, *transposed, is_causal=True)
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default
    found["aten._scaled_dot_product_flash_attention"] = functools.partial(flash, *transposed, 0.0, True)
    found["torch.empty_like"] = functools.partial(torch.empty_like, q)
    for name, call, given in (
        ("ferroflash.flash_attn_func and gradients", functools.partial(ferroflash.flash_attn_func, causal=True), (q, k, v)),
        ("torch sdpa and gradients", functools.partial(sdpa, is_causal=True), transposed),
    ):
        leaves = [x.detach().clone().requires_grad_() for x in given]
        found[name] = functools.partial(step, call, leaves, torch.ones_like(leaves[0]))
    return found


@torch.enable_grad()
def step(call, leaves, gradient):
    return torch.autograd.grad(call(*leaves), leaves, gradient)


def sample(call):
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    spent = time.perf_counter() - start
    torch.cuda.synchronize()
    return spent / CALLS * 1e6


@torch.no_grad()
def main():
    calls = candidates(*(torch.randn(1, 16, 1, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)))
    # Which of PyTorch's own functions is called is not left to it.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for call in calls.values():
            sample(call)
        samples = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                samples[name].append(sample(call))
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}: {CALLS} calls a sample, {ROUNDS} samples")
    print(f"{'':42} least  median us a call")
    for name, spent in samples.items():
        print(f"{name:40} {min(spent):7.2f} {statistics.median(spent):7.2f}")


if __name__ == "__main__":
    main()
