"""`flex_attention` and `create_block_mask`: functions of scores and places, in the emulator, against what NumPy makes of the same functions; and everything
that is refused."""

import functools
import unittest
import warnings

import numpy as np

import ferroflash
from ferroflash import create_block_mask, flex_attention
from reference import check, check_gradients

try:
    import torch
except ImportError:
    torch = None

HEADS, KV_HEADS, ROWS, KEYS, DIM = 4, 2, 200, 230, 64
SLOPES = np.random.default_rng(5).uniform(-0.2, 0.5, HEADS).astype(np.float32)


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def inputs(dtype=np.float16, batch=2, rows=ROWS, keys=KEYS, kv_heads=KV_HEADS):
    """[batch, head, row, dim]."""
    shapes = [(batch, HEADS, rows, DIM), (batch, kv_heads, keys, DIM), (batch, kv_heads, keys, DIM)]
    return [np.random.default_rng(seed).standard_normal(shape).astype(dtype) for seed, shape in enumerate(shapes)]


def documents(batch=2, keys=KEYS):
    """Ids of 64 bits, as they come; each batch entry has others."""
    return np.stack([np.sort(np.random.default_rng(seed).integers(0, 5, keys)) for seed in range(batch)])


def change(score_mod=None, mask_mod=None, where=np.where):
    """The functions on scores `[batch, head, row, key]` of NumPy."""

    def changed(scores, first_batch):
        batch, head, row, key = np.ogrid[tuple(slice(extent) for extent in scores.shape)]
        batch = batch + first_batch
        if score_mod is not None:
            scores = score_mod(scores, batch, head, row, key)
        return scores if mask_mod is None else where(mask_mod(batch, head, row, key), scores, -np.inf)

    return changed


def rows_first(*arrays):
    return [x.swapaxes(1, 2) for x in arrays]


