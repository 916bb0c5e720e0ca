#!/usr/bin/env python3
"""Times ferroflash beside PyTorch's attention backends, taking turns on one GPU in one run.

ferroflash runs as `ferroflash serve` in a process of its own and is asked for one timed sample at a time; between those, this
script times one sample of each peer in the same way: events around a few launches. So drifting clocks and temperatures meet all
alike. Outputs of the peers are checked against torch in float64 on drawn rows; ferroflash checks its own.

    peers_bench.py --ferroflash ./ferroflash --json h200-peers.json
    peers_bench.py --ferroflash ./ferroflash --dtype bf16 --head-dim 128 --seq 4096 --causal

Needs PyTorch with CUDA. Exit status 1 when a ferroflash result is wrong.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SCHEMA_VERSION = 1
MODEL_WIDTH = 2048  # heads = MODEL_WIDTH / head_dim, as in the FlashAttention papers
SAMPLE_MS = 5.0  # length of one timed sample, as in `ferroflash bench`
WARMUP_MS = 200.0
CHECKED_ROWS = 16
PEERS = {
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch cudnn": SDPBackend.CUDNN_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
    "torch math": SDPBackend.MATH,
}
KERNELS = ["naive", "v1", "v2", "v3"]
# Pairs whose times are set against each other.
RATIOS = [("ferroflash v3", "torch flash"), ("ferroflash v3", "torch cudnn"), ("ferroflash v2", "torch flash"),
          ("ferroflash naive", "torch math")]
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


class Ferroflash:
    """A running `ferroflash serve`."""

    def __init__(self, program, device):
        command = [program, "serve", "--device", device]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.environment = self.answer("hello")

    def answer(self, expected):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"ferroflash ended with status {self.process.wait()}")
        answer = json.loads(line)
        if expected not in answer:
            raise RuntimeError(f"ferroflash: {answer}")
        return answer[expected]

    def ask(self, request, expected):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer(expected)

    def time(self, kernel, launches):
        """Milliseconds of one launch, the mean of `launches` in a row."""
        return self.ask({"go": {"kernel": kernel, "launches": launches}}, "ms")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Peer:
    """One backend of torch on the inputs of one cell. [batch, heads, seq, head_dim], as torch wants it."""

    def __init__(self, backend, q, k, v, causal):
        self.backend, self.causal = backend, causal
        self.q, self.k, self.v = q, k, v
        self.start, self.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def forward(self):
        with sdpa_kernel(self.backend):
            return scaled_dot_product_attention(self.q, self.k, self.v, is_causal=self.causal)

    def time(self, launches):
        """Milliseconds of one launch, the mean of `launches` in a row."""
        with sdpa_kernel(self.backend):
            self.start.record()
            for _ in range(launches):
                scaled_dot_product_attention(self.q, self.k, self.v, is_causal=self.causal)
            self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / launches

    def check(self, seed):
        """Largest error on drawn rows, and twice that of the same formula in the same precision plus 1e-5."""
        out = self.forward()
        batch, heads, seq, dim = self.q.shape
        draw = random.Random(seed)
        error = rounded_error = 0.0
        for _ in range(CHECKED_ROWS):
            b, h, i = draw.randrange(batch), draw.randrange(heads), draw.randrange(seq)
            end = i + 1 if self.causal else seq
            q, k, v = self.q[b, h, i], self.k[b, h, :end], self.v[b, h, :end]
            exact = torch.softmax(k.double() @ q.double() / math.sqrt(dim), 0) @ v.double()
            scores = (k.float() @ q.float()) / math.sqrt(dim)
            rounded = (torch.softmax(scores, 0).to(q.dtype).float() @ v.float()).to(q.dtype)
            error = max(error, (out[b, h, i].double() - exact).abs().max().item())
            rounded_error = max(rounded_error, (rounded.double() - exact).abs().max().item())
        bound = 2 * rounded_error + 1e-5
        return {"max_error": error, "bound": bound, "within": error <= bound}


def quartiles(samples):
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return {"q1": q1, "median": median, "q3": q3}


def launches_per_sample(time):
    """Warms up, and returns how many launches fill one sample."""
    launches, spent = 1, 0.0
    while spent < WARMUP_MS:
        ms = time(launches)
        spent += ms * launches
        launches = max(1, min(1000, math.ceil(SAMPLE_MS / ms)))
    return launches


def run_cell(server, problem, args):
    """Times every implementation on one problem; a list of results in a fixed order."""
    dtype, dim, seq = problem["dtype"], problem["head_dim"], problem["seq"]
    batch, heads, causal = problem["batch"], problem["q_heads"], problem["mask"] == "causal"
    flops = 4 * batch * heads * seq * seq * dim / (2 if causal else 1)
    timers, results = {}, {}

    request = {"kernels": args.kernel, "dtype": dtype, "head_dim": dim, "seq": seq, "batch": batch, "heads": heads,
               "causal": causal, "seed": args.seed}
    for ready in server.ask({"prepare": request}, "ready"):
        name = f"ferroflash {ready['kernel']}"
        check = ready["check"]
        results[name] = {"implementation": name, "skipped": ready["skipped"], "check": check}
        if ready["skipped"] is None:
            timers[name] = lambda n, kernel=ready["kernel"]: server.time(kernel, n)

    torch.manual_seed(args.seed)
    # The layout in memory is that of ferroflash, [batch, seq, heads, head_dim]; torch takes it as a transposed view.
    make = lambda: torch.randn(batch, seq, heads, dim, device="cuda", dtype=DTYPES[dtype]).transpose(1, 2)
    q, k, v = make(), make(), make()
    for name in args.peer:
        peer = Peer(PEERS[name], q, k, v, causal)
        results[name] = {"implementation": name, "skipped": None, "check": None}
        try:
            results[name]["check"] = peer.check(args.seed)
            timers[name] = peer.time
        except RuntimeError as error:  # not supported for this problem, or out of memory
            results[name]["skipped"] = str(error).strip().splitlines()[0]
            torch.cuda.empty_cache()

    launches = {name: launches_per_sample(time) for name, time in timers.items()}
    samples = {name: [] for name in timers}
    order = list(timers)
    for turn in range(args.repeats):
        # Each round starts with the next one.
        for name in order[turn % len(order):] + order[:turn % len(order)]:
            samples[name].append(timers[name](launches[name]))

    for name, result in results.items():
        result["time_ms"] = quartiles(samples[name]) if name in samples else None
        result["tflops"] = flops / result["time_ms"]["median"] / 1e9 if result["time_ms"] else None
    server.ask({"release": True}, "released")
    del q, k, v, timers
    torch.cuda.empty_cache()
    return list(results.values())


def ratio(results, ours, theirs):
    """How many times faster ours is, or None."""
    times = {result["implementation"]: result["time_ms"] for result in results}
    a, b = times.get(ours), times.get(theirs)
    return b["median"] / a["median"] if a and b else None


def print_cell(problem, results, header):
    columns = [f"{problem['dtype']:>4} {problem['mask']:>6} {problem['head_dim']:>4} {problem['seq']:>6}"]
    for name in header:
        result = next(result for result in results if result["implementation"] == name)
        columns.append(f"{result['tflops']:>16.1f}" if result["tflops"] else f"{'-':>16}")
    for ours, theirs in RATIOS:
        value = ratio(results, ours, theirs)
        columns.append(f"{value:>12.2f}" if value else f"{'-':>12}")
    print(" ".join(columns), flush=True)


def problems(args):
    for dtype in args.dtype:
        for mask in args.mask:
            for dim in args.head_dim:
                for seq in args.seq:
                    heads = MODEL_WIDTH // dim
                    yield {"dtype": dtype, "head_dim": dim, "mask": mask, "seq": seq, "batch": args.tokens // seq,
                           "q_heads": heads, "kv_heads": heads}


def words(choices):
    """A comma-separated list of some of `choices`."""
    def parse_words(text):
        for word in text.split(","):
            if word not in choices:
                raise argparse.ArgumentTypeError(f"{word} is none of {', '.join(choices)}")
        return text.split(",")
    return parse_words


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(word) for word in text.split(",")]
    parser.add_argument("--ferroflash", required=True, metavar="PROGRAM", help="the ferroflash program")
    parser.add_argument("--device", default="cuda:0", help="device of both (default: cuda:0)")
    parser.add_argument("--kernel", type=words(KERNELS), default=KERNELS)
    parser.add_argument("--peer", type=words(list(PEERS)), default=list(PEERS))
    parser.add_argument("--dtype", type=words(list(DTYPES)), default=["bf16", "f16"])
    parser.add_argument("--head-dim", type=numbers, default=[64, 128])
    parser.add_argument("--seq", type=numbers, default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--tokens", type=int, default=16384, help="batch * seq of every cell (default: 16384)")
    parser.add_argument("--causal", dest="mask", action="store_const", const=["causal"], default=["full", "causal"])
    parser.add_argument("--full", dest="mask", action="store_const", const=["full"])
    parser.add_argument("--repeats", type=int, default=21, help="timed samples of each (default: 21)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    args = parser.parse_args()
    for seq in args.seq:
        if args.tokens % seq:
            parser.error(f"{args.tokens} tokens are no whole number of sequences of {seq}")
    for dim in args.head_dim:
        if MODEL_WIDTH % dim:
            parser.error(f"head_dim {dim} does not divide the model width {MODEL_WIDTH}")
    if args.repeats < 3:
        parser.error("at least 3 repeats are needed for quartiles")
    return args


def main():
    args = parse()
    torch.cuda.set_device(args.device)
    server = Ferroflash(args.ferroflash, args.device)
    peers = {"torch": torch.__version__, "cuDNN": str(torch.backends.cudnn.version())}
    print(f"{server.environment['device']}; ferroflash {server.environment['ferroflash']} beside "
          + ", ".join(f"{name} {version}" for name, version in peers.items()))
    header = [f"ferroflash {kernel}" for kernel in args.kernel] + args.peer
    print("TFLOP/s; the last columns say how many times faster the first is than the second")
    print(f"{'type':>4} {'mask':>6} {'dim':>4} {'seq':>6} " + " ".join(f"{name:>16}" for name in header)
          + "".join(f" {ours.split()[1] + '/' + theirs.split()[1]:>12}" for ours, theirs in RATIOS))
    cells, wrong = [], []
    for problem in problems(args):
        results = run_cell(server, problem, args)
        print_cell(problem, results, header)
        for result in results:
            if result["skipped"]:
                print(f"    {result['implementation']}: {result['skipped']}")
            elif result["check"] and not result["check"]["within"]:
                print(f"    {result['implementation']}: error {result['check']['max_error']:.2e} is outside the bound "
                      f"{result['check']['bound']:.2e}")
                if result["implementation"].startswith("ferroflash"):
                    wrong.append((problem, result["implementation"]))
        cells.append({"problem": problem, "results": results})
    server.close()
    if args.json:
        record = {"kind": "ferroflash-peers", "schema_version": SCHEMA_VERSION, "environment": server.environment,
                  "peers": peers, "method": {"repeats": args.repeats, "sample_ms": SAMPLE_MS, "warmup_ms": WARMUP_MS,
                                             "seed": args.seed}, "cells": cells}
        with open(args.json, "w") as file:
            json.dump(record, file, indent=2)
            file.write("\n")
        print(f"results written to {args.json}")
    if wrong:
        sys.exit(f"{len(wrong)} ferroflash results are outside the tolerance rule")


if __name__ == "__main__":
    main()
