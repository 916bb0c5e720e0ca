"""The functions of flash_attn on tensors of PyTorch: against the float64 reference, and as an operation of PyTorch.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device, `cuda`.
"""

import inspect
import os
import subprocess
import sys
import unittest
import warnings
from unittest import mock

import numpy as np

import ferroflash
from reference import alibi, check, check_gradients

try:
    import torch
except ImportError:
    torch = None

PRECISIONS = {} if torch is None else {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
DEVICE = os.environ.get("FERROFLASH_TEST_DEVICE", "cpu")


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def inputs(dtype, batch=2, q_rows=40, kv_rows=45, q_heads=4, kv_heads=2, dim=32):
    generator = torch.Generator(DEVICE).manual_seed(1)
    shapes = [(batch, q_rows, q_heads, dim), (batch, kv_rows, kv_heads, dim), (batch, kv_rows, kv_heads, dim)]
    return [torch.randn(shape, generator=generator, device=DEVICE).to(dtype) for shape in shapes]


def randn(*shape):
    return torch.randn(shape, device=DEVICE)


def array(tensor):
    return tensor.detach().double().cpu().numpy()


def arrays(tensors):
    return [array(tensor) for tensor in tensors]


class WithoutTorch(unittest.TestCase):
    def test_the_package_needs_no_torch(self):
        program = """
import sys
sys.modules["torch"] = None  # import torch fails
import ferroflash
try:
    ferroflash.flash_attn_func
except ImportError as error:
    assert "flash_attn take tensors of PyTorch" in str(error), error
else:
    raise AssertionError("no torch, and no error")
"""
        subprocess.run([sys.executable, "-c", program], check=True)

    def test_torch_is_not_imported_before_it_is_needed(self):
        program = "import sys, ferroflash; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", program], check=True)