class Results(unittest.TestCase):
    def check(self, tensors, precision="f16", score_mod=None, mask_mod=None, block_mask=None, scale=None, numpy_mod=None):
        out, lse = flex_attention(*tensors, score_mod, block_mask, scale=scale, enable_gqa=True, return_lse=True)
        self.assertEqual((out.shape, lse.shape), (tensors[0].shape, tensors[0].shape[:3]))
        meaning = change(numpy_mod or score_mod, mask_mod)
        check(self, out.swapaxes(1, 2), lse, rows_first(*tensors), precision, scale=scale, change=meaning)
        again = flex_attention(*tensors, score_mod, block_mask, scale=scale, enable_gqa=True)
        np.testing.assert_array_equal(again, out)

    def test_negative_indices_count_from_the_end(self):
        table = np.random.default_rng(7).standard_normal(ROWS + KEYS).astype(np.float32)
        self.check(inputs(), score_mod=lambda score, b, h, i, j: score + table[i - j] + table[-1])

    def test_a_mask_is_what_it_was_when_its_blocks_were_found(self):
        tensors, last, width = inputs(kv_heads=HEADS), np.array([100], np.int32), [64]
        mask = create_block_mask(lambda b, h, i, j: (abs(i - j) <= width[0]) & (j <= last[0]), None, None, ROWS, KEYS)
        both = {"block_mask": mask, "score_mod": lambda score, b, h, i, j: score + last[0]}
        before = flex_attention(*tensors, block_mask=mask), flex_attention(*tensors, **both)
        last[0] = 90
        after = flex_attention(*tensors, block_mask=mask), flex_attention(*tensors, **both)
        np.testing.assert_array_equal(before[0], after[0])
        # The function of scores reads what is there in each call: every score is 10 less, which changes rounding alone.
        np.testing.assert_allclose(before[1].astype(np.float32), after[1].astype(np.float32), atol=1e-2)
        width[0] = 10
        np.testing.assert_array_equal(flex_attention(*tensors, block_mask=mask), before[0])
        with self.assertRaisesRegex(ferroflash.InputError, "another mask"):
            flex_attention(*tensors, **both)

    def test_no_function_is_plain_attention(self):
        for name, dtype in (("f16", np.float16), ("f32", np.float32)):
            self.check(inputs(dtype), name, scale=0.2)
        q, k, v = inputs(kv_heads=HEADS)
        np.testing.assert_array_equal(flex_attention(q, k, v).swapaxes(1, 2), ferroflash.forward(*rows_first(q, k, v)))

    def test_functions_of_scores(self):
        slopes, table = SLOPES, np.random.default_rng(6).standard_normal((HEADS, 2 * KEYS)).astype(np.float32)
        cap = np.array(3.0)
        for mod, meaning in (
            (lambda score, b, h, i, j: score - slopes[h] * abs(i - j), None),
            (lambda score, b, h, i, j: score + table[h, i - j + KEYS], None),
            # One index after the other; a tensor that is a number; a global one.
            (
                lambda score, b, h, i, j: score + table[h][i - j + KEYS] / cap - SLOPES[h],
                lambda score, b, h, i, j: score + table[h, i - j + KEYS] / 3 - SLOPES[h],
            ),
            (
                lambda score, b, h, i, j: (score / 3).tanh() * 3 + (i * 2 + j).clamp(max=50) / 10,
                lambda score, b, h, i, j: np.tanh(score / 3) * 3 + np.clip(i * 2 + j, None, 50) / 10,
            ),
            (
                lambda score, b, h, i, j: score.where(i >= j, -float("inf")).minimum(2.0) - (j + 1).float().log().sqrt(),
                lambda score, b, h, i, j: np.minimum(np.where(i >= j, score, -np.inf), 2) - np.sqrt(np.log(j + 1)),
            ),
        ):
            self.check(inputs(), score_mod=mod, numpy_mod=meaning)

    def test_functions_of_functions(self):
        """Helpers, default arguments, partial functions, methods and objects: each with its tensors."""
        slopes = SLOPES

        def lowered(score, h, by):
            return score - slopes[h] * by

        def with_default(score, b, h, i, j, of_heads=SLOPES):
            return lowered(score, h, abs(i - j)) + of_heads[h]

        class Decay:
            def __init__(self, rate):
                self.rate = rate

            def __call__(self, score, b, h, i, j):
                return lowered(score, h, self.rate)

            def method(self, score, b, h, i, j):
                return score * self.rate

        def of_tensor(table, score, b, h, i, j):
            return score + table[h]

        expected = lambda score, b, h, i, j: score - SLOPES[h] * abs(i - j) + SLOPES[h]
        self.check(inputs(), score_mod=with_default, numpy_mod=expected)
        self.check(inputs(), score_mod=Decay(2.0), numpy_mod=lambda score, b, h, i, j: score - 2 * SLOPES[h])
        self.check(inputs(), score_mod=Decay(0.5).method, numpy_mod=lambda score, b, h, i, j: score * 0.5)
        self.check(inputs(), score_mod=functools.partial(of_tensor, SLOPES), numpy_mod=lambda score, b, h, i, j: score + SLOPES[h])

    def test_functions_are_read_anew_in_each_call(self):
        q, k, v = inputs(kv_heads=HEADS)
        slopes = SLOPES.copy()
        mod = lambda score, b, h, i, j: score - slopes[h] * abs(i - j)
        first = flex_attention(q, k, v, mod)
        slopes = slopes * 2
        second = flex_attention(q, k, v, mod)
        self.assertTrue((first != second).any())
        check(self, second.swapaxes(1, 2), None, rows_first(q, k, v), "f16", change=change(mod))

    def test_masks(self):
        """Of documents, of heads, of all; with a function of scores beside it, and blocks that serve both."""
        ids, reach = documents(), np.int32([10, 50, 300, 3])
        seen = np.random.default_rng(8).random((ROWS, KEYS)) < 0.2
        seen[:, 0] = True
        chained = lambda b, h, i, j: (ids[b][i] == ids[b][j]) & (abs(i - j) < reach[h]) | (j == 0)
        for mask_mod, batch, heads in (
            (lambda b, h, i, j: j <= i + KEYS - ROWS, None, None),
            (lambda b, h, i, j: ids[b, i] == ids[b, j], 2, None),
            (lambda b, h, i, j: (ids[b, i] == ids[b, j]) & (abs(i - j) < reach[h]) | (j == 0), 2, HEADS),
            (lambda b, h, i, j: seen[i, j], None, None),
            (lambda b, h, i, j: ~(j % 3 == 1), None, 1),
        ):
            block_mask = create_block_mask(chained if heads == HEADS else mask_mod, batch, heads, ROWS, KEYS)
            self.assertEqual(block_mask.shape, (batch or 1, heads or 1, ROWS, KEYS))
            for score_mod in (None, lambda score, b, h, i, j: score - SLOPES[h] * abs(i - j)):
                self.check(inputs(), score_mod=score_mod, mask_mod=mask_mod, block_mask=block_mask)

    def test_a_mask_that_hides_nothing(self):
        block_mask = create_block_mask(lambda b, h, i, j: True, None, None, ROWS, KEYS)
        self.check(inputs(), block_mask=block_mask)

    def test_a_function_of_scores_that_hides_keys(self):
        """Beside a mask: by the place alone, and by the score."""
        mask_mod = lambda b, h, i, j: j <= i + 30
        block_mask = create_block_mask(mask_mod, None, None, ROWS, KEYS)
        by_place = lambda score, b, h, i, j: score.where(j % 2 == 0, -float("inf"))
        in_numpy = lambda score, b, h, i, j: np.where(j % 2 == 0, score, -np.inf)
        self.check(inputs(), score_mod=by_place, mask_mod=mask_mod, block_mask=block_mask, numpy_mod=in_numpy)
        by_score = lambda score, b, h, i, j: (score * 2).where((score < 1) | (j == 0), -float("inf"))
        in_numpy = lambda score, b, h, i, j: np.where((score < 1) | (j == 0), score * 2, -np.inf)
        q, k, v = inputs(np.float32)
        self.check((q, k, v), "f32", by_score, mask_mod, block_mask, numpy_mod=in_numpy)

    def test_what_is_none_is_the_same_for_all(self):
        """A mask of B and H of None is given 0 for them."""
        mask_mod = lambda b, h, i, j: (j + b + h) % 2 == 0
        block_mask = create_block_mask(mask_mod, None, None, ROWS, KEYS)
        self.check(inputs(), mask_mod=lambda b, h, i, j: (j + 0 * (b + h)) % 2 == 0, block_mask=block_mask)


