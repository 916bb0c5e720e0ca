"""Attention sinks: `sink` of the functions on arrays of NumPy, in the emulator, against float64; and everything that is refused."""

import unittest
import warnings

import numpy as np

import ferroflash
from reference import alibi, attention, check, check_gradients, check_gradients_of_sequences, check_sequences, gradients, visible

DTYPES = {"f16": np.float16, "f32": np.float32}
# So many heads that the largest error of their sinks is no matter of luck.
HEADS, KV_HEADS, DIM = 16, 4, 32


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def inputs(dtype=np.float16, batch=2, q_rows=40, kv_rows=45):
    """q, k, v and dout."""
    q, k = (batch, q_rows, HEADS, DIM), (batch, kv_rows, KV_HEADS, DIM)
    return [values(shape, seed, dtype) for seed, shape in enumerate((q, k, k, q))]


def sinks(seed=9):
    """From no share of the weight to most of it; one head has none at all."""
    of_heads = np.random.default_rng(seed).uniform(-4, 6, HEADS).astype(np.float32)
    of_heads[3] = -np.inf
    return of_heads


def int32(numbers):
    return np.array(numbers, dtype=np.int32)


def starts(lengths):
    return int32(np.concatenate([[0], np.cumsum(lengths)]))


class Reference(unittest.TestCase):
    def test_a_sink_is_a_score_more_without_a_value(self):
        q, k, v = (values(shape, seed, np.float64) for seed, shape in enumerate([(1, 5, 2, 3)] + [(1, 6, 2, 3)] * 2))
        sink, mask = np.array([0.5, -1.0]), visible(5, 6, causal=True)
        out, lse = attention(q, k, v, mask, 0.7, sink=sink)
        for head, of_head in enumerate(sink):
            scores = np.where(mask, 0.7 * q[0, :, head] @ k[0, :, head].T, -np.inf)
            scores = np.concatenate([scores, np.full((5, 1), of_head)], axis=1)
            weights = np.exp(scores)
            of_rows = weights.sum(axis=1)
            np.testing.assert_allclose(out[0, :, head], weights[:, :-1] @ v[0, :, head] / of_rows[:, None], atol=1e-12)
            np.testing.assert_allclose(lse[0, head], np.log(of_rows), atol=1e-12)

    def test_finite_differences(self):
        rng = np.random.default_rng(7)
        q, dout = rng.standard_normal((2, 2, 5, 4, 3))
        k, v = rng.standard_normal((2, 2, 6, 2, 3))
        dlse, mask, sink = rng.standard_normal((2, 4, 5)), visible(5, 6, causal=True), rng.standard_normal(4)

        def number(*tensors):
            out, lse = attention(*tensors[:3], mask, 0.7, sink=tensors[3])
            return (out * dout).sum() + (lse * dlse).sum()

        found = gradients(q, k, v, dout, dlse, mask, 0.7, sink=sink)
        self.assertEqual(len(found), 4)
        for which, gradient in enumerate(found):
            for index in np.ndindex(gradient.shape):
                both = []
                for step in (1e-6, -1e-6):
                    moved = [x.copy() for x in (q, k, v, sink)]
                    moved[which][index] += step
                    both.append(number(*moved))
                self.assertAlmostEqual((both[0] - both[1]) / 2e-6, gradient[index], delta=1e-7)


