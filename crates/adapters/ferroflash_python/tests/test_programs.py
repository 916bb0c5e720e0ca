"""Programs on scores, written in Python and run by the emulator, against what NumPy makes of the same functions; and everything that is refused."""

import unittest
import warnings

import numpy as np

import ferroflash
from ferroflash import ScoreProgram
from reference import alibi, check, check_gradients, check_gradients_of_sequences, check_sequences

DTYPES = {"f16": np.float16, "f32": np.float32}
HEADS, KV_HEADS, DIM = 4, 2, 32


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def inputs(dtype=np.float16, batch=2, q_rows=40, kv_rows=45):
    shapes = [(batch, q_rows, HEADS, DIM), (batch, kv_rows, KV_HEADS, DIM), (batch, kv_rows, KV_HEADS, DIM)]
    return [values(shape, seed, dtype) for seed, shape in enumerate(shapes)]


def slopes(batch=None, seed=7):
    """Of either sign, `(1, heads)` or `(batch, heads)`."""
    return np.random.default_rng(seed).uniform(-0.2, 0.5, (batch or 1, HEADS)).astype(np.float32)


def int32(numbers):
    return np.array(numbers, dtype=np.int32)


def starts(lengths):
    return int32(np.concatenate([[0], np.cumsum(lengths)]))


class Where:
    """The indices of scores `[batch, head, row, key]`, for the functions of NumPy."""

    def __init__(self, scores, first_batch):
        batch, head, self.q_rows, self.kv_rows = scores.shape
        self.score = scores
        self.batch, self.head, self.row, self.key = np.ogrid[:batch, :head, : self.q_rows, : self.kv_rows]
        self.batch = self.batch + first_batch
        self.position = self.row + self.kv_rows - self.q_rows


class Alibi(unittest.TestCase):
    program = ScoreProgram.alibi()

    def test_types_and_masks(self):
        masks = ({}, {"causal": True}, {"left": 9, "right": 4}, {"softcap": 5.0, "scale": 0.3, "causal": True})
        for name, dtype in DTYPES.items():
            for options in masks:
                for batch in (None, 2):
                    with self.subTest(dtype=name, batch=batch, **options):
                        tensors, of_heads = inputs(dtype), slopes(batch)
                        given = {key: value for key, value in options.items() if key in ("causal", "softcap")}
                        window = options.get("left"), options.get("right")
                        out, lse = ferroflash.forward(
                            *tensors,
                            softmax_scale=options.get("scale"),
                            window=window,
                            program=self.program,
                            tensors={"slopes": of_heads},
                            return_lse=True,
                            **given,
                        )
                        check(self, out, lse, tensors, name, change=alibi(of_heads), **options)

    def test_slopes_of_any_strides(self):
        tensors, of_heads = inputs(), slopes(2)
        wide = np.full((2, HEADS, 3), np.nan, np.float32)
        wide[:, :, 1] = of_heads
        out = ferroflash.forward(*tensors, program=self.program, tensors={"slopes": wide[:, :, 1]})
        check(self, out, None, tensors, "f16", change=alibi(of_heads))
        turned = np.ascontiguousarray(of_heads.T).T
        self.assertTrue((ferroflash.forward(*tensors, program=self.program, tensors={"slopes": turned}) == out).all())

    def test_packed_sequences(self):
        """Distances are counted from the ends of each sequence; sequences have slopes of their own."""
        q_lengths, kv_lengths = [40, 0, 33, 70, 5], [57, 20, 0, 31, 90]
        for batch in (None, 5):
            q = values((sum(q_lengths), HEADS, DIM), 1, np.float16)
            k, v = values((2, sum(kv_lengths), KV_HEADS, DIM), 2, np.float16)
            q_starts, kv_starts, of_heads = starts(q_lengths), starts(kv_lengths), slopes(batch)
            options = {"program": self.program, "tensors": {"slopes": of_heads}, "causal": True, "return_lse": True}
            out, lse = ferroflash.forward_packed(q, k, v, q_starts, kv_starts, **options)
            rows = [slice(at, at + length) for at, length in zip(q_starts, q_lengths)]
            keys = [slice(at, at + length) for at, length in zip(kv_starts, kv_lengths)]
            found = [out[i] for i in rows], [lse[:, i] for i in rows]
            tensors = [(q[i], k[j], v[j]) for i, j in zip(rows, keys)]
            check_sequences(self, *found, tensors, "f16", causal=True, change=alibi(of_heads))

    def test_caches(self):
        """Keys are counted from the first in use, new ones among them."""
        lengths, first, new_rows, rows = [50, 3, 0], [4, 0, 2], 2, 2
        q = values((3, rows, HEADS, DIM), 1, np.float16)
        k_cache, v_cache = values((2, 3, 80, KV_HEADS, DIM), 2, np.float16)
        k, v = values((2, 3, new_rows, KV_HEADS, DIM), 3, np.float16)
        of_heads = slopes(3)
        used = int32([n + skip for n, skip in zip(lengths, first)])
        out, lse = ferroflash.forward_cached(
            q,
            k_cache,
            v_cache,
            k,
            v,
            lengths=used,
            first=int32(first),
            causal=True,
            program=self.program,
            tensors={"slopes": of_heads},
            return_lse=True,
        )
        # The cache holds the new rows now.
        keys = [slice(skip, end + new_rows) for skip, end in zip(first, used)]
        tensors = [(q[b], k_cache[b, i], v_cache[b, i]) for b, i in enumerate(keys)]
        check_sequences(self, out, lse, tensors, "f16", causal=True, change=alibi(of_heads))


