"""A problem on the GPU, the launches of a peer on it, and their time."""

import contextlib
import math
import os
import sys
import time

import torch
from peer_packages import NoResult

GRAPH_MS = 1.0  # launches shorter than this are replayed from a graph, so that Python's own time is not counted
GRADIENTS = ("dq", "dk", "dv")
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "i64": "int64"}


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


class Program:
    """What scores pass through: its name, the cap of a softcap, whole numbers by name, and the tensor that it reads, if it reads one."""

    def __init__(self, name, cap, numbers, tensor):
        self.name, self.cap, self.numbers, self.tensor = name, cap, numbers, tensor


class Problem:
    """One problem: its sizes, its mask, what of a training step is run, and its tensors on the GPU, [batch, row, head, dim].

    With a `page_table`, k and v are [page, row, head, dim]. Packed sequences are one batch entry, with the rows of all.
    """

    def __init__(
        self,
        folder,
        dtype,
        head_dim,
        seq,
        kv_seq,
        batch,
        q_heads,
        kv_heads,
        window_left,
        window_right,
        sets,
        flush_bytes,
        calls=1,
        sequences=None,
        program=None,
        **passes,
    ):
        # Its name in the protocol is a word of Python.
        self.training = passes.pop("pass")
        if passes:
            raise NoResult(f"the peers do not know {', '.join(passes)}")
        self.dtype, self.head_dim, self.batch = getattr(torch, DTYPES[dtype]), head_dim, batch
        self.seq, self.kv_seq, self.gqa = seq, kv_seq, q_heads != kv_heads
        # Keys that a row sees before and after its own place, which counts from the last row and the last key; None: all of them.
        self.window_left, self.window_right = window_left, window_right
        # Launches of one graph.
        self.calls = calls

        def load(name, *shape, dtype=self.dtype):
            data = torch.from_file(os.path.join(folder, name), size=math.prod(shape), dtype=dtype)
            return data.cuda().view(shape)

        def numbers(name, *shape):
            return load(name, *shape, dtype=torch.int32)

        # Of a cache the rows in use, of packed sequences the first rows, the end of the last, and the rows of the longest.
        self.lengths = self.page_table = self.starts = self.longest = None
        pages, page_rows = batch, kv_seq
        packed = sequences.get("packed") if isinstance(sequences, dict) else None
        if packed:
            self.starts, self.longest = numbers("starts", packed["sequences"] + 1), packed["longest"]
        elif sequences:
            self.lengths = numbers("lengths", batch)
            if sequences != "cache":
                page_rows = sequences["pages"]
                width = -(-kv_seq // page_rows)
                pages = batch * width
                self.page_table = numbers("pages", batch, width)
        self.program = program
        if program:
            dtype, shape = program["tensor"] or (None, None)
            tensor = load("program", *shape, dtype={"f32": torch.float32, "i32": torch.int32}[dtype]) if dtype else None
            self.program = Program(program["name"], program["cap"], program["numbers"], tensor)
        keys = (pages, page_rows, kv_heads, head_dim)
        first = load("q", batch, seq, q_heads, head_dim), load("k", *keys), load("v", *keys)
        self.checked_dout = None
        if self.backward:
            # Gradients that come in: for launches that are timed, and for those that are compared with the reference.
            first += (load("dout", batch, seq, q_heads, head_dim),)
            self.checked_dout = load("checked_dout", batch, seq, q_heads, head_dim)
        self.sets = [first] + [tuple(tensor.clone() for tensor in first) for _ in range(sets - 1)]
        self.timer = Timer(flush_bytes)
        self.launchers = {}
        # PyTorch runs a backward pass on the stream of its forward pass, and captures none that began on the default stream.
        self.stream = torch.cuda.Stream() if self.backward else None
        torch.cuda.synchronize()

    @property
    def forward(self):
        return self.training in ("forward", "both")

    @property
    def backward(self):
        return self.training in ("backward", "both")

    def on_stream(self):
        """Where launches run."""
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

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
        if problem.backward and peer.no_backward:
            raise NoResult(peer.no_backward)
        self.problem = problem
        start = time.perf_counter()
        self.run = peer.forward(problem)
        self.heads_first = peer.heads_first
        self.sets = [tuple(self.turned(tensor) for tensor in tensors) for tensors in problem.sets]
        # Memory for the output of each set, for a peer that takes it; the others allocate.
        self.outs = [torch.empty_like(tensors[0]) if peer.takes_out else None for tensors in self.sets]
        if problem.backward:
            # Tensors of their own to PyTorch, on the same memory: gradients are with respect to them.
            self.sets = [tuple(x.detach().requires_grad_() for x in (q, k, v)) + (dout,) for q, k, v, dout in self.sets]
        # The forward passes that a backward pass alone starts from: run once.
        self.kept = []
        if not problem.forward:
            for i in range(len(self.sets)):
                with torch.enable_grad():
                    self.kept.append(self.run(*self.sets[i][:3], self.outs[i]))
        self.graphs, self.captured = [], []
        # Calls of one launch.
        self.calls = 1
        # What is compared with the reference, and the memory of one call.
        self.checked = self.extra_bytes = None
        # Compiles and chooses.
        self.call(0)
        torch.cuda.synchronize()
        # To the first result, masks of blocks among it, and to the second.
        self.first_ms = 1e3 * (time.perf_counter() - start)
        start = time.perf_counter()
        self.call(0)
        torch.cuda.synchronize()
        self.second_ms = 1e3 * (time.perf_counter() - start)

    def turned(self, tensor):
        """A view as the peer takes it, of a tensor of the problem, or the way back; nothing is copied."""
        return tensor.transpose(1, 2) if self.heads_first else tensor

    def call(self, i):
        """Runs the peer on a set, by the functions that Python calls, and returns what comes out: the output, the gradients, or both."""
        i %= len(self.sets)
        if not self.problem.backward:
            return (self.run(*self.sets[i], self.outs[i]),)
        *inputs, dout = self.sets[i]
        with torch.enable_grad():
            if not self.problem.forward:
                return torch.autograd.grad(self.kept[i], inputs, dout, retain_graph=True)
            out = self.run(*inputs, self.outs[i])
            return (out.detach(), *torch.autograd.grad(out, inputs, dout))

    def measure_extra_bytes(self):
        """Device memory at the peak of one call, beyond the tensors that go in and come out."""
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = self.call(0)
        torch.cuda.synchronize()
        if self.problem.forward and self.outs[0] is not None:
            results = results[1:]
        returned = sum(result.numel() * result.element_size() for result in results)
        return max(torch.cuda.max_memory_allocated() - before - returned, 0)

    def capture(self, problem, name):
        """Turns short launches into replays of a graph."""
        for i in range(3):
            self.launch(i)
        torch.cuda.synchronize()
        if problem.timer(self.launch, 3) / 3 > GRAPH_MS:
            return
        # A graph for each set; or one of several calls, in turns on the sets, of which the last on each set is checked.
        rounds = [[i] for i in range(len(self.sets))]
        if problem.calls > 1:
            rounds = [[i % len(self.sets) for i in range(problem.calls)]]
        graphs, captured = [], [None] * len(self.sets)
        try:
            for sets in rounds:
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1], stream=problem.stream):
                    for i in sets:
                        captured[i] = self.call(i)
        except RuntimeError as error:
            print(f"{name} is not captured: {error}", file=sys.stderr)
            torch.cuda.synchronize()
            return
        self.graphs, self.captured, self.calls = graphs, captured, problem.calls

    def launch(self, i):
        if self.graphs:
            self.graphs[i % len(self.graphs)].replay()
        else:
            self.call(i)

    def time(self, launches, lead):
        """Milliseconds of so many calls: their share of as many launches as hold them."""
        count = -(-launches // self.calls)
        return self.problem.timer(self.launch, count, lead) * launches / (count * self.calls)

    def results(self):
        """What comes out for each set, of a launch like those that are timed, over memory full of NaN."""
        for i in range(len(self.sets)):
            with self.checked_gradients(i):
                yield self.poisoned(i)

    def poisoned(self, i):
        if self.graphs:
            for result in self.captured[i]:
                result.fill_(math.nan)
            self.launch(i)
            return self.captured[i]
        if self.outs[i] is not None:
            self.outs[i].fill_(math.nan)
        # The allocator gives the memory that was freed last.
        shapes = self.sets[i][:3] if self.problem.backward else ()
        if self.problem.forward and self.outs[i] is None:
            shapes = (self.sets[i][0], *shapes)
        freed = [torch.full_like(tensor, math.nan) for tensor in shapes]
        del freed
        return self.call(i)

    @contextlib.contextmanager
    def checked_gradients(self, i):
        """The gradients that come in are those that the reference was computed for."""
        if not self.problem.backward:
            yield
            return
        dout = self.sets[i][3]
        timed = dout.clone()
        dout.copy_(self.turned(self.problem.checked_dout))
        try:
            yield
        finally:
            dout.copy_(timed)

    def comes_again(self, results):
        """Whether results are those that were checked: bit for bit in a forward pass. Most peers add up gradients in any order, so that
        these may differ by what one rounding, and another in the sum, make of the largest of them."""
        if not self.problem.backward:
            return torch.equal(results[0], self.checked[0])
        for result, checked in zip(results, self.checked):
            allowed = 2 * torch.finfo(checked.dtype).eps * checked.abs().max().float()
            # False for NaN.
            if not bool((result.float() - checked.float()).abs().max() <= allowed):
                return False
        return True

    def files(self, out):
        """The files that what is compared with the reference goes to, each with its bytes: element after element in the order [batch, row,
        head, dim]."""
        names = ([out] if self.problem.forward else []) + ([f"{out}.{name}" for name in GRADIENTS] if self.problem.backward else [])
        for name, result in zip(names, self.checked):
            yield name, self.turned(result).contiguous().view(torch.uint8).cpu().numpy()
