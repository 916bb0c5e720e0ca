"""`merge` on arrays of NumPy: the emulator against the definition in float64, and everything that it refuses."""

import unittest
import warnings

import numpy as np

import ferroflash
from reference import check, round_to


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float16):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def merged(outs, lses):
    """By the definition: outs `[batch, row, head, dim]`, lses `[batch, head, row]`."""
    lses = np.stack(lses).astype(np.float64)
    most = lses.max(axis=0)
    weights = np.exp(lses - np.where(np.isfinite(most), most, 0))
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore"):
        lse = np.where(total > 0, most + np.log(total), -np.inf)
    shares = (weights / np.where(total > 0, total, 1)).transpose(0, 1, 3, 2)[..., None]
    outs = np.where(shares > 0, np.stack(outs).astype(np.float64), 0)
    return (shares * outs).sum(axis=0), lse


class Definition(unittest.TestCase):
    def test_types_and_numbers_of_parts(self):
        for count in (1, 2, 7, 65):
            for parts_type, out_type in ((np.float16, None), (np.float32, None), (np.float32, np.float16), (np.float16, np.float32)):
                shape = (2, 3, 2, 40)
                outs = [values(shape, i, parts_type) for i in range(count)]
                lses = [values((2, 2, 3), 100 + i, np.float32) for i in range(count)]
                # A row that one part has not seen, whose output is anything, and one that none has.
                lses[0][1, 0, 2], outs[0][1, 2, 0] = -np.inf, np.nan
                for lse in lses:
                    lse[0, 1, 0] = -np.inf
                found, lse = ferroflash.merge(outs, lses, dtype=out_type, return_lse=True)
                exact, exact_lse = merged(outs, lses)
                self.assertEqual(found.dtype, out_type or parts_type)
                precision = "f16" if found.dtype == np.float16 else "f32"
                bound = 2 * np.abs(round_to(exact, precision) - exact).max() + 1e-5
                self.assertLessEqual(np.abs(found - exact).max(), bound, f"{count} parts")
                np.testing.assert_allclose(lse, exact_lse, rtol=1e-6, atol=1e-5)
                self.assertTrue(np.all(found[0, 0, 1] == 0) and lse[0, 1, 0] == -np.inf)

    def test_keys_in_two_halves(self):
        q, k, v = (values((1, rows, 2, 64), i) for i, rows in enumerate((5, 70, 70)))
        halves = [ferroflash.forward(q, k[:, cut], v[:, cut], return_lse=True) for cut in (slice(0, 20), slice(20, 70))]
        out, lse = ferroflash.merge(*zip(*halves), return_lse=True)
        check(self, out, lse, (q, k, v), "f16")

    def test_by_the_arguments_of_vllm(self):
        outs = [values((7, 3, 32), i) for i in range(2)]
        lses = [values((3, 7), 10 + i, np.float32) for i in range(2)]
        output, output_lse = np.full_like(outs[0], np.nan), np.full_like(lses[0], np.nan)
        self.assertIsNone(ferroflash.merge_attn_states(output, outs[0], lses[0], outs[1], lses[1], output_lse))
        exact, exact_lse = merged([x[None] for x in outs], [x[None] for x in lses])
        self.assertLessEqual(np.abs(output - exact[0]).max(), 2 * np.abs(round_to(exact, "f16") - exact).max() + 1e-5)
        np.testing.assert_allclose(output_lse, exact_lse[0], rtol=1e-6, atol=1e-5)
        again = np.full_like(output, np.nan)
        ferroflash.merge_attn_states(again, outs[0], lses[0], outs[1], lses[1])
        np.testing.assert_array_equal(again, output)

    def test_memory_with_gaps(self):
        # Two halves of one array, and an output whose heads lie outside of its rows.
        both, lses = values((2, 3, 4, 2, 24), 0), [values((3, 2, 4), 1 + i, np.float32) for i in range(2)]
        memory = np.full((3, 2, 4, 30), np.nan, dtype=np.float16)
        out = memory.transpose(0, 2, 1, 3)[..., :24]
        self.assertIs(ferroflash.merge(list(both), lses, out=out), out)
        exact, _ = merged(list(both), lses)
        self.assertLessEqual(np.abs(out - exact).max(), 2 * np.abs(round_to(exact, "f16") - exact).max() + 1e-5)
        self.assertTrue(np.all(np.isnan(memory[..., 24:])))


class Refused(unittest.TestCase):
    def setUp(self):
        self.outs = [values((2, 3, 2, 16), i) for i in range(2)]
        self.lses = [values((2, 2, 3), i, np.float32) for i in range(2)]

    def refuses(self, error, text, outs=None, lses=None, **options):
        with self.assertRaises(error) as raised:
            ferroflash.merge(self.outs if outs is None else outs, self.lses if lses is None else lses, **options)
        self.assertEqual(str(raised.exception), text)

    def test_counts(self):
        self.refuses(ferroflash.InputError, "2 outputs and 1 log-sum-exps were given; as many of both are accepted", lses=self.lses[:1])
        self.refuses(ferroflash.InputError, "no partial results were given; a merge takes 1 or more", outs=[], lses=[])

    def test_shapes(self):
        other = [self.outs[0], values((2, 4, 2, 16), 1)]
        self.refuses(ferroflash.InputError, "part 1 has shape [2, 4, 2, 16], part 0 has [2, 3, 2, 16]; they must be equal", outs=other)
        text = "the log-sum-exp of part 1 is [batch, head, row] = [2, 3, 2]; that of part 0 is [2, 2, 3], and so it must be"
        self.refuses(ferroflash.InputError, text, lses=[self.lses[0], values((2, 3, 2), 1, np.float32)])
        text = "the log-sum-exp of part 0 has 2 axes; 3 (batch, head, row) are accepted"
        self.refuses(ferroflash.InputError, text, lses=[self.lses[0].reshape(4, 3), self.lses[1]])
        text = "out has shape [3, 2, 16], part 0 has [2, 3, 2, 16]; they must be equal"
        self.refuses(ferroflash.InputError, text, out=np.empty((3, 2, 16), np.float16))

    def test_types(self):
        mixed = [self.outs[0], self.outs[1].astype(np.float32)]
        self.refuses(ferroflash.InputTypeError, "part 1 holds f32, part 0 holds f16; they must be equal", outs=mixed)
        text = "the log-sum-exp of part 0 holds f16; f32 is accepted"
        self.refuses(ferroflash.InputTypeError, text, lses=[self.lses[0].astype(np.float16), self.lses[1]])

    def test_gaps_in_a_row(self):
        gaps = values((2, 3, 2, 32), 0)[..., ::2]
        text = "the last dim of part 0 has stride 2; it must be contiguous (stride 1), the other strides are free"
        self.refuses(ferroflash.InputError, text, outs=[gaps, self.outs[1]])


if __name__ == "__main__":
    unittest.main()
