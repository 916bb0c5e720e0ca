"""Attention of PyTorch and of Triton, timed and run on request: the other side of `ferroflash bench --peers`.

Reads one JSON object a line from standard input and answers each with one line; crates/ferroflash_cli/src/bench/peers.rs holds the
protocol. While this process has work on the GPU, ferroflash waits for its answer, and while ferroflash has, this one waits for a
question. Inputs come from files and outputs go to files, [batch, row, head, dim] like the tensors of ferroflash; PyTorch takes them
as transposed views, without a copy. The end of the input ends the program.
"""

import gc
import json
import math
import os
import platform
import shutil
import sys

# The protocol has standard output to itself: what libraries print goes to the log.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

GRAPH_MS = 1.0  # launches shorter than this are replayed from a graph, so that Python's own time is not counted
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
SDPA = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}


def answer(**message):
    ANSWERS.write(json.dumps(message) + "\n")
    ANSWERS.flush()


try:
    import torch
except ImportError as error:
    answer(unavailable=f"PyTorch cannot be imported ({error})")
    sys.exit()


class NoResult(Exception):
    """Why a peer has no result."""


def versions():
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    found["cudnn"] = str(torch.backends.cudnn.version())
    try:
        import triton
        found["triton"] = triton.__version__
    except ImportError:
        pass
    return found


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
    """One problem's tensors on the GPU."""

    def __init__(self, folder, dtype, head_dim, seq, kv_seq, batch, q_heads, kv_heads, causal, sets, flush_bytes):
        self.causal, self.seq, self.kv_seq, self.gqa = causal, seq, kv_seq, q_heads != kv_heads
        dtype = getattr(torch, DTYPES[dtype])

        def load(name, rows, heads):
            shape = (batch, rows, heads, head_dim)
            data = torch.from_file(os.path.join(folder, name), size=math.prod(shape), dtype=dtype)
            return data.cuda().view(shape).transpose(1, 2)

        first = load("q", seq, q_heads), load("k", kv_seq, kv_heads), load("v", kv_seq, kv_heads)
        # clone() keeps the strides.
        self.sets = [first] + [tuple(tensor.clone() for tensor in first) for _ in range(sets - 1)]
        self.timer = Timer(flush_bytes)
        self.launchers = {}


