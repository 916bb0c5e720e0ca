"""Peers of operators on rows: PyTorch's own, what it compiles, and quack."""

import math
import os

import torch
from peer_launch import DTYPES, Launcher, Timer
from peer_packages import NoResult, Peer, Quack


class RowsProblem:
    """Tensors on the GPU by name, in as many sets as launches go round; `dout` is apart."""

    def __init__(self, folder, operator, inputs, numbers, sets, **passes):
        self.operator, self.numbers, self.training = operator, numbers, passes.pop("pass")
        self.backward, self.forward = self.training == "backward", self.training == "forward"
        self.sets, self.douts = [{} for _ in range(sets)], []
        # The names of what has gradients, in the order in which they are written.
        self.differentiated = [given["name"] for given in inputs if given["differentiated"]]
        for given in inputs:
            dtype, shape = getattr(torch, DTYPES[given["dtype"]]), given["shape"]
            data = torch.from_file(os.path.join(folder, given["name"]), size=math.prod(shape), dtype=dtype)
            first = data.cuda().view(shape)
            for i, tensors in enumerate(self.sets):
                tensor = first.clone() if given["own"] and i > 0 else first
                if given["name"] == "dout":
                    self.douts.append(tensor)
                else:
                    tensors[given["name"]] = tensor
        self.timer, self.launchers, self.calls = Timer(0), {}, sets
        # PyTorch runs a backward pass on the stream of its forward pass, and captures none that began on the default stream.
        self.stream = torch.cuda.Stream() if self.backward else None
        torch.cuda.synchronize()

    def on_stream(self):
        return torch.cuda.stream(self.stream)

    def launch_with(self, peer):
        return RowsLauncher(peer, self)


class RowsLauncher(Launcher):
    """A peer on the sets of a problem."""

    def __init__(self, peer, problem):
        self.problem, self.run = problem, peer.rows(problem)
        self.sets, self.kept = problem.sets, []
        self.outs = [None] * len(self.sets)
        if problem.backward:
            leaf = lambda name, tensor: tensor.detach().requires_grad_() if name in problem.differentiated else tensor
            self.sets = [{name: leaf(name, tensor) for name, tensor in tensors.items()} for tensors in self.sets]
            for tensors in self.sets:
                with torch.enable_grad():
                    self.kept.append(self.run(**tensors))
        self.graphs, self.captured, self.calls = [], [], 1
        self.checked = self.extra_bytes = self.first_ms = self.second_ms = None
        self.call(0)
        torch.cuda.synchronize()

    def call(self, i):
        i %= len(self.sets)
        if not self.problem.backward:
            found = self.run(**self.sets[i])
            return found if isinstance(found, tuple) else (found,)
        leaves = [self.sets[i][name] for name in self.problem.differentiated]
        with torch.enable_grad():
            return torch.autograd.grad(self.kept[i], leaves, self.problem.douts[i], retain_graph=True)

    def measure_extra_bytes(self):
        return 0

    def results(self):
        for i in range(len(self.sets)):
            restore = getattr(self.run, "restore", None)
            if restore:
                restore(**self.sets[i])
            if self.graphs:
                for result in () if restore else self.captured[i]:
                    result.fill_(math.nan)
                self.launch(i)
                yield self.captured[i]
            else:
                yield self.call(i)

    def files(self, out):
        names = [f"d{name}" for name in self.problem.differentiated] if self.problem.backward else ["out", *getattr(self.run, "more", ())]
        for name, result in zip(names, self.checked):
            yield f"{out}.{name}", result.detach().contiguous().view(torch.uint8).cpu().numpy()


def norm(problem):
    epsilon = problem.numbers["epsilon"]
    if problem.operator == "rmsnorm":
        return lambda x, weight: torch.nn.functional.rms_norm(x, x.shape[-1:], weight, epsilon)
    return lambda x, weight, bias: torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


def softmax(_):
    return lambda x: torch.nn.functional.softmax(x, -1)


def cross_entropy(_):
    # Losses in f32, as everybody else gives them; PyTorch's are of the type of the logits.
    return lambda logits, targets: torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def rotary(problem):
    def turn(x, cos, sin):
        cos, sin = cos[:, None], sin[:, None]
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)

    return turn


def embedding(problem):
    return lambda table, ids: torch.nn.functional.embedding(ids, table)


def dense(problem):
    if problem.operator == "dense":
        return lambda x, weight, bias: torch.addmm(bias, x, weight.t())
    if problem.operator == "dense-gelu" and problem.backward:
        # The fused one has no gradient.
        gelu = torch.nn.functional.gelu
        return lambda x, weight, bias: gelu(torch.addmm(bias, x, weight.t()), approximate="tanh")
    if problem.operator == "dense-gelu":
        # cuBLASLt's product with biases and the GELU by tanh as its epilogue.
        return lambda x, weight, bias: torch._addmm_activation(bias, x, weight.t(), use_gelu=True)

    def swiglu(x, weight):
        gate, up = torch.nn.functional.linear(x, weight).chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    return swiglu


