"""Runs the test files of flash-attn with ferroflash in the place of the original: forward passes, and gradients by ferroflash's own backward pass.

    python official_tests.py FLASH_ATTENTION/tests/test_flash_attn.py [OPTIONS] [ARGUMENTS OF PYTEST]
    python official_tests.py FLASH_ATTENTION/hopper/test_flash_attn.py [OPTIONS] [ARGUMENTS OF PYTEST]

A test that asks for what ferroflash does not do yet is skipped with the name of that feature. The last lines count what every test function
collected, ran, passed, failed and skipped.

Options
    --sample N            N items of every test function, drawn by the seed from all that it has; of a smaller one all
    --sample FUNCTION=N   the same of one function; 0 leaves it out
    --seed S              another draw; the same seed draws the same items in the same order [0]
    --processes P         shares the items out to P processes on the same GPU, which changes neither the draw nor the counts [1]
    --seconds T           starts no item after so long; the lines say how many of the drawn ones were not reached

In the hopper folder nearly every item begins with an attention in chunks, and is skipped for it. FLASH_ATTENTION_DISABLE_LOCAL=TRUE, a switch of
that file, leaves chunks out, and windows with them.
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import math
import random
import subprocess
import sys
import time
import types

import pytest
import torch

import ferroflash


class Waiting:
    """Stands for something of the original that ferroflash does not have yet: to import it is no error, to use it is."""

    def __init__(self, feature):
        self.__feature = feature

    def __call__(self, *arguments, **named):
        raise ferroflash.MissingFeatureError(f"{self.__feature} is not supported by ferroflash yet")

    def __getattr__(self, name):
        self()


def apply_rotary_emb(x, cos, sin, interleaved=False, seqlen_offsets=0):
    """x ``(batch, seqlen, nheads, headdim)`` turned by its positions, from ``seqlen_offsets`` on: what the tests compare caches with."""
    half = cos.shape[1]
    positions = torch.arange(x.shape[1], device=x.device)
    positions = positions[None] + torch.as_tensor(seqlen_offsets, device=x.device).reshape(-1, 1)
    cos, sin = (table[positions][:, :, None].float() for table in (cos, sin))
    columns = torch.arange(half, device=x.device)
    first, second = (2 * columns, 2 * columns + 1) if interleaved else (columns, half + columns)
    a, b = x[..., first].float(), x[..., second].float()
    result = x.clone()
    result[..., first], result[..., second] = (a * cos - b * sin).to(x.dtype), (a * sin + b * cos).to(x.dtype)
    return result


def install():
    """The modules that the test files import."""
    for name in ("flash_attn", "flash_attn_interface"):
        ferroflash.install_as(name)
    interface = sys.modules["flash_attn.flash_attn_interface"]
    interface._get_block_size_n = Waiting("dropout (dropout_p)")
    interface._flash_attn_varlen_forward = Waiting("the original's forward pass of packed sequences (_flash_attn_varlen_forward)")
    interface.flash_attn_gpu = Waiting("the original's extension module (flash_attn_gpu)")
    interface.USE_TRITON_ROCM = False
    torch.ops.flash_attn_3 = Waiting("the original's operations (torch.ops.flash_attn_3)")
    for name, contents in (
        ("flash_attn.layers", {"__path__": []}),
        ("flash_attn.layers.rotary", {"apply_rotary_emb": apply_rotary_emb}),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        sys.modules[name] = module


def missing_feature(error):
    """The feature that is behind an error, or None. Where a test expects an error with certain words, that of a missing feature has others, and
    what comes out is pytest's complaint about them."""
    while error is not None:
        if isinstance(error, ferroflash.MissingFeatureError):
            return str(error).rsplit(": ", 1)[-1]
        error = error.__context__
    return None


def item_id(name, index, value):
    """What pytest calls a value of a parameter, so that a drawn item has the name that it has among all."""
    return str(value) if value is None or isinstance(value, (str, int, float, bool)) else f"{name}{index}"


