"""A problem on the GPU, the launches of a peer on it, and their time."""

import math
import os
import sys

import torch

GRAPH_MS = 1.0  # launches shorter than this are replayed from a graph, so that Python's own time is not counted
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


class Timer:
    """Milliseconds on the device between two events around `launch`. With `lead`, one more launch goes ahead."""

    def __init__(self, flush_bytes):
        self.flush = torch.empty(flush_bytes, dtype=torch.uint8, device="cuda") if flush_bytes else None

    def __call__(self, launch, count, lead=False):
        event = lambda: torch.cuda.Event(enable_timing=True)
        if lead:
            launch(count)
        if self.flush is None:
            start, end = event(), event()
            start.record()
            for i in range(count):
                launch(i)
            end.record()
            end.synchronize()
            return start.elapsed_time(end)
        pairs = [(event(), event()) for _ in range(count)]
        for i, (start, end) in enumerate(pairs):
            self.flush.zero_()
            start.record()
            launch(i)
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs)


class Problem:
    """One problem: its sizes, its mask, and its tensors on the GPU, [batch, row, head, dim]."""

    def __init__(self, folder, dtype, head_dim, seq, kv_seq, batch, q_heads, kv_heads, window_left, window_right, sets, flush_bytes):
        self.dtype, self.head_dim, self.batch = getattr(torch, DTYPES[dtype]), head_dim, batch
        self.seq, self.kv_seq, self.gqa = seq, kv_seq, q_heads != kv_heads
        # Keys that a row sees before and after its own place, which counts from the last row and the last key; None: all of them.
        self.window_left, self.window_right = window_left, window_right

        def load(name, rows, heads):
            shape = (batch, rows, heads, head_dim)
            data = torch.from_file(os.path.join(folder, name), size=math.prod(shape), dtype=self.dtype)
            return data.cuda().view(shape)

        first = load("q", seq, q_heads), load("k", kv_seq, kv_heads), load("v", kv_seq, kv_heads)
        self.sets = [first] + [tuple(tensor.clone() for tensor in first) for _ in range(sets - 1)]
        self.timer = Timer(flush_bytes)
        self.launchers = {}

    @property
    def device(self):
        return self.sets[0][0].device

    @property
    def window(self):
        return self.window_left, self.window_right

    @property
    def causal(self):
        return self.window == (None, 0)

    @property
    def windowed(self):
        return self.window not in ((None, None), (None, 0))


class Launcher:
    """A peer on the sets of a problem: what is timed, and what is checked, is this.

    It keeps whatever a launch reads. A graph holds addresses only: were a block mask freed that it was captured with, its replays would
    read what took the mask's place.
    """

    def __init__(self, peer, problem):
        self.run = peer.forward(problem)
        self.heads_first = peer.heads_first
        self.sets = [tuple(self.turned(tensor) for tensor in tensors) for tensors in problem.sets]
        # Memory for the output of each set, for a peer that takes it; the others allocate.
        self.outs = [torch.empty_like(tensors[0]) if peer.takes_out else None for tensors in self.sets]
        self.graphs, self.outputs = [], []
        # The output that is compared with the reference, and the memory of one call.
        self.checked = self.extra_bytes = None
        # Compiles and chooses.
        self.call(0)
        torch.cuda.synchronize()

    def turned(self, tensor):
        """A view as the peer takes it, of a tensor of the problem, or the way back; nothing is copied."""
        return tensor.transpose(1, 2) if self.heads_first else tensor

    def call(self, i):
        """Runs the peer on a set, by the function that Python calls, and returns the output."""
        i %= len(self.sets)
        return self.run(*self.sets[i], self.outs[i])

    def measure_extra_bytes(self):
        """Device memory at the peak of one call, beyond q, k, v and the output."""
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = self.call(0)
        torch.cuda.synchronize()
        output = result.numel() * result.element_size() if self.outs[0] is None else 0
        return max(torch.cuda.max_memory_allocated() - before - output, 0)

    def capture(self, problem, name):
        """Turns short launches into replays of a graph."""
        for i in range(3):
            self.launch(i)
        torch.cuda.synchronize()
        if problem.timer(self.launch, 3) / 3 > GRAPH_MS:
            return
        graphs, outputs = [], []
        try:
            for i in range(len(self.sets)):
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1]):
                    outputs.append(self.call(i))
        except RuntimeError as error:
            print(f"{name} is not captured: {error}", file=sys.stderr)
            torch.cuda.synchronize()
            return
        self.graphs, self.outputs = graphs, outputs

    def launch(self, i):
        if self.graphs:
            self.graphs[i % len(self.graphs)].replay()
        else:
            self.call(i)

    def results(self):
        """The output for each set, of a launch like those that are timed, over memory full of NaN."""
        for i, (tensors, out) in enumerate(zip(self.sets, self.outs)):
            if self.graphs:
                self.outputs[i].fill_(math.nan)
                self.launch(i)
                yield self.outputs[i]
            else:
                if out is None:
                    # The allocator gives the memory that was freed last.
                    torch.full_like(tensors[0], math.nan)
                else:
                    out.fill_(math.nan)
                yield self.call(i)

    def bytes_of_checked(self):
        """The output that is compared with the reference, element after element in the order [batch, row, head, dim]."""
        return self.turned(self.checked).contiguous().view(torch.uint8).cpu().numpy()
