"""Rotary embedding: on arrays of NumPy and tensors of PyTorch against a float64 reference, and everything that is refused.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device for PyTorch, `cuda`.
"""

import os
import unittest
import warnings

import numpy as np

import ferroflash
from ferroflash.ops import rotary
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


def tables(positions, half, dtype=np.float32):
    """Cosines and sines of angles that are everywhere in the circle."""
    angles = np.random.default_rng(9).uniform(0, 2 * np.pi, (positions, half))
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def turned(x, cos, sin, positions, interleaved, conjugate, number):
    """Rows turned as complex numbers, which is not how kernels do it. `positions` is of x's shape without heads and columns."""
    half = cos.shape[1]
    x = x.astype(number)
    pairs = x[..., : 2 * half]
    pairs = pairs.reshape(*x.shape[:-1], half, 2) if interleaved else pairs.reshape(*x.shape[:-1], 2, half).swapaxes(-1, -2)
    factors = (cos.astype(number) + (-1j if conjugate else 1j) * sin.astype(number))[positions][..., None, :]
    products = (pairs[..., 0] + 1j * pairs[..., 1]) * factors
    both = np.stack((products.real, products.imag), axis=-1 if interleaved else -2).reshape(*x.shape[:-1], 2 * half)
    return np.concatenate((both, x[..., 2 * half :]), axis=-1)


def check(test, out, x, cos, sin, positions, precision, interleaved=False, conjugate=False):
    exact, rounded = (turned(x, cos, sin, positions, interleaved, conjugate, number) for number in (np.float64, np.float32))
    check_close(test, "out", out, exact, round_to(rounded, precision))