class Sampled:
    """A plugin of pytest that draws items, shares them out and counts them.

    Items are drawn before pytest makes them: a file has hundreds of thousands, and most of the time of a run would go to their names.
    """

    def __init__(self, options):
        self.options = options
        self.all = {}
        self.drawn = collections.Counter()
        self.outcomes = collections.Counter()
        self.reasons = collections.Counter()
        self.end = math.inf if options.seconds is None else time.monotonic() + options.seconds

    def randomness(self, of):
        return random.Random(f"{self.options.seed} {of}")

    def wanted(self, function):
        return self.options.samples.get(function, self.options.sample)

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc):
        """Makes of all marks `parametrize` of a function one with the drawn combinations."""
        function = metafunc.definition
        marks = [mark for mark in function.own_markers if mark.name == "parametrize"]
        names, axes = [], []
        for mark in marks:
            of_mark, values = mark.args
            of_mark = [name.strip() for name in of_mark.split(",")] if isinstance(of_mark, str) else list(of_mark)
            values = [(value,) if len(of_mark) == 1 else tuple(value) for value in values]
            named = ["-".join(map(item_id, of_mark, itertools.repeat(index), value)) for index, value in enumerate(values)]
            names += of_mark
            axes.append(list(zip(values, named)))
        count = self.all[function.name] = math.prod(map(len, axes))
        wanted = self.wanted(function.name)
        if wanted is None or not marks:
            return
        drawn = []
        for number in sorted(self.randomness(function.name).sample(range(count), min(wanted, count))):
            combination = []
            for axis in axes:
                number, index = divmod(number, len(axis))
                combination.append(axis[index])
            drawn.append((sum((values for values, _ in combination), ()), "-".join(name for _, name in combination)))
        function.own_markers[:] = [mark for mark in function.own_markers if mark not in marks]
        metafunc.parametrize(names, [values for values, _ in drawn], ids=[name for _, name in drawn])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        """The share of this process: a few head dims, each of which is kernels to compile, in an order that `--seconds` may cut anywhere."""
        # pytest makes an item for no parameters, too.
        items[:] = [item for item in items if self.wanted(item.originalname) != 0]
        self.all = {name: count for name, count in self.all.items() if any(item.originalname == name for item in items)}
        items.sort(key=lambda item: item.callspec.params.get("d", 0) if hasattr(item, "callspec") else 0)
        index, processes = self.options.share or 0, self.options.processes
        items[:] = items[len(items) * index // processes : len(items) * (index + 1) // processes]
        self.randomness("order").shuffle(items)
        self.drawn.update(item.originalname for item in items)

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem):
        try:
            return (yield)
        except Exception as error:
            feature = missing_feature(error)
            if feature is None:
                raise
            pytest.skip(feature)

    def pytest_runtest_teardown(self):
        if self.options.processes > 1:
            # PyTorch keeps the memory that it has once asked for, which other processes then lack.
            torch.cuda.empty_cache()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            function = report.location[2].split("[", 1)[0]
            self.outcomes[f"{function} {report.outcome}"] += 1
            if report.outcome == "skipped":
                self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        result = yield
        if time.monotonic() > self.end:
            item.session.shouldstop = f"{self.options.seconds} s are over"
        return result


def run(options):
    """Runs the share of this process: `(exit code, counters)`."""
    install()
    plugin = Sampled(options)
    code = pytest.main([*options.arguments, "-p", "no:cacheprovider", "--tb=short", "-q"], plugins=[plugin])
    return int(code), [plugin.all, plugin.drawn, plugin.outcomes, plugin.reasons]


def run_shares(processes):
    """The same command once for every share, all at once: what `run` gives, for each. What they print is printed when they end."""
    commands = [[sys.executable, *sys.argv, "--share", str(index)] for index in range(processes)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    # Read at once, because a full pipe would stop a process.
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        printed = list(pool.map(lambda process: process.communicate()[0], running))
    results = []
    for process, text in zip(running, printed):
        text, _, last = text.rstrip().rpartition("\n")
        print(text)
        if process.returncode == 0:
            results.append(json.loads(last))
        else:
            print(f"{last}\na process ended with {process.returncode}; its share is in no count")
            results.append((pytest.ExitCode.INTERNAL_ERROR, ({}, {}, {}, {})))
    return results


def print_counts(counters):
    every = {name: count for of_all, *_ in counters for name, count in of_all.items()}
    drawn, outcomes, reasons = (sum(map(collections.Counter, of_kind), collections.Counter()) for of_kind in list(zip(*counters))[1:])
    kinds = ("passed", "failed", "skipped")
    print(f"{'':44} {'items':>8} {'drawn':>7} {'passed':>7} {'failed':>7} {'skipped':>7}  not reached")
    total = collections.Counter()
    for name, count in every.items():
        row = [count, drawn[name], *(outcomes[f"{name} {kind}"] for kind in kinds)]
        row.append(row[1] - sum(row[2:]))
        total.update(dict(enumerate(row)))
        print(f"{name:44} {row[0]:8}" + "".join(f" {number:7}" for number in row[1:]))
    print(f"{'all':44} {total[0]:8}" + "".join(f" {total[index]:7}" for index in range(1, 6)))
    for reason, count in reasons.most_common():
        print(f"skipped {count:7}: {reason}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--sample", action="append", default=[], help="N or FUNCTION=N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--share", type=int, help="of the processes, the number of this one: for what --processes starts")
    options, options.arguments = parser.parse_known_args()
    samples = dict(("", sample) if "=" not in sample else sample.split("=", 1) for sample in options.sample)
    options.samples = {name: int(count) for name, count in samples.items()}
    options.sample = options.samples.pop("", None)
    if options.share is not None:
        print("\n" + json.dumps(run(options)))
        return
    results = [run(options)] if options.processes == 1 else run_shares(options.processes)
    print(f"seed {options.seed}, {options.processes} processes")
    print_counts([counters for _, counters in results])
    sys.exit(max(code for code, _ in results))


if __name__ == "__main__":
    main()
