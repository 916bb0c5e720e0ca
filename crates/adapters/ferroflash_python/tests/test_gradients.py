"""`ferroflash.backward` on arrays of NumPy: the emulator against float64, and everything that it refuses."""

import threading
import unittest
import warnings

import numpy as np

import ferroflash
from reference import alibi, attention, check_gradients, gradients, visible

DTYPES = {"f16": np.float16, "f32": np.float32}


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def inputs(dtype=np.float32, batch=2, q_rows=40, kv_rows=45, q_heads=4, kv_heads=2, dim=32):
    """q, k, v and dout, of enough rows that the two maxima of the rule mean something."""
    q, k = (batch, q_rows, q_heads, dim), (batch, kv_rows, kv_heads, dim)
    return [values(shape, seed, dtype) for seed, shape in enumerate((q, k, k, q))]


def differentiate(q, k, v, dout, **options):
    """Forward, then backward."""
    given = {name: options.pop(name) for name in ("dlse", "deterministic", "dq", "dk", "dv") if name in options}
    out, lse = ferroflash.forward(q, k, v, return_lse=True, **options)
    return ferroflash.backward(q, k, v, out, lse, dout, **given, **options)


class Reference(unittest.TestCase):
    def test_finite_differences(self):
        """The formulas that gradients are compared with, against differences of attention itself."""
        rng = np.random.default_rng(7)
        q, dout = rng.standard_normal((2, 1, 5, 4, 3))
        k, v = rng.standard_normal((2, 1, 6, 2, 3))
        dlse, mask = rng.standard_normal((1, 4, 5)), visible(5, 6, causal=True)

        def program(scores, first_batch):
            bent = np.where(scores > 0, 2 * np.tanh(scores / 2) - 0.25, scores * scores)
            hidden = (np.arange(5)[:, None] + np.arange(6)) % 3 == first_batch
            return np.where(hidden, -np.inf, bent)

        for softcap, change in ((0.0, None), (1.5, None), (0.0, program), (0.0, alibi([0.5, -0.1, 0.0, 2.0]))):
            changed = change, 1

            def number(*tensors):
                out, lse = attention(*tensors, mask, 0.7, softcap, None, *changed)
                lse = np.where(np.isfinite(lse), lse, 0)  # that of a row that sees no key has no gradients
                return (out * dout).sum() + (lse * dlse).sum()

            found = gradients(q, k, v, dout, dlse, mask, 0.7, softcap, None, *changed)
            for which, gradient in enumerate(found):
                for index in np.ndindex(gradient.shape):
                    both = []
                    for step in (1e-6, -1e-6):
                        moved = [x.copy() for x in (q, k, v)]
                        moved[which][index] += step
                        both.append(number(*moved))
                    self.assertAlmostEqual((both[0] - both[1]) / 2e-6, gradient[index], delta=1e-7)


class Results(unittest.TestCase):
    def test_types_and_head_dims(self):
        for name, dtype in DTYPES.items():
            for dim in (8, 40, 128):
                with self.subTest(dtype=name, dim=dim):
                    *qkv, dout = inputs(dtype, dim=dim)
                    found = differentiate(*qkv, dout, causal=True)
                    self.assertEqual([x.dtype for x in found], [dtype] * 3)
                    check_gradients(self, found, qkv, dout, None, name, causal=True)

    def test_masks_scales_and_the_log_sum_exp(self):
        for q_rows, kv_rows in ((40, 45), (45, 12)):
            *qkv, dout = inputs(np.float16, q_rows=q_rows, kv_rows=kv_rows)
            dlse = values((2, 4, q_rows), 9)
            for causal, left, right, scale in ((False, None, None, 0.3), (True, None, None, -0.2), (False, 9, 2, None)):
                with self.subTest(rows=(q_rows, kv_rows), causal=causal, window=(left, right)):
                    found = differentiate(*qkv, dout, dlse=dlse, causal=causal, window=(left, right), softmax_scale=scale)
                    options = {"causal": causal, "left": left, "right": 0 if causal else right, "scale": scale}
                    check_gradients(self, found, qkv, dout, dlse, "f16", **options)

    def test_softcap(self):
        *qkv, dout = inputs(np.float16)
        for softcap in (2.0, 30.0):
            with self.subTest(softcap=softcap):
                found = differentiate(*qkv, dout, causal=True, softmax_scale=0.6, softcap=softcap)
                check_gradients(self, found, qkv, dout, None, "f16", causal=True, scale=0.6, softcap=softcap)

    def test_grouped_heads(self):
        for q_heads, kv_heads in ((3, 3), (6, 2), (4, 1)):
            with self.subTest(heads=(q_heads, kv_heads)):
                *qkv, dout = inputs(np.float16, q_heads=q_heads, kv_heads=kv_heads)
                check_gradients(self, differentiate(*qkv, dout), qkv, dout, None, "f16")

    def test_no_keys(self):
        dq, dk, dv = differentiate(*inputs(kv_rows=0))
        self.assertFalse(dq.any())
        self.assertEqual((dk.shape, dv.shape), ((2, 0, 2, 32), (2, 0, 2, 32)))

    def test_any_strides_in_place(self):
        """Gradients into the parts of one packed tensor; what lies between their elements stays, and so does the rest."""
        qkv = values((2, 40, 3, 4, 64), 1, np.float16)
        q, k, v = (qkv[:, :, i] for i in range(3))
        dout = values((2, 4, 40, 64), 2, np.float16).transpose(0, 2, 1, 3)
        memory = np.full((2, 42, 3, 5, 72), np.nan, dtype=np.float16)
        parts = [memory[:, 1:41, i, :4, 8:] for i in range(3)]
        given = dict(zip(("dq", "dk", "dv"), parts))
        found = differentiate(q, k, v, dout, causal=True, **given)
        self.assertTrue(all(x is part for x, part in zip(found, parts)))
        check_gradients(self, found, (q, k, v), dout, None, "f16", causal=True)
        for part in parts:
            part[...] = np.nan
        self.assertTrue(np.isnan(memory).all())

    def test_the_same_bits(self):
        tensors = inputs(np.float16)
        first, second = (differentiate(*tensors, causal=True, deterministic=True) for _ in range(2))
        for a, b in zip(first, second):
            np.testing.assert_array_equal(a, b)

    def test_the_lock_is_released(self):
        """Another thread of Python goes on while the emulator computes."""
        q, k, v, dout = inputs(q_rows=200, kv_rows=200)
        out, lse = ferroflash.forward(q, k, v, return_lse=True)
        counted, stop = [0], threading.Event()

        def count():
            while not stop.is_set():
                counted[0] += 1

        thread = threading.Thread(target=count)
        thread.start()
        before = counted[0]
        ferroflash.backward(q, k, v, out, lse, dout)
        during = counted[0] - before
        stop.set()
        thread.join()
        self.assertGreater(during, 0)


