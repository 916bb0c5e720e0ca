"""The functions of flash_attn for packed sequences and caches on tensors of PyTorch: against the float64 reference, and as operations of PyTorch.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device, `cuda`.
"""

import inspect
import os
import unittest
import warnings

import numpy as np

import ferroflash
from reference import alibi, check_gradients_of_sequences, check_sequences, turned

try:
    import torch
except ImportError:
    torch = None

DEVICE = os.environ.get("FERROFLASH_TEST_DEVICE", "cpu")
HEADS, KV_HEADS = 4, 2
LENGTHS = [37, 0, 64, 5, 100, 80, 17, 90]


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def randn(*shape, seed=1, dtype=None):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=DEVICE).to(dtype or torch.float16)


def int32(numbers):
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def starts(lengths):
    return int32([0, *np.cumsum(lengths).tolist()])


def array(tensor):
    return tensor.detach().double().cpu().numpy()


def parts(tensor, at):
    at = at.tolist()
    return [array(tensor)[i:j] for i, j in zip(at, at[1:])]


def rows_of(lse, at):
    at = at.tolist()
    return [array(lse)[:, i:j] for i, j in zip(at, at[1:])]


class Cache:
    """A cache full of NaN but for its sequences, contiguous in reversed entries, or in pages in random order."""

    def __init__(self, dim=64, page_rows=None, capacity=144):
        self.keys = [randn(2, length, KV_HEADS, dim, seed=10 + b) for b, length in enumerate(LENGTHS)]
        self.page_rows, batch = page_rows, len(LENGTHS)
        if page_rows is None:
            self.table = torch.arange(batch, device=DEVICE).flip(0)[:, None].int()
            page_rows = capacity
        else:
            self.table = torch.randperm(batch * (capacity // page_rows), device=DEVICE).int().reshape(batch, -1)
        self.rows = page_rows
        nan = float("nan")
        self.k, self.v = (torch.full((self.table.numel(), page_rows, KV_HEADS, dim), nan, device=DEVICE).half() for _ in range(2))
        for b, keys in enumerate(self.keys):
            pages, rows = self.at(b, keys.shape[1])
            self.k[pages, rows], self.v[pages, rows] = keys
        lengths = {"cache_seqlens": int32(LENGTHS)}
        of_2 = {"cache_batch_idx": self.table[:, 0].contiguous()} if self.page_rows is None else {"block_table": self.table}
        self.arguments = {**lengths, **of_2}
        self.arguments_of_3 = {name.replace("block_table", "page_table"): value for name, value in self.arguments.items()}

    def at(self, b, count):
        rows = torch.arange(count, device=DEVICE)
        return self.table[b, rows // self.rows].long(), rows % self.rows

    def read(self, b, count):
        pages, rows = self.at(b, count)
        return self.k[pages, rows], self.v[pages, rows]


@unittest.skipIf(torch is None, "torch is not installed")
class Packed(unittest.TestCase):
    Q, KV = [40, 0, 33, 70, 5, 64], [57, 20, 0, 31, 90, 64]

    def check(self, out, lse, q, k, v, at, kv_at, **options):
        inputs = list(zip(parts(q, at), parts(k, kv_at), parts(v, kv_at)))
        check_sequences(self, parts(out, at), rows_of(lse, at), inputs, "f16", **options)

    def test_packed(self):
        """Head dims that are no multiples of 8 are padded, with the scale of the dim that was given."""
        at, kv_at = starts(self.Q), starts(self.KV)
        for dim in (32, 59, 128):
            q, k, v = randn(sum(self.Q), HEADS, dim), *randn(2, sum(self.KV), KV_HEADS, dim, seed=2)
            out, lse, dmask = ferroflash.flash_attn_varlen_func(q, k, v, at, kv_at, 70, 90, causal=True, return_attn_probs=True)
            self.assertEqual((out.shape, lse.shape, dmask.numel()), (q.shape, (HEADS, sum(self.Q)), 0))
            self.check(out, lse, q, k, v, at, kv_at, causal=True)
            plain = ferroflash.flash_attn_varlen_func(q, k, v, at, kv_at, 70, 90, 0.0, None, True)
            self.assertTrue(torch.equal(plain, out))

    def test_one_tensor(self):
        at = starts(self.Q)
        qkv = randn(sum(self.Q), 3, HEADS, 32)
        q, k, v = qkv.unbind(1)
        arguments = {"softmax_scale": 0.2, "window_size": (9, 4), "softcap": 5.0, "return_attn_probs": True}
        out, lse, _ = ferroflash.flash_attn_varlen_qkvpacked_func(qkv, at, 70, **arguments)
        self.check(out, lse, q, k, v, at, at, left=9, right=4, softcap=5.0, scale=0.2)
        other, _, _ = ferroflash.flash_attn_varlen_kvpacked_func(q, qkv[:, 1:], at, at, 70, 70, **arguments)
        self.assertTrue(torch.equal(out, other))

    def test_slopes(self):
        """Of heads, and of heads of each sequence; distances are counted from the ends of each sequence."""
        f, at, kv_at = ferroflash, starts(self.Q), starts(self.KV)
        q, k, v = randn(sum(self.Q), HEADS, 59), *randn(2, sum(self.KV), KV_HEADS, 59, seed=2)
        for shape in ((HEADS,), (6, HEADS)):
            slopes = randn(*shape, seed=3, dtype=torch.float32) / 4
            options = {"causal": True, "alibi_slopes": slopes, "return_attn_probs": True}
            out, lse, _ = f.flash_attn_varlen_func(q, k, v, at, kv_at, 70, 90, **options)
            self.check(out, lse, q, k, v, at, kv_at, causal=True, change=alibi(array(slopes)))
            qkv = randn(sum(self.Q), 3, HEADS, 32)
            out, lse, _ = f.flash_attn_varlen_qkvpacked_func(qkv, at, 70, **options)
            self.check(out, lse, *qkv.unbind(1), at, at, causal=True, change=alibi(array(slopes)))
            other, _, _ = f.flash_attn_varlen_kvpacked_func(qkv[:, 0], qkv[:, 1:], at, at, 70, 70, **options)
            self.assertTrue(torch.equal(out, other))
            given = {"program": f.ScoreProgram.alibi(), "tensors": {"slopes": slopes.reshape(-1, HEADS)}, "causal": True}
            self.assertTrue(torch.equal(f.forward_packed(*qkv.unbind(1), at, at, **given), out))

    def test_gradients_through_slopes(self):
        """And through a program with a tensor of its own, both of which the log-sum-exp takes part in."""
        f, at, kv_at = ferroflash, starts(self.Q), starts(self.KV)
        near = f.ScoreProgram(lambda p: p.where(abs(p.position - p.key) < p.ints("reach")[p.head], 2 * p.tanh(p.score / 2), p.score - 1))
        reach = int32([1, 5, 9, 50])

        def change(scores, _):
            rows, keys = scores.shape[2:]
            distance = np.abs(np.arange(rows)[:, None] + keys - rows - np.arange(keys))
            return np.where(distance < array(reach)[:, None, None], 2 * np.tanh(scores / 2), scores - 1)

        def check(leaves, dout, dlse, found, name, change):
            (dq, dk, dv), of_lse = found, rows_of(dlse, at)
            each = list(zip(parts(dq, at), parts(dk, kv_at), parts(dv, kv_at)))
            q, k, v = leaves
            told = list(zip(parts(q, at), parts(k, kv_at), parts(v, kv_at), parts(dout, at), of_lse))
            check_gradients_of_sequences(self, each, told, name, causal=True, change=change)

        for name, dtype, dim in (("f16", torch.float16, 59), ("bf16", torch.bfloat16, 64), ("f32", torch.float32, 32)):
            q, k, v = randn(sum(self.Q), HEADS, dim, dtype=dtype), *randn(2, sum(self.KV), KV_HEADS, dim, seed=2, dtype=dtype)
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            dout, dlse = randn(*q.shape, seed=5, dtype=dtype), randn(HEADS, sum(self.Q), seed=6, dtype=torch.float32)
            for shape in ((HEADS,), (6, HEADS)):
                slopes = randn(*shape, seed=3, dtype=torch.float32) / 4
                options = {"causal": True, "alibi_slopes": slopes, "return_attn_probs": True}
                out, lse, _ = f.flash_attn_varlen_func(*leaves, at, kv_at, 70, 90, **options)
                found = torch.autograd.grad((out, lse), leaves, (dout, dlse))
                check(leaves, dout, dlse, found, name, alibi(array(slopes)))
            if dim != 59:
                given = {"program": near, "tensors": {"reach": reach}, "causal": True}
                out, lse = f.forward_packed(*leaves, at, kv_at, return_lse=True, **given)
                found = torch.autograd.grad((out, lse), leaves, (dout, dlse))
                check(leaves, dout, dlse, found, name, change)
                again = f.backward_packed(q, k, v, out.detach(), lse.detach(), dout, at, kv_at, dlse=dlse, **given)
                for a, b in zip(found, again):
                    self.assertTrue(torch.equal(a, b))

    def test_pages(self):
        """Lengths come from the starts, which say nothing of where pages are."""
        at, kv_at = starts([1, 7, 0, 40, 1, 2, 30, 1]), starts(LENGTHS)
        q, cache = randn(82, HEADS, 64), Cache(page_rows=16)
        wide = torch.cat((cache.table, torch.full_like(cache.table, 2147480000)), dim=1)
        for table in (cache.table, wide):
            out, lse, _ = ferroflash.flash_attn_varlen_func(
                q, cache.k, cache.v, at, kv_at, 40, 100, causal=True, return_attn_probs=True, block_table=table
            )
            inputs = [(of_q, *array(keys)) for of_q, keys in zip(parts(q, at), cache.keys)]
            check_sequences(self, parts(out, at), rows_of(lse, at), inputs, "f16", causal=True)

    def test_rows_in_use_of_version_3(self):
        from ferroflash import flash_attn_3

        q_rows, kv_rows = [n + 5 for n in self.Q], [n + 9 for n in self.KV]
        at, kv_at = starts(q_rows), starts(kv_rows)
        q, k, v = randn(sum(q_rows), HEADS, 64), *randn(2, sum(kv_rows), KV_HEADS, 64, seed=2)
        for start, used in zip(kv_at.tolist(), [*self.KV]):
            k[start + used : start + used + 9], v[start + used : start + used + 9] = float("nan"), float("nan")
        used = {"seqused_q": int32(self.Q), "seqused_k": int32(self.KV)}
        for num_splits in (1, 0, 3):
            out, lse = flash_attn_3.flash_attn_varlen_func(
                q, k, v, at, kv_at, 75, 99, **used, causal=True, num_splits=num_splits, return_attn_probs=True
            )
            cut = lambda pieces, lengths: [piece[:n] for piece, n in zip(pieces, lengths)]
            inputs = list(zip(cut(parts(q, at), self.Q), cut(parts(k, kv_at), self.KV), cut(parts(v, kv_at), self.KV)))
            rows = [piece[:, :n] for piece, n in zip(rows_of(lse, at), self.Q)]
            check_sequences(self, cut(parts(out, at), self.Q), rows, inputs, "f16", causal=True)


@unittest.skipIf(torch is None, "torch is not installed")
class PackedGradients(unittest.TestCase):
    """By autograd, against what `ferroflash.backward_packed` gives, which is compared with the reference where there is no PyTorch."""

    Q, KV = [40, 0, 17, 30], [45, 5, 0, 33]

    def expected(self, q, k, v, at, dout, dlse=None, **options):
        with torch.no_grad():
            out, lse = ferroflash.forward_packed(q, k, v, *at, return_lse=True, **options)
            return ferroflash.backward_packed(q, k, v, out, lse, dout, *at, dlse=dlse, **options)

    def equal(self, found, expected):
        for a, b in zip(found, expected, strict=True):
            self.assertTrue(torch.equal(a, b))

    def inputs(self, dim=64):
        of = lambda lengths, heads, seed: randn(sum(lengths), heads, dim, seed=seed).requires_grad_()
        at = (starts(self.Q), starts(self.KV))
        return of(self.Q, HEADS, 1), of(self.KV, KV_HEADS, 2), of(self.KV, KV_HEADS, 3), at, randn(sum(self.Q), HEADS, dim, seed=4)

    def test_functions(self):
        from ferroflash import flash_attn_3

        q, k, v, at, dout = self.inputs()
        expected = self.expected(q, k, v, at, dout, causal=True)
        for function in (ferroflash.flash_attn_varlen_func, flash_attn_3.flash_attn_varlen_func):
            out = function(q, k, v, *at, 40, 45, causal=True)
            self.equal(torch.autograd.grad(out, (q, k, v), dout), expected)
        self.equal(torch.autograd.grad(ferroflash.forward_packed(q, k, v, *at, causal=True), (q, k, v), dout), expected)
        kv = torch.stack((k, v), 1).detach().requires_grad_()
        out = ferroflash.flash_attn_varlen_kvpacked_func(q, kv, *at, 40, 45, causal=True)
        dq, dkv = torch.autograd.grad(out, (q, kv), dout)
        self.equal((dq, *dkv.unbind(1)), expected)
        qkv = torch.stack((q, q, q), 1).detach().requires_grad_()
        out = ferroflash.flash_attn_varlen_qkvpacked_func(qkv, at[0], 40, causal=True)
        found = torch.autograd.grad(out, qkv, dout)[0].unbind(1)
        self.equal(found, self.expected(q, q, q, (at[0], at[0]), dout, causal=True))

    def test_the_log_sum_exp_and_options(self):
        q, k, v, at, dout = self.inputs()
        dlse = randn(HEADS, sum(self.Q), seed=5, dtype=torch.float32)
        out, lse, _ = ferroflash.flash_attn_varlen_func(
            q, k, v, *at, 40, 45, window_size=(9, 2), softcap=2.0, softmax_scale=0.3, return_attn_probs=True
        )
        found = torch.autograd.grad((out, lse), (q, k, v), (dout, dlse))
        self.equal(found, self.expected(q, k, v, at, dout, dlse, window=(9, 2), softcap=2.0, softmax_scale=0.3))

    def test_rows_in_use(self):
        from ferroflash import flash_attn_3

        q, k, v, at, dout = self.inputs()
        used = (int32([11, 0, 17, 3]), int32([45, 2, 0, 30]))
        out = flash_attn_3.flash_attn_varlen_func(q, k, v, *at, 40, 45, *used)
        found = torch.autograd.grad(out, (q, k, v), dout)
        self.equal(found, self.expected(q, k, v, at, dout, q_used=used[0], kv_used=used[1]))
        self.assertTrue((found[0][11:40] == 0).all() and (found[1][47:50] == 0).all())

    def test_head_dims_that_are_padded(self):
        q, k, v, at, dout = self.inputs(dim=60)
        out = ferroflash.flash_attn_varlen_func(q, k, v, *at, 40, 45)
        pad = lambda x: torch.nn.functional.pad(x, (0, 4)).detach()
        expected = self.expected(pad(q), pad(k), pad(v), at, pad(dout), softmax_scale=60**-0.5)
        self.equal(torch.autograd.grad(out, (q, k, v), dout), [x[..., :60] for x in expected])

    def test_as_operations(self):
        q, k, v, at, dout = self.inputs()
        expected = self.expected(q, k, v, at, dout)
        function = torch.compile(lambda q, k, v: ferroflash.flash_attn_varlen_func(q, k, v, *at, 40, 45), fullgraph=True, backend="aot_eager")
        self.equal(torch.autograd.grad(function(q, k, v), (q, k, v), dout), expected)
        out, _ = torch.ops.ferroflash.forward_packed(q, k, v, *at, None, None, 40, 45, 0, None, False, -1, -1, 0.0, False, "", "", None, None)
        self.equal(torch.autograd.grad(out, (q, k, v), dout), expected)
        arguments = (q, k, v, *at, None, None, 40, 45, 0, None, False, -1, -1, 0.0, True, "", "", None, None)
        torch.library.opcheck(torch.ops.ferroflash.forward_packed.default, arguments)

    def test_gradients_of_gradients(self):
        q, k, v, at, dout = self.inputs()
        out = ferroflash.flash_attn_varlen_func(q, k, v, *at, 40, 45)
        (dq,) = torch.autograd.grad(out.sum(), q, create_graph=True)
        with self.assertRaisesRegex(ferroflash.MissingFeatureError, "a gradient of gradients"):
            dq.sum().backward()


@unittest.skipIf(torch is None, "torch is not installed")
class Cached(unittest.TestCase):
    def check(self, out, lse, q, keys, **options):
        inputs = [(array(of_q), *map(array, kv)) for of_q, kv in zip(q, keys)]
        check_sequences(self, list(array(out)), list(array(lse)), inputs, "f16", **options)

    def test_lengths_entries_and_pages(self):
        for page_rows in (None, 16, 48):
            for q_rows in (1, 3, 40):
                cache, q = Cache(page_rows=page_rows), randn(8, q_rows, HEADS, 64)
                f = ferroflash.flash_attn_with_kvcache
                for num_splits in (0, 1, 3):
                    arguments = {**cache.arguments, "causal": True, "num_splits": num_splits}
                    out, lse = f(q, cache.k, cache.v, **arguments, return_softmax_lse=True)
                    self.check(out, lse, q, cache.keys, causal=True)
                self.assertTrue(torch.equal(f(q, cache.k, cache.v, **arguments), out))

    def test_one_length_for_all(self):
        q, k, v = randn(3, 2, HEADS, 64), *randn(2, 3, 50, KV_HEADS, 64, seed=2)
        out = ferroflash.flash_attn_with_kvcache(q, k, v, cache_seqlens=33, causal=True)
        expected = ferroflash.flash_attn_with_kvcache(q, k, v, cache_seqlens=int32([33] * 3), causal=True)
        self.assertTrue(torch.equal(out, expected))
        out, lse = ferroflash.flash_attn_with_kvcache(q[:, :1], k, v, return_softmax_lse=True)
        self.check(out, lse, q[:, :1], list(zip(k, v)))

    def test_slopes(self):
        """Keys are counted from the first in use; in pages too, and with new keys."""
        f = ferroflash
        for page_rows in (None, 16):
            for shape in ((HEADS,), (8, HEADS)):
                for rows in (1, 3):
                    cache, slopes = Cache(page_rows=page_rows), randn(*shape, seed=3, dtype=torch.float32) / 4
                    q, (k, v) = randn(8, rows, HEADS, 64), randn(2, 8, rows, KV_HEADS, 64, seed=2)
                    options = {"causal": True, "alibi_slopes": slopes, "return_softmax_lse": True}
                    change = alibi(array(slopes))
                    out, lse = f.flash_attn_with_kvcache(q, cache.k, cache.v, **cache.arguments, **options)
                    self.check(out, lse, q, [cache.read(b, length) for b, length in enumerate(LENGTHS)], causal=True, change=change)
                    out, lse = f.flash_attn_with_kvcache(q, cache.k, cache.v, k, v, **cache.arguments, **options)
                    keys = [cache.read(b, length + rows) for b, length in enumerate(LENGTHS)]
                    self.check(out, lse, q, keys, causal=True, change=change)

    def test_padding_on_the_left(self):
        cache, q = Cache(), randn(8, 3, HEADS, 64)
        padding = [5, 0, 30, 1, 99, 0, 2, 3]
        arguments = {**cache.arguments, "cache_leftpad": int32(padding)}
        out, lse = ferroflash.flash_attn_with_kvcache(q, cache.k, cache.v, **arguments, causal=True, return_softmax_lse=True)
        self.check(out, lse, q, [keys[:, first:] for keys, first in zip(cache.keys, padding)], causal=True)

    def test_appending(self):
        """New rows are written behind the others; with a head dim that is no multiple of 8 the cache is written all the same."""
        for dim in (64, 59):
            for page_rows in (None, 16):
                cache, q = Cache(dim, page_rows), randn(8, 6, HEADS, dim)
                k, v = randn(2, 8, 6, KV_HEADS, dim, seed=3)
                f = ferroflash.flash_attn_with_kvcache
                out, lse = f(q, cache.k, cache.v, k, v, **cache.arguments, causal=True, return_softmax_lse=True)
                keys = [torch.cat((old, torch.stack((k[b], v[b]))), dim=1) for b, old in enumerate(cache.keys)]
                for b, both in enumerate(keys):
                    self.assertTrue(torch.equal(torch.stack(cache.read(b, both.shape[1])), both))
                self.check(out, lse, q, keys, causal=True)

    def test_rotary(self):
        """Neighbours are turned together unless the caller says otherwise."""
        angles = 6 * torch.rand(144, 16, device=DEVICE)
        cos, sin = angles.cos().half(), angles.sin().half()
        for arguments, interleaved in (({}, True), ({"rotary_interleaved": False}, False)):
            for causal in (False, True):
                cache, q = Cache(page_rows=16), randn(8, 6, HEADS, 64)
                k, v = randn(2, 8, 6, KV_HEADS, 64, seed=3)
                out, lse = ferroflash.flash_attn_with_kvcache(
                    q, cache.k, cache.v, k, v, cos, sin, **cache.arguments, **arguments, causal=causal, return_softmax_lse=True
                )
                keys = [cache.read(b, length + 6) for b, length in enumerate(LENGTHS)]
                positions = [length + (np.arange(6) if causal else np.zeros(6, dtype=int)) for length in LENGTHS]
                q = [turned(array(q[b]), array(cos), array(sin), at, interleaved, "f16") for b, at in enumerate(positions)]
                self.check(out, lse, map(torch.tensor, q), keys, causal=causal)
                for b, (found, _) in enumerate(keys):
                    at = LENGTHS[b] + np.arange(6)
                    expected = turned(array(k[b]), array(cos), array(sin), at, interleaved, "f16")
                    np.testing.assert_allclose(array(found[LENGTHS[b] :]), expected, rtol=2e-3, atol=1e-6)

    def test_version_3_with_packed_rows(self):
        from ferroflash import flash_attn_3

        lengths = [1, 7, 0, 40, 1, 2, 30, 1]
        at = starts(lengths)
        q, (k, v) = randn(82, HEADS, 64), randn(2, 82, KV_HEADS, 64, seed=3)
        for page_rows in (None, 16):
            cache = Cache(page_rows=page_rows)
            packed = {"cu_seqlens_q": at, "cu_seqlens_k_new": at, "max_seqlen_q": 40}
            schedule = flash_attn_3.get_scheduler_metadata(8, 40, cache.k.shape[1], HEADS, KV_HEADS, 64, int32(LENGTHS), cu_seqlens_q=at)
            arguments = {**cache.arguments_of_3, **packed, "causal": True, "scheduler_metadata": schedule, "return_softmax_lse": True}
            out, lse = flash_attn_3.flash_attn_with_kvcache(q, cache.k, cache.v, k, v, **arguments)
            keys = [array(torch.stack(cache.read(b, old + new))) for b, (old, new) in enumerate(zip(LENGTHS, lengths))]
            inputs = [(of_q, *kv) for of_q, kv in zip(parts(q, at), keys)]
            check_sequences(self, parts(out, at), rows_of(lse, at), inputs, "f16", causal=True)

    def test_rows_of_the_table_of_version_3(self):
        from ferroflash import flash_attn_3

        cache, q = Cache(page_rows=16), randn(8, 3, HEADS, 64)
        arguments = {"cache_seqlens": int32(LENGTHS), "causal": True, "rotary_seqlens": int32(LENGTHS)}
        expected = flash_attn_3.flash_attn_with_kvcache(q, cache.k, cache.v, page_table=cache.table, **arguments)
        order = torch.randperm(8, device=DEVICE)
        arguments.update(page_table=cache.table[order], cache_batch_idx=order.argsort().int())
        self.assertTrue(torch.equal(flash_attn_3.flash_attn_with_kvcache(q, cache.k, cache.v, **arguments), expected))

    def test_positions_of_version_3(self):
        from ferroflash import flash_attn_3

        angles = 6 * torch.rand(20, 32, device=DEVICE)
        cos, sin = angles.cos().half(), angles.sin().half()
        cache, q, (k, v) = Cache(), randn(8, 6, HEADS, 64), randn(2, 8, 6, KV_HEADS, 64, seed=3)
        at = [0, 3, 14, 1, 2, 9, 0, 7]
        arguments = {**cache.arguments_of_3, "rotary_seqlens": int32(at), "rotary_interleaved": False, "causal": True}
        out, lse = flash_attn_3.flash_attn_with_kvcache(
            q, cache.k, cache.v, k, v, rotary_cos=cos, rotary_sin=sin, **arguments, return_softmax_lse=True
        )
        q = [turned(array(q[b]), array(cos), array(sin), first + np.arange(6), False, "f16") for b, first in enumerate(at)]
        self.check(out, lse, map(torch.tensor, q), [cache.read(b, length + 6) for b, length in enumerate(LENGTHS)], causal=True)


@unittest.skipIf(torch is None, "torch is not installed")
class Refusals(unittest.TestCase):
    def refused(self, kind, words, call):
        with self.assertRaises(kind) as caught:
            call()
        self.assertIn(words, str(caught.exception))

    def test_missing_features_are_named(self):
        from ferroflash import flash_attn_3

        f, missing, at = ferroflash, ferroflash.MissingFeatureError, starts([5, 7])
        q = randn(12, HEADS, 32)
        kv, qkv, slopes = torch.stack((q, q), 1), torch.stack((q, q, q), 1), torch.ones(HEADS)
        varlen = lambda *more, **named: lambda: f.flash_attn_varlen_func(q, q, q, at, at, 7, 7, *more, **named)
        self.refused(missing, "flash_attn_varlen_func: dropout (dropout_p)", varlen(0.1))
        self.refused(missing, "dropout", lambda: f.flash_attn_varlen_kvpacked_func(q, kv, at, at, 7, 7, 0.1))
        self.refused(missing, "dropout", lambda: f.flash_attn_varlen_qkvpacked_func(qkv, at, 7, 0.1))
        wide = torch.cat((q, q), dim=2)
        varlen = lambda v, **named: lambda: flash_attn_3.flash_attn_varlen_func(q, q, v, at, at, 7, 7, **named)
        cached = lambda v, **named: lambda: flash_attn_3.flash_attn_with_kvcache(q[None], q[None], v[None], **named)
        for call in (varlen, cached):
            self.refused(missing, "(qv)", call(q, qv=q))
            self.refused(missing, "fp8", call(q, k_descale=slopes))
            self.refused(missing, "(attention_chunk)", call(q, attention_chunk=4))
            self.refused(missing, "a head dim of v", call(wide))
        q.requires_grad_()
        named = "gradients of a key-value cache"
        self.refused(missing, named, lambda: f.flash_attn_with_kvcache(q[None], q[None], q[None], cache_seqlens=3))
        pages, table = q[None], torch.zeros((2, 1), dtype=torch.int32, device=DEVICE)
        self.refused(missing, named, lambda: f.flash_attn_varlen_func(q, pages, pages, at, at, 7, 7, block_table=table))
        with torch.no_grad():
            f.flash_attn_varlen_func(q, q, q, at, at, 7, 7)
        # A whole cache is uniform sequences, whose gradients there are.
        f.flash_attn_with_kvcache(q[None], q[None], q[None]).sum().backward()

    def test_bad_slopes_and_gradients_through_them(self):
        f, q, at, error = ferroflash, randn(12, HEADS, 32), starts([5, 7]), ferroflash.InputError
        call = lambda slopes: lambda: f.flash_attn_varlen_func(q, q, q, at, at, 7, 7, alibi_slopes=slopes)
        slopes = torch.ones(HEADS, device=DEVICE)
        self.refused(ferroflash.InputTypeError, "alibi_slopes holds torch.float64; torch.float32", call(slopes.double()))
        self.refused(error, "alibi_slopes has shape (3,); (4,) (head) and (2, 4) (batch, head)", call(slopes[:3]))
        self.refused(error, "alibi_slopes has shape (12, 4)", call(slopes.expand(12, HEADS)))
        cached = lambda: f.flash_attn_with_kvcache(q[None], q[None], q[None], alibi_slopes=slopes[1:], cache_seqlens=3)
        self.refused(error, "alibi_slopes has shape (3,); (4,) (head) and (1, 4) (batch, head)", cached)
        given = {"program": f.ScoreProgram.alibi(), "tensors": {"slopes": slopes[None].requires_grad_()}}
        wanted = lambda: f.forward_packed(q, q, q, at, at, **given)
        self.refused(ferroflash.MissingFeatureError, "a gradient of slopes, which a program reads", wanted)
        # Gradients go through slopes or a softcap, not through both.
        q.requires_grad_()
        words = "gradients through a softcap and the program alibi; one of the two is accepted"
        out = f.flash_attn_varlen_func(q, q, q, at, at, 7, 7, alibi_slopes=slopes, softcap=5.0)
        self.refused(ferroflash.MissingFeatureError, words, lambda: out.sum().backward())
        self.assertIsNone(q.grad)
        call(slopes)().sum().backward()
        self.assertTrue(q.grad.abs().max() > 0)
        self.assertIsNone(slopes.grad)

    def test_bad_tensors(self):
        q, at, error = randn(12, HEADS, 32), starts([5, 7]), ferroflash.InputError
        f = lambda *x: lambda: ferroflash.flash_attn_varlen_func(*x, 7, 7)
        self.refused(error, "q has 4 axes; 3 are accepted where rows are packed", f(q[None], q, q, at, at))
        self.refused(ferroflash.InputTypeError, "cu_seqlens_q holds torch.int64; torch.int32 is accepted", f(q, q, q, at.long(), at))
        self.refused(ferroflash.InputTypeError, "cu_seqlens_k is a list", f(q, q, q, at, at.tolist()))
        self.refused(error, "the starts of k and v holds 2 numbers; 3 are needed", f(q, q, q, at, at[:2]))
        self.refused(ferroflash.InputTypeError, "k holds bf16, q holds f16", f(q, q.bfloat16(), q, at, at))
        self.refused(ferroflash.InputTypeError, "q holds torch.float64", f(q.double(), q, q, at, at))
        q, k = q.unflatten(0, (2, 6)), randn(2, 30, KV_HEADS, 32)
        new, cos = k[:, :6], randn(30, 16)
        f = lambda *more, **named: lambda: ferroflash.flash_attn_with_kvcache(q, k, k, *more, **named)
        self.refused(error, "k and v are given together", f(new, cache_seqlens=3))
        self.refused(error, "cache_seqlens must be given, too", f(new, new))
        self.refused(error, "k and v must be given, too", f(rotary_cos=cos, rotary_sin=cos, cache_seqlens=3))
        self.refused(error, "cache_seqlens 25 and 6 new rows are not in the 30 rows", f(new, new, cache_seqlens=25))
        self.refused(error, "cache_seqlens 31 and 0 new rows are not in the 30 rows", f(cache_seqlens=31))
        self.refused(error, "rotary_cos has 29 rows, the cache 30", f(new, new, cos[1:], cos[1:], cache_seqlens=3))
        self.refused(error, "a cache of pages takes no cache entries", f(block_table=int32([[0], [1]]), cache_batch_idx=int32([0, 1])))
        self.refused(error, "num_splits is -1", f(num_splits=-1, cache_seqlens=3))
        self.refused(error, "129 splits are not accepted", f(num_splits=129, cache_seqlens=3))

    def test_arguments_are_those_of_the_original(self):
        from ferroflash import flash_attn_3, flash_attn_4

        def names(function):
            return " ".join(inspect.signature(function).parameters)

        self.assertEqual(
            names(flash_attn_3.flash_attn_varlen_func),
            "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q seqused_k softmax_scale causal qv q_descale k_descale v_descale "
            "window_size attention_chunk softcap num_splits pack_gqa deterministic sm_margin return_attn_probs s_aux",
        )
        self.assertEqual(
            names(flash_attn_3.flash_attn_with_kvcache),
            "q k_cache v_cache k v qv rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad page_table cu_seqlens_q cu_seqlens_k_new "
            "max_seqlen_q rotary_seqlens q_descale k_descale v_descale softmax_scale causal window_size attention_chunk softcap rotary_interleaved "
            "scheduler_metadata num_splits pack_gqa sm_margin return_softmax_lse s_aux",
        )
        self.assertEqual(
            names(flash_attn_4.flash_attn_func),
            "q k v softmax_scale causal window_size learnable_sink softcap num_splits pack_gqa deterministic mask_mod full_block_cnt full_block_idx "
            "mask_block_cnt mask_block_idx block_size return_lse",
        )
        self.assertEqual(
            names(flash_attn_4.flash_attn_varlen_func),
            "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q seqused_k page_table softmax_scale causal window_size learnable_sink "
            "softcap num_splits pack_gqa deterministic score_mod mask_mod block_sparse_tensors cu_total_m_blocks cu_total_n_blocks aux_tensors return_lse",
        )


@unittest.skipIf(torch is None, "torch is not installed")
class Sinks(unittest.TestCase):
    """`learnable_sink` of FlashAttention-4's function and `s_aux` of FlashAttention-3's, over packed sequences and caches."""

    Q, KV = [40, 0, 17, 30], [45, 5, 0, 33]

    def setUp(self):
        from ferroflash import flash_attn_3, flash_attn_4

        self.of_3, self.of_4 = flash_attn_3, flash_attn_4
        self.sink = 2 * randn(16, seed=9, dtype=torch.bfloat16)

    def packed(self):
        q, k, v = randn(sum(self.Q), 16, 64, seed=1), *randn(2, sum(self.KV), 4, 64, seed=2)
        return q, k, v, (starts(self.Q), starts(self.KV))

    def test_packed_sequences(self):
        q, k, v, at = self.packed()
        out, lse = self.of_4.flash_attn_varlen_func(q, k, v, *at, 40, 45, causal=True, learnable_sink=self.sink, return_lse=True)
        inputs = list(zip(parts(q, at[0]), parts(k, at[1]), parts(v, at[1])))
        check_sequences(self, parts(out, at[0]), rows_of(lse, at[0]), inputs, "f16", causal=True, sink=array(self.sink))
        for num_splits in (1, 0):
            options = {"causal": True, "num_splits": num_splits, "return_attn_probs": True}
            again = self.of_3.flash_attn_varlen_func(q, k, v, *at, 40, 45, s_aux=self.sink, **options)
            check_sequences(self, parts(again[0], at[0]), rows_of(again[1], at[0]), inputs, "f16", causal=True, sink=array(self.sink))

    def test_gradients(self):
        """By autograd, eager and compiled, against `ferroflash.backward_packed`."""
        q, k, v, at = self.packed()
        sink, dout = self.sink.float(), randn(*q.shape, seed=4)
        out, lse = ferroflash.forward_packed(q, k, v, *at, causal=True, sink=sink, return_lse=True)
        expected = ferroflash.backward_packed(q, k, v, out, lse, dout, *at, causal=True, sink=sink)
        self.assertEqual((len(expected), expected[3].dtype), (4, torch.float32))
        leaves = [x.requires_grad_() for x in (q, k, v, sink)]

        def of_4(q, k, v, sink):
            return self.of_4.flash_attn_varlen_func(q, k, v, *at, 40, 45, causal=True, learnable_sink=sink)[0]

        def of_3(q, k, v, sink):
            return self.of_3.flash_attn_varlen_func(q, k, v, *at, 40, 45, causal=True, s_aux=sink)

        def operation(q, k, v, sink):
            options = (None, None, 40, 45, 0, None, True, -1, -1, 0.0, False, "", "", None, sink)
            return torch.ops.ferroflash.forward_packed(q, k, v, *at, *options)[0]

        for function in (of_4, of_3, operation, torch.compile(of_4, fullgraph=True, backend="aot_eager")):
            for found, exact in zip(torch.autograd.grad(function(*leaves), leaves, dout), expected, strict=True):
                self.assertTrue(torch.equal(found, exact))
        # Of sinks alone.
        (dsink,) = torch.autograd.grad(of_4(*(x.detach() for x in leaves[:3]), leaves[3]), leaves[3], dout)
        self.assertTrue(torch.equal(dsink, expected[3]))

    def test_caches(self):
        cache = Cache(page_rows=16)
        sink = self.sink[:HEADS]
        for rows in (1, 3):
            q = randn(8, rows, HEADS, 64)
            keys = [cache.read(b, length) for b, length in enumerate(LENGTHS)]
            inputs = [(array(of_q), *map(array, kv)) for of_q, kv in zip(q, keys)]
            check = lambda out, lse: check_sequences(
                self, list(array(out)), list(array(lse)), inputs, "f16", causal=True, sink=array(sink)
            )
            for num_splits in (0, 1, 3):
                options = {"causal": True, "num_splits": num_splits}
                check(*self.of_3.flash_attn_with_kvcache(q, cache.k, cache.v, **cache.arguments_of_3, **options, s_aux=sink, return_softmax_lse=True))
            of_4 = {"seqused_k": int32(LENGTHS), "page_table": cache.table, "causal": True, "num_splits": 0}
            check(*self.of_4.flash_attn_varlen_func(q, cache.k, cache.v, **of_4, learnable_sink=sink, return_lse=True))

    def test_uniform_sequences_of_version_4(self):
        q, k, v = randn(2, 9, 16, 64), *randn(2, 2, 12, 4, 64, seed=2)
        out, lse = self.of_4.flash_attn_varlen_func(q, k, v, learnable_sink=self.sink)
        self.assertIsNone(lse)
        self.assertTrue(torch.equal(out, self.of_4.flash_attn_func(q, k, v, learnable_sink=self.sink)[0]))

    def test_what_is_refused(self):
        q, k, v, at = self.packed()
        of_input, missing = ferroflash.InputError, ferroflash.MissingFeatureError
        words = r"s_aux has shape \(15,\); \(16,\) is accepted"
        with self.assertRaisesRegex(of_input, words):
            self.of_3.flash_attn_varlen_func(q, k, v, *at, 40, 45, s_aux=self.sink[1:])
        cache = Cache()
        with self.assertRaisesRegex(of_input, words.replace("16", "4")):
            self.of_3.flash_attn_with_kvcache(randn(8, 1, HEADS, 64), cache.k, cache.v, **cache.arguments_of_3, s_aux=self.sink[1:])
        with self.assertRaisesRegex(missing, "gradients of sinks over a key-value cache"):
            sink = torch.zeros(HEADS, device=DEVICE, requires_grad=True)
            self.of_3.flash_attn_with_kvcache(randn(8, 1, HEADS, 64), cache.k, cache.v, **cache.arguments_of_3, s_aux=sink)
        with self.assertRaisesRegex(missing, "score_mod, mask_mod"):
            self.of_4.flash_attn_varlen_func(q, k, v, *at, 40, 45, score_mod=lambda *x: x[0])


@unittest.skipIf(torch is None, "torch is not installed")
class AsOperations(unittest.TestCase):
    def test_opcheck(self):
        ferroflash.flash_attn_func  # registers the operations
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        options = (None, True, 5, -1, 0.0)
        q, at, cache = randn(82, HEADS, 64), starts([1, 7, 0, 40, 1, 2, 30, 1]), Cache(page_rows=16)
        # What is not in use is NaN, which differs from itself.
        cache.k.nan_to_num_()
        cache.v.nan_to_num_()
        new, packed = randn(8, 6, KV_HEADS, 64), torch.ops.ferroflash
        of_heads = torch.ones(HEADS, device=DEVICE)
        programs = (("", "", None, None), ("alibi", "slopes", [of_heads[None]], of_heads))
        for return_lse, program in ((x, y) for x in (False, True) for y in programs):
            arguments = (q, q, q, at, at, None, None, 40, None, 0, *options, return_lse, *program)
            torch.library.opcheck(packed.forward_packed.default, arguments, test_utils=tests)
            out, lse = packed.forward_packed(*arguments[:-5], True, *program)
            dlse = torch.randn_like(lse) if return_lse else None
            arguments = (q, q, q, out, lse, q, dlse, at, at, None, None, *options, *program, program[-1] is not None and return_lse)
            torch.library.opcheck(packed.backward_packed.default, arguments, test_utils=tests)
            of_cache = (None, None, int32(LENGTHS), None, None, cache.table, None, 2)
            rows = randn(8, 6, HEADS, 64)
            arguments = (rows, cache.k, cache.v, *of_cache, *options, return_lse, *program)
            torch.library.opcheck(packed.forward_cached.default, arguments, test_utils=tests)
            arguments = (rows, cache.k, cache.v, new, new, None, None, None, False, None, *of_cache, *options, return_lse, *program)
            torch.library.opcheck(packed.forward_appending.default, arguments, test_utils=tests[:2])

    def test_compiled_without_a_break(self):
        at = starts([5, 7, 0, 20])

        def packed(x, at):
            return ferroflash.flash_attn_varlen_qkvpacked_func(x * 2, at, 20, causal=True).relu()

        qkv = randn(32, 3, HEADS, 32)
        compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
        self.assertTrue(torch.equal(compiled(qkv, at), packed(qkv, at)))

        def sloped(x, at, slopes):
            return ferroflash.flash_attn_varlen_qkvpacked_func(x * 2, at, 20, causal=True, alibi_slopes=slopes).relu()

        slopes = randn(HEADS, dtype=torch.float32)
        compiled = torch.compile(sloped, fullgraph=True, backend="aot_eager")
        self.assertTrue(torch.equal(compiled(qkv, at, slopes), sloped(qkv, at, slopes)))
        wanted = qkv.detach().requires_grad_()
        gradients = [torch.autograd.grad(call(wanted, at, slopes).float().square().sum(), wanted)[0] for call in (sloped, compiled)]
        self.assertTrue(torch.equal(*gradients) and gradients[0].abs().max() > 0)

        def step(q, k_cache, v_cache, k, v, lengths):
            return ferroflash.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=lengths, causal=True) + 1

        q, (k, v), lengths = randn(3, 2, HEADS, 32), randn(2, 3, 2, KV_HEADS, 32), int32([3, 0, 20])
        both = []
        for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
            caches = list(randn(2, 3, 40, KV_HEADS, 32, seed=5))
            both.append((function(q, *caches, k, v, lengths), *caches))
        for eager, by_graph in zip(*both):
            self.assertTrue(torch.equal(eager, by_graph))

    def test_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            q, at = torch.empty(12, HEADS, 64).half(), torch.empty(3, dtype=torch.int32)
            out, lse, _ = ferroflash.flash_attn_varlen_func(q, q, q, at, at, 7, 7, return_attn_probs=True)
            self.assertEqual((out.shape, lse.shape), (q.shape, (HEADS, 12)))
            q = torch.empty(2, 1, HEADS, 64).half()
            out, lse = ferroflash.flash_attn_with_kvcache(q, q, q, cache_seqlens=1, return_softmax_lse=True)
            self.assertEqual((out.shape, lse.shape), (q.shape, (2, HEADS, 1)))

    def test_the_packages_own_functions_take_tensors(self):
        q, at = randn(12, HEADS, 64), starts([5, 7])
        out, lse = torch.full_like(q, float("nan")), torch.full((HEADS, 12), float("nan"), device=DEVICE)
        returned = ferroflash.forward_packed(q, q, q, at, at, causal=True, out=out, lse=lse, return_lse=True)
        self.assertTrue(returned[0] is out and returned[1] is lse)
        self.assertTrue(torch.equal(out, ferroflash.flash_attn_varlen_func(q, q, q, at, at, 7, 7, causal=True)))
        rows, cache = randn(8, 3, HEADS, 64), Cache()
        out = ferroflash.forward_cached(rows, cache.k, cache.v, lengths=int32(LENGTHS), entries=cache.arguments["cache_batch_idx"])
        self.assertTrue(torch.equal(out, ferroflash.flash_attn_with_kvcache(rows, cache.k, cache.v, **cache.arguments)))
        with self.assertRaisesRegex(ferroflash.InputTypeError, "k is a ndarray, q a torch.Tensor"):
            ferroflash.forward_packed(q, array(q), q, at, at)
        with self.assertRaisesRegex(ferroflash.InputTypeError, "q_starts holds torch.int64"):
            ferroflash.forward_packed(q, q, q, at.long(), at)
        with self.assertRaisesRegex(ferroflash.MissingFeatureError, "ferroflash.forward_packed: a gradient through `out`"):
            ferroflash.forward_packed(q.requires_grad_(), q, q, at, at, out=out)


if __name__ == "__main__":
    unittest.main()