def sdpa(name, problem):
    """A function of q, k and v that runs this backend of PyTorch."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    if problem.causal and problem.seq != problem.kv_seq:
        raise NoResult("PyTorch's causal mask starts at the first key; this problem's ends at the last")
    backend, causal, gqa = getattr(SDPBackend, SDPA[name]), problem.causal, problem.gqa

    def run(q, k, v):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

    return run


COMPILED = None


def flex(problem):
    """A function of q, k and v that runs flex_attention, which PyTorch compiles to a kernel of Triton."""
    import torch._dynamo
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    global COMPILED
    if COMPILED is None:
        # Past the limit it would run uncompiled, which is another implementation.
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        # One kernel for all lengths: a kernel for each would take longer to compile than the whole run.
        COMPILED = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    mask, gqa = None, problem.gqa
    if problem.causal:
        offset = problem.kv_seq - problem.seq
        visible = lambda b, h, row, key: row + offset >= key
        mask = create_block_mask(visible, None, None, problem.seq, problem.kv_seq, device="cuda")
    return lambda q, k, v: COMPILED(q, k, v, block_mask=mask, enable_gqa=gqa)


class Launcher:
    """A peer on the sets of a problem: what is timed, and what is checked, is this.

    It keeps whatever a launch reads. A graph holds addresses only: were a block mask freed that it was captured with, its replays would
    read what took the mask's place.
    """

    def __init__(self, name, problem):
        self.sets = problem.sets
        self.run = flex(problem) if name == "triton" else sdpa(name, problem)
        self.graphs, self.outputs = [], []
        # The output that is compared with the reference, and the memory of one call.
        self.checked = self.extra_bytes = None
        # Compiles and chooses.
        self.run(*self.sets[0])
        torch.cuda.synchronize()

    def measure_extra_bytes(self):
        """Device memory at the peak of one call, beyond q, k, v and the output."""
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = self.run(*self.sets[0])
        torch.cuda.synchronize()
        return max(torch.cuda.max_memory_allocated() - before - result.numel() * result.element_size(), 0)

    def capture(self, problem, name):
        """Turns short launches into replays of a graph."""
        for i in range(3):
            self.launch(i)
        torch.cuda.synchronize()
        if problem.timer(self.launch, 3) / 3 > GRAPH_MS:
            return
        graphs, outputs = [], []
        try:
            for tensors in self.sets:
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1]):
                    outputs.append(self.run(*tensors))
        except RuntimeError as error:
            print(f"{name} is not captured: {error}", file=sys.stderr)
            torch.cuda.synchronize()
            return
        self.graphs, self.outputs = graphs, outputs

    def launch(self, i):
        if self.graphs:
            self.graphs[i % len(self.graphs)].replay()
        else:
            self.run(*self.sets[i % len(self.sets)])

    def results(self):
        """The output for each set, of a launch like those that are timed, over memory full of NaN."""
        for i, tensors in enumerate(self.sets):
            if self.graphs:
                self.outputs[i].fill_(math.nan)
                self.launch(i)
                yield self.outputs[i]
            else:
                # The allocator gives the memory that was freed last.
                torch.full_like(tensors[0], math.nan)
                yield self.run(*tensors)


def trim():
    # Launchers hold the problem that holds them.
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


class Server:
    def __init__(self):
        self.problem = self.matrices = None
        # To tidy up: where tensors are, and may come to be.
        self.folders = set(sys.argv[2:])

    def prepare(self, **problem):
        self.release()
        self.folders.add(problem["folder"])
        self.problem = Problem(**problem)
        return {"prepared": True}

    def launcher(self, peer):
        """The peer on the problem at hand; after the end of an earlier process, which did the check, a new one."""
        launchers = self.problem.launchers
        if peer not in launchers:
            launcher = Launcher(peer, self.problem)
            launcher.extra_bytes = launcher.measure_extra_bytes()
            launcher.capture(self.problem, peer)
            launcher.checked = next(launcher.results()).clone()
            launchers[peer] = launcher
        return launchers[peer]

    def check(self, peer, out):
        with torch.no_grad():
            launcher = self.launcher(peer)
            result = launcher.checked.transpose(1, 2).contiguous().view(torch.uint8).cpu().numpy()
            result.tofile(out)
        if torch.cuda.memory_reserved() > torch.cuda.get_device_properties(0).total_memory / 16:
            trim()
        return {"checked": {"extra_bytes": launcher.extra_bytes, "graph": bool(launcher.graphs)}}

    def time(self, peer, launches, lead):
        with torch.no_grad():
            return {"ms": self.problem.timer(self.launcher(peer).launch, launches, lead)}

    def verify(self, peer):
        """Whether the launches that were timed still give what was checked, bit for bit, for every set."""
        launcher = self.launcher(peer)
        with torch.no_grad():
            for result in launcher.results():
                if not torch.equal(result, launcher.checked):
                    raise NoResult("the launches that were timed give another result than the one that was checked")
        return {"verified": True}

    def matmul(self, dtype, size, launches):
        dtype = getattr(torch, DTYPES[dtype])
        if self.matrices is None or self.matrices[0].dtype != dtype or len(self.matrices[0]) != size:
            make = lambda: torch.randn(size, size, device="cuda").to(dtype)
            self.matrices = make(), make(), torch.empty(size, size, device="cuda", dtype=dtype)
            torch.cuda.synchronize()
        a, b, c = self.matrices
        return {"ms": Timer(0)(lambda i: torch.matmul(a, b, out=c), launches)}

    def trim(self):
        trim()
        return {"trimmed": True}

    def release(self):
        self.problem = self.matrices = None
        trim()
        return {"released": True}

    def serve(self, line):
        (name, arguments), = json.loads(line).items()
        if name in ("trim", "release"):
            return getattr(self, name)()
        call = {"prepare": self.prepare, "check": self.check, "time": self.time, "verify": self.verify, "matmul": self.matmul}
        return call[name](**arguments)


def first_line(error):
    if isinstance(error, NoResult):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def serve_all(server):
    """Answers until the input ends."""
    for line in sys.stdin:
        try:
            reply = server.serve(line)
        except Exception as error:
            reply = {"skipped": first_line(error)}
        if "skipped" in reply:
            try:
                # Outside of the handler, whose error kept tensors alive.
                trim()
            except RuntimeError as error:
                # After an illegal access the GPU serves this process no more; a new one can be started.
                sys.exit(f"{reply['skipped']}; then {first_line(error)}")
        answer(**reply)


def main():
    device = sys.argv[1]
    if not torch.cuda.is_available():
        answer(unavailable=f"PyTorch {torch.__version__} finds no GPU")
        return
    torch.cuda.set_device(device)
    torch.empty(1, device="cuda")
    # True f32, as ferroflash computes it.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    answer(hello={"versions": versions()})
    server = Server()
    try:
        serve_all(server)
    except BrokenPipeError:
        pass
    # The one who asked is gone, maybe without a chance to tidy up.
    for folder in server.folders | {os.path.dirname(os.path.abspath(__file__))}:
        if os.path.basename(folder).startswith("ferroflash-"):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