class Arrays(unittest.TestCase):
    def test_types_and_columns(self):
        for precision, dtype in DTYPES.items():
            for interleaved in (False, True):
                for columns, half in ((64, 32), (64, 16), (10, 3), (2, 1)):
                    for of_tables in (dtype, np.float32):
                        for conjugate in (False, True):
                            with self.subTest(dtype=precision, columns=columns, half=half, tables=of_tables):
                                x, (cos, sin) = values((2, 7, 3, columns), 1, dtype), tables(20, half, of_tables)
                                out = rotary.forward(x, cos, sin, interleaved=interleaved, conjugate=conjugate, offset=5)
                                self.assertEqual((out.dtype, out.shape), (dtype, x.shape))
                                check(self, out, x, cos, sin, np.arange(5, 12)[None], precision, interleaved, conjugate)

    def test_positions(self):
        x, (cos, sin) = values((2, 7, 3, 32), 1), tables(20, 16)
        int32 = lambda *numbers: np.array(numbers, dtype=np.int32)
        out = rotary.forward(x, cos, sin, offsets=int32(3, 11))
        check(self, out, x, cos, sin, np.arange(7) + [[3], [11]], "f32")
        # Below 0, and behind the tables.
        each = np.random.default_rng(3).integers(-3, 25, (2, 7), dtype=np.int32)
        out = rotary.forward(x, cos, sin, positions=each)
        check(self, out, x, cos, sin, each.clip(0, 19), "f32")
        packed, starts = values((9, 3, 32), 2), int32(0, 2, 2, 9)
        out = rotary.forward(packed, cos, sin, starts=starts)
        check(self, out, packed, cos, sin, int32(0, 1, 0, 1, 2, 3, 4, 5, 6), "f32")
        out = rotary.forward(packed, cos, sin, starts=starts, offsets=int32(4, 0, 9))
        check(self, out, packed, cos, sin, int32(4, 5, 9, 10, 11, 12, 13, 14, 15), "f32")

    def test_in_place_and_strides(self):
        for dtype in DTYPES.values():
            projection, (cos, sin) = values((2, 7, 6, 40), 1, dtype), tables(7, 8)
            before, view = projection.copy(), projection[:, :, 1:4, 4:36]
            out = rotary.forward(view, cos, sin)
            check(self, out, view, cos, sin, np.arange(7)[None], "f16" if dtype is np.float16 else "f32")
            self.assertIs(rotary.forward(view, cos, sin, inplace=True), view)
            np.testing.assert_array_equal(view, out)
            before[:, :, 1:4, 4:36] = out
            np.testing.assert_array_equal(projection, before)

    def test_what_is_refused(self):
        x, (cos, sin) = values((2, 7, 3, 32), 1), tables(20, 16)
        frozen, ids = x.copy(), np.zeros(2, np.int32)
        frozen.flags.writeable = False
        for kind, words, call in (
            (ferroflash.InputTypeError, "x is a list", lambda: rotary.forward([1.0], cos, sin)),
            (ferroflash.InputTypeError, "cos holds f16; f32 is accepted", lambda: rotary.forward(x, cos.astype(np.float16), sin)),
            (ferroflash.InputTypeError, "offsets holds integers of 64 bits", lambda: rotary.forward(x, cos, sin, offsets=ids.astype(np.int64))),
            (ferroflash.InputError, r"cos has shape \[20, 17\]", lambda: rotary.forward(x, *tables(20, 17))),
            (ferroflash.InputError, r"sin has shape \[19, 16\]", lambda: rotary.forward(x, cos, sin[:19])),
            (ferroflash.InputError, "reach position 20", lambda: rotary.forward(x, cos, sin, offset=14)),
            (ferroflash.InputError, "offset is -1", lambda: rotary.forward(x, cos, sin, offset=-1)),
            (ferroflash.InputError, "offsets holds 3 numbers; 2 are needed", lambda: rotary.forward(x, cos, sin, offsets=np.zeros(3, np.int32))),
            (ferroflash.InputError, "offset and offsets are given", lambda: rotary.forward(x, cos, sin, offset=1, offsets=ids)),
            (ferroflash.InputError, "x has 4 axes", lambda: rotary.forward(x, cos, sin, starts=ids)),
            (ferroflash.InputError, "inplace and out are given", lambda: rotary.forward(x, cos, sin, inplace=True, out=x)),
            (ferroflash.InputError, "x is read-only", lambda: rotary.forward(frozen, cos, sin, inplace=True)),
            (ferroflash.InputError, "overlap", lambda: rotary.forward(x, cos, sin, out=x)),
            (ferroflash.InputError, "cos is needed", lambda: rotary.forward(x, None, sin)),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()


@unittest.skipIf(torch is None, "torch is not installed")
class Torch(unittest.TestCase):
    def inputs(self, dtype=None, shape=(2, 7, 3, 32), half=16):
        x = torch.from_numpy(values(shape, 1)).to(DEVICE, dtype or torch.float32).requires_grad_()
        return x, *(torch.from_numpy(table).to(DEVICE) for table in tables(20, half))

    def test_results_and_gradients(self):
        for precision, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
            for interleaved in (False, True):
                for offsets in (4, torch.tensor([3, 11], device=DEVICE), torch.tensor([3, 11], device=DEVICE, dtype=torch.int32)):
                    with self.subTest(dtype=precision, interleaved=interleaved, offsets=offsets):
                        x, cos, sin = self.inputs(dtype, half=12)
                        out = rotary.apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=offsets)
                        dout = torch.randn(x.shape, device=DEVICE).to(dtype)
                        (dx,) = torch.autograd.grad(out, x, dout)
                        positions = np.arange(7) + ([[4]] if isinstance(offsets, int) else [[3], [11]])
                        given = (array(cos), array(sin), positions, precision, interleaved)
                        check(self, array(out), array(x), *given)
                        check(self, array(dx), array(dout), *given, conjugate=True)

    def test_packed_sequences(self):
        x, cos, sin = self.inputs(shape=(9, 3, 32))
        starts = torch.tensor([0, 2, 9], dtype=torch.int32, device=DEVICE)
        out = rotary.apply_rotary_emb(x, cos, sin, cu_seqlens=starts, max_seqlen=7)
        (dx,) = torch.autograd.grad(out.sum(), x)
        given = (array(cos), array(sin), np.array([0, 1, 0, 1, 2, 3, 4, 5, 6]), "f32")
        check(self, array(out), array(x), *given)
        check(self, array(dx), np.ones((9, 3, 32), np.float32), *given, conjugate=True)

    def test_in_place(self):
        x, cos, sin = self.inputs(torch.bfloat16)
        expected = rotary.apply_rotary_emb(x, cos, sin)
        (gradient,) = torch.autograd.grad(expected.float().square().sum(), x)
        copy = x * 1
        out = rotary.apply_rotary_emb(copy, cos, sin, inplace=True)
        self.assertTrue(out is copy and torch.equal(out, expected))
        self.assertTrue(torch.equal(torch.autograd.grad(out.float().square().sum(), x)[0], gradient))
        plain = x.detach().clone()
        version = plain._version
        self.assertIs(rotary.apply_rotary_emb(plain, cos, sin, inplace=True), plain)
        self.assertTrue(torch.equal(plain, expected) and plain._version > version)

    def test_gradients_of_gradients(self):
        x, cos, sin = self.inputs()
        (dx,) = torch.autograd.grad(rotary.apply_rotary_emb(x, cos, sin).square().sum(), x, create_graph=True)
        # A turn keeps the sum of squares: it is that of x, whose gradient is 2 x.
        torch.testing.assert_close(dx, 2 * x)
        torch.testing.assert_close(torch.autograd.grad(dx.sum(), x)[0], torch.full_like(x, 2))

    def test_compiled_as_eager(self):
        x, cos, sin = self.inputs(torch.bfloat16)
        for inplace in (False, True):
            call = lambda x: rotary.apply_rotary_emb(x * 1, cos, sin, True, inplace, 3)
            found = []
            for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)):
                out = function(x)
                found.append((out, *torch.autograd.grad(out.float().square().sum(), x)))
            for eager, of_graph in zip(*found):
                self.assertTrue(torch.equal(eager, of_graph))

    def test_operation_fits_what_pytorch_asks_of_it(self):
        x, cos, sin = self.inputs(torch.float16)
        torch.library.opcheck(torch.ops.ferroflash.rotary, (x, cos, sin, None, None, 2, False, False))

    def test_strides(self):
        x, cos, sin = self.inputs(shape=(2, 7, 3, 64))
        gaps = x[..., ::2]
        out = rotary.apply_rotary_emb(gaps, cos, sin)
        check(self, array(out), array(gaps), array(cos), array(sin), np.arange(7)[None], "f32")
        (of_sum,) = torch.autograd.grad(out.sum(), gaps)
        check(self, array(of_sum), np.ones((2, 7, 3, 32), np.float32), array(cos), array(sin), np.arange(7)[None], "f32", conjugate=True)

    def test_what_is_refused(self):
        x, cos, sin = self.inputs()
        call = rotary.apply_rotary_emb
        starts = torch.tensor([0, 7], device=DEVICE)
        wide = torch.zeros(2, 7, 3, 64, device=DEVICE)
        for kind, words, refused in (
            (ferroflash.MissingFeatureError, "a gradient of cos", lambda: call(x, cos.clone().requires_grad_(), sin)),
            (ferroflash.MissingFeatureError, "a gradient of x", lambda: rotary.forward(x, cos, sin)),
            (ferroflash.InputTypeError, "cu_seqlens holds torch.int64", lambda: call(x[0], cos, sin, cu_seqlens=starts)),
            (ferroflash.InputTypeError, "seqlen_offsets holds torch.float32", lambda: call(x, cos, sin, seqlen_offsets=cos[0])),
            (ferroflash.InputTypeError, "cos is a ndarray", lambda: call(x, np.ones((20, 16)), sin)),
            (ferroflash.InputError, "x has 3 axes", lambda: call(x[0], cos, sin)),
            (ferroflash.InputError, "x has 4 axes", lambda: call(x, cos, sin, cu_seqlens=starts.int())),
            (ferroflash.InputError, "seqlen_offsets is -2", lambda: call(x, cos, sin, seqlen_offsets=-2)),
            (ferroflash.InputError, "reach position 26", lambda: call(x, cos, sin, seqlen_offsets=20)),
            (ferroflash.InputError, "with inplace it must be contiguous", lambda: call(wide[..., ::2], cos, sin, inplace=True)),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                refused()


def array(tensor):
    """The tensor's values, in the precision that NumPy has at least."""
    return tensor.detach().float().cpu().numpy()


if __name__ == "__main__":
    unittest.main()