class Results(unittest.TestCase):
    def test_types_masks_and_what_goes_with_sinks(self):
        slopes = np.random.default_rng(7).uniform(0, 0.5, (1, HEADS)).astype(np.float32)
        of_slopes = {"program": ferroflash.ScoreProgram.alibi(), "tensors": {"slopes": slopes}}
        for name, dtype in DTYPES.items():
            for given, meaning in (
                ({}, {}),
                ({"causal": True}, {"causal": True}),
                ({"window": (9, 4)}, {"left": 9, "right": 4}),
                ({"softcap": 5.0, "softmax_scale": 0.3}, {"softcap": 5.0, "scale": 0.3}),
                ({"causal": True, **of_slopes}, {"causal": True, "change": alibi(slopes)}),
            ):
                with self.subTest(dtype=name, **meaning):
                    *qkv, dout = inputs(dtype)
                    sink, dlse = sinks(), values((2, HEADS, 40), 8)
                    out, lse = ferroflash.forward(*qkv, sink=sink, return_lse=True, **given)
                    check(self, out, lse, qkv, name, sink=sink, **meaning)
                    found = ferroflash.backward(*qkv, out, lse, dout, dlse=dlse, sink=sink, **given)
                    self.assertEqual((found[3].dtype, found[3].shape, found[3][3]), (np.float32, (HEADS,), 0))
                    check_gradients(self, found, qkv, dout, dlse, name, sink=sink, **meaning)

    def test_rows_that_see_no_key(self):
        q, k, v, _ = inputs(kv_rows=12)
        sink = sinks()
        out, lse = ferroflash.forward(q, k, v, causal=True, sink=sink, return_lse=True)
        self.assertTrue((out[:, :28] == 0).all())
        # Kernels count in powers of two: there and back are two roundings.
        np.testing.assert_allclose(lse[:, :, :28], np.broadcast_to(sink[:, None], (2, HEADS, 28)), rtol=2**-22)
        check(self, out, lse, (q, k, v), "f16", causal=True, sink=sink)

    def test_minus_infinity_is_none(self):
        q, k, v, dout = inputs()
        none = np.full(HEADS, -np.inf, np.float32)
        plain, with_none = (ferroflash.forward(q, k, v, causal=True, return_lse=True, **more) for more in ({}, {"sink": none}))
        for a, b in zip(plain, with_none):
            np.testing.assert_array_equal(a, b)
        found = ferroflash.backward(q, k, v, *plain, dout, causal=True, sink=none)
        for a, b in zip(found, ferroflash.backward(q, k, v, *plain, dout, causal=True)):
            np.testing.assert_array_equal(a, b)
        self.assertTrue((found[3] == 0).all())

    def test_memory_of_the_gradient(self):
        """What is given is written; without a sink there are three gradients."""
        q, k, v, dout = inputs()
        sink, dsink = sinks(), np.full(HEADS, np.nan, np.float32)
        out, lse = ferroflash.forward(q, k, v, sink=sink, return_lse=True)
        found = ferroflash.backward(q, k, v, out, lse, dout, sink=sink, dsink=dsink)
        self.assertIs(found[3], dsink)
        check_gradients(self, found, (q, k, v), dout, None, "f16", sink=sink)
        self.assertEqual(len(ferroflash.backward(q, k, v, out, lse, dout)), 3)

    def test_packed_sequences(self):
        """Each of which has the sinks."""
        q_lengths, kv_lengths = [40, 0, 33, 70, 5], [57, 20, 0, 31, 90]
        q = values((sum(q_lengths), HEADS, DIM), 1, np.float16)
        dout = values((sum(q_lengths), HEADS, DIM), 3, np.float16)
        k, v = values((2, sum(kv_lengths), KV_HEADS, DIM), 2, np.float16)
        at, sink = (starts(q_lengths), starts(kv_lengths)), sinks()
        rows, keys = ([slice(first, first + n) for first, n in zip(*given)] for given in zip(at, (q_lengths, kv_lengths)))
        tensors = [(q[i], k[j], v[j]) for i, j in zip(rows, keys)]
        for splits in (0, 3):
            out, lse = ferroflash.forward_packed(q, k, v, *at, causal=True, sink=sink, splits=splits, return_lse=True)
            check_sequences(self, [out[i] for i in rows], [lse[:, i] for i in rows], tensors, "f16", causal=True, sink=sink)
        dlse = values(lse.shape, 4)
        *found, dsink = ferroflash.backward_packed(q, k, v, out, lse, dout, *at, dlse=dlse, causal=True, sink=sink)
        given = [(*of, dout[i], dlse[:, i]) for of, i in zip(tensors, rows)]
        found = [(found[0][i], found[1][j], found[2][j]) for i, j in zip(rows, keys)]
        check_gradients_of_sequences(self, found, given, "f16", causal=True, sink=sink, dsink=dsink)

    def test_caches(self):
        """Of one row and of several, in parts and in one, in whose sum the sink is once."""
        lengths = [150, 3, 0]
        k_cache, v_cache = values((2, 3, 160, KV_HEADS, DIM), 2, np.float16)
        sink = sinks()
        for rows in (1, 20):
            q = values((3, rows, HEADS, DIM), 1, np.float16)
            for more in ({}, {"splits": 4}, {"split_keys": 64}):
                with self.subTest(rows=rows, **more):
                    options = {"lengths": int32(lengths), "causal": True, "sink": sink, "return_lse": True, **more}
                    out, lse = ferroflash.forward_cached(q, k_cache, v_cache, **options)
                    tensors = [(q[i], k_cache[i, :n], v_cache[i, :n]) for i, n in enumerate(lengths)]
                    check_sequences(self, out, lse, tensors, "f16", causal=True, sink=sink)


