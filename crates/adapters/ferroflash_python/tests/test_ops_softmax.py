"""Softmax and its logarithm: on arrays of NumPy and tensors of PyTorch against a float64 reference, and everything that is refused.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device for PyTorch, `cuda`.
"""

import os
import unittest
import warnings

import numpy as np

import ferroflash
from ferroflash.ops import softmax
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
    return (2 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def hidden(shape, seed):
    """A mask that biases columns and hides some."""
    mask = values(shape, seed)
    mask[np.random.default_rng(seed).random(shape) < 0.3] = -np.inf
    return mask


def expected(x, log, scale, mask, causal, number):
    """The result by the definition, in this precision."""
    y = x.astype(number) * number(scale)
    if mask is not None and mask.dtype == bool:
        y = np.where(mask, y, -np.inf)
    elif mask is not None:
        y = y + mask.astype(number)
    if causal:
        rows, columns = x.shape[-2:]
        y = np.where(np.arange(columns) <= np.arange(rows)[:, None] + columns - rows, y, -np.inf)
    most = y.max(axis=-1, keepdims=True)
    y = y - np.where(np.isfinite(most), most, 0)
    total = np.exp(y).sum(axis=-1, keepdims=True)
    total = np.where(total == 0, 1, total)
    return y - np.log(total) if log else np.exp(y) / total


def expected_gradient(out, dout, log, scale, number):
    """The gradient from what was computed, in this precision."""
    out, dout = out.astype(number), dout.astype(number)
    if log:
        dout = np.where(np.isfinite(out), dout, 0)
        return number(scale) * (dout - np.exp(out) * dout.sum(axis=-1, keepdims=True))
    return number(scale) * out * (dout - (out * dout).sum(axis=-1, keepdims=True))


def check(test, out, x, precision, log=False, scale=1.0, mask=None, causal=False):
    with np.errstate(invalid="ignore"):
        exact, rounded = (expected(x, log, scale, mask, causal, number) for number in (np.float64, np.float32))
    check_close(test, "out", out, exact, round_to(rounded, precision))


def check_gradient(test, dx, out, dout, precision, log=False, scale=1.0):
    exact, rounded = (expected_gradient(out, dout, log, scale, number) for number in (np.float64, np.float32))
    check_close(test, "dx", dx, exact, round_to(rounded, precision))


class Reference(unittest.TestCase):
    def test_its_gradients_are_those_of_its_result(self):
        x, dout = values((4, 9), 1, np.float64), values((4, 9), 2, np.float64)
        for log in (False, True):
            loss = lambda x: (expected(x, log, 0.7, None, False, np.float64) * dout).sum(axis=-1)
            dx = expected_gradient(expected(x, log, 0.7, None, False, np.float64), dout, log, 0.7, np.float64)
            for column, step in enumerate(np.eye(9) * 1e-6):
                np.testing.assert_allclose(dx[:, column], (loss(x + step) - loss(x - step)) / 2e-6, rtol=1e-6, atol=1e-8)


class Arrays(unittest.TestCase):
    def run_both(self, x, **options):
        precision = "f16" if x.dtype == np.float16 else "f32"
        out = softmax.forward(x, **options)
        self.assertEqual((out.dtype, out.shape), (x.dtype, x.shape))
        check(self, out, x, precision, **options)
        dout = values(x.shape, 7, x.dtype)
        of_both = {name: value for name, value in options.items() if name in ("log", "scale")}
        check_gradient(self, softmax.backward(out, dout, **of_both), out, dout, precision, **of_both)
        return out

    def test_types_and_columns(self):
        for precision, dtype in DTYPES.items():
            for log in (False, True):
                for columns in (1, 7, 64, 200, 1030):
                    with self.subTest(dtype=precision, log=log, columns=columns):
                        self.run_both(values((2, 5, columns), 1, dtype), log=log, scale=0.7)

    def test_masks(self):
        for dtype in DTYPES.values():
            for log in (False, True):
                x = values((2, 3, 9, 40), 1, dtype)
                for mask in (hidden(x.shape, 2).astype(dtype), np.broadcast_to(hidden((2, 1, 1, 40), 3), x.shape)):
                    for causal in (False, True):
                        with self.subTest(dtype=dtype, log=log, causal=causal):
                            self.run_both(x, log=log, mask=mask, causal=causal)

    def test_masks_of_booleans(self):
        """Whole and shared, in rows that start anywhere, behind other bytes. What is hidden is not looked at, and rows that see nothing are zeros."""
        for dtype in DTYPES.values():
            for log in (False, True):
                for columns in (1, 40, 77, 1300):
                    shape = (2, 3, 5, columns)
                    whole = np.random.default_rng(2).random((*shape[:-1], columns + 3)) < 0.6
                    whole[1, 2, 3] = False
                    for seen in (whole[..., 3:], whole[..., :columns].copy(), np.broadcast_to(whole[:, :1, 1:2, 1 : columns + 1], shape)):
                        with self.subTest(dtype=dtype, log=log, columns=columns, strides=seen.strides):
                            x = values(shape, 1, dtype)
                            x[~seen] = np.nan
                            self.run_both(x, log=log, mask=seen, causal=columns > 40, scale=0.7)

    def test_rows_that_see_nothing(self):
        x = values((9, 4), 1)
        out = self.run_both(x, causal=True)
        self.assertFalse(out[:5].any())
        out = self.run_both(x, causal=True, log=True)
        self.assertTrue((out[:5] == -np.inf).all())

    def test_strides_and_given_outputs(self):
        x = values((5, 90), 1, np.float16)[:, 7:71]
        memory = np.full((5, 80), np.nan, dtype=np.float16)
        out = memory[:, 9:73]
        self.assertIs(softmax.forward(x, out=out), out)
        check(self, out, x, "f16")
        dx = np.full((5, 64), np.nan, dtype=np.float16)
        self.assertIs(softmax.backward(out, x, dx=dx), dx)
        check_gradient(self, dx, out, x, "f16")
        memory[:, 9:73] = np.nan
        self.assertTrue(np.isnan(memory).all())

    def test_what_is_refused(self):
        x = values((4, 16), 1)
        for kind, words, call in (
            (ferroflash.InputTypeError, "x holds floating-point numbers of 64 bits", lambda: softmax.forward(x.astype(np.float64))),
            (ferroflash.InputTypeError, "x holds booleans of 8 bits; float16, bfloat16 and float32", lambda: softmax.forward(x > 0)),
            (ferroflash.InputTypeError, "dout holds booleans of 8 bits", lambda: softmax.backward(x, x > 0)),
            (ferroflash.InputTypeError, "mask holds unsigned integers of 8 bits; bool, float16", lambda: softmax.forward(x, mask=x.astype(np.uint8))),
            (ferroflash.InputTypeError, "mask holds floating-point numbers of 64 bits; bool, float16", lambda: softmax.forward(x, mask=x.astype(np.float64))),
            (ferroflash.InputTypeError, "mask holds f16", lambda: softmax.forward(x, mask=x.astype(np.float16))),
            (ferroflash.InputError, r"mask has shape \[4, 15\]", lambda: softmax.forward(x, mask=(x > 0)[:, 1:])),
            (ferroflash.InputError, "mask .* contiguous", lambda: softmax.forward(x[:, :8], mask=(x > 0)[:, ::2])),
            (ferroflash.InputTypeError, "x is a list", lambda: softmax.forward([1.0])),
            (ferroflash.InputError, r"mask has shape \[16\]", lambda: softmax.forward(x, mask=x[0])),
            (ferroflash.InputError, "scale inf", lambda: softmax.forward(x, scale=np.inf)),
            (ferroflash.InputError, "causal rows need at least 2", lambda: softmax.forward(x[0], causal=True)),
            (ferroflash.InputError, "overlap", lambda: softmax.forward(x, out=x)),
            (ferroflash.InputError, "dout is needed", lambda: softmax.backward(x, None)),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()


@unittest.skipIf(torch is None, "torch is not installed")
class Torch(unittest.TestCase):
    def inputs(self, dtype=None, shape=(2, 3, 9, 40)):
        return torch.from_numpy(values(shape, 1)).to(DEVICE, dtype or torch.float32).requires_grad_()

    def test_results_and_gradients(self):
        for precision, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
            for log in (False, True):
                for shape in ((2, 1, 1, 40), (9, 40), (2, 3, 9, 1), None):
                    with self.subTest(dtype=precision, log=log, mask=shape):
                        x, mask = self.inputs(dtype), None if shape is None else torch.from_numpy(hidden(shape, 3)).to(DEVICE)
                        function = softmax.log_softmax if log else softmax.softmax
                        out = function(x, scale=0.5, mask=mask, causal=shape is None)
                        dout = torch.randn(x.shape, device=DEVICE).to(dtype)
                        (dx,) = torch.autograd.grad(out, x, dout)
                        mask = None if mask is None else np.broadcast_to(array(mask), x.shape)
                        check(self, array(out), array(x), precision, log, 0.5, mask, shape is None)
                        check_gradient(self, array(dx), array(out), array(dout), precision, log, 0.5)

    def test_masks_of_booleans(self):
        for precision, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
            for log in (False, True):
                for shape in ((2, 1, 1, 40), (9, 40), (2, 3, 9, 1), (2, 3, 9, 40)):
                    with self.subTest(dtype=precision, log=log, mask=shape):
                        x, seen = self.inputs(dtype), torch.from_numpy(np.random.default_rng(3).random(shape) < 0.6).to(DEVICE)
                        out = (softmax.log_softmax if log else softmax.softmax)(x, mask=seen, scale=0.5)
                        dout = torch.randn(x.shape, device=DEVICE).to(dtype)
                        (dx,) = torch.autograd.grad(out, x, dout)
                        mask = np.broadcast_to(seen.cpu().numpy(), x.shape)
                        check(self, array(out), array(x), precision, log, 0.5, mask)
                        check_gradient(self, array(dx), array(out), array(dout), precision, log, 0.5)

    def test_compiled_as_eager(self):
        x, numbers = self.inputs(torch.bfloat16), torch.from_numpy(hidden((9, 40), 3)).to(DEVICE)
        for mask in (numbers, numbers > 0):
            call = lambda x, mask: softmax.softmax(x, scale=0.5, mask=mask, causal=True)
            found = []
            for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)):
                out = function(x, mask)
                found.append((out, *torch.autograd.grad(out.float().square().sum(), x)))
            for eager, of_graph in zip(*found):
                self.assertTrue(torch.equal(eager, of_graph))

    def test_operation_fits_what_pytorch_asks_of_it(self):
        x = self.inputs(torch.float16)
        for log in (False, True):
            for mask in (None, x.detach() > 0):
                torch.library.opcheck(torch.ops.ferroflash.softmax, (x, mask, log, 0.5, True))

    def test_strides(self):
        x = self.inputs(shape=(5, 80))[:, ::2]
        out = softmax.softmax(x)
        check(self, array(out), array(x), "f32")
        # The sum of a row does not change.
        self.assertLess(torch.autograd.grad(out.sum(), x)[0].abs().max().item(), 1e-6)

    def test_what_is_refused(self):
        x = self.inputs()
        twice = lambda: torch.autograd.grad(torch.autograd.grad(softmax.softmax(x).sum(), x, create_graph=True)[0].sum(), x)
        for kind, words, call in (
            (ferroflash.MissingFeatureError, "softmax: a gradient of mask", lambda: softmax.softmax(x, mask=x)),
            (ferroflash.MissingFeatureError, "a gradient of x", lambda: softmax.forward(x)),
            (ferroflash.MissingFeatureError, "gradient of gradients", twice),
            (ferroflash.InputTypeError, "mask holds torch.uint8; .* torch.bool for masks", lambda: softmax.softmax(x, mask=(x > 0).byte())),
            (ferroflash.InputTypeError, "mask holds elements of another type; bool, float16", lambda: softmax.softmax(x, mask=(x > 0).int())),
            (ferroflash.InputTypeError, "x holds elements of another type; float16", lambda: softmax.softmax(x > 0)),
            (ferroflash.InputTypeError, "mask is a ndarray", lambda: softmax.log_softmax(x, mask=np.zeros(40))),
            (ferroflash.InputTypeError, "mask holds f16", lambda: softmax.softmax(x, mask=torch.zeros(40, device=DEVICE).half())),
            (ferroflash.InputError, r"log_softmax: mask of shape \(39,\)", lambda: softmax.log_softmax(x, mask=torch.zeros(39, device=DEVICE))),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()


def array(tensor):
    """The tensor's values, in the precision that NumPy has at least."""
    return tensor.detach().float().cpu().numpy()


if __name__ == "__main__":
    unittest.main()
