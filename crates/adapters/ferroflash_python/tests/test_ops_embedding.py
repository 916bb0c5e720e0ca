"""Embedding tables: on arrays of NumPy and tensors of PyTorch against a float64 reference, and everything that is refused.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device for PyTorch, `cuda`.
"""

import os
import unittest
import warnings

import numpy as np

import ferroflash
from ferroflash.ops import embedding
from reference import check_close, round_to

try:
    import torch
except ImportError:
    torch = None

DTYPES = {"f16": np.float16, "f32": np.float32}
DEVICE = os.environ.get("FERROFLASH_TEST_DEVICE", "cpu")


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def numbers(shape, vocabulary, seed=3):
    return np.random.default_rng(seed).integers(0, vocabulary, shape, dtype=np.int32)


def gradient(ids, dout, shape, scale, padding, number, start=0):
    """The gradient of a table of this shape by the definition, in this precision."""
    found = np.zeros(shape, number) + number(0)
    np.add.at(found, ids.reshape(-1), dout.astype(number).reshape(-1, shape[1]))
    found *= number(scale)
    if padding is not None:
        found[padding] = 0
    return found + (start.astype(number) if isinstance(start, np.ndarray) else 0)


def check_gradient(test, found, ids, dout, shape, precision, scale=1.0, padding=None, start=0):
    exact, rounded = (gradient(ids, dout, shape, scale, padding, number, start) for number in (np.float64, np.float32))
    check_close(test, "dtable", found, exact, round_to(rounded, precision))


