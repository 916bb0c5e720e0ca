"""Other implementations, timed and run on request: the other side of `ferroflash bench --peers`.

    peers.py DEVICE PEERS [FOLDER ..]

imports the PEERS (comma separated) that it can. Then it reads one JSON object a line from standard input and answers each with one line;
crates/ferroflash_cli/src/bench/peers.rs holds the protocol. While this process has work on the GPU, ferroflash waits for its answer, and
while ferroflash has, this one waits for a question. Inputs come from files and outputs go to files, [batch, row, head, dim] like the
tensors of ferroflash, or [page, row, head, dim]; who wants the heads first takes them as views, without a copy. The end of the input ends
the program. With `-` for DEVICE nothing runs, and no GPU is needed: what it is asked for is what can be imported.

peer_attention.py has the peers of attention, peer_operators.py those of operators on rows, peer_packages.py what is not measured, peer_launch.py problems and launches,
peer_programs.py and peer_cute.py programs on scores.
"""

import gc
import json
import os
import platform
import shutil
import sys

# The protocol has standard output to itself: what libraries print goes to the log.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def answer(**message):
    ANSWERS.write(json.dumps(message) + "\n")
    ANSWERS.flush()


try:
    import torch
except ImportError as error:
    answer(unavailable=f"PyTorch cannot be imported ({error})")
    sys.exit()

import peer_attention
import peer_operators
from peer_launch import DTYPES, Launcher, Problem, Timer
from peer_packages import FlashMla, NoResult, first_line

PEERS = {**peer_attention.PEERS, "flashmla": FlashMla, **peer_operators.PEERS}


def versions(peers):
    """Of what the peers run on, and of those that are packages of their own."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    found["cudnn"] = str(torch.backends.cudnn.version())
    try:
        import triton
        found["triton"] = triton.__version__
    except ImportError:
        pass
    found.update((name, peer.version) for name, peer in peers.items() if not peer.of_torch)
    return found


def import_peers(names):
    """The peers that can be imported, and what is to be said of each: its version, or what failed and what it needs."""
    peers, report = {}, {}
    for name in names:
        kind = PEERS[name]
        try:
            peers[name] = kind()
            report[name] = {"version": peers[name].version}
        # Whatever goes wrong while foreign code is imported is a reason why it is not there.
        except Exception as error:
            report[name] = {"missing": f"{first_line(error)}; it needs {kind.needs}"}
    return peers, report


def trim():
    # Launchers hold the problem that holds them.
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


class Server:
    def __init__(self, peers, folders):
        self.peers = peers
        self.problem = self.matrices = self.summed = None
        # To tidy up: where tensors are, and may come to be.
        self.folders = set(folders)

    def prepare(self, **problem):
        self.release()
        self.folders.add(problem["folder"])
        self.problem = Problem(**problem)
        return {"prepared": True}

    def prepare_rows(self, **problem):
        self.release()
        self.folders.add(problem["folder"])
        self.problem = peer_operators.RowsProblem(**problem)
        return {"prepared": True}

    def launcher(self, peer):
        """The peer on the problem at hand; after the end of an earlier process, which did the check, a new one."""
        launchers = self.problem.launchers
        if peer not in self.peers:
            # Another process made the list that the program asks from.
            raise NoResult(f"{peer} could be imported when the run began, and not by the Python started since")
        if peer not in launchers:
            of_rows = isinstance(self.problem, peer_operators.RowsProblem)
            launch = self.problem.launch_with if of_rows else lambda peer: Launcher(peer, self.problem)
            launcher = launch(self.peers[peer])
            launcher.extra_bytes = launcher.measure_extra_bytes()
            launcher.capture(self.problem, peer)
            launcher.checked = [result.clone() for result in next(launcher.results())]
            launchers[peer] = launcher
        return launchers[peer]

    def check(self, peer, out):
        with torch.no_grad(), self.problem.on_stream():
            launcher = self.launcher(peer)
            for name, data in launcher.files(out):
                data.tofile(name)
        if torch.cuda.memory_reserved() > torch.cuda.get_device_properties(0).total_memory / 16:
            trim()
        times = {"first_ms": launcher.first_ms, "second_ms": launcher.second_ms}
        return {"checked": {"extra_bytes": launcher.extra_bytes, "graph": bool(launcher.graphs), **times}}

    def time(self, peer, launches, lead):
        with torch.no_grad(), self.problem.on_stream():
            return {"ms": self.launcher(peer).time(launches, lead)}

    def verify(self, peer):
        """Whether the launches that were timed still give what was checked, for every set."""
        with torch.no_grad(), self.problem.on_stream():
            launcher = self.launcher(peer)
            for results in launcher.results():
                if not launcher.comes_again(results):
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

    def read(self, bytes, launches):
        count = bytes // 4
        if self.summed is None or len(self.summed) != count:
            self.summed = torch.randn(count, device="cuda")
            torch.cuda.synchronize()
        return {"ms": Timer(0)(lambda i: self.summed.sum(), launches)}

    def trim(self):
        trim()
        return {"trimmed": True}

    def release(self):
        self.problem = self.matrices = self.summed = None
        trim()
        return {"released": True}

    def serve(self, line):
        (name, arguments), = json.loads(line).items()
        if name in ("trim", "release"):
            return getattr(self, name)()
        call = {"prepare": self.prepare, "prepare_rows": self.prepare_rows, "check": self.check, "time": self.time, "verify": self.verify}
        call.update(matmul=self.matmul, read=self.read)
        return call[name](**arguments)


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
    device, names, *folders = sys.argv[1:]
    if device != "-":
        if not torch.cuda.is_available():
            answer(unavailable=f"PyTorch {torch.__version__} finds no GPU")
            return
        torch.cuda.set_device(device)
        torch.empty(1, device="cuda")
    # True f32, as ferroflash computes it.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    peers, report = import_peers(names.split(","))
    answer(hello={"versions": versions(peers), "peers": report})
    server = Server(peers, folders)
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