class Refusals(unittest.TestCase):
    def refused(self, kind, words, call):
        with self.assertRaises(kind) as caught:
            call()
        self.assertIn(words, str(caught.exception))
        self.assertIsInstance(caught.exception, ferroflash.Error)

    def written(self, kind, words, score_mod):
        q, k, v = inputs(kv_heads=HEADS, batch=1, rows=3, keys=3)
        self.refused(kind, words, lambda: flex_attention(q, k, v, score_mod))

    def test_what_cannot_be_read(self):
        missing, of_type, of_input = ferroflash.MissingFeatureError, ferroflash.InputTypeError, ferroflash.InputError
        slopes, held = SLOPES, [SLOPES]
        self.written(missing, "the operation sin is not supported", lambda score, b, h, i, j: score.sin())
        self.written(missing, "the operation cumsum is not supported", lambda score, b, h, i, j: score.cumsum(0))
        self.written(missing, "the operation mean of the tensor slopes", lambda score, b, h, i, j: score + slopes.mean())
        self.written(missing, "indexing of slopes with a slice", lambda score, b, h, i, j: score + slopes[1:][h])
        self.written(missing, "indexing of slopes with ...", lambda score, b, h, i, j: score + slopes[...])
        self.written(of_input, "slopes has 1 axes; 2 indices are given", lambda score, b, h, i, j: score + slopes[h, 0])
        self.written(of_type, "`where` chooses in place of `if`", lambda score, b, h, i, j: score if i >= j else -1.0)
        self.written(of_type, "no bound of a loop", lambda score, b, h, i, j: sum(range(i), score))
        self.written(of_type, "a condition is no number", lambda score, b, h, i, j: i >= j)

        class Holder:
            slopes = SLOPES

        self.written(of_type, "read tensors that they name themselves, not those of an object", lambda score, b, h, i, j: score + Holder.slopes[h])
        self.written(missing, "the operation new_ones", lambda score, b, h, i, j: score + b.new_ones((2,)))
        # In a list that is a variable there is no need for it.
        q, k, v = inputs(kv_heads=HEADS)
        out = flex_attention(q, k, v, lambda score, b, h, i, j: score + held[0][h])
        check(self, out.swapaxes(1, 2), None, rows_first(q, k, v), "f16", change=change(lambda score, b, h, i, j: score + SLOPES[h]))

    def test_masks_that_are_none(self):
        of_type, of_input = ferroflash.InputTypeError, ferroflash.InputError
        make = lambda mask_mod, *shape, **more: lambda: create_block_mask(mask_mod, *(shape or (1, 1, 5, 5)), **more)
        self.refused(of_type, "mask_mod is a NoneType; a function (b, h, q_idx, kv_idx)", make(None))
        self.refused(of_type, "a number is no condition", make(lambda b, h, i, j: i - j))
        self.refused(of_type, "`where` chooses in place of `if`", make(lambda b, h, i, j: i >= j and i > 3))
        self.refused(of_input, "Q_LEN is 0; whole numbers from 1 on are accepted", make(lambda b, h, i, j: i >= j, 1, 1, 0, 5))
        self.refused(of_input, "B is -1; whole numbers from 1 on are accepted, and None", make(lambda b, h, i, j: i >= j, -1, 1, 5, 5))
        self.refused(of_input, "device is 'tpu'; 'cpu', 'cuda' and 'cuda:N'", make(lambda b, h, i, j: i >= j, device="tpu"))

    def test_calls(self):
        of_type, of_input = ferroflash.InputTypeError, ferroflash.InputError
        q, k, v = inputs()
        causal = create_block_mask(lambda b, h, i, j: i >= j, None, None, ROWS, KEYS)
        call = lambda *tensors, **options: lambda: flex_attention(*tensors, **options)
        self.refused(of_input, "query has 4 heads, key 2; they may differ with enable_gqa=True", call(q, k, v))
        self.refused(of_input, "key has 3 axes; 4 (batch, head, row, dim)", call(q, k[0], v))
        self.refused(of_type, "query is a list", call(q.tolist(), k, v))
        self.refused(of_type, "score_mod is a float", call(q, k, v, score_mod=0.5, enable_gqa=True))
        self.refused(of_type, "block_mask is a ndarray; what ferroflash.create_block_mask makes", call(q, k, v, block_mask=q, enable_gqa=True))
        words = "block_mask is of scores (1, 1, 200, 230) (batch, heads, q_rows, kv_rows); those of the call are (2, 4, 200, 229)"
        self.refused(of_input, words, call(q, k[:, :, 1:], v[:, :, 1:], block_mask=causal, enable_gqa=True))
        words = "more than 256 operations"
        self.refused(of_input, words, call(q, k, v, score_mod=lambda s, b, h, i, j: functools.reduce(lambda x, n: x * (1 + n / 999), range(300), s), enable_gqa=True))


