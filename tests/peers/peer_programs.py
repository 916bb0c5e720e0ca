"""Programs on scores, as PyTorch's flex_attention takes them.

Functions of a score and of batch, head, row and key, and of the last four alone where keys are hidden. A row's place is counted from the
last key, as ferroflash counts. docs/benchmarking.md says what each computes.
"""

import torch
from peer_packages import NoResult

SCORES = ("softcap", "alibi", "tanh-cap", "relative", "decay")
MASKS = ("documents", "prefix", "neighbourhood")
SINK = "sink"


def score_function(problem):
    """What a score becomes; `None` where a program only hides keys, where there are sinks in its place, and without one."""
    program, offset = problem.program, problem.kv_seq - problem.seq
    if program is None or program.name in MASKS or program.name == SINK:
        return None
    cap, tensor = program.cap, program.tensor
    if program.name in ("softcap", "tanh-cap"):
        return lambda score, b, h, row, key: cap * torch.tanh(score / cap)
    if program.name == "alibi":
        slopes = tensor[0]
        return lambda score, b, h, row, key: score - slopes[h] * (row + offset - key).abs()
    if program.name == "relative":
        span = program.numbers["span"]
        return lambda score, b, h, row, key: score + tensor[h, (key - row - offset).clamp(-span, span) + span]
    if program.name == "decay":
        return lambda score, b, h, row, key: score - tensor[h] * torch.log((row + offset - key).abs() + 1.0)
    raise NoResult(f"the program {program.name} is not known here")


def mask_function(problem):
    """Which keys a program leaves to a row; `None` where it leaves all."""
    program, offset = problem.program, problem.kv_seq - problem.seq
    if program is None or program.name not in MASKS:
        return None
    numbers, ids = program.numbers, program.tensor
    if program.name == "documents":
        return lambda b, h, row, key: ids[b, row + offset] == ids[b, key]
    if program.name == "prefix":
        prefix, window = numbers["prefix"], numbers["window"]
        return lambda b, h, row, key: (key < prefix) | ((key <= row + offset) & (key + window >= row + offset))
    width, reach = numbers["width"], numbers["reach"]

    def near(b, h, row, key):
        place = row + offset
        down, across = place // width - key // width, place % width - key % width
        return (down.abs() <= reach) & (across.abs() <= reach)

    return near


def sinks(problem, dtype=None):
    """The logits of the query heads in the denominators of their rows, `[heads]`; `None` without them. Every type has room for their bits."""
    program = problem.program
    if program is None or program.name != SINK:
        return None
    return program.tensor if dtype is None else program.tensor.to(dtype)


def no_program(problem, *accepted):
    if problem.program is not None and problem.program.name not in accepted:
        raise NoResult("it has no function for programs on scores" if not accepted else f"of programs it has {', '.join(accepted)}")