@unittest.skipIf(torch is None, "torch is not installed")
class Results(unittest.TestCase):
    def test_types_and_head_dims(self):
        """Head dims that are no multiples of 8 are padded, with the scale of the dim that was given."""
        for name, dtype in PRECISIONS.items():
            for dim in (32, 59, 64, 111, 128):
                with self.subTest(dtype=name, dim=dim):
                    tensors = inputs(dtype, dim=dim)
                    out, lse, dmask = ferroflash.flash_attn_func(*tensors, causal=True, return_attn_probs=True)
                    self.assertEqual((out.dtype, lse.dtype, dmask.numel()), (dtype, torch.float32, 0))
                    check(self, array(out), array(lse), arrays(tensors), name, causal=True)

    def test_windows_and_softcap(self):
        tensors = inputs(torch.bfloat16)
        for left, right in ((-1, -1), (5, -1), (-1, 3), (7, 2), (1000, 1000)):
            for causal in (False, True):
                out = ferroflash.flash_attn_func(*tensors, causal=causal, window_size=(left, right), softcap=20.0)
                left_bound, right_bound = (None if bound < 0 else bound for bound in (left, right))
                options = {"causal": causal, "left": left_bound, "right": 0 if causal else right_bound}
                check(self, array(out), None, arrays(tensors), "bf16", softcap=20.0, **options)
        plain = ferroflash.flash_attn_func(*tensors)
        self.assertTrue(torch.equal(plain, ferroflash.flash_attn_func(*tensors, softcap=-1.0)))

    def test_packed(self):
        qkv = torch.stack(inputs(torch.float16, kv_rows=40, kv_heads=4), dim=2)
        expected = ferroflash.flash_attn_func(*qkv.unbind(2), 0.0, 0.3, True)
        self.assertTrue(torch.equal(ferroflash.flash_attn_qkvpacked_func(qkv, 0.0, 0.3, True), expected))
        out, lse, _ = ferroflash.flash_attn_kvpacked_func(qkv[:, :, 0], qkv[:, :, 1:], 0.0, 0.3, True, return_attn_probs=True)
        self.assertTrue(torch.equal(out, expected))
        self.assertEqual(lse.shape, (2, 4, 40))
        check(self, array(out), array(lse), arrays(qkv.unbind(2)), "f16", causal=True, scale=0.3)

    def test_strides(self):
        """Other orders of axes in place; a last dim with gaps is copied, as flash_attn does."""
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(torch.float16, kv_rows=40, kv_heads=4))
        out = ferroflash.flash_attn_func(q, k, v)
        self.assertEqual(out.stride(), q.stride())
        check(self, array(out), None, arrays((q, k, v)), "f16")
        wide = randn(2, 40, 4, 64).half()
        gaps = wide[..., ::2]
        check(self, array(ferroflash.flash_attn_func(gaps, k, v)), None, arrays((gaps, k, v)), "f16")

    def test_a_whole_cache(self):
        q, k, v = inputs(torch.float16, q_rows=3)
        out, lse = ferroflash.flash_attn_with_kvcache(q, k, v, causal=True, return_softmax_lse=True)
        expected = ferroflash.flash_attn_func(q, k, v, causal=True)
        self.assertTrue(torch.equal(out, expected))
        self.assertEqual(lse.shape, (2, 4, 3))

    def test_slopes(self):
        """Of heads, and of heads of each batch entry; in every function, with masks, padding of the head dim and grouped heads."""
        f, generator = ferroflash, torch.Generator(DEVICE).manual_seed(2)
        for name, dtype in PRECISIONS.items():
            for shape in ((4,), (2, 4)):
                for dim, options in ((64, {"causal": True}), (59, {"window_size": (9, 4), "softcap": 5.0})):
                    with self.subTest(dtype=name, shape=shape, dim=dim):
                        slopes = torch.rand(shape, generator=generator, device=DEVICE) - 0.25
                        tensors = inputs(dtype, dim=dim)
                        out, lse, _ = f.flash_attn_func(*tensors, alibi_slopes=slopes, return_attn_probs=True, **options)
                        named = {"causal": True} if dim == 64 else {"left": 9, "right": 4, "softcap": 5.0}
                        check(self, array(out), array(lse), arrays(tensors), name, change=alibi(array(slopes)), **named)
        slopes = torch.rand((8,), generator=generator, device=DEVICE)[::2]
        q, k, v = inputs(torch.float16, kv_rows=40, kv_heads=4)
        expected = f.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes)
        check(self, array(expected), None, arrays((q, k, v)), "f16", causal=True, change=alibi(array(slopes)))
        kv, qkv = torch.stack((k, v), 2), torch.stack((q, k, v), 2)
        for out in (
            f.flash_attn_kvpacked_func(q, kv, causal=True, alibi_slopes=slopes),
            f.flash_attn_qkvpacked_func(qkv, causal=True, alibi_slopes=slopes),
            f.flash_attn_with_kvcache(q, k, v, causal=True, alibi_slopes=slopes),
            f.forward(q, k, v, causal=True, program=f.ScoreProgram.alibi(), tensors={"slopes": slopes[None]}),
        ):
            self.assertTrue(torch.equal(out, expected))

    def test_programs(self):
        q, k, v = inputs(torch.float16)
        document = torch.arange(45, device=DEVICE, dtype=torch.int32) // 12
        same = ferroflash.ScoreProgram.mask(lambda p: p.ints("document")[p.position] == p.ints("document")[p.key])
        given = {"program": same, "tensors": {"document": document}, "causal": True}
        out, lse = ferroflash.forward(q, k, v, return_lse=True, **given)

        def change(scores, _):
            of_keys = array(document)
            return np.where(of_keys[np.arange(40)[:, None] + 5] == of_keys, scores, -np.inf)

        check(self, array(out), array(lse), arrays((q, k, v)), "f16", causal=True, change=change)
        to = torch.empty_like(q)
        self.assertIs(ferroflash.forward(q, k, v, out=to, **given), to)
        self.assertTrue(torch.equal(to, out))

    def test_forward_takes_tensors(self):
        q, k, v = inputs(torch.bfloat16)
        out = torch.full_like(q, float("nan"))
        lse = torch.full((2, 4, 40), float("nan"), device=DEVICE)
        returned = ferroflash.forward(q, k, v, causal=True, out=out, lse=lse, return_lse=True)
        self.assertIs(returned[0], out)
        check(self, array(out), array(lse), arrays((q, k, v)), "bf16", causal=True)
        self.assertTrue(torch.equal(ferroflash.forward(q, k, v, causal=True), out))
        q_array = np.zeros((2, 40, 4, 32), dtype=np.float32)
        mixed = ferroflash.forward(q_array, *(x.float().cpu() for x in (k, v)))
        self.assertIsInstance(mixed, np.ndarray)

    def test_arguments_are_those_of_flash_attn(self):
        def arguments(function):
            return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}

        none = inspect.Parameter.empty
        options = {
            "dropout_p": 0.0,
            "softmax_scale": None,
            "causal": False,
            "window_size": (-1, -1),
            "softcap": 0.0,
            "alibi_slopes": None,
            "deterministic": False,
            "return_attn_probs": False,
        }
        lengths = {name: none for name in ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")}
        qkv, kv = {"q": none, "k": none, "v": none}, {"q": none, "kv": none}
        expected = {
            "flash_attn_func": {**qkv, **options},
            "flash_attn_kvpacked_func": {**kv, **options},
            "flash_attn_qkvpacked_func": {"qkv": none, **options},
            "flash_attn_varlen_func": {**qkv, **lengths, **options, "block_table": None},
            "flash_attn_varlen_kvpacked_func": {**kv, **lengths, **options},
            "flash_attn_varlen_qkvpacked_func": {"qkv": none, "cu_seqlens": none, "max_seqlen": none, **options},
        }
        for name, parameters in expected.items():
            found = arguments(getattr(ferroflash, name))
            self.assertEqual((name, list(found.items())), (name, list(parameters.items())))
        cache = arguments(ferroflash.flash_attn_with_kvcache)
        self.assertEqual(
            list(cache),
            "q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad block_table softmax_scale causal "
            "window_size softcap rotary_interleaved alibi_slopes num_splits return_softmax_lse".split(),
        )


@unittest.skipIf(torch is None, "torch is not installed")
class Refusals(unittest.TestCase):
    def refused(self, kind, words, call):
        with self.assertRaises(kind) as caught:
            call()
        self.assertIn(words, str(caught.exception))

    def test_bad_tensors(self):
        q, k, v = inputs(torch.float16)
        f = ferroflash.flash_attn_func
        self.refused(ferroflash.InputTypeError, "k holds bf16, q holds f16", lambda: f(q, k.bfloat16(), v))
        self.refused(ferroflash.InputTypeError, "q holds torch.float64; torch.float16", lambda: f(q.double(), k.double(), v.double()))
        self.refused(ferroflash.InputError, "k has batch 1, q has 2", lambda: f(q, k[:1], v))
        self.refused(ferroflash.InputError, "attention takes tensors of 4 axes", lambda: f(q[0], k[0], v[0]))
        self.refused(ferroflash.InputError, "v has 44 rows, k has 45", lambda: f(q, k, v[:, 1:]))
        self.refused(ferroflash.InputError, "head_dim 264 is not supported", lambda: f(*inputs(torch.float16, dim=264)))
        self.refused(ferroflash.InputTypeError, "k is a ndarray", lambda: ferroflash.forward(q, array(k), v))
        self.refused(ferroflash.InputError, "q is on device meta", lambda: ferroflash.forward(q.to("meta"), k.to("meta"), v.to("meta"), stream=0))
        lse = torch.zeros(2, 4, 39, device=DEVICE)
        self.refused(ferroflash.InputError, "lse has shape (2, 4, 39); (2, 4, 40)", lambda: ferroflash.forward(q, k, v, lse=lse))
        self.refused(ferroflash.InputTypeError, "lse holds torch.float16", lambda: ferroflash.forward(q, k, v, lse=lse.half()))
        out = torch.full((2, 39, 4, 32), float("nan"), device=DEVICE).half()
        self.refused(ferroflash.InputError, "out has 39 rows, q has 40", lambda: ferroflash.forward(q, k, v, out=out))
        self.assertTrue(out.isnan().all())

    def test_bad_slopes(self):
        q, k, v = inputs(torch.float16)
        call = lambda slopes: lambda: ferroflash.flash_attn_func(q, k, v, alibi_slopes=slopes)
        slopes = torch.ones(4, device=DEVICE)
        self.refused(ferroflash.InputTypeError, "alibi_slopes is a list", call([0.5] * 4))
        self.refused(ferroflash.InputTypeError, "alibi_slopes holds torch.float16; torch.float32", call(slopes.half()))
        self.refused(ferroflash.InputError, "alibi_slopes has shape (3,); (4,) (head) and (2, 4) (batch, head)", call(slopes[:3]))
        self.refused(ferroflash.InputError, "alibi_slopes has shape (1, 4)", call(slopes[None]))
        self.refused(ferroflash.InputError, "slopes is on device meta", call(slopes.to("meta")))
        program = ferroflash.ScoreProgram.alibi()
        call = lambda slopes: lambda: ferroflash.forward(q, k, v, program=program, tensors={"slopes": slopes})
        self.refused(ferroflash.InputTypeError, "slopes holds torch.int64; torch.float16", call(torch.ones(1, 4, dtype=torch.int64)))
        self.refused(ferroflash.InputTypeError, "slopes is a ndarray, q a torch.Tensor", call(np.ones((1, 4), np.float32)))

    def test_gradients_through_programs(self):
        """There are none of what a program reads, and none through a softcap and a program: of plain tensors and of operations."""
        q, k, v = inputs(torch.float16)
        slopes, missing = torch.ones(4, device=DEVICE, requires_grad=True), ferroflash.MissingFeatureError
        given = {"program": ferroflash.ScoreProgram.alibi(), "tensors": {"slopes": slopes[None]}}
        self.refused(missing, "a gradient of slopes, which a program reads", lambda: ferroflash.forward(q, k, v, **given))
        # The original leaves them out.
        self.assertFalse(ferroflash.flash_attn_func(q, k, v, alibi_slopes=slopes).requires_grad)
        q.requires_grad_()
        words = "gradients through a softcap and the program alibi; one of the two is accepted"
        out = ferroflash.flash_attn_func(q, k, v, alibi_slopes=slopes, softcap=5.0)
        self.refused(missing, words, lambda: out.sum().backward())
        operation = torch.ops.ferroflash.forward
        out, _ = operation(q, k, v, None, True, -1, -1, 5.0, False, True, "alibi", "slopes", [slopes.detach()[None]], 0.0, None, None)
        self.refused(missing, words, lambda: out.sum().backward())
        self.assertIsNone(q.grad)
        # Slopes that ask for a gradient are no reason to refuse those of q.
        ferroflash.flash_attn_func(q, k, v, alibi_slopes=slopes).sum().backward()
        self.assertTrue(q.grad.abs().max() > 0 and slopes.grad is None)

    def test_gradients_that_there_are_not(self):
        q, k, v = inputs(torch.float16)
        missing = ferroflash.MissingFeatureError
        for which in (q, k, v):
            which.requires_grad_()
            given = torch.empty_like(q.detach())
            self.refused(missing, "a gradient through", lambda: ferroflash.forward(q, k, v, out=given))
            out = ferroflash.flash_attn_func(q, k, v)
            (first,) = torch.autograd.grad(out.square().sum(), which, create_graph=True)
            self.refused(missing, "a gradient of gradients", lambda: first.square().sum().backward())
            which.requires_grad_(False)


@unittest.skipIf(torch is None, "torch is not installed")
class Gradients(unittest.TestCase):
    def found(self, tensors, dout, call):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        out = call(*leaves)
        return torch.autograd.grad(out, leaves, dout)

    def test_types_and_head_dims(self):
        """Head dims that are no multiples of 8 are padded, and their gradients cut."""
        for name, dtype in PRECISIONS.items():
            for dim in (32, 59, 64):
                with self.subTest(dtype=name, dim=dim):
                    tensors = inputs(dtype, dim=dim)
                    dout = randn(*tensors[0].shape).to(dtype)
                    found = self.found(tensors, dout, lambda *x: ferroflash.flash_attn_func(*x, causal=True, deterministic=True))
                    self.assertEqual([x.dtype for x in found], [dtype] * 3)
                    check_gradients(self, arrays(found), arrays(tensors), array(dout), None, name, causal=True)

    def test_softcap(self):
        tensors = inputs(torch.float16)
        dout = randn(*tensors[0].shape).half()
        found = self.found(tensors, dout, lambda *x: ferroflash.flash_attn_func(*x, softcap=3.0))
        check_gradients(self, arrays(found), arrays(tensors), array(dout), None, "f16", softcap=3.0)

    def test_packed(self):
        qkv = torch.stack(inputs(torch.float16, kv_rows=40, kv_heads=4), dim=2).requires_grad_()
        dout = randn(2, 40, 4, 32).half()
        expected = self.found(qkv.unbind(2), dout, lambda *x: ferroflash.flash_attn_func(*x, causal=True))
        (packed,) = torch.autograd.grad(ferroflash.flash_attn_qkvpacked_func(qkv, causal=True), qkv, dout)
        self.assertTrue(torch.equal(packed, torch.stack(expected, dim=2)))
        q, kv = qkv[:, :, 0].detach().requires_grad_(), qkv[:, :, 1:].detach().requires_grad_()
        dq, dkv = torch.autograd.grad(ferroflash.flash_attn_kvpacked_func(q, kv, causal=True), (q, kv), dout)
        self.assertTrue(torch.equal(dq, expected[0]) and torch.equal(dkv, torch.stack(expected[1:], dim=2)))

    def test_slopes(self):
        """Of heads, and of heads of each batch entry, with head dims that are padded, and through every function that takes slopes."""
        f, generator = ferroflash, torch.Generator(DEVICE).manual_seed(3)
        for name, dtype in PRECISIONS.items():
            for dim, shape, causal in ((32, (4,), True), (59, (2, 4), False), (64, (2, 4), True)):
                with self.subTest(dtype=name, dim=dim, shape=shape):
                    slopes = torch.rand(shape, generator=generator, device=DEVICE) - 0.25
                    tensors = inputs(dtype, dim=dim)
                    dout = randn(*tensors[0].shape).to(dtype)
                    found = self.found(tensors, dout, lambda *x: f.flash_attn_func(*x, causal=causal, alibi_slopes=slopes))
                    self.assertEqual([x.dtype for x in found], [dtype] * 3)
                    change = alibi(array(slopes))
                    check_gradients(self, arrays(found), arrays(tensors), array(dout), None, name, causal=causal, change=change)
        tensors, slopes = inputs(torch.float16, kv_rows=40, kv_heads=4), torch.rand(4, generator=generator, device=DEVICE)
        dout, options = randn(2, 40, 4, 32).half(), {"causal": True, "alibi_slopes": slopes}
        expected = self.found(tensors, dout, lambda *x: f.flash_attn_func(*x, **options))
        given = {"program": f.ScoreProgram.alibi(), "tensors": {"slopes": slopes[None]}}
        told = ("alibi", "slopes", [slopes[None]])
        ones = lambda call: self.found(tensors, dout, call)
        for again in (
            ones(lambda *x: f.flash_attn_kvpacked_func(x[0], torch.stack(x[1:], 2), **options)),
            ones(lambda *x: f.flash_attn_qkvpacked_func(torch.stack(x, 2), **options)),
            ones(lambda *x: f.flash_attn_with_kvcache(*x, **options)),
            ones(lambda *x: f.forward(*x, causal=True, **given)),
            # The operation, with a log-sum-exp and without one, which it then computes again.
            ones(lambda *x: torch.ops.ferroflash.forward(*x, None, True, -1, -1, 0.0, False, True, *told, 0.0, None, None)[0]),
            ones(lambda *x: torch.ops.ferroflash.forward(*x, None, True, -1, -1, 0.0, False, False, *told, 0.0, None, None)[0]),
            f.backward(*tensors, *f.forward(*tensors, causal=True, return_lse=True, **given), dout, causal=True, **given),
        ):
            for a, b in zip(expected, again):
                self.assertTrue(torch.equal(a, b))

    def test_programs(self):
        """One that bends scores and hides keys, with the log-sum-exp, eager and compiled."""
        tensors = inputs(torch.float32)
        dout, dlse = randn(*tensors[0].shape), randn(2, 4, 40)
        document = torch.arange(45, device=DEVICE, dtype=torch.int32) // 12

        def bent(p):
            changed = p.where(p.score > 0, 2 * p.tanh(p.score / 2), p.score * 0.5)
            return p.where(p.ints("document")[p.position] == p.ints("document")[p.key], changed, p.hidden)

        def change(scores, _):
            of_keys = array(document)
            changed = np.where(scores > 0, 2 * np.tanh(scores / 2), scores * 0.5)
            return np.where(of_keys[np.arange(40)[:, None] + 5] == of_keys, changed, -np.inf)

        program = ferroflash.ScoreProgram(bent)

        def attend(q, k, v, document):
            return ferroflash.forward(q, k, v, return_lse=True, program=program, tensors={"document": document})

        ferroflash.flash_attn_func  # registers the operation
        for call in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            found = torch.autograd.grad(call(*leaves, document), leaves, (dout, dlse))
            check_gradients(self, arrays(found), arrays(tensors), array(dout), array(dlse), "f32", change=change)

    def test_the_log_sum_exp_too(self):
        tensors = inputs(torch.float32)
        dout, dlse = randn(*tensors[0].shape), randn(2, 4, 40)
        leaves = [tensor.requires_grad_() for tensor in tensors]
        out, lse, _ = ferroflash.flash_attn_func(*leaves, return_attn_probs=True)
        found = torch.autograd.grad((out, lse), leaves, (dout, dlse))
        check_gradients(self, arrays(found), arrays(tensors), array(dout), array(dlse), "f32")
        _, lse, _ = ferroflash.flash_attn_func(*leaves, return_attn_probs=True)
        of_lse = torch.autograd.grad(lse, leaves, dlse)
        check_gradients(self, arrays(of_lse), arrays(tensors), 0 * array(dout), array(dlse), "f32")

    def test_gradients_of_any_layout(self):
        """A sum hands over one number with strides of 0; a transposition another order of axes. Both against the same values, laid out."""
        tensors = inputs(torch.float16)
        attend = ferroflash.flash_attn_func
        ones = self.found(tensors, torch.ones_like(tensors[0]), attend)
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        repeated = torch.autograd.grad(attend(*leaves).sum(), leaves)
        dout = randn(2, 32, 4, 40).half()
        turned = torch.autograd.grad(attend(*leaves).permute(0, 3, 2, 1), leaves, dout)
        laid_out = self.found(tensors, dout.permute(0, 3, 2, 1).contiguous(), attend)
        for a, b in zip((*ones, *laid_out), (*repeated, *turned)):
            self.assertTrue(torch.equal(a, b))

    def test_only_what_is_wanted(self):
        q, k, v = inputs(torch.float16)
        k.requires_grad_()
        out = ferroflash.flash_attn_func(q, k, v)
        out.sum().backward()
        self.assertTrue(k.grad.abs().max() > 0 and q.grad is None and v.grad is None)
        with torch.no_grad():
            self.assertFalse(ferroflash.flash_attn_func(q, k, v).requires_grad)

    def test_backward_takes_tensors(self):
        q, k, v = inputs(torch.bfloat16)
        dout = randn(*q.shape).bfloat16()
        out, lse = ferroflash.forward(q, k, v, return_lse=True)
        dk = torch.full_like(k, float("nan"))
        found = ferroflash.backward(q, k, v, out, lse, dout, dk=dk)
        self.assertIs(found[1], dk)
        check_gradients(self, arrays(found), arrays((q, k, v)), array(dout), None, "bf16")
        with self.assertRaisesRegex(ferroflash.InputTypeError, "dout is a ndarray"):
            ferroflash.backward(q, k, v, out, lse, array(dout))
        with self.assertRaisesRegex(ferroflash.InputError, "lse has shape"):
            ferroflash.backward(q, k, v, out, lse[:, 1:], dout)

    def test_equal_bits_are_asked_of_the_backward_pass(self):
        """By the argument of each function, and by PyTorch's own switch, which is read when the gradients are computed."""
        from ferroflash import _torch, flash_attn_3

        q, k, v = (tensor.requires_grad_() for tensor in inputs(torch.float16, kv_rows=40, kv_heads=4))
        dout = randn(*q.shape).half()

        def asked(differentiate):
            with mock.patch.object(_torch, "_launch_backward", wraps=_torch._launch_backward) as launch:
                differentiate()
            (call,) = launch.call_args_list
            return call.args[-5]

        def of(function, *tensors):
            return lambda **options: function(*tensors, **options).sum().backward()

        packed = [torch.stack(tensors, 2).detach().requires_grad_() for tensors in ((k, v), (q, k, v))]
        read = [x.detach() for x in (q, k, v, *ferroflash.forward(q, k, v, return_lse=True))]
        for name, call in (
            ("flash_attn_func", of(ferroflash.flash_attn_func, q, k, v)),
            ("flash_attn_kvpacked_func", of(ferroflash.flash_attn_kvpacked_func, q, packed[0])),
            ("flash_attn_qkvpacked_func", of(ferroflash.flash_attn_qkvpacked_func, packed[1])),
            ("flash_attn_func of version 3", of(flash_attn_3.flash_attn_func, q, k, v)),
            ("flash_attn_qkvpacked_func of version 3", of(flash_attn_3.flash_attn_qkvpacked_func, packed[1])),
            ("backward", lambda **options: ferroflash.backward(*read, dout, **options)),
        ):
            with self.subTest(name):
                self.assertIs(asked(call), False)
                self.assertIs(asked(lambda: call(deterministic=True)), True)

        out = ferroflash.flash_attn_func(q, k, v)
        self.addCleanup(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        torch.use_deterministic_algorithms(True)
        self.assertIs(asked(lambda: out.sum().backward()), True)
        self.assertIs(asked(lambda: ferroflash.backward(*read, dout)), True)

    def test_compiled_without_a_break(self):
        def block(x, weight):
            qkv = (x @ weight).unflatten(-1, (3, 2, 32))
            return ferroflash.flash_attn_qkvpacked_func(qkv, causal=True, deterministic=True).flatten(-2).relu()

        ferroflash.flash_attn_func  # registers the operation
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        for rows in (20, 33):
            x, weight = randn(2, rows, 64).half().requires_grad_(), (randn(64, 192).half() / 8).requires_grad_()
            both = [torch.autograd.grad(f(x, weight).float().square().sum(), (x, weight)) for f in (block, compiled)]
            for eager, by_graph in zip(*both):
                self.assertTrue(torch.equal(eager, by_graph))


@unittest.skipIf(torch is None, "torch is not installed")
class Sinks(unittest.TestCase):
    """`learnable_sink` of FlashAttention-4's function and `s_aux` of FlashAttention-3's, with gradients by autograd."""

    def setUp(self):
        from ferroflash import flash_attn_3, flash_attn_4

        self.of_3, self.of_4 = flash_attn_3.flash_attn_func, flash_attn_4.flash_attn_func
        generator = torch.Generator(DEVICE).manual_seed(3)
        # In bfloat16, as models keep them; so many heads that the largest error of their gradients is no matter of luck.
        self.sink = (2 * torch.randn(16, generator=generator, device=DEVICE)).bfloat16()

    def inputs(self, dtype, **sizes):
        return inputs(dtype, q_heads=16, kv_heads=4, **sizes)

    def test_results_and_gradients(self):
        for name, dtype in PRECISIONS.items():
            for dim in (64, 59):
                with self.subTest(dtype=name, dim=dim):
                    tensors, sink = [x.requires_grad_() for x in self.inputs(dtype, dim=dim)], self.sink.float().requires_grad_()
                    out, lse = self.of_4(*tensors, causal=True, learnable_sink=sink, return_lse=True)
                    exact = {"causal": True, "sink": array(sink)}
                    check(self, array(out), array(lse), arrays(tensors), name, **exact)
                    dout, dlse = randn(*out.shape).to(dtype), randn(*lse.shape)
                    found = torch.autograd.grad((out, lse), (*tensors, sink), (dout, dlse))
                    check_gradients(self, arrays(found), arrays(tensors), array(dout), array(dlse), name, **exact)

    def test_types_of_sinks(self):
        """Each as its numbers in float32; gradients are of its own type."""
        tensors = [x.requires_grad_() for x in self.inputs(torch.float16)]
        for dtype in PRECISIONS.values():
            sink = self.sink.to(dtype).requires_grad_()
            out, lse = self.of_4(*tensors, learnable_sink=sink)
            self.assertIsNone(lse)
            expected = ferroflash.forward(*tensors, sink=sink.detach().float())
            self.assertTrue(torch.equal(out, expected))
            (dsink,) = torch.autograd.grad(out.float().square().sum(), sink)
            self.assertEqual(dsink.dtype, dtype)
            self.assertTrue((dsink != 0).all())

    def test_functions_agree(self):
        tensors = self.inputs(torch.bfloat16)
        out, lse = self.of_4(*tensors, window_size=(9, None), softcap=3.0, learnable_sink=self.sink, return_lse=True)
        again = self.of_3(*tensors, window_size=(9, -1), softcap=3.0, s_aux=self.sink, return_attn_probs=True)
        third = ferroflash.forward(*tensors, window=(9, None), softcap=3.0, sink=self.sink.float(), return_lse=True)
        for pair in (again, third):
            self.assertTrue(torch.equal(pair[0], out) and torch.equal(pair[1], lse))
        check(self, array(out), array(lse), arrays(tensors), "bf16", left=9, softcap=3.0, sink=array(self.sink))
        wide = self.sink.repeat_interleave(2)[::2]
        self.assertTrue(torch.equal(self.of_4(*tensors, window_size=(9, None), softcap=3.0, learnable_sink=wide)[0], out))

    def test_gradients_that_are_asked_for(self):
        """Of sinks alone, and of all but sinks, in which case there is no launch for them."""
        from ferroflash import _torch

        q, k, v = self.inputs(torch.float16)
        sink = self.sink.float().requires_grad_()
        dout = randn(*q.shape).half()
        (alone,) = torch.autograd.grad(self.of_4(q, k, v, learnable_sink=sink)[0], sink, dout)
        out, lse = ferroflash.forward(q, k, v, sink=sink.detach(), return_lse=True)
        dsink = torch.full_like(sink, float("nan"), requires_grad=False)
        found = ferroflash.backward(q, k, v, out, lse, dout, sink=sink.detach(), dsink=dsink)
        self.assertIs(found[3], dsink)
        self.assertTrue(torch.equal(alone, dsink))
        q.requires_grad_()
        with mock.patch.object(_torch, "_launch_backward", wraps=_torch._launch_backward) as launch:
            (dq,) = torch.autograd.grad(self.of_4(q, k, v, learnable_sink=sink.detach())[0], q, dout)
        self.assertIsNone(launch.call_args.args[-1])
        self.assertTrue(torch.equal(dq, found[0]))

    def test_compiled_without_a_break(self):
        def block(q, k, v, sink):
            return self.of_4(q * 2, k, v, causal=True, learnable_sink=sink)[0].relu()

        tensors = [x.requires_grad_() for x in (*self.inputs(torch.float16), self.sink)]
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        both = []
        for function in (block, compiled):
            out = function(*tensors)
            both.append((out, *torch.autograd.grad(out.float().square().sum(), tensors)))
        for eager, by_graph in zip(*both):
            self.assertTrue(torch.equal(eager, by_graph))

    def test_the_operation_without_a_log_sum_exp(self):
        leaves = [x.requires_grad_() for x in (*self.inputs(torch.float16), self.sink.float())]
        dout = randn(*leaves[0].shape).half()
        both = []
        for return_lse in (False, True):
            options = (None, True, -1, -1, 0.0, False, return_lse, "", "", None, 0.0, None, leaves[3])
            out, _ = torch.ops.ferroflash.forward(*leaves[:3], *options)
            both.append(torch.autograd.grad(out, leaves, dout))
        for without, with_lse in zip(*both):
            self.assertTrue(torch.equal(without, with_lse))

    def test_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            q, sink = torch.empty(2, 40, 4, 64, dtype=torch.float16, requires_grad=True), torch.empty(4, requires_grad=True)
            out, lse = self.of_4(q, q, q, learnable_sink=sink, return_lse=True)
            dq, dsink = torch.autograd.grad(out.sum(), (q, sink))
        self.assertEqual((out.shape, lse.shape, dq.shape, dsink.shape), (q.shape, (2, 4, 40), q.shape, (4,)))

    def test_what_is_refused(self):
        q, k, v = self.inputs(torch.float16)
        of_type, of_input, missing = ferroflash.InputTypeError, ferroflash.InputError, ferroflash.MissingFeatureError
        for name, function in (("learnable_sink", self.of_4), ("s_aux", self.of_3)):
            for kind, words, sink in (
                (of_type, f"{name} is a list; a torch.Tensor is accepted", [0.0] * 16),
                (of_type, f"{name} holds torch.float64; torch.float16, torch.bfloat16 and torch.float32", self.sink.double()),
                (of_input, f"{name} has shape (15,); (16,) is accepted, a number for each head of q", self.sink[1:]),
            ):
                with self.assertRaises(kind) as caught:
                    function(q, k, v, **{name: sink})
                self.assertIn(words, str(caught.exception))
        for kind, words, options in (
            (missing, "score_mod, mask_mod", {"mask_mod": lambda *x: True}),
            (missing, "blocks of keys as tensors", {"block_size": (128, 128)}),
            (missing, "a window with a bound below 0", {"window_size": (10, -1)}),
        ):
            with self.assertRaises(kind) as caught:
                self.of_4(q, k, v, **options)
            self.assertIn(words, str(caught.exception))
        with self.assertRaisesRegex(of_type, "sink is a ndarray, q a torch.Tensor"):
            ferroflash.forward(q, k, v, sink=array(self.sink))
        with self.assertRaisesRegex(of_type, "sink holds bf16; f32 is accepted"):
            ferroflash.forward(q, k, v, sink=self.sink)
        with self.assertRaisesRegex(missing, "a gradient through"):
            ferroflash.forward(q, k, v, sink=self.sink.float().requires_grad_(), out=torch.empty_like(q))

    def test_windows_of_version_4(self):
        """`None` is no bound, and bounds between which no key lies are none."""
        tensors = inputs(torch.float16)
        for given, meaning in (
            ({"window_size": (None, None)}, {}),
            ({"window_size": (-1, 0)}, {}),
            ({"window_size": (5, None)}, {"left": 5}),
            ({"window_size": (5, 2)}, {"left": 5, "right": 2}),
            ({"window_size": (5, 2), "causal": True}, {"left": 5, "causal": True}),
            ({"window_size": (-3, 2), "causal": True}, {"causal": True}),
        ):
            with self.subTest(**given):
                check(self, array(self.of_4(*tensors, **given)[0]), None, arrays(tensors), "f16", **meaning)


@unittest.skipIf(torch is None, "torch is not installed")
class AsAnOperation(unittest.TestCase):
    def test_opcheck(self):
        q, k, v = inputs(torch.float16)
        # A program, dropout behind it, and sinks.
        state, sink = torch.tensor([1, 4], device=DEVICE), torch.ones(4, device=DEVICE)
        programs = (
            ("", "", None, 0.0, None, None),
            ("alibi", "slopes", [torch.ones(1, 4, device=DEVICE)], 0.0, None, sink),
            ("", "", None, 0.5, state, None),
        )
        for return_lse, program in ((x, y) for x in (False, True) for y in programs):
            arguments = (q, k, v, None, True, 5, -1, 0.0, return_lse, return_lse, *program)
            tests = ("test_schema", "test_faketensor", "test_autograd_registration")
            ferroflash.flash_attn_func  # registers the operation
            torch.library.opcheck(torch.ops.ferroflash.forward.default, arguments, test_utils=tests)
            out, lse = torch.ops.ferroflash.forward(*arguments[:9], True, *program)
            dlse = torch.randn_like(lse) if return_lse else None
            arguments = (q, k, v, out, lse, torch.randn_like(q), dlse, *arguments[3:9], *program, program[-1] is not None and return_lse)
            torch.library.opcheck(torch.ops.ferroflash.backward.default, arguments, test_utils=tests)

    def test_gradients_of_the_operation_without_a_log_sum_exp(self):
        leaves = [tensor.requires_grad_() for tensor in inputs(torch.float16)]
        dout = randn(*leaves[0].shape).half()
        ferroflash.flash_attn_func  # registers the operation
        both = []
        for return_lse in (False, True):
            out, _ = torch.ops.ferroflash.forward(*leaves, None, True, -1, -1, 0.0, False, return_lse, "", "", None, 0.0, None, None)
            both.append(torch.autograd.grad(out, leaves, dout))
        for without, with_lse in zip(*both):
            self.assertTrue(torch.equal(without, with_lse))

    def test_compiled_without_a_break(self):
        def block(x, weight):
            qkv = (x @ weight).unflatten(-1, (3, 2, 32))
            return ferroflash.flash_attn_qkvpacked_func(qkv, causal=True).flatten(-2).relu()

        x, weight = randn(2, 20, 64).half(), randn(64, 192).half() / 8
        ferroflash.flash_attn_func  # registers the operation
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        self.assertTrue(torch.equal(compiled(x, weight), block(x, weight)))
        longer = randn(2, 33, 64).half()
        self.assertTrue(torch.equal(compiled(longer, weight), block(longer, weight)))

    def test_slopes_and_programs_compiled_without_a_break(self):
        near = ferroflash.ScoreProgram.mask(lambda p: p.key > p.position - p.ints("reach")[p.head])
        ferroflash.flash_attn_func  # registers the operation

        def block(q, k, v, slopes, reach):
            out = ferroflash.flash_attn_func(q * 2, k, v, causal=True, alibi_slopes=slopes)
            return ferroflash.forward(out, k, v, causal=True, program=near, tensors={"reach": reach}).relu()

        slopes, reach = torch.rand(4, device=DEVICE), torch.tensor([1, 5, 9, 50], dtype=torch.int32, device=DEVICE)
        tensors = inputs(torch.float16)
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        self.assertTrue(torch.equal(compiled(*tensors, slopes, reach), block(*tensors, slopes, reach)))

    def test_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            q = torch.empty(2, 40, 4, 64, dtype=torch.float16)
            out, lse, _ = ferroflash.flash_attn_func(q, q, q, return_attn_probs=True)
        self.assertEqual((out.shape, lse.shape), (q.shape, (2, 4, 40)))


@unittest.skipIf(torch is None, "torch is not installed")
class StandIn(unittest.TestCase):
    def run_program(self, program):
        subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)

    def test_flash_attn(self):
        self.run_program("""
import ferroflash, torch
ferroflash.install_as("flash_attn")
ferroflash.install_as("flash_attn")
import flash_attn
from flash_attn import flash_attn_func, flash_attn_with_kvcache
from flash_attn.bert_padding import index_first_axis, pad_input, unpad_input
from flash_attn.flash_attn_interface import flash_attn_varlen_func
import importlib.util
assert importlib.util.find_spec("flash_attn") is not None
assert flash_attn_func is ferroflash.flash_attn_func and flash_attn.__version__.startswith("2.8")
import flash_attn.ops.triton.layer_norm
from flash_attn.layers.rotary import apply_rotary_emb
from flash_attn.losses.cross_entropy import CrossEntropyLoss
from flash_attn.ops.triton.cross_entropy import cross_entropy_loss
from flash_attn.ops.triton.layer_norm import RMSNorm, layer_norm_fn
import ferroflash.ops.layer_norm
assert RMSNorm is ferroflash.ops.layer_norm.RMSNorm and flash_attn.ops.triton.layer_norm.rms_norm_fn is ferroflash.ops.layer_norm.rms_norm_fn
assert importlib.util.find_spec("flash_attn.ops.triton.layer_norm") is not None
x = torch.arange(24.0).reshape(2, 3, 4)
mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
rows, indices, starts, longest, used = unpad_input(x, mask)
assert indices.tolist() == [0, 1, 3, 4, 5] and starts.tolist() == [0, 2, 5] and longest == 3 and used.tolist() == [2, 3]
assert starts.dtype == used.dtype == torch.int32
assert torch.equal(pad_input(rows, indices, 2, 3), x * mask[..., None])
extra = torch.tensor([[0, 0, 1], [0, 0, 0]])
rows, indices, starts, longest, used = unpad_input(x, mask, extra)
assert rows.shape[0] == 6 and starts.tolist() == [0, 3, 6] and used.tolist() == [2, 3]
""")

    def test_flash_attn_3(self):
        self.run_program("""
import ferroflash, torch
ferroflash.install_as("flash_attn_interface")
import flash_attn_interface as fa3
q = torch.randn(2, 20, 6, 32).half()
out, lse = fa3.flash_attn_func(q, q[:, :, :2], q[:, :, :2], causal=True, return_attn_probs=True)
assert torch.equal(out, ferroflash.flash_attn_func(q, q[:, :, :2], q[:, :, :2], causal=True)) and lse.shape == (2, 6, 20)
qkv = torch.cat((q, q[:, :, :4]), dim=2)
assert torch.equal(fa3.flash_attn_qkvpacked_func(qkv, num_heads_q=6), ferroflash.flash_attn_func(q, q[:, :, :2], q[:, :, 2:4]))
packed = torch.stack((q, q, q), dim=2)
assert torch.equal(fa3.flash_attn_qkvpacked_func(packed), ferroflash.flash_attn_func(q, q, q))
for words, call in (
    ("qv", lambda: fa3.flash_attn_func(q, q, q, qv=q)),
    ("fp8", lambda: fa3.flash_attn_func(q, q, q, k_descale=q)),
    ("head dim of v", lambda: fa3.flash_attn_func(q, q, torch.cat((q, q), dim=3))),
    ("attention_chunk", lambda: fa3.flash_attn_func(q, q, q, attention_chunk=4)),
    ("flash_attn_combine", lambda: fa3.flash_attn_combine(q, q)),
):
    try:
        call()
    except ferroflash.MissingFeatureError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
""")

    def test_the_original_is_not_replaced(self):
        self.run_program("""
import ferroflash, sys, types
sys.modules["flash_attn"] = types.ModuleType("flash_attn")
try:
    ferroflash.install_as("flash_attn")
except ferroflash.InputError as error:
    assert "imported already" in str(error)
else:
    raise AssertionError("replaced")
""")


if __name__ == "__main__":
    unittest.main()
