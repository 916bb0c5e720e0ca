"""The wheel on a GPU: every way in, against float64.

    python on_a_gpu.py          # needs PyTorch with CUDA
    python on_a_gpu.py cpu      # what of it the emulator can do, on small tensors

A result is right when it is off by at most twice what the same formula in the tensors' own precision is off by, and 1e-5.
"""

import itertools
import sys

import torch

import ferroflash

DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cuda"
ON_GPU = DEVICE != "cpu"
NAN = float("nan")


def visible(rows, keys, causal, left, right):
    row = torch.arange(rows, device=DEVICE)[:, None] + keys - rows
    key = torch.arange(keys, device=DEVICE)[None, :]
    seen = torch.ones(rows, keys, dtype=torch.bool, device=DEVICE)
    if causal:
        seen &= key <= row
    if left is not None:
        seen &= key >= row - left
    if right is not None:
        seen &= key <= row + right
    return seen


def by_definition(q, k, v, seen, scale, softcap, rounded):
    """Attention in float64, or as the tensors' precision rounds it: weights and result are stored in it."""
    number = torch.float32 if rounded else torch.float64
    to = lambda x: x.to(number).transpose(1, 2)
    group = q.shape[2] // k.shape[2]
    keys, values = (to(x).repeat_interleave(group, dim=1) for x in (k, v))
    scores = to(q) @ keys.transpose(2, 3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    lse = torch.logsumexp(scores, dim=3)
    weights = torch.exp(scores - lse.masked_fill(lse == float("-inf"), 0)[..., None])
    if rounded:
        weights = weights.to(q.dtype).to(number)
    out = (weights @ values).transpose(1, 2)
    return (out.to(q.dtype) if rounded else out).double(), lse.double()


def check(what, out, lse, q, k, v, causal=False, left=None, right=None, scale=None, softcap=0.0):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    seen = visible(q.shape[1], k.shape[1], causal, left, right)
    exact, exact_lse = by_definition(q, k, v, seen, scale, softcap, rounded=False)
    rounded, _ = by_definition(q, k, v, seen, scale, softcap, rounded=True)
    error, bound = (out.double() - exact).abs().max().item(), 2 * (rounded - exact).abs().max().item() + 1e-5
    assert error <= bound, f"{what}: off by {error}, {bound} is accepted"
    if lse is not None:
        sees = exact_lse.isfinite()
        assert torch.equal(lse[~sees].double(), exact_lse[~sees]), what
        error = (lse.double() - exact_lse)[sees].abs().max().item() if sees.any() else 0.0
        assert error <= 1e-4, f"{what}: lse off by {error}"


def tensors(dtype, batch, q_rows, kv_rows, q_heads, kv_heads, dim):
    shapes = [(batch, q_rows, q_heads, dim)] + [(batch, kv_rows, kv_heads, dim)] * 2
    return [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]


def values():
    sizes = [(2, 200, 333, 6, 2), (1, 1, 700, 8, 1), (3, 513, 257, 4, 4)] if ON_GPU else [(1, 66, 70, 4, 2)]
    dims = (8, 32, 59, 64, 96, 128, 160, 192, 256) if ON_GPU else (59, 64)
    masks = [(False, -1, -1), (True, -1, -1), (False, 17, 5), (True, 30, -1), (False, -1, 3)]
    count = 0
    for dtype, dim, size in itertools.product((torch.float16, torch.bfloat16, torch.float32), dims, sizes):
        q, k, v = tensors(dtype, *size, dim)
        for causal, left, right in masks if ON_GPU else masks[1:3]:
            out, lse, _ = ferroflash.flash_attn_func(q, k, v, causal=causal, window_size=(left, right), return_attn_probs=True)
            bounds = {"left": None if left < 0 else left, "right": 0 if causal else None if right < 0 else right}
            check(f"{dtype} {size} {dim} {causal} {left} {right}", out, lse, q, k, v, causal=causal, **bounds)
            count += 1
        out = ferroflash.flash_attn_func(q, k, v, softmax_scale=0.2, softcap=10.0)
        check(f"softcap {dtype} {size} {dim}", out, None, q, k, v, scale=0.2, softcap=10.0)
    print(f"values     {count} problems with log-sum-exp, as many softcaps as tensors")


def strides():
    rows = 150 if ON_GPU else 40
    qkv = torch.randn(2, rows, 3, 4, 64, device=DEVICE).half()
    check("packed", ferroflash.flash_attn_qkvpacked_func(qkv, causal=True), None, *qkv.unbind(2), causal=True)
    by_head = torch.randn(2, 4, rows, 64, device=DEVICE).half().transpose(1, 2)
    part = torch.randn(3, rows + 5, 6, 80, device=DEVICE).half()[1:, 3:-2, 1:5, 8:72]
    # Rows at addresses that are no multiples of 16 bytes: v3 does not take them, v2 does.
    odd = torch.randn(2 * rows * 4 * 65 + 1, device=DEVICE).half()[1:].view(2, rows, 4, 65)[..., :64]
    repeated = torch.randn(2, rows, 1, 64, device=DEVICE).half().expand(-1, -1, 4, -1)
    for q, k, v in itertools.product((by_head, part, odd), (part, repeated), (by_head, odd)):
        memory = torch.full((2, rows + 2, 5, 72), NAN, device=DEVICE).half()
        out = memory[:, 1:-1, :4, 8:]
        lse = torch.full((2, 4, rows), NAN, device=DEVICE)
        ferroflash.forward(q, k, v, out=out, lse=lse, causal=True)
        check("strides", out, lse, q, k, v, causal=True)
        out.fill_(NAN)
        assert memory.isnan().all(), "written between the elements of out"
    print("strides    packed, by head, inside of larger tensors, at odd addresses, repeated; nothing written beside the output")


def streams():
    """Work on a stream that waits for nothing else: inputs are written on it late, and the result is read on it."""
    q, k, v = tensors(torch.bfloat16, 2, 1024, 1024, 8, 8, 128)
    late = [torch.full_like(x, NAN) for x in (q, k, v)]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for x, source in zip(late, (q, k, v)):
            x.copy_(source)
        out = ferroflash.flash_attn_func(*late, causal=True)
        copied = out.clone()
    stream.synchronize()
    check("stream", copied, None, q, k, v, causal=True)
    given = torch.full_like(q, NAN)
    ferroflash.forward(q, k, v, out=given, causal=True, stream=stream.cuda_stream)
    stream.synchronize()
    assert torch.equal(given, copied)
    print("streams    the current one, and one by its number")


def graphs():
    q, k, v = tensors(torch.bfloat16, 2, 512, 512, 8, 2, 64)
    ferroflash.flash_attn_func(q, k, v, causal=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ferroflash.flash_attn_func(q, k, v, causal=True)
    for seed in range(3):
        torch.manual_seed(seed)
        for x in (q, k, v):
            x.normal_()
        out.fill_(NAN)
        graph.replay()
        check("graph", out, None, q, k, v, causal=True)
    print("graphs     captured once, replayed on new values")


class Block(torch.nn.Module):
    """A layer of a transformer with the attention that it is given."""

    def __init__(self, attention, dim=256, heads=4):
        super().__init__()
        self.attention, self.heads = attention, heads
        self.norm, self.qkv = torch.nn.LayerNorm(dim), torch.nn.Linear(dim, 3 * dim)
        self.proj = torch.nn.Linear(dim, dim)
        self.mlp = torch.nn.Sequential(torch.nn.LayerNorm(dim), torch.nn.Linear(dim, 2 * dim), torch.nn.GELU(), torch.nn.Linear(2 * dim, dim))

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        x = x + self.proj(self.attention(q, k, v).flatten(-2))
        return x + self.mlp(x)


def by_torch(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def by_ferroflash(q, k, v):
    return ferroflash.flash_attn_func(q, k, v, causal=True)


def transformer(attention, dtype):
    torch.manual_seed(0)
    blocks = torch.nn.Sequential(*(Block(attention) for _ in range(3 if ON_GPU else 1)))
    return blocks.to(DEVICE, dtype).eval()


@torch.no_grad()
def compiled():
    """Scaled dot product attention replaced in a small transformer, eager and compiled; right within the rule, over the whole of it."""
    rows = (384, 500) if ON_GPU else (20,)
    for dtype in (torch.float16, torch.bfloat16):
        ours, theirs, exact = transformer(by_ferroflash, dtype), transformer(by_torch, dtype), transformer(by_torch, dtype).double()
        faster = torch.compile(ours, fullgraph=True, backend="inductor" if ON_GPU else "aot_eager")
        modes = {"eager": ours, "compiled": faster}
        if ON_GPU:
            modes["reduce-overhead"] = torch.compile(transformer(by_ferroflash, dtype), fullgraph=True, mode="reduce-overhead")
        for count in rows:
            x = torch.randn(2, count, 256, device=DEVICE).to(dtype)
            expected = exact(x.double())
            bound = 2 * (theirs(x).double() - expected).abs().max().item() + 1e-5
            for name, model in modes.items():
                for _ in range(3):  # graphs are captured in the second call
                    out = model(x).clone()
                error = (out.double() - expected).abs().max().item()
                assert error <= bound, f"transformer {name} {dtype} {count}: off by {error}, {bound} is accepted"
                print(f"compile    {name:16} {dtype} {count} rows: off by {error:.2e}, PyTorch's by {bound / 2:.2e}")


def main():
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"ferroflash {ferroflash.__version__}, PyTorch {torch.__version__}, {torch.cuda.get_device_name() if ON_GPU else 'CPU'}")
    values()
    strides()
    if ON_GPU:
        streams()
        graphs()
    compiled()
    print("all right")


if __name__ == "__main__":
    main()