class Arrays(unittest.TestCase):
    def test_types_and_columns(self):
        for precision, dtype in DTYPES.items():
            for columns in (1, 7, 64, 200):
                for scale, padding in ((1.0, None), (0.5, 4)):
                    with self.subTest(dtype=precision, columns=columns, scale=scale):
                        table, ids = values((11, columns), 1, dtype), numbers((3, 50), 11)
                        out = embedding.forward(ids, table, scale=scale, padding=padding)
                        self.assertEqual((out.dtype, out.shape), (dtype, (3, 50, columns)))
                        # A power of two rounds nothing.
                        np.testing.assert_array_equal(out, table[ids] * dtype(scale))
                        dout = values(out.shape, 2, dtype)
                        dtable = embedding.backward(ids, table, dout, scale=scale, padding=padding)
                        self.assertEqual(dtable.dtype, dtype)
                        check_gradient(self, dtable, ids, dout, table.shape, precision, scale, padding)

    def test_a_row_that_many_tokens_name(self):
        table, ids = values((300, 16), 1), np.where(np.arange(700) % 3, 7, numbers(700, 300)).astype(np.int32)
        dout = values((700, 16), 2)
        check_gradient(self, embedding.backward(ids, table, dout), ids, dout, table.shape, "f32")

    def test_accumulated(self):
        table, ids, dout = values((11, 16), 1, np.float16), numbers(9, 11), values((9, 16), 2, np.float16)
        start = values((11, 16), 5)
        dtable = start.copy()
        self.assertIs(embedding.backward(ids, table, dout, accumulate=True, dtable=dtable), dtable)
        check_gradient(self, dtable, ids, dout, table.shape, "f32", start=start)

    def test_ids_outside_of_the_table(self):
        table = values((11, 16), 1)
        out = embedding.forward(np.array([-5, 0, 10, 99], dtype=np.int32), table)
        np.testing.assert_array_equal(out, table[[0, 0, 10, 10]])

    def test_what_is_refused(self):
        table, ids, dout = values((11, 16), 1), numbers(9, 11), values((9, 16), 2)
        for kind, words, call in (
            (ferroflash.InputTypeError, "ids holds integers of 64 bits; int32", lambda: embedding.forward(ids.astype(np.int64), table)),
            (ferroflash.InputTypeError, "table holds floating-point numbers of 64 bits", lambda: embedding.forward(ids, table.astype(np.float64))),
            (ferroflash.InputTypeError, "ids is a list", lambda: embedding.forward([1], table)),
            (ferroflash.InputTypeError, "dout holds f16", lambda: embedding.backward(ids, table, dout.astype(np.float16))),
            (ferroflash.InputError, "padding is row 11", lambda: embedding.forward(ids, table, padding=11)),
            (ferroflash.InputError, r"dout has shape \[8, 16\]", lambda: embedding.backward(ids, table, dout[:8])),
            (ferroflash.InputError, "dtable is needed", lambda: embedding.backward(ids, table, dout, accumulate=True)),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()


@unittest.skipIf(torch is None, "torch is not installed")
class Torch(unittest.TestCase):
    def inputs(self, dtype=None, of_ids=None):
        table = torch.from_numpy(values((11, 16), 1)).to(DEVICE, dtype or torch.float32).requires_grad_()
        return torch.from_numpy(numbers((3, 5), 11)).to(DEVICE, of_ids or torch.int64), table

    def test_results_and_gradients(self):
        for precision, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
            for of_ids in (torch.int64, torch.int32):
                for padding in (None, 4, -3):
                    with self.subTest(dtype=precision, ids=of_ids, padding=padding):
                        ids, table = self.inputs(dtype, of_ids)
                        out = embedding.embedding(ids, table, padding, scale=2.0)
                        self.assertTrue(torch.equal(out, table[ids.long()] * 2))
                        dout = torch.randn(out.shape, device=DEVICE).to(dtype)
                        (dtable,) = torch.autograd.grad(out, table, dout)
                        row = None if padding is None else padding % 11
                        check_gradient(self, array(dtable), ids.cpu().numpy(), array(dout), (11, 16), precision, 2.0, row)

    def test_numbers_that_32_bits_do_not_hold(self):
        _, table = self.inputs()
        ids = torch.tensor([1 << 32, -(1 << 40)], device=DEVICE)
        self.assertTrue(torch.equal(embedding.embedding(ids, table), table[[10, 0]]))

    def test_compiled_as_eager(self):
        ids, table = self.inputs(torch.bfloat16)
        call = lambda ids, table: embedding.embedding(ids, table, 4, scale=0.5)
        found = []
        for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)):
            out = function(ids, table)
            found.append((out, *torch.autograd.grad(out.float().square().sum(), table)))
        for eager, of_graph in zip(*found):
            self.assertTrue(torch.equal(eager, of_graph))

    def test_operation_fits_what_pytorch_asks_of_it(self):
        ids, table = self.inputs(torch.float16, torch.int32)
        torch.library.opcheck(torch.ops.ferroflash.embedding, (ids, table, 0.5, 4))

    def test_module(self):
        ids, _ = self.inputs()
        table = embedding.Embedding(11, 16, padding_idx=2, scale=3.0, device=DEVICE)
        self.assertFalse(table.weight[2].any())
        self.assertTrue(torch.equal(table(ids), table.weight[ids] * 3))
        self.assertEqual(str(table), "Embedding(11, 16, padding_idx=2, scale=3.0)")

    def test_what_is_refused(self):
        ids, table = self.inputs()
        out = embedding.embedding(ids, table)
        twice = lambda: torch.autograd.grad(torch.autograd.grad(out.square().sum(), table, create_graph=True)[0].sum(), table)
        for kind, words, call in (
            (ferroflash.MissingFeatureError, "a gradient of table", lambda: embedding.forward(ids.int(), table)),
            (ferroflash.MissingFeatureError, "gradient of gradients", twice),
            (ferroflash.InputTypeError, "input holds torch.float32", lambda: embedding.embedding(table, table)),
            (ferroflash.InputTypeError, "input is a ndarray", lambda: embedding.embedding(np.zeros(3, np.int64), table)),
            (ferroflash.InputError, "padding_idx is 11; weight has 11 rows", lambda: embedding.embedding(ids, table, 11)),
            (ferroflash.InputError, "weight has 1 axes", lambda: embedding.embedding(ids, table[0])),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()


def array(tensor):
    """The tensor's values, in the precision that NumPy has at least."""
    return tensor.detach().float().cpu().numpy()


if __name__ == "__main__":
    unittest.main()
