"""Peers of attention, one class each.

Making an instance imports what the peer needs, or raises what is missing.
`forward(problem)` returns a function of q, k, v and out that runs the peer on such tensors and returns the output. Tensors are
[batch, row, head, dim], or [batch, head, row, dim] where `heads_first`; `out` is there only where `takes_out`. Pages and packed sequences
are as Problem says; a contiguous cache, all of whose rows are in use, is a problem like any other for a peer without a function for it.
Masks are aligned to the last row and the last key, as ferroflash counts; a problem that the peer has no function for is a `NoResult`. A
backward pass is PyTorch's, by the function that the peer registered for it; `no_backward` says why there is none.
"""

import importlib.metadata
import importlib.util
import os

import torch
from peer_packages import NoResult, Peer, library_version, load_library
from peer_programs import SINK, mask_function, no_program, score_function, sinks


class Attention(Peer):
    operation = "forward attention"
    heads_first = False
    takes_out = False
    no_backward = None


class Sdpa(Attention):
    """A backend of PyTorch's scaled_dot_product_attention."""

    heads_first = of_torch = True
    needs = "PyTorch 2.5 or later"

    def __init__(self):
        from torch.nn.attention import SDPBackend

        self.sdp_backend = getattr(SDPBackend, self.backend)
        self.version = torch.__version__

    def forward(self, problem):
        from torch.nn.attention import sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        if problem.windowed:
            raise NoResult("PyTorch's scaled_dot_product_attention has no windows")
        no_program(problem)
        no_sequences(problem)
        # One row sees all keys.
        causal = problem.causal and problem.seq > 1
        if causal and problem.seq != problem.kv_seq:
            raise NoResult("PyTorch's causal mask starts at the first key; this problem's ends at the last")
        backend, gqa = self.sdp_backend, problem.gqa

        def run(q, k, v, out):
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

        return run


class Cudnn(Sdpa):
    backend = "CUDNN_ATTENTION"
    needs = "PyTorch 2.5 or later with cuDNN"

    def __init__(self):
        super().__init__()
        number = torch.backends.cudnn.version()
        if number is None:
            raise NoResult("this PyTorch has no cuDNN")
        self.version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"


class Flash(Sdpa):
    """FlashAttention-2."""

    backend = "FLASH_ATTENTION"


class Efficient(Sdpa):
    """The memory-efficient kernels of xFormers."""

    backend = "EFFICIENT_ATTENTION"


class Math(Sdpa):
    """The formula, one operation after the other."""

    backend = "MATH"


class Flex(Attention):
    """PyTorch's flex_attention, which PyTorch compiles to a kernel of Triton."""

    heads_first = of_torch = True
    needs = "PyTorch 2.5 or later with Triton"
    compiled = None

    def __init__(self):
        import torch._dynamo
        import triton
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        self.version = triton.__version__
        self.create_block_mask, self.flex_attention = create_block_mask, flex_attention

    def forward(self, problem):
        no_sequences(problem)
        if self.compiled is None:
            # Past the limit it would run uncompiled, which is another implementation.
            torch._dynamo.config.recompile_limit = 256
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            if problem.backward:
                from torch._functorch import config

                # A backward pass that is run again may not write over what the forward pass kept.
                config.donated_buffer = False
            # One kernel for all lengths: a kernel for each would take longer to compile than the whole run.
            self.compiled = torch.compile(self.flex_attention, dynamic=True, fullgraph=True)
            self.compiled_with_sinks = torch.compile(self.with_sinks, dynamic=True, fullgraph=True)
        compiled, gqa, sink = self.compiled, problem.gqa, sinks(problem)
        visible, mask, score = self.visible(problem), None, score_function(problem)
        if visible:
            # Documents differ from sequence to sequence.
            batch = problem.batch if problem.program and problem.program.name == "documents" else None
            mask = self.create_block_mask(visible, batch, None, problem.seq, problem.kv_seq, device=problem.device)
        if sink is not None:
            with_sinks = self.compiled_with_sinks
            return lambda q, k, v, out: with_sinks(q, k, v, mask, gqa, sink)
        return lambda q, k, v, out: compiled(q, k, v, score_mod=score, block_mask=mask, enable_gqa=gqa)

    def with_sinks(self, q, k, v, mask, gqa, sink):
        """As models write it that have sinks and use flex_attention: a row's output times its part of the denominator with the sink."""
        out, lse = self.flex_attention(q, k, v, block_mask=mask, enable_gqa=gqa, return_lse=True)
        return (out * torch.sigmoid(lse - sink[:, None])[..., None]).to(out.dtype)

    @staticmethod
    def visible(problem):
        """Which keys a row sees, by the mask and by the program; `None` where it sees all."""
        inside, left = Flex.inside(problem), mask_function(problem)
        if inside is None or left is None:
            return inside or left
        return lambda b, h, row, key: inside(b, h, row, key) & left(b, h, row, key)

    @staticmethod
    def inside(problem):
        """Which keys the mask leaves to a row; `None` where it leaves all."""
        left, right, offset = problem.window_left, problem.window_right, problem.kv_seq - problem.seq
        if left is None and right is None:
            return None
        if left is None:
            return lambda b, h, row, key: row + offset + right >= key
        if right is None:
            return lambda b, h, row, key: row + offset - left <= key
        return lambda b, h, row, key: (row + offset - left <= key) & (row + offset + right >= key)