@unittest.skipIf(torch is None, "torch is not installed")
class WithTorch(unittest.TestCase):
    """The same functions are given to PyTorch's flex_attention, in float64."""

    def tensors(self, dtype=None):
        return [torch.from_numpy(x.astype(np.float32)).to(dtype or torch.float16) for x in inputs()]

    def pairs(self):
        slopes, ids = torch.from_numpy(SLOPES), torch.from_numpy(documents())
        table, capacity = torch.randn(HEADS, 2 * KEYS), torch.tensor(7.0)

        def alibi(score, b, h, i, j):
            return score + torch.exp2(-((h + 1) * 8.0 / HEADS)) * (j - i)

        def capped(score, b, h, i, j):
            return capacity * torch.tanh(score / capacity) - slopes[h] * torch.abs(i - j)

        def relative(score, b, h, i, j):
            return score + table[h, torch.clamp(i - j, -KEYS, KEYS - 1) + KEYS]

        def causal_by_score(score, b, h, i, j):
            return torch.where(torch.logical_or(i >= j, j == 0), score, -float("inf"))

        def of_documents(b, h, i, j):
            return ids[b, i] == ids[b, j]

        def near(b, h, i, j):
            return (i - j).abs() <= 60

        return (alibi, capped, relative, causal_by_score), (of_documents, near)

    def test_the_functions_of_torch(self):
        from torch.nn.attention import flex_attention as original

        q, k, v = self.tensors()
        scores, masks = self.pairs()
        joined = (*masks, original.and_masks(*masks), original.or_masks(*masks))
        wide = [x.double() for x in (q, k, v)]
        compared = 0
        for score_mod in (None, *scores):
            for mask_mod in (None, *joined):
                theirs = ours = None
                if mask_mod is not None:
                    theirs = original.create_block_mask(mask_mod, 2, HEADS, ROWS, KEYS, device="cpu")
                    ours = create_block_mask(mask_mod, 2, HEADS, ROWS, KEYS, device=q.device)
                expected, lse = original.flex_attention(*wide, score_mod, theirs, enable_gqa=True, return_lse=True)
                out, found = flex_attention(q, k, v, score_mod, ours, enable_gqa=True, return_lse=True)
                # Half a unit in the last place of outputs below 4, and as much for what probabilities are rounded to.
                self.assertLess((out.double() - expected).abs().max(), 2e-3)
                seen = expected.abs().sum(-1) > 0
                self.assertLess((found.double() - lse).abs()[seen].max(), 1e-4)
                compared += 1
        self.assertEqual(compared, 25)

    def test_gradients(self):
        """Of query, key and value, through both functions; what functions read has none."""
        slopes = torch.from_numpy(SLOPES)
        score_mod = lambda score, b, h, i, j: 5 * torch.tanh(score / 5) - slopes[h] * (i - j).abs()
        block_mask = create_block_mask(lambda b, h, i, j: i >= j - 30, None, None, ROWS, KEYS)
        leaves = [x.requires_grad_() for x in self.tensors()]
        out = flex_attention(*leaves, score_mod, block_mask, enable_gqa=True)
        dout = torch.randn_like(out)
        found = torch.autograd.grad(out, leaves, dout)
        array = lambda x: x.detach().double().numpy()
        meaning = change(
            lambda score, b, h, i, j: 5 * np.tanh(score / 5) - SLOPES[h] * abs(i - j), lambda b, h, i, j: i >= j - 30
        )
        check_gradients(self, rows_first(*map(array, found)), rows_first(*map(array, leaves)), *rows_first(array(dout)), None, "f16", change=meaning)
        slopes.requires_grad_()
        with self.assertRaisesRegex(ferroflash.MissingFeatureError, "a gradient of slopes, which a program reads"):
            flex_attention(*leaves, score_mod, enable_gqa=True)

    def test_compiled(self):
        """A break in the graph, with the same result."""
        q, k, v = self.tensors()
        block_mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, ROWS, KEYS)

        def block(q, k, v):
            return flex_attention(q * 2, k, v, block_mask=block_mask, enable_gqa=True).relu()

        self.assertTrue(torch.equal(torch.compile(block, backend="eager")(q, k, v), block(q, k, v)))

    def test_what_is_refused(self):
        q, k, v = self.tensors()
        missing, self.slopes = (ferroflash.MissingFeatureError, ferroflash.InputTypeError), torch.from_numpy(SLOPES)
        for words, score_mod in (
            ("the operation torch.sin is not supported", lambda score, b, h, i, j: torch.sin(score)),
            ("those of an object or a list", lambda score, b, h, i, j: score + self.slopes[h]),
            ("the operation torch.where of a whole tensor", lambda score, b, h, i, j: torch.where(q, score, 0)),
            ("the operation torch.clamp with these arguments", lambda score, b, h, i, j: torch.clamp(score, 0, out=torch.empty(1))),
        ):
            with self.assertRaisesRegex(missing, words):
                flex_attention(q, k, v, score_mod, enable_gqa=True)
        from torch.nn.attention.flex_attention import create_block_mask as theirs

        block_mask = theirs(lambda b, h, i, j: i >= j, None, None, ROWS, KEYS, device="cpu")
        with self.assertRaisesRegex(ferroflash.InputTypeError, "what ferroflash.create_block_mask makes is accepted"):
            flex_attention(q, k, v, block_mask=block_mask, enable_gqa=True)


if __name__ == "__main__":
    unittest.main()