class Refusals(unittest.TestCase):
    def setUp(self):
        self.q, self.k, self.v, self.dout = inputs()
        self.out, self.lse = ferroflash.forward(self.q, self.k, self.v, return_lse=True)

    def refused(self, kind, words, **changed):
        names = ("q", "k", "v", "out", "lse", "dout")
        tensors = [changed.pop(name, getattr(self, name)) for name in names]
        with self.assertRaises(kind) as caught:
            ferroflash.backward(*tensors, **changed)
        self.assertIn(words, str(caught.exception))
        self.assertIsInstance(caught.exception, ferroflash.Error)

    def test_tensors(self):
        bad, badly_typed = ferroflash.InputError, ferroflash.InputTypeError
        self.refused(bad, "dout has 39 rows, q has 40; they must be equal", dout=self.dout[:, 1:])
        self.refused(bad, "out has 3 heads, q has 4", out=self.out[:, :, 1:])
        self.refused(bad, "the last dim of dout has stride 2", dout=np.repeat(self.dout, 2, axis=3)[..., ::2])
        self.refused(badly_typed, "dout holds f16, q holds f32", dout=self.dout.astype(np.float16))
        self.refused(badly_typed, "lse holds f16; f32 is accepted", lse=self.lse.astype(np.float16))
        self.refused(bad, "lse has 2 axes; 3 (batch, head, row) are accepted", lse=self.lse[0])
        self.refused(bad, "lse has 39 rows, q has 40", lse=np.ascontiguousarray(self.lse[..., 1:]))
        self.refused(bad, "dlse has 3 heads, q has 4", dlse=np.ascontiguousarray(self.lse[:, 1:]))
        self.refused(bad, "it must be contiguous", dlse=np.repeat(self.lse, 2, axis=2)[..., ::2])
        self.refused(badly_typed, "dout is a list; objects that speak DLPack", dout=self.dout.tolist())
        self.refused(badly_typed, "k is a builtins.list; new arrays are made for", k=self.k.tolist())

    def test_gradients(self):
        bad = ferroflash.InputError
        dk = np.full(self.k.shape, np.nan, dtype=np.float32)
        self.refused(bad, "dk has 44 rows, k has 45", dk=dk[:, 1:])
        self.refused(bad, "dv has 1 heads, v has 2", dv=dk[:, :, 1:])
        self.refused(ferroflash.InputTypeError, "dk holds f16, q holds f32", dk=dk.astype(np.float16))
        self.refused(bad, "overlaps", dk=dk, dv=dk)
        self.refused(bad, "overlaps", dq=self.q)
        self.refused(bad, "overlaps itself", dk=np.lib.stride_tricks.as_strided(dk, dk.shape, (0, *dk.strides[1:]), writeable=True))
        self.assertTrue(np.isnan(dk).all())
        frozen = np.zeros_like(self.q)
        frozen.flags.writeable = False
        with self.assertRaises((bad, BufferError)):
            ferroflash.backward(self.q, self.k, self.v, self.out, self.lse, self.dout, dq=frozen)

    def test_options(self):
        self.refused(ferroflash.InputError, "softcap -1 is not accepted", softcap=-1.0)
        self.refused(ferroflash.InputError, "scale inf is not accepted", softmax_scale=float("inf"))
        self.refused(ferroflash.InputError, "the left bound is -1", window=(-1, None))


if __name__ == "__main__":
    unittest.main()