class Refusals(unittest.TestCase):
    def refused(self, kind, words, call):
        with self.assertRaises(kind) as caught:
            call()
        self.assertIn(words, str(caught.exception))
        self.assertIsInstance(caught.exception, ferroflash.Error)

    def test_sinks_that_do_not_fit(self):
        of_type, of_input = ferroflash.InputTypeError, ferroflash.InputError
        q, k, v, dout = inputs()
        out, lse = ferroflash.forward(q, k, v, return_lse=True)
        rows, at, kv_at = (lambda x: x.reshape(-1, *x.shape[2:])), starts([40, 40]), starts([45, 45])
        lse_of_rows = np.concatenate(list(lse), axis=1)
        calls = (
            lambda sink: ferroflash.forward(q, k, v, sink=sink),
            lambda sink: ferroflash.backward(q, k, v, out, lse, dout, sink=sink, dsink=np.zeros(HEADS, np.float32)),
            lambda sink: ferroflash.forward_packed(rows(q), rows(k), rows(v), at, kv_at, sink=sink),
            lambda sink: ferroflash.backward_packed(
                *map(rows, (q, k, v, out)), lse_of_rows, rows(dout), at, kv_at, sink=sink, dsink=np.zeros(HEADS, np.float32)
            ),
            lambda sink: ferroflash.forward_cached(q, k, v, sink=sink),
        )
        for call in calls:
            self.refused(of_input, f"sink has shape [15]; [{HEADS}] is accepted", lambda: call(sinks()[1:]))
            self.refused(of_input, f"sink has shape [1, 16]; [{HEADS}] is accepted", lambda: call(sinks()[None]))
            self.refused(of_type, "sink holds f16; f32 is accepted", lambda: call(sinks().astype(np.float16)))
            self.refused(of_input, "the last dim of sink has stride 2", lambda: call(np.repeat(sinks(), 2)[::2]))
            self.refused(of_type, "sink is a list; objects that speak DLPack", lambda: call(sinks().tolist()))

    def test_gradients_that_do_not_fit(self):
        of_type, of_input = ferroflash.InputTypeError, ferroflash.InputError
        q, k, v, dout = inputs()
        sink = sinks()
        out, lse = ferroflash.forward(q, k, v, sink=sink, return_lse=True)
        call = lambda dsink, sink=sink: lambda: ferroflash.backward(q, k, v, out, lse, dout, sink=sink, dsink=dsink)
        self.refused(of_input, "dsink was given for a call without sinks", call(np.zeros(HEADS, np.float32), None))
        self.refused(of_input, f"dsink has shape [3]; [{HEADS}] is accepted", call(np.zeros(3, np.float32)))
        self.refused(of_type, "dsink holds f16; f32 is accepted", call(np.zeros(HEADS, np.float16)))
        self.refused(of_input, "overlaps", call(sink))


if __name__ == "__main__":
    unittest.main()
