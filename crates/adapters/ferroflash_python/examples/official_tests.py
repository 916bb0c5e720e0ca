"""Runs the test files of flash-attn with ferroflash in the place of the original.

    python official_tests.py FLASH_ATTENTION/tests/test_flash_attn.py [ARGUMENTS OF PYTEST]
    python official_tests.py FLASH_ATTENTION/hopper/test_flash_attn.py [ARGUMENTS OF PYTEST]

A test that asks for what ferroflash does not do yet is skipped with its name. There is no backward pass yet, and the tests look at results
only after it: gradients come from PyTorch's own operations here, so that what they say of the forward pass is asked. What they say of gradients
is then nothing about ferroflash. `--no-gradients` before the file skips those tests instead.
"""

import collections
import sys
import types

import pytest
import torch

import ferroflash
from ferroflash import _torch


class WithGradients(torch.autograd.Function):
    """ferroflash's forward pass with the gradients of the same formula in PyTorch, in float32, one sequence at a time."""

    @staticmethod
    def forward(context, q, k, v, *options):
        context.save_for_backward(q, k, v)
        context.options = options
        with torch.no_grad():
            out, lse = ferroflash_attend(q, k, v, *options)
        if lse is None:
            lse = q.new_empty((0,), dtype=torch.float32)
        context.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(context, gradient, _):
        of_sequences = []
        for one in zip(*context.saved_tensors, gradient):
            q, k, v = (x[None].detach().float().requires_grad_() for x in one[:3])
            with torch.enable_grad():
                out = by_definition(q, k, v, *context.options)
                of_sequences.append(torch.autograd.grad(out, (q, k, v), one[3][None].float()))
        gradients = (torch.cat(of_one).to(x.dtype) for of_one, x in zip(zip(*of_sequences), context.saved_tensors))
        return (*gradients, *[None] * len(context.options))


def by_definition(q, k, v, scale, causal, left, right, softcap, return_lse):
    rows, keys, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(keys, device=q.device) - torch.arange(rows, device=q.device)[:, None] - (keys - rows)
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if left >= 0:
        hidden |= distance < -left
    if causal or right >= 0:
        hidden |= distance > (0 if causal else right)
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1).nan_to_num()
    return (weights @ v).transpose(1, 2)


def attend(q, k, v, *options):
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        out, lse = WithGradients.apply(q, k, v, *options)
        return out, (lse if options[-1] else None)
    return ferroflash_attend(q, k, v, *options)


def waiting(feature):
    def call(*arguments, **named):
        raise ferroflash.MissingFeatureError(f"{feature} is not supported by ferroflash yet")

    return call


def install():
    """The modules that the test files import."""
    for name in ("flash_attn", "flash_attn_interface"):
        ferroflash.install_as(name)
    interface = sys.modules["flash_attn.flash_attn_interface"]
    interface._get_block_size_n = waiting("dropout (dropout_p)")
    interface.USE_TRITON_ROCM = False
    for name, contents in (
        ("flash_attn.layers", {"__path__": []}),
        ("flash_attn.layers.rotary", {"apply_rotary_emb": waiting("rotary embedding")}),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        sys.modules[name] = module


class Skips:
    """Turns missing features into skips, and counts them."""

    def __init__(self):
        self.features = collections.Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem):
        try:
            return (yield)
        except ferroflash.MissingFeatureError as error:
            feature = str(error).rsplit(": ", 1)[-1]
            self.features[feature] += 1
            pytest.skip(feature)

    def pytest_terminal_summary(self, terminalreporter):
        for feature, count in self.features.most_common():
            terminalreporter.write_line(f"skipped {count:7}: {feature}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    ferroflash_attend = _torch.attend
    if "--no-gradients" in arguments:
        arguments.remove("--no-gradients")
    else:
        ferroflash.flash_attn_func  # imports the module
        sys.modules["ferroflash.flash_attn_interface"]._attend = attend
    install()
    sys.exit(pytest.main([*arguments, "-p", "no:cacheprovider"], plugins=[Skips()]))
