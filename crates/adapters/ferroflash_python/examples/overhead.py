"""What a call costs on the host, beside flash_attn's own interface, in microseconds.

    python overhead.py

One query row and 16 keys of one head, so that the GPU is done before the next call comes: what is left is Python, checks, the output's memory and
the launch. Every function is called in turns with the others; the smallest of the samples counts, because the rest of the machine only adds.
"""

import functools
import statistics
import time

import torch

import ferroflash

CALLS, ROUNDS = 500, 15


def candidates(q, k, v):
    qkv = torch.stack((q, q, q), dim=2)
    found = {
        "ferroflash.flash_attn_func": functools.partial(ferroflash.flash_attn_func, q, k, v, causal=True),
        "ferroflash.flash_attn_qkvpacked_func": functools.partial(ferroflash.flash_attn_qkvpacked_func, qkv, causal=True),
        "ferroflash.forward(out=)": functools.partial(ferroflash.forward, q, k, v, causal=True, out=torch.empty_like(q)),
        "torch.ops.ferroflash.forward": functools.partial(torch.ops.ferroflash.forward, q, k, v, None, True, -1, -1, 0.0, False),
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
    found["torch.empty_like"] = functools.partial(torch.empty_like, q)
    return found


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
    q = torch.randn(1, 1, 1, 64, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(1, 16, 1, 64, device="cuda", dtype=torch.bfloat16)
    calls = candidates(q, k, k.clone())
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
