"""Programs on scores, as FlashAttention-4 takes them: functions that the CuTe DSL compiles into its kernels.

Scores come with batch, head, row and key as vectors of one element where a function reads a tensor. Constants are captured, and so are
part of the kernel; functions of scores get their last four arguments by these names. `mask_mod` stands in the place of FlashAttention-4's
own masks, so that ours has both; which blocks of keys it leaves is found once, by FlashAttention-4's own kernel, and the others are not
visited.
"""

import cutlass
import cutlass.cute as cute
import torch
from cutlass.cutlass_dsl import max as larger
from cutlass.cutlass_dsl import min as smaller
from flash_attn.cute.compute_block_sparsity import compute_block_sparsity
from flash_attn.cute.interface import _tile_size_fwd_sm90
from flash_attn.cute.utils import scalar_to_ssa
from peer_packages import NoResult
from peer_programs import MASKS, SINK, sinks

# In the place of a bound that a mask lacks.
FAR = 1 << 30


def arguments(problem):
    """What the function of FlashAttention-4 gets in the place of its own mask or softcap, and beside them."""
    program, offset = problem.program, problem.kv_seq - problem.seq
    if program.name == SINK:
        return {"learnable_sink": sinks(problem, torch.bfloat16)}
    more = {} if program.tensor is None else {"aux_tensors": [program.tensor]}
    if program.name == "softcap":
        return {"softcap": program.cap}
    if program.name in MASKS:
        mask = mask_mod(problem, offset)
        more.update(mask_mod=mask, causal=False, window_size=(None, None))
        more["block_sparse_tensors"] = blocks(problem, mask, more.get("aux_tensors"))
        return more
    more["score_mod"], slope = score_mod(program, offset)
    if problem.backward:
        more["score_mod_bwd"] = slope
    return more


def blocks(problem, mask, tensors):
    """Which blocks of keys the rows of a block see, in blocks of the size that its kernel for Hopper has."""
    if torch.cuda.get_device_capability(problem.device)[0] != 9:
        raise NoResult("its blocks of keys are measured on compute capability 9.0")
    tile = _tile_size_fwd_sm90(problem.head_dim, problem.head_dim, False, False)
    batch = problem.batch if problem.program.name == "documents" else 1
    rows, keys = tile.m_block_size, tile.n_block_size
    return compute_block_sparsity(rows, keys, batch, 1, problem.seq, problem.kv_seq, mask, tensors, problem.device)


@cute.jit
def added(slope, score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
    """The gradient of a score to which something was added."""
    return slope


def score_mod(program, offset):
    """What a score becomes, and what its gradient becomes on the way back."""
    cap, span = program.cap, program.numbers.get("span", 0)

    @cute.jit
    def capped(score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
        return cap * cute.math.tanh(score / cap)

    @cute.jit
    def slope_of_capped(slope, score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
        x = cute.math.tanh(score / cap)
        return slope * (1.0 - x * x)

    @cute.jit
    def alibi(score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
        before = q_idx[0] + offset - kv_idx[0]
        distance = larger(before, -before)
        bias = aux_tensors[0][0, head[0]] * cutlass.Float32(distance)
        return score - scalar_to_ssa(bias, cutlass.Float32)

    @cute.jit
    def relative(score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
        after = kv_idx[0] - q_idx[0] - offset
        entry = smaller(larger(after, -span), span) + span
        return score + scalar_to_ssa(aux_tensors[0][head[0], entry], cutlass.Float32)

    @cute.jit
    def decay(score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
        before = q_idx[0] + offset - kv_idx[0]
        distance = scalar_to_ssa(cutlass.Float32(larger(before, -before) + 1), cutlass.Float32)
        return score - scalar_to_ssa(aux_tensors[0][head[0]], cutlass.Float32) * cute.math.log(distance)

    return {
        "tanh-cap": (capped, slope_of_capped),
        "alibi": (alibi, added),
        "relative": (relative, added),
        "decay": (decay, added),
    }[program.name]


def mask_mod(problem, offset):
    """Whether a row sees a key, by the program and by the mask of the problem."""
    numbers = problem.program.numbers
    left = FAR if problem.window_left is None else problem.window_left
    right = FAR if problem.window_right is None else problem.window_right
    prefix, window = numbers.get("prefix", 0), numbers.get("window", 0)
    width, reach = numbers.get("width", 1), numbers.get("reach", 0)

    @cute.jit
    def documents(batch, head, row, key, seqlens, tensors):
        place = row + scalar_to_ssa(offset, cutlass.Int32)
        after = key - place
        inside = (after >= scalar_to_ssa(-left, cutlass.Int32)) & (after <= scalar_to_ssa(right, cutlass.Int32))
        ids = tensors[0]
        of_row = scalar_to_ssa(ids[batch[0], place[0]], cutlass.Int32)
        return inside & (of_row == scalar_to_ssa(ids[batch[0], key[0]], cutlass.Int32))

    @cute.jit
    def prefixed(batch, head, row, key, seqlens, tensors):
        after = key - row - scalar_to_ssa(offset, cutlass.Int32)
        inside = (after >= scalar_to_ssa(-left, cutlass.Int32)) & (after <= scalar_to_ssa(right, cutlass.Int32))
        near = (after >= scalar_to_ssa(-window, cutlass.Int32)) & (after <= scalar_to_ssa(0, cutlass.Int32))
        return inside & (near | (key < scalar_to_ssa(prefix, cutlass.Int32)))

    @cute.jit
    def neighbourhood(batch, head, row, key, seqlens, tensors):
        place = row + scalar_to_ssa(offset, cutlass.Int32)
        after = key - place
        inside = (after >= scalar_to_ssa(-left, cutlass.Int32)) & (after <= scalar_to_ssa(right, cutlass.Int32))
        wide = scalar_to_ssa(width, cutlass.Int32)
        down, across = key // wide - place // wide, key % wide - place % wide
        least, most = scalar_to_ssa(-reach, cutlass.Int32), scalar_to_ssa(reach, cutlass.Int32)
        return inside & (down >= least) & (down <= most) & (across >= least) & (across <= most)

    return {"documents": documents, "prefix": prefixed, "neighbourhood": neighbourhood}[problem.program.name]