# Up to this many rows of q, FlashAttention-3 is left to split the keys of a head among thread blocks by its own heuristic, as its decode
# entry does; for more rows it does not split, which is the default of its forward functions. Where the one ends and the other begins is
# ours to say: decoding asks for one row or a few, a prompt for more.
FEW_ROWS = 64


class FlashAttention3(Attention):
    """FlashAttention-3: vLLM's build of its operators, or the package flash_attn_3."""

    needs = "flash_attn_3 (flash_attn_interface), or the library of vLLM's build in FERROFLASH_FA3_LIBRARY"

    def __init__(self):
        self.module = None
        if not os.environ.get("FERROFLASH_FA3_LIBRARY") and importlib.util.find_spec("flash_attn_interface"):
            import flash_attn_interface

            self.module = flash_attn_interface
            self.version = importlib.metadata.version("flash_attn_3")
        else:
            path = load_library("FERROFLASH_FA3_LIBRARY", "vllm_flash_attn/_vllm_fa3_C*.so")
            self.version = library_version(path)
        # The functions of flash_attn_interface take no memory for the output.
        self.takes_out = self.module is None
        if self.module is None:
            self.no_backward = "vLLM's build of FlashAttention-3 has no backward pass"

    def forward(self, problem):
        half_types_only(problem)
        # In vLLM's build alone there are sinks.
        no_program(problem, "softcap", *((SINK,) if self.module is None else ()))
        splits = 0 if problem.seq <= FEW_ROWS else 1
        left, right = (-1 if bound is None else bound for bound in problem.window)
        if problem.causal:
            left, right = -1, -1
        if self.module is None:
            return vllm_forward(problem, left, right, splits)
        function, more = self.module.flash_attn_func, {"num_splits": splits}
        if problem.lengths is not None:
            function = self.module.flash_attn_with_kvcache
            more.update(cache_seqlens=problem.lengths, page_table=problem.page_table)
        if problem.starts is not None:
            function = self.module.flash_attn_varlen_func
            more.update(packed_arguments(problem))
        more.update(causal=problem.causal, window_size=(left, right))
        if problem.program is not None:
            more.update(softcap=softcap(problem))
        packed = problem.starts is not None
        return lambda q, k, v, out: call(function, packed, (q, k, v), more)