class Written(unittest.TestCase):
    def check(self, write, change, tensors=None, dtype="f16", program=None, **options):
        """The program against a function of the same numbers in NumPy."""
        qkv = inputs(DTYPES[dtype])
        program = program or ScoreProgram(write)
        out, lse = ferroflash.forward(*qkv, program=program, tensors=tensors, return_lse=True, **options)
        check(self, out, lse, qkv, dtype, change=lambda scores, first: change(Where(scores, first)), **options)
        return program

    def test_every_operation(self):
        """Each bends scores in a way of its own."""
        sigmoid = lambda x: 1 / (1 + np.exp(-x))
        for name, write, change in (
            ("tanh", lambda p: p.tanh(p.score) * 3, lambda w: np.tanh(w.score) * 3),
            ("exp", lambda p: p.exp(-abs(p.score)), lambda w: np.exp(-np.abs(w.score))),
            ("log", lambda p: p.log(p.score * p.score + 1), lambda w: np.log(w.score * w.score + 1)),
            ("sqrt", lambda p: p.sqrt(abs(p.score)), lambda w: np.sqrt(np.abs(w.score))),
            ("sigmoid", lambda p: 2.5 * p.sigmoid(p.score), lambda w: 2.5 * sigmoid(w.score)),
            ("quotients", lambda p: p.score / 2 + 1 / (p.row + 1), lambda w: w.score / 2 + 1 / (w.row + 1)),
            ("differences", lambda p: 1 - p.score - 0.5, lambda w: 1 - w.score - 0.5),
            ("minimum", lambda p: p.minimum(p.score, 0.25), lambda w: np.minimum(w.score, 0.25)),
            ("maximum", lambda p: p.maximum(0.25, p.score), lambda w: np.maximum(0.25, w.score)),
            ("integers", lambda p: p.score + (p.key * 3 - p.row) % 7, lambda w: w.score + (w.key * 3 - w.row) % 7),
            ("floors", lambda p: p.score + (p.key - p.row) // 16, lambda w: w.score + (w.key - w.row) // 16),
            ("signs", lambda p: p.score - abs(-p.head - 1), lambda w: w.score - (w.head + 1)),
            ("extrema", lambda p: p.score + p.minimum(p.key, 9) - p.maximum(3, p.row), lambda w: w.score + np.minimum(w.key, 9) - np.maximum(3, w.row)),
            ("lengths", lambda p: p.score * p.q_rows / p.kv_rows + p.batch, lambda w: w.score * w.q_rows / w.kv_rows + w.batch),
            ("position", lambda p: p.score - 0.1 * (p.position - p.key), lambda w: w.score - 0.1 * (w.position - w.key)),
            ("where", lambda p: p.where(p.score > 0, p.score, 1), lambda w: np.where(w.score > 0, w.score, 1)),
            ("where of integers", lambda p: p.score + p.where(p.key < p.row, p.head, 2), lambda w: w.score + np.where(w.key < w.row, w.head, 2)),
        ):
            with self.subTest(name):
                self.check(write, change)

    def test_comparisons_and_conditions(self):
        for name, sees, holds in (
            ("lt", lambda p: p.key < p.row + 3, lambda w: w.key < w.row + 3),
            ("le", lambda p: p.key <= p.row + 3, lambda w: w.key <= w.row + 3),
            ("gt", lambda p: p.key > p.row - 3, lambda w: w.key > w.row - 3),
            ("ge", lambda p: p.key >= p.row - 3, lambda w: w.key >= w.row - 3),
            ("eq", lambda p: p.key % 3 == p.row % 3, lambda w: w.key % 3 == w.row % 3),
            ("ne", lambda p: p.key % 3 != 1, lambda w: w.key % 3 != 1),
            ("a constant on the left", lambda p: 12 > p.key, lambda w: w.key < 12),
            ("and", lambda p: (p.key > 3) & (p.key < 30), lambda w: (w.key > 3) & (w.key < 30)),
            ("or", lambda p: (p.key < 3) | (p.head == 1), lambda w: (w.key < 3) | (w.head == 1)),
            ("not", lambda p: ~(p.key == p.row), lambda w: w.key != w.row),
            ("constants", lambda p: True & (False | (p.key < 9)), lambda w: w.key < 9),
        ):
            with self.subTest(name):
                change = lambda w, holds=holds: np.where(holds(w), w.score, -np.inf)
                self.check(None, change, program=ScoreProgram.mask(sees))

    def test_rows_that_see_nothing(self):
        """Of some rows a program hides every key: 0, and minus infinity as their log-sum-exp."""
        self.check(
            None, lambda w: np.where(w.row % 4 > 0, w.score, -np.inf), program=ScoreProgram.mask(lambda p: p.row % 4 > 0), causal=True
        )

    def test_tensors(self):
        """Numbers of every type and integers, of one axis to four, with strides; 0 outside of them, and one element for a whole axis."""
        bias, table = values((KV_HEADS, 45), 3, np.float16), values((2, HEADS, 40, 45), 4)
        # With the keys apart.
        apart = np.ascontiguousarray(table.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
        wide = np.concatenate([bias, np.zeros_like(bias)]).astype(np.float64)[None, :, None, :]
        document, of_all = int32([i // 12 for i in range(45)]), values((1, 45), 5)

        def hide(p):
            changed = p.score + p.floats("of_all")[p.head, p.key]
            return p.where(p.ints("document")[p.position] == p.ints("document")[p.key], changed, p.hidden)

        def hidden(w):
            return np.where(document[w.position] == document[w.key], w.score + of_all[0], -np.inf)

        for dtype in DTYPES:
            self.check(
                lambda p: p.score + p.floats("bias")[p.head, p.key] + p.floats("table")[p.batch, p.head, p.row, p.key],
                lambda w: w.score + wide + table,
                {"bias": bias, "table": apart},
                dtype,
            )
            self.check(hide, hidden, {"document": document, "of_all": of_all}, dtype, causal=True)

    def test_other_programs_and_the_same_again(self):
        """Programs are told apart by what they compute, and those that leave scores as they are change nothing."""
        qkv = inputs(np.float16)
        plain = ferroflash.forward(*qkv)
        double = ScoreProgram(lambda p: p.score * 2)
        twice = ferroflash.forward(*qkv, program=double)
        self.assertFalse((twice == plain).all())
        self.assertTrue((ferroflash.forward(*qkv, program=ScoreProgram(lambda p: p.score)) == plain).all())
        self.assertTrue((ferroflash.forward(*qkv, program=ScoreProgram(lambda p: p.score * 2)) == twice).all())
        self.assertEqual(double, ScoreProgram(lambda p: p.score * 2))
        self.assertEqual(len({double, ScoreProgram(lambda p: p.score * 2), ScoreProgram(lambda p: p.score * 3)}), 2)

    def test_what_it_prints(self):
        def decayed(p):
            return p.score - p.floats("slopes")[p.head] * abs(p.position - p.key)

        program = ScoreProgram(decayed)
        self.assertEqual(program.name, "decayed")
        self.assertEqual(
            repr(program),
            "decayed(slopes: float[1 axis])\n  score - (slopes[head] * float(abs(((row + kv_rows) - q_rows) - key)))",
        )
        self.assertEqual(ScoreProgram(decayed, "by distance").name, "by distance")
        self.assertEqual(ScoreProgram(lambda p: p.score).name, "lambda")
        self.assertTrue(repr(ScoreProgram.alibi()).startswith("alibi(slopes: float[2 axes])\n"))


class Gradients(unittest.TestCase):
    """Through programs, of the log-sum-exp too, against the formulas in float64, where a program is derived by differences."""

    bias, document = values((HEADS, 45), 3), int32([i // 12 for i in range(45)])
    tensors = {"bias": bias, "document": document}

    @staticmethod
    @ScoreProgram
    def bent(p):
        """Different slopes on both sides of 0, and hidden keys."""
        capped = 2 * p.tanh(p.score / 2) + p.floats("bias")[p.head, p.key]
        changed = p.where(p.score > 0, capped, p.score * 0.5)
        return p.where(p.ints("document")[p.position] == p.ints("document")[p.key], changed, p.hidden)

    def by_numpy(self, scores, first_batch):
        w = Where(scores, first_batch)
        capped = 2 * np.tanh(w.score / 2) + self.bias[:, : w.kv_rows].astype(np.float64)[None, :, None, :]
        changed = np.where(w.score > 0, capped, w.score * 0.5)
        return np.where(self.document[w.position] == self.document[w.key], changed, -np.inf)

    def check(self, name, program, tensors, change, **options):
        q, k, v = inputs(DTYPES[name])
        dout, dlse = values(q.shape, 8, DTYPES[name]), values((2, HEADS, 40), 9)
        given = {"program": program, "tensors": tensors, "causal": options.get("causal", False)}
        given.update(softmax_scale=options.get("scale"), window=(options.get("left"), options.get("right")))
        out, lse = ferroflash.forward(q, k, v, return_lse=True, **given)
        for of_lse in (None, dlse):
            found = ferroflash.backward(q, k, v, out, lse, dout, dlse=of_lse, **given)
            self.assertEqual([x.dtype for x in found], [DTYPES[name]] * 3)
            check_gradients(self, found, (q, k, v), dout, of_lse, name, change=change, **options)
        again = ferroflash.backward(q, k, v, out, lse, dout, dlse=dlse, deterministic=True, **given)
        for first, second in zip(found, again):
            np.testing.assert_array_equal(first, second)

    def test_types_and_masks(self):
        for name in DTYPES:
            for options in ({}, {"causal": True}, {"left": 9, "right": 4, "scale": 0.3}):
                with self.subTest(dtype=name, **options):
                    self.check(name, self.bent, self.tensors, self.by_numpy, **options)
                    for batch in (None, 2):
                        of_heads = slopes(batch)
                        self.check(name, ScoreProgram.alibi(), {"slopes": of_heads}, alibi(of_heads), **options)

    def test_packed_sequences(self):
        q_lengths, kv_lengths = [40, 0, 33, 20, 5], [45, 20, 0, 31, 42]
        of_heads = slopes(5)
        q_starts, kv_starts = starts(q_lengths), starts(kv_lengths)
        for name, dtype in DTYPES.items():
            for program, tensors, change in (
                (ScoreProgram.alibi(), {"slopes": of_heads}, alibi(of_heads)),
                (self.bent, self.tensors, self.by_numpy),
            ):
                with self.subTest(dtype=name, program=program.name):
                    q, dout = values((2, sum(q_lengths), HEADS, DIM), 1, dtype)
                    k, v = values((2, sum(kv_lengths), KV_HEADS, DIM), 2, dtype)
                    dlse = values((HEADS, sum(q_lengths)), 3)
                    options = {"program": program, "tensors": tensors, "causal": True}
                    out, lse = ferroflash.forward_packed(q, k, v, q_starts, kv_starts, return_lse=True, **options)
                    found = ferroflash.backward_packed(q, k, v, out, lse, dout, q_starts, kv_starts, dlse=dlse, **options)
                    rows = [slice(at, at + length) for at, length in zip(q_starts, q_lengths)]
                    keys = [slice(at, at + length) for at, length in zip(kv_starts, kv_lengths)]
                    each = [(found[0][i], found[1][j], found[2][j]) for i, j in zip(rows, keys)]
                    told = [(q[i], k[j], v[j], dout[i], dlse[:, i]) for i, j in zip(rows, keys)]
                    check_gradients_of_sequences(self, each, told, name, causal=True, change=change)

    def test_a_program_that_bounds_scores_is_a_softcap(self):
        """The refusal of both names it."""
        cap = ScoreProgram(lambda p: 3 * p.tanh(p.score / 3))
        q, k, v = inputs(np.float32)
        dout = values(q.shape, 8)
        out, lse = ferroflash.forward(q, k, v, program=cap, return_lse=True)
        found = ferroflash.backward(q, k, v, out, lse, dout, program=cap)
        check_gradients(self, found, (q, k, v), dout, None, "f32", softcap=3.0)


class Refusals(unittest.TestCase):
    def refused(self, kind, words, call):
        with self.assertRaises(kind) as caught:
            call()
        self.assertIn(words, str(caught.exception))
        self.assertIsInstance(caught.exception, ferroflash.Error)

    def written(self, kind, words, write):
        self.refused(kind, words, lambda: ScoreProgram(write))

    def test_what_cannot_be_written(self):
        of_type, of_input = ferroflash.InputTypeError, ferroflash.InputError
        self.written(of_type, "`where` chooses in place of `if`", lambda p: p.score if p.key < p.row else p.hidden)
        self.written(of_type, "`where` chooses in place of `if`", lambda p: p.where(0 < p.key < 9, p.score, 0))
        self.written(of_type, "`&`, `|`, `~` are `and`, `or`, `not`", lambda p: p.where(p.key > 1 and p.row > 1, p.score, 0))
        self.written(of_type, "it is given a NoneType", lambda p: None)
        self.written(of_type, "it is given a str", lambda p: p.score + "1")
        self.written(of_type, "it is given a ndarray", lambda p: p.score + np.zeros(3))
        self.written(of_type, "a condition is no number", lambda p: p.key < p.row)
        self.written(of_type, "a number is no condition", lambda p: p.where(p.score, 1, 2))
        self.written(of_type, "numbers are compared by <, <=", lambda p: p.where(p.score == 0, 1, 2))
        self.written(of_type, "conditions are not compared", lambda p: p.where((p.key < 1) == (p.row < 1), 1, 2))
        self.written(of_type, "given an index that is no integer", lambda p: p.floats("x")[p.score])
        self.written(of_type, "integers are divided by positive constants; a Int", lambda p: p.score + p.key // p.row)
        self.written(of_input, "divides by 0", lambda p: p.score + p.key % 0)
        self.written(of_input, "no integer of 32 bits", lambda p: p.score + (p.key + 2**31))
        self.written(of_input, "x is given 5 indices; 1 to 4", lambda p: p.floats("x")[0, 0, 0, 0, 0])
        self.written(of_input, "'a b' is no name of a tensor", lambda p: p.floats("a b")[0])
        self.written(of_input, "a name stands for one tensor", lambda p: p.floats("x")[0] + p.floats("x")[0, 0])
        self.written(of_input, "a name stands for one tensor", lambda p: p.floats("x")[0] + p.ints("x")[0])
        kept = []
        ScoreProgram(lambda p: kept.append(p.score) or p.score)
        self.written(of_input, "of one program is used in another", lambda p: p.score + kept[0])

        def long(p):
            score = p.score
            for i in range(300):
                score = score * (1 + i / 1000)
            return score

        self.written(of_input, "more than 256 operations", long)

    def test_tensors_that_do_not_fit(self):
        q, k, v = inputs()
        program, of_heads = ScoreProgram.alibi(), slopes()
        call = lambda tensors, program=program: lambda: ferroflash.forward(q, k, v, program=program, tensors=tensors)
        of_type, of_input = ferroflash.InputTypeError, ferroflash.InputError
        self.refused(of_input, "the program reads slopes, which is not bound", call(None))
        self.refused(of_input, "the program does not read slope; it reads", call({"slopes": of_heads, "slope": of_heads}))
        self.refused(of_input, "slopes has 1 axes; the program reads it with 2", call({"slopes": of_heads[0]}))
        self.refused(of_input, "slopes holds whole numbers", call({"slopes": np.zeros((1, 4), np.int32)}))
        self.refused(of_type, "slopes holds floating-point numbers of 64 bits", call({"slopes": of_heads.astype(np.float64)}))
        self.refused(of_type, "slopes holds integers of 64 bits; int32", call({"slopes": np.zeros((1, 4), np.int64)}))
        self.refused(of_type, "slopes is a float", call({"slopes": 0.5}))
        self.refused(of_input, "axis 1 of slopes has extent 0", call({"slopes": of_heads[:, :0]}))
        self.refused(of_input, "there is no program that reads them", call({"slopes": of_heads}, None))
        self.refused(of_type, "program is a function; a ferroflash.ScoreProgram", call({}, lambda p: p.score))
        same = ScoreProgram.mask(lambda p: p.ints("document")[p.row] == p.ints("document")[p.key])
        self.refused(of_input, "whole numbers must be contiguous", call({"document": int32(range(90))[::2]}, same))
        many = ScoreProgram(lambda p: p.score + sum(p.floats(name)[0, 0, 0] for name in "abc"))
        cube = np.zeros((1, 1, 1), np.float32)
        self.refused(of_input, "take 12 words, one each; 8 are accepted", call(dict.fromkeys("abc", cube), many))

    def test_gradients(self):
        """Through a program or a softcap, not through both; and no gradients of what a program reads."""
        q, k, v = inputs()
        options = {"program": ScoreProgram.alibi(), "tensors": {"slopes": slopes()}, "softcap": 5.0}
        out, lse = ferroflash.forward(q, k, v, return_lse=True, **options)
        missing = ferroflash.MissingFeatureError
        words = "gradients through a softcap and the program alibi; one of the two is accepted, and a program may cap scores itself, with tanh"
        given = [np.full_like(x, np.nan) for x in (q, k, v)]
        into = lambda: dict(zip(("dq", "dk", "dv"), given))
        self.refused(missing, words, lambda: ferroflash.backward(q, k, v, out, lse, out, **into(), **options))
        at, kv_at = starts([40, 40]), starts([45, 45])
        q, k, v, out, *given = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v, out, *given))
        lse = np.zeros((HEADS, 80), np.float32)
        self.refused(missing, words, lambda: ferroflash.backward_packed(q, k, v, out, lse, out, at, kv_at, **into(), **options))
        self.assertTrue(all(np.isnan(x).all() for x in given))
        # A program that leaves scores as they are is none.
        options.update(program=ScoreProgram(lambda p: p.score), tensors=None)
        ferroflash.backward_packed(q, k, v, out, lse, out, at, kv_at, **into(), **options)
        self.assertFalse(any(np.isnan(x).any() for x in given))


if __name__ == "__main__":
    unittest.main()
