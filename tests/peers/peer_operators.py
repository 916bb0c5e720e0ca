"""Peers of operators on rows: PyTorch's own, what it compiles, and quack."""

import math
import os

import torch
from peer_launch import DTYPES, Launcher, Timer
from peer_packages import NoResult, Peer, Quack


class RowsProblem:
    """Rows on the GPU, [row, column], with weights and biases, in as many sets as launches go round."""

    def __init__(self, folder, operator, dtype, rows, columns, epsilon, sets, **passes):
        self.training = passes.pop("pass")
        self.operator, self.columns, self.epsilon = operator, columns, epsilon
        dtype = getattr(torch, DTYPES[dtype])

        def load(name, *shape):
            data = torch.from_file(os.path.join(folder, name), size=math.prod(shape), dtype=dtype)
            return data.cuda().view(shape)

        vectors = (load("weight", columns),) + ((load("bias", columns),) if operator == "layernorm" else ())
        first = (load("x", rows, columns),) + vectors
        self.backward, self.forward = self.training == "backward", self.training == "forward"
        self.douts = []
        if self.backward:
            dout = load("dout", rows, columns)
            self.douts = [dout] + [dout.clone() for _ in range(sets - 1)]
        # Weights are few, and the same for all.
        self.sets = [first] + [(first[0].clone(), *vectors) for _ in range(sets - 1)]
        self.timer, self.launchers, self.calls = Timer(0), {}, sets
        # PyTorch runs a backward pass on the stream of its forward pass, and captures none that began on the default stream.
        self.stream = torch.cuda.Stream() if self.backward else None
        torch.cuda.synchronize()

    def on_stream(self):
        return torch.cuda.stream(self.stream)

    def launch_with(self, peer):
        return RowsLauncher(peer, self)


class RowsLauncher(Launcher):
    """A peer on the sets of rows. Gradients are those of x, weights and biases."""

    def __init__(self, peer, problem):
        self.problem, self.run = problem, peer.rows(problem)
        self.sets, self.kept = problem.sets, []
        self.outs = [None] * len(self.sets)
        if problem.backward:
            self.sets = [tuple(tensor.detach().requires_grad_() for tensor in tensors) for tensors in self.sets]
            for tensors in self.sets:
                with torch.enable_grad():
                    self.kept.append(self.run(*tensors))
        self.graphs, self.captured, self.calls = [], [], 1
        self.checked = self.extra_bytes = self.first_ms = self.second_ms = None
        self.call(0)
        torch.cuda.synchronize()

    def call(self, i):
        i %= len(self.sets)
        if not self.problem.backward:
            return (self.run(*self.sets[i]),)
        with torch.enable_grad():
            return torch.autograd.grad(self.kept[i], self.sets[i], self.problem.douts[i], retain_graph=True)

    def measure_extra_bytes(self):
        return 0

    def results(self):
        for i in range(len(self.sets)):
            if self.graphs:
                for result in self.captured[i]:
                    result.fill_(math.nan)
                self.launch(i)
                yield self.captured[i]
            else:
                yield self.call(i)

    def files(self, out):
        names = [f"{out}.{name}" for name in ("dx", "dweight", "dbias")] if self.problem.backward else [out]
        for name, result in zip(names, self.checked):
            yield name, result.detach().contiguous().view(torch.uint8).cpu().numpy()


def norm(problem):
    shape, epsilon = (problem.columns,), problem.epsilon
    if problem.operator == "rmsnorm":
        return lambda x, weight: torch.nn.functional.rms_norm(x, shape, weight, epsilon)
    if problem.operator == "layernorm":
        return lambda x, weight, bias: torch.nn.functional.layer_norm(x, shape, weight, bias, epsilon)
    raise NoResult(f"the operator {problem.operator} is not known here")


class Eager(Peer):
    """PyTorch's own operator."""

    operation = "norms, softmax and cross-entropy"
    needs, of_torch, version = "PyTorch", True, torch.__version__

    def rows(self, problem):
        return norm(problem)


class Compile(Peer):
    """The same through torch.compile, for one shape."""

    operation = "norms, softmax and cross-entropy"
    needs, of_torch, version = "PyTorch with Triton", True, torch.__version__

    def rows(self, problem):
        torch._dynamo.reset()
        if problem.backward:
            from torch._functorch import config

            # A backward pass that is run again may not write over what the forward pass kept.
            config.donated_buffer = False
        return torch.compile(norm(problem), dynamic=False)


class QuackRows(Quack):
    """quack, whose LayerNorm has no biases."""

    def rows(self, problem):
        import quack

        if problem.operator != "rmsnorm":
            raise NoResult("its layernorm takes no biases")
        return lambda x, weight: quack.rmsnorm(x, weight, eps=problem.epsilon)


PEERS = {"eager": Eager, "compile": Compile, "quack": QuackRows}
