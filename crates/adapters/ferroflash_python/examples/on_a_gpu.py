"""The wheel on a GPU: every way in, against float64.

    python on_a_gpu.py                # needs PyTorch with CUDA
    python on_a_gpu.py cpu            # what of it the emulator can do, on small tensors
    python on_a_gpu.py [cpu] gradients   # the gradients alone
    python on_a_gpu.py [cpu] sequences   # packed sequences and caches alone

A result is right when it is off by at most twice what the same formula in the tensors' own precision is off by, and 1e-5; gradients of keys
and values, which are sums over groups, by three times that.
"""

import itertools
import sys

import torch

import ferroflash

DEVICE = "cpu" if "cpu" in sys.argv[1:] else "cuda"
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


def by_distance(slopes, seen):
    """What slopes `(head,)` or `(batch, head)` take from scores."""
    q_rows, kv_rows = seen.shape
    distance = (torch.arange(q_rows, device=DEVICE)[:, None] + kv_rows - q_rows - torch.arange(kv_rows, device=DEVICE)).abs()
    return slopes[..., None, None] * distance


def by_definition(q, k, v, seen, scale, softcap, rounded, slopes=None):
    """Attention in float64, or as the tensors' precision rounds it: weights and result are stored in it."""
    number = torch.float32 if rounded else torch.float64
    to = lambda x: x.to(number).transpose(1, 2)
    group = q.shape[2] // k.shape[2]
    keys, values = (to(x).repeat_interleave(group, dim=1) for x in (k, v))
    scores = to(q) @ keys.transpose(2, 3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if slopes is not None:
        scores = scores - by_distance(slopes.to(number), seen)
    scores = scores.masked_fill(~seen, float("-inf"))
    lse = torch.logsumexp(scores, dim=3)
    weights = torch.exp(scores - lse.masked_fill(lse == float("-inf"), 0)[..., None])
    if rounded:
        weights = weights.to(q.dtype).to(number)
    out = (weights @ values).transpose(1, 2)
    return (out.to(q.dtype) if rounded else out).double(), lse.double()


def check_sequences(what, out, q, keys, causal=False):
    """:func:`check` of all sequences as one result: what a single row is off by is a matter of luck. Each has rows `[row, head, dim]`."""
    errors, bounds = [0.0], [0.0]
    for of_out, of_q, (k, v) in zip(out, q, keys, strict=True):
        if not of_q.numel():
            continue
        tensors, seen = (of_q[None], k[None], v[None]), visible(of_q.shape[0], k.shape[0], causal, None, None)
        exact, rounded = (by_definition(*tensors, seen, of_q.shape[-1] ** -0.5, 0.0, rounded)[0] for rounded in (False, True))
        errors.append((of_out.double() - exact[0]).abs().max().item())
        bounds.append((rounded - exact).abs().max().item())
    assert max(errors) <= 2 * max(bounds) + 1e-5, f"{what}: off by {max(errors)}, {2 * max(bounds) + 1e-5} is accepted"


def check(what, out, lse, q, k, v, causal=False, left=None, right=None, scale=None, softcap=0.0, slopes=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    seen = visible(q.shape[1], k.shape[1], causal, left, right)
    exact, exact_lse = by_definition(q, k, v, seen, scale, softcap, False, slopes)
    rounded, _ = by_definition(q, k, v, seen, scale, softcap, True, slopes)
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
        for slopes in (torch.rand(size[3], device=DEVICE), torch.rand(size[0], size[3], device=DEVICE)):
            out, lse, _ = ferroflash.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes, return_attn_probs=True)
            check(f"slopes {dtype} {size} {dim}", out, lse, q, k, v, causal=True, slopes=slopes)
    print(f"values     {count} problems with log-sum-exp, as many softcaps as tensors, and slopes of heads")


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


def sequences():
    """Packed sequences; a cache in pages that is written step by step, each step a replay of one graph whose lengths are counted on the GPU."""
    int32 = lambda numbers: torch.tensor(numbers, dtype=torch.int32, device=DEVICE)
    lengths = [(200, 333), (0, 20), (33, 0), (1, 700), (513, 257)] if ON_GPU else [(20, 33), (0, 5), (7, 0), (1, 40)]
    starts = [[0, *itertools.accumulate(side)] for side in zip(*lengths)]
    cut = lambda x, at: [x[i:j] for i, j in zip(at, at[1:])]
    dims = (64, 128, 256) if ON_GPU else (64,)
    for dtype, dim, causal in itertools.product((torch.float16, torch.bfloat16, torch.float32), dims, (False, True)):
        q = torch.randn(starts[0][-1], 8, dim, device=DEVICE).to(dtype)
        k, v = torch.randn(2, starts[1][-1], 2, dim, device=DEVICE).to(dtype)
        longest = [max(side) for side in zip(*lengths)]
        out = ferroflash.flash_attn_varlen_func(q, k, v, *map(int32, starts), *longest, causal=causal)
        keys = list(zip(cut(k, starts[1]), cut(v, starts[1])))
        check_sequences(f"packed {dtype} {dim} {causal}", cut(out, starts[0]), cut(q, starts[0]), keys, causal)
    print(f"packed     {len(lengths)} sequences, some without rows or keys")

    for dtype, dim in itertools.product((torch.float16, torch.bfloat16), dims):
        batch, page_rows, width, steps = 6, 16, 20, 40 if ON_GPU else 3
        table = torch.randperm(batch * width, device=DEVICE).int().view(batch, width)
        k_cache, v_cache = torch.full((2, batch * width, page_rows, 2, dim), NAN, device=DEVICE).to(dtype)
        used, kept = int32([0, 3, 17, 60, 200, 250]), [0, 3, 17, 60, 200, 250]
        history = [torch.randn(2, rows, 2, dim, device=DEVICE).to(dtype) for rows in kept]
        for b, keys in enumerate(history):
            rows = torch.arange(keys.shape[1], device=DEVICE)
            at = table[b, rows // page_rows].long(), rows % page_rows
            k_cache[at], v_cache[at] = keys
        q, k, v = (torch.zeros(batch, 1, heads, dim, device=DEVICE, dtype=dtype) for heads in (8, 2, 2))

        def step():
            out = ferroflash.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=used, block_table=table, causal=True)
            used.add_(1)
            return out

        if ON_GPU:
            # Kernels are loaded before the capture; what this call writes, the first step writes again.
            step()
            used.sub_(1)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = step()
        for _ in range(steps):
            for x in (q, k, v):
                x.normal_()
            if ON_GPU:
                graph.replay()
            else:
                out = step()
            history = [torch.cat((keys, torch.stack((k[b], v[b]))), dim=1) for b, keys in enumerate(history)]
            check_sequences(f"cache {dtype} {dim}", out, q, history, causal=True)
        assert used.tolist() == [rows + steps for rows in kept]
    print(f"cache      {steps} steps{', replays of one graph' if ON_GPU else ''}; pages in any order, NaN where nothing is in use")


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


def transformer(attention, dtype, blocks=3 if ON_GPU else 1):
    torch.manual_seed(0)
    blocks = torch.nn.Sequential(*(Block(attention) for _ in range(blocks)))
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


def gradients_by_definition(leaves, gradients_of_results, seen, scale, slopes, rounded):
    """By torch's autograd, through the definition in float64; or as the tensors' precision rounds it: weights, gradients of scores, the output
    that they are compared with, and the results are stored in it."""
    q, k, v = (x.detach() for x in leaves)
    dout, dlse = gradients_of_results
    if not rounded:
        exact = [x.double().requires_grad_() for x in (q, k, v)]
        out, lse = by_definition(*exact, seen, scale, 0.0, False, slopes)
        # A row that sees no key has a log-sum-exp of minus infinity, whatever the tensors are.
        number = (out * dout.double()).sum() + (lse.masked_fill(lse.isinf(), 0) * (0 if dlse is None else dlse.double())).sum()
        return torch.autograd.grad(number, exact)
    stored = lambda x: x.to(q.dtype).float()
    out, lse = by_definition(q, k, v, seen, scale, 0.0, True, slopes)
    group = q.shape[2] // k.shape[2]
    heads = lambda x: x.float().transpose(1, 2)
    wide_k, wide_v = (heads(x).repeat_interleave(group, dim=1) for x in (k, v))
    scores = heads(q) @ wide_k.transpose(2, 3) * scale
    if slopes is not None:
        scores = scores - by_distance(slopes, seen)
    scores = scores.masked_fill(~seen, float("-inf"))
    weights = torch.exp(scores - lse.float().masked_fill(lse.isinf(), 0)[..., None])
    delta = (heads(dout) * heads(out)).sum(dim=3, keepdim=True) - (0 if dlse is None else dlse[..., None])
    of_scores = stored(weights * (heads(dout) @ wide_v.transpose(2, 3) - delta))
    dq = scale * (of_scores @ wide_k)
    summed = lambda x: x.unflatten(1, (-1, group)).sum(dim=2)
    dk = scale * summed(of_scores.transpose(2, 3) @ heads(q))
    dv = summed(stored(weights).transpose(2, 3) @ heads(dout))
    return [stored(x).transpose(1, 2) for x in (dq, dk, dv)]


def check_gradients(what, found, leaves, gradients_of_results, causal=False, left=None, right=None, slopes=None):
    q, k, _ = leaves
    seen, scale = visible(q.shape[1], k.shape[1], causal, left, right), q.shape[-1] ** -0.5
    exact = gradients_by_definition(leaves, gradients_of_results, seen, scale, slopes, rounded=False)
    rounded = gradients_by_definition(leaves, gradients_of_results, seen, scale, slopes, rounded=True)
    for name, factor, ours, truth, theirs in zip(("dq", "dk", "dv"), (2, 3, 3), found, exact, rounded):
        error = (ours.double() - truth).abs().max().item()
        bound = factor * (theirs.double() - truth).abs().max().item() + 1e-5
        assert error <= bound, f"{what}: {name} off by {error}, {bound} is accepted"


def gradients():
    """Through autograd: types, head dims, masks, groups, slopes, the log-sum-exp; packed tensors; a stream; torch.compile and a graph of a whole step."""
    sizes = [(2, 200, 333, 6, 2), (3, 257, 129, 4, 4)] if ON_GPU else [(1, 66, 70, 4, 2)]
    # Every head dim is kernels of its own to load, four for each type.
    dims = (59, 64, 128, 256) if ON_GPU else (59,)
    masks = [(False, -1, -1), (True, -1, -1), (False, 17, 5)] if ON_GPU else [(True, -1, -1)]
    count = 0
    for dtype, dim, size in itertools.product((torch.float16, torch.bfloat16, torch.float32), dims, sizes):
        leaves = [x.requires_grad_() for x in tensors(dtype, *size, dim)]
        dout, dlse = torch.randn_like(leaves[0]), torch.randn(size[0], size[3], size[1], device=DEVICE)
        for causal, left, right in masks:
            bounds = {"left": None if left < 0 else left, "right": 0 if causal else None if right < 0 else right}
            # Every second problem is left to the kernels that the library chooses, whose bits may differ from run to run.
            options = {"causal": causal, "window_size": (left, right), "deterministic": not count % 2}
            out, lse, _ = ferroflash.flash_attn_func(*leaves, return_attn_probs=True, **options)
            results, of_results = ((out, lse), (dout, dlse)) if count % 2 else ((out,), (dout,))
            found = torch.autograd.grad(results, leaves, of_results)
            check_gradients(f"{dtype} {size} {dim} {options}", found, leaves, (dout, dlse if count % 2 else None), causal, **bounds)
            if options["deterministic"]:
                again = torch.autograd.grad(ferroflash.flash_attn_func(*leaves, **options), leaves, dout)
                assert all(torch.equal(a, b) for a, b in zip(found, again)), "other bits the second time"
            count += 1
        for slopes in (torch.rand(size[3], device=DEVICE), torch.rand(size[0], size[3], device=DEVICE)):
            options = {"causal": True, "alibi_slopes": slopes, "return_attn_probs": True}
            found = torch.autograd.grad(ferroflash.flash_attn_func(*leaves, **options)[:2], leaves, (dout, dlse))
            check_gradients(f"slopes {dtype} {size} {dim}", found, leaves, (dout, dlse), causal=True, right=0, slopes=slopes)
    print(f"gradients  {count} problems, every second with a gradient of the log-sum-exp; the others the same bits twice; and slopes of heads")

    rows = 150 if ON_GPU else 20
    qkv = torch.randn(2, rows, 3, 4, 64, device=DEVICE).half().requires_grad_()
    dout = torch.randn(2, rows, 4, 64, device=DEVICE).half()
    (packed,) = torch.autograd.grad(ferroflash.flash_attn_qkvpacked_func(qkv, causal=True), qkv, dout)
    check_gradients("packed", packed.unbind(2), qkv.unbind(2), (dout, None), causal=True, right=0)
    leaves = [x.detach().requires_grad_() for x in qkv.unbind(2)]
    summed = torch.autograd.grad(ferroflash.flash_attn_func(*leaves, causal=True).sum(), leaves)
    check_gradients("of a sum", summed, leaves, (torch.ones_like(dout), None), causal=True, right=0)
    print("gradients  packed; of a sum, whose gradient has strides of 0")

    step_compiled()
    if ON_GPU:
        step_on_a_stream()


def step_compiled():
    """A training step of a layer of a transformer: gradients of all its weights, eager and compiled, as near to float64 as PyTorch's own are."""
    rows = 300 if ON_GPU else 12
    for dtype in (torch.float16, torch.bfloat16):
        models = {"eager": transformer(by_ferroflash, dtype, 1)}
        backend = "inductor" if ON_GPU else "aot_eager"
        models["compiled"] = torch.compile(transformer(by_ferroflash, dtype, 1), fullgraph=True, backend=backend)
        theirs, exact = transformer(by_torch, dtype, 1), transformer(by_torch, dtype, 1).double()
        x = torch.randn(2, rows, 256, device=DEVICE).to(dtype)
        weigh = torch.randn(2, rows, 256, device=DEVICE).to(dtype)

        def of_weights(model, number):
            found = torch.autograd.grad((model(x.to(number)) * weigh.to(number)).sum(), list(model.parameters()))
            return torch.cat([gradient.double().flatten() for gradient in found])

        expected = of_weights(exact, torch.float64)
        bound = 2 * (of_weights(theirs, dtype) - expected).abs().max().item() + 1e-5
        for name, model in models.items():
            error = (of_weights(model, dtype) - expected).abs().max().item()
            assert error <= bound, f"step {name} {dtype}: off by {error}, {bound} is accepted"
            print(f"step       {name:16} {dtype}: gradients of weights off by {error:.2e}, PyTorch's by {bound / 2:.2e}")


def step_on_a_stream():
    """Forward and backward on a stream that waits for nothing else, whose inputs are written late; then captured into a graph."""
    leaves = [x.requires_grad_() for x in tensors(torch.bfloat16, 2, 512, 512, 8, 2, 128)]
    dout = torch.randn_like(leaves[0])
    late = [torch.full_like(x, NAN, requires_grad=True) for x in leaves]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            for x, source in zip(late, leaves):
                x.copy_(source)
        found = [x.clone() for x in torch.autograd.grad(ferroflash.flash_attn_func(*late, causal=True), late, dout)]
    stream.synchronize()
    check_gradients("stream", found, leaves, (dout, None), causal=True, right=0)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.autograd.grad(ferroflash.flash_attn_func(*late, causal=True), late, dout)
    for seed in range(2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for x in (*late, dout):
                x.normal_()
            for x in captured:
                x.fill_(NAN)
        graph.replay()
        check_gradients("graph", captured, late, (dout, None), causal=True, right=0)
    print("step       on a stream of its own; captured into a graph, replayed on new values")


def main():
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"ferroflash {ferroflash.__version__}, PyTorch {torch.__version__}, {torch.cuda.get_device_name() if ON_GPU else 'CPU'}")
    for part in (gradients, sequences):
        if part.__name__ in sys.argv[1:]:
            part()
            print("all right")
            return
    values()
    strides()
    if ON_GPU:
        streams()
        graphs()
    sequences()
    compiled()
    gradients()
    print("all right")


if __name__ == "__main__":
    main()