def linear_cross_entropy(_):
    functional = torch.nn.functional
    # Losses in f32, as everybody else gives them.
    return lambda x, weight, targets: functional.cross_entropy(
        functional.linear(x, weight).float(), targets, reduction="none"
    )


class AdamW:
    """Steps of torch.optim.AdamW(fused=True), which overwrite what they are given: an optimizer for each set, on views of its tensors."""

    more = ("moment", "second_moment")

    def __init__(self, problem):
        self.numbers, self.optimizers, self.first = problem.numbers, {}, {}
        # All of them now: nothing is read on the host while a graph is captured.
        for tensors in problem.sets:
            self.prepare(**tensors)

    def prepare(self, parameter, gradient, moment, second_moment, lengths):
        if parameter.dtype is not torch.float32:
            raise NoResult("its moments have the type of the parameters, and here they are f32")
        lengths = lengths.tolist()
        members = [torch.nn.Parameter(view) for view in parameter.split(lengths)]
        betas = self.numbers["beta1"], self.numbers["beta2"]
        options = {"betas": betas, "eps": self.numbers["epsilon"], "weight_decay": self.numbers["decay"]}
        # Capturable, so that it can be a graph; the steps are on the GPU either way.
        optimizer = torch.optim.AdamW(members, lr=self.numbers["rate"], fused=True, capturable=True, **options)
        given = zip(members, gradient.split(lengths), moment.split(lengths), second_moment.split(lengths))
        for member, of_member, first, second in given:
            member.grad = of_member
            step = torch.tensor(self.numbers["step"] - 1, dtype=torch.float32, device=parameter.device)
            optimizer.state[member] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        self.optimizers[parameter.data_ptr()] = optimizer
        self.first[parameter.data_ptr()] = [tensor.clone() for tensor in (parameter, moment, second_moment)]

    def __call__(self, parameter, moment, second_moment, **_):
        self.optimizers[parameter.data_ptr()].step()
        return parameter, moment, second_moment

    def restore(self, parameter, moment, second_moment, **_):
        """What the first step began with."""
        for tensor, first in zip((parameter, moment, second_moment), self.first[parameter.data_ptr()]):
            tensor.copy_(first)
        for state in self.optimizers[parameter.data_ptr()].state.values():
            state["step"].fill_(self.numbers["step"] - 1)


def gradient_norm(problem):
    """The norm and the coefficient of `torch.nn.utils.clip_grad_norm_(foreach=True)`, without the gradients times that, which it writes besides."""
    lengths = problem.sets[0]["lengths"].tolist()

    def norm(gradient, **_):
        norms = torch._foreach_norm(gradient.split(lengths))
        total = torch.linalg.vector_norm(torch.stack(norms).float())
        return torch.stack((total, (problem.numbers["most"] / (total + 1e-6)).clamp(max=1.0)))

    return norm


# What PyTorch has, as functions of the inputs by name.
OPERATORS = {
    "rmsnorm": norm,
    "layernorm": norm,
    "softmax": softmax,
    "cross_entropy": cross_entropy,
    "rotary": rotary,
    "embedding": embedding,
    "dense": dense,
    "dense-gelu": dense,
    "swiglu": dense,
    "linear-cross-entropy": linear_cross_entropy,
    "adamw": AdamW,
    "gradient-norm": gradient_norm,
}


def of_torch(problem):
    if problem.operator not in OPERATORS:
        raise NoResult(f"the operator {problem.operator} is not known here")
    return OPERATORS[problem.operator](problem)


class Eager(Peer):
    """PyTorch's own operator."""

    operation = "norms, softmax and cross-entropy"
    needs, of_torch, version = "PyTorch", True, torch.__version__

    def rows(self, problem):
        return of_torch(problem)


class Compile(Peer):
    """The same through torch.compile, for one shape."""

    operation = "norms, softmax and cross-entropy"
    needs, of_torch, version = "PyTorch with Triton", True, torch.__version__

    def rows(self, problem):
        if problem.operator in ("adamw", "gradient-norm"):
            raise NoResult("the peer of lists is eager, whose kernels are fused")
        torch._dynamo.reset()
        if problem.backward:
            from torch._functorch import config

            # A backward pass that is run again may not write over what the forward pass kept.
            config.donated_buffer = False
        return torch.compile(of_torch(problem), dynamic=False)


class QuackRows(Quack):
    """quack, whose LayerNorm has no biases."""

    def rows(self, problem):
        import quack

        if problem.operator in ("adamw", "gradient-norm"):
            raise NoResult("it has no operators on lists")
        if problem.operator == "softmax":
            return lambda x: quack.softmax(x)
        if problem.operator == "cross_entropy":
            return lambda logits, targets: quack.cross_entropy(logits, targets, reduction="none")
        if problem.operator == "layernorm":
            raise NoResult("its layernorm takes no biases")
        if problem.operator != "rmsnorm":
            raise NoResult("it has no such operator that is compared here")
        return lambda x, weight: quack.rmsnorm(x, weight, eps=problem.numbers["epsilon"])


PEERS = {"eager": Eager, "compile": Compile, "quack": QuackRows}
