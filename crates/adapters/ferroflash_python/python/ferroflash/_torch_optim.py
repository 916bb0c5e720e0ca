"""AdamW as an optimiser of PyTorch, and the norm of its gradients."""

import torch
from torch import Tensor

from ._errors import InputError, InputTypeError, missing
from ._torch_operators import mark_written
from . import optim as _arrays

_OF_16_BITS = (torch.float16, torch.bfloat16)
# What an optimiser keeps of a parameter, in float32 always.
_STATES = ("exp_avg", "exp_avg_sq", "master")


class AdamW(torch.optim.Optimizer):
    """``torch.optim.AdamW`` by one launch for up to 64 parameters of one type: moments are float32, and parameters of 16 bits have a master in float32,
    which is what decay and steps add up in.

    Args:
        params, lr, betas, eps, weight_decay: as those of ``torch.optim.AdamW``; a group of parameters may have its own. ``lr`` may be a tensor, float32, of one
            element: on the device of parameters it is not read on the host.
        capturable: whether steps are counted on the device, so that a CUDA graph may be captured of a step: each launch of it counts, and reads such an ``lr``.
            Take a step with gradients of the same parameters before the capture.
        foreach, fused: change no result and are not asked.
        master_weights: whether parameters of 16 bits have masters.

    Raises:
        MissingFeatureError: for ``amsgrad``, ``maximize`` and ``differentiable``.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        *,
        maximize=False,
        foreach=None,
        capturable=False,
        differentiable=False,
        fused=None,
        master_weights=True,
    ):
        refused = {"amsgrad": amsgrad, "maximize": maximize, "differentiable": differentiable}
        for name, given in refused.items():
            if given:
                raise missing("AdamW", name)
        _check_rate(lr)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "master_weights": master_weights, "capturable": capturable})

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:
            # One that was saved when there was no such thing.
            group.setdefault("capturable", False)

    @torch.no_grad()
    def step(self, closure=None, *, gradient_scale=1.0, gradient_factor=None):
        """Takes a step with the gradients that parameters have; those without one stay as they are.

        Args:
            closure: computes the loss and its gradients anew.
            gradient_scale: factor on gradients, such as 1 over a scale of the loss.
            gradient_factor: float32 ``(1,)`` on the device, another: the coefficient of :func:`gradient_norm` clips gradients without a pass over them.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lists, counters = {}, {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    raise missing("AdamW", "sparse gradients")
                state = self._state_of(parameter, group, counters)
                # Of one step and one device: a call each. Numbers on the device are the same where they are one tensor.
                number = id(state["step"]) if group["capturable"] else state["step"]
                lists.setdefault((number, parameter.device), []).append((parameter, state))
            for (_, device), of_step in lists.items():
                self._take(group, device, of_step, gradient_scale, gradient_factor)
        return loss

    def _state_of(self, parameter, group, counters):
        """What is kept of a parameter. Those that begin in one call share the number of their steps where it is on the device."""
        state = self.state[parameter]
        if not state:
            state["step"] = _counter(counters, parameter.device, 0) if group["capturable"] else 0
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.float32)
            if group["master_weights"] and parameter.dtype in _OF_16_BITS:
                state["master"] = parameter.detach().float()
        return state

    def _take(self, group, device, of_step, gradient_scale, gradient_factor):
        parameters, states = zip(*of_step)
        last = states[0]["step"]
        number = last + 1
        _arrays.step(
            parameters,
            [parameter.grad.contiguous() for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            number,
            masters=[state.get("master") for state in states],
            lr=_rate_on(group["lr"], device),
            **{name: group[name] for name in ("betas", "eps", "weight_decay")},
            gradient_scale=gradient_scale,
            gradient_factor=gradient_factor,
        )
        mark_written(parameters)
        if group["capturable"] and self._sharing(group, last) == len(states):
            # In place: the next launch of a captured step goes on from here.
            last.copy_(number)
            return
        for state in states:
            state["step"] = number

    def _sharing(self, group, last):
        """How many parameters have this tensor as the number of their steps. Where some of them took no step now, they keep it to themselves."""
        return sum(self.state[parameter].get("step") is last for parameter in group["params"] if parameter in self.state)

    def load_state_dict(self, state_dict):
        """Takes what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        # PyTorch gives all of a state the type of its parameter.
        for of_given, group in zip(state_dict["param_groups"], self.param_groups):
            counters = {}
            for number, parameter in zip(of_given["params"], group["params"]):
                given = state_dict["state"].get(number, {})
                for name in _STATES:
                    if name in given:
                        self.state[parameter][name] = given[name].detach().to(parameter.device, torch.float32, copy=True)
                if given:
                    steps = int(given["step"])
                    self.state[parameter]["step"] = _counter(counters, parameter.device, steps) if group["capturable"] else steps


def _check_rate(lr):
    """A learning rate that is a tensor, which is to be one number of float32."""
    if isinstance(lr, Tensor) and lr.dtype is not torch.float32:
        raise InputTypeError(f"lr holds {lr.dtype}; torch.float32 is accepted, and a number")
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise InputError(f"lr has shape {tuple(lr.shape)}; a tensor of one element is accepted, and a number")


def _rate_on(lr, device):
    """The learning rate for parameters there. Nobody waits for a number of the CPU, which is read."""
    _check_rate(lr)
    if not isinstance(lr, Tensor):
        return lr
    return float(lr) if lr.device != device and lr.device.type == "cpu" else lr.detach().reshape(1)


def _counter(counters, device, steps):
    """The number of so many steps on a device, one tensor for all that have taken them."""
    if (device, steps) not in counters:
        counters[device, steps] = torch.full((1,), steps, dtype=torch.int32, device=device)
    return counters[device, steps]


def gradient_norm(parameters, max_norm=None):
    """The norm of the gradients of all parameters as one vector, and the coefficient that clips them to ``max_norm``, as float32 tensors on their
    device, ``()`` and ``(1,)``: ``AdamW.step`` takes the second as ``gradient_factor``. Gradients stay as they are, and nothing waits for them."""
    gradients = _gradients_of(parameters)
    if not gradients:
        raise InputError("no parameter has a gradient")
    with torch.no_grad():
        result = _arrays.norm([gradient.contiguous() for gradient in gradients], max_norm=max_norm)
    return result[0], result[1:]


def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None):
    """``torch.nn.utils.clip_grad_norm_``: multiplies gradients in place, so that their norm as one vector is ``max_norm`` at the most.

    Args:
        error_if_nonfinite: whether a norm that is no finite number is an error, for which the call waits for it.
        foreach: changes no result and is not asked.

    Returns:
        The norm that they had, float32.

    Raises:
        MissingFeatureError: for another ``norm_type`` than 2.
    """
    if float(norm_type) != 2.0:
        raise missing("clip_grad_norm_", f"norm_type {norm_type}; 2 is accepted")
    gradients = _gradients_of(parameters)
    if not gradients:
        return torch.tensor(0.0)
    with torch.no_grad():
        result = _arrays.norm([gradient.contiguous() for gradient in gradients], max_norm=max_norm)
        if error_if_nonfinite and not bool(result[0].isfinite()):
            raise InputError(f"the norm of the gradients is {float(result[0])}, and error_if_nonfinite is set; they are as they were")
        torch._foreach_mul_(gradients, result[1])
    return result[0]


def _gradients_of(parameters):
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