def vllm_forward(problem, left, right, splits):
    """FlashAttention-3 by vLLM's operator, which leaves the kernels for equal lengths out: the batch goes as packed sequences."""
    fwd = torch.ops._vllm_fa3_C.fwd
    cap, sink = softcap(problem), sinks(problem, torch.bfloat16)
    batch, seq, kv_seq, causal, scale = problem.batch, problem.seq, problem.kv_seq, problem.causal, problem.head_dim**-0.5

    def starts(rows):
        return torch.arange(0, batch * rows + 1, rows, dtype=torch.int32, device=problem.device)

    cached, q_starts, kv_starts = problem.lengths is not None, None, None
    if problem.starts is not None:
        q_starts = kv_starts = problem.starts
        seq = kv_seq = problem.longest
    elif cached:
        # q keeps its batch, and the numbers of rows in use say the rest.
        seq = kv_seq = None
    else:
        q_starts, kv_starts = starts(seq), starts(kv_seq)

    def run(q, k, v, out):
        rows = (lambda tensor: tensor) if cached else (lambda tensor: tensor.flatten(0, 1))
        fwd(
            *(rows(tensor) for tensor in (q, k, v)),
            *(None, None, None),  # k_new, v_new, q_v
            rows(out),
            *(q_starts, kv_starts, None),  # cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new
            *(None, problem.lengths),  # seqused_q, seqused_k
            *(seq, kv_seq),  # max_seqlen_q, max_seqlen_k
            *(problem.page_table, None, None),  # page_table, kv_batch_idx, leftpad_k
            *(None, None, None),  # rotary_cos, rotary_sin, seqlens_rotary
            *(None, None, None),  # q_descale, k_descale, v_descale
            *(scale, causal, left, right),  # softmax_scale, is_causal, window_size_left, window_size_right
            *(cap, True),  # softcap, is_rotary_interleaved
            *(None, splits, None, 0),  # scheduler_metadata, num_splits, pack_gqa, sm_margin
            *(sink, 1, 0, None),  # s_aux, cp_world_size, cp_rank, cp_tot_seqused_k
        )
        return out

    return run


class FlashAttention4(Attention):
    """FlashAttention-4, whose kernels the CuTe DSL compiles when they are first called. Its functions take no memory for the output."""

    needs = "flash-attn-4 (flash_attn.cute) with nvidia-cutlass-dsl and quack-kernels"

    def __init__(self):
        from flash_attn.cute import flash_attn_func, flash_attn_varlen_func

        self.function, self.packed_function = flash_attn_func, flash_attn_varlen_func
        self.version = importlib.metadata.version("flash-attn-4")

    def forward(self, problem):
        half_types_only(problem)
        if problem.page_table is not None:
            raise NoResult("its pages are not measured here")
        function, packed = self.function, problem.starts is not None
        more = {"causal": problem.causal, "window_size": (None, None) if problem.causal else problem.window}
        if packed:
            function = self.packed_function
            more.update(packed_arguments(problem))
        if problem.program is not None:
            import peer_cute

            more.update(peer_cute.arguments(problem))
        return lambda q, k, v, out: call(function, packed, (q, k, v), more)


def softcap(problem):
    """The bound of the scores as a function takes it that has no other programs: 0 is none."""
    return problem.program.cap if problem.program and problem.program.name == "softcap" else 0.0


def half_types_only(problem):
    if problem.dtype not in (torch.float16, torch.bfloat16):
        raise NoResult("it takes f16 and bf16")


def no_sequences(problem):
    if problem.page_table is not None or problem.starts is not None:
        raise NoResult("it is measured neither with pages nor with packed sequences")


def packed_arguments(problem):
    """What functions of packed sequences want to know of them, by the names that FlashAttention-3 and -4 share."""
    starts, longest = problem.starts, problem.longest
    return {"cu_seqlens_q": starts, "cu_seqlens_k": starts, "max_seqlen_q": longest, "max_seqlen_k": longest}


def call(function, packed, tensors, more):
    """The output, which some versions return with the log-sum-exp. Packed sequences go as [row, head, dim] and return in a batch entry."""
    result = function(*(tensor[0] if packed else tensor for tensor in tensors), **more)
    out = result[0] if isinstance(result, tuple) else result
    return out[None] if packed else out


# By the names that the protocol and the command line have for them.
PEERS = {
    "cudnn": Cudnn,
    "flash": Flash,
    "efficient": Efficient,
    "math": Math,
    "triton": Flex,
    "fa3": FlashAttention3,
    "fa4": FlashAttention4,
}
