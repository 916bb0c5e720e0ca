"""RMSNorm and LayerNorm: on arrays of NumPy and tensors of PyTorch against a float64 reference, and everything that is refused.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device for PyTorch, `cuda`.
"""

import os
import unittest
import warnings
from unittest import mock

import numpy as np

import ferroflash
from ferroflash.ops import layer_norm
from reference import check_close, round_to

try:
    import torch
except ImportError:
    torch = None

DTYPES = {"f16": np.float16, "f32": np.float32}
DEVICE = os.environ.get("FERROFLASH_TEST_DEVICE", "cpu")
EPS = 1e-3


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float32):
    # Away from 0, so that a mean is something.
    return (np.random.default_rng(seed).standard_normal(shape) + 0.5).astype(dtype)


def total_of(x, residual, number):
    return x.astype(number) if residual is None else x.astype(number) + residual.astype(number)


def statistics(h, is_rms):
    mean = 0 * h[..., :1] if is_rms else h.mean(axis=-1, keepdims=True)
    deviations = h - mean
    return mean, 1 / np.sqrt((deviations * deviations).mean(axis=-1, keepdims=True) + h.dtype.type(EPS))


def factor_of(weight, zero_centered, number):
    return number(1) if weight is None else weight.astype(number) + number(zero_centered)


def normalized(h, weight, bias, is_rms, zero_centered):
    """The rows by the definition, in the precision of `h`."""
    mean, rstd = statistics(h, is_rms)
    out = (h - mean) * rstd * factor_of(weight, zero_centered, h.dtype.type)
    return out if bias is None else out + bias.astype(h.dtype)


def gradients(h, weight, dout, dtotal, is_rms, zero_centered, kept=None):
    """`(dh, dweight, dbias)` of `sum(dout out) + sum(dtotal h)`, in the precision of `h`. `kept` is what a program keeps of `h` for them."""
    mean, rstd = statistics(h, is_rms)
    h = h if kept is None else kept
    n, g = (h - mean) * rstd, dout * factor_of(weight, zero_centered, h.dtype.type)
    dh = g - n * (g * n).mean(axis=-1, keepdims=True)
    if not is_rms:
        dh = dh - g.mean(axis=-1, keepdims=True)
    rows = tuple(range(h.ndim - 1))
    return rstd * dh + dtotal, (dout * n).sum(axis=rows), dout.sum(axis=rows)


def check_forward(test, out, inputs, precision, is_rms, zero_centered=False):
    """Fails the test where `out` is outside the bound; inputs are x, weight, bias and residual."""
    x, weight, bias, residual = inputs
    exact = normalized(total_of(x, residual, np.float64), weight, bias, is_rms, zero_centered)
    rounded = normalized(total_of(x, residual, np.float32), weight, bias, is_rms, zero_centered)
    check_close(test, "out", out, exact, round_to(rounded, precision))


def check_backward(test, found, inputs, dout, dtotal, precision, is_rms, zero_centered=False, weights="f32", sums=None):
    """Fails the test where one of dx, dresidual, dweight and dbias is outside the bound. `sums` is the precision of the sum with the residual."""
    x, weight, _, residual = inputs
    both = []
    for number in (np.float64, np.float32):
        h = total_of(x, residual, number)
        # A program has the sum as it was written.
        kept = None if number is np.float64 else round_to(h, sums or precision).astype(number)
        dtotal_of = number(0) if dtotal is None else dtotal.astype(number)
        both.append(gradients(h, weight, dout.astype(number), dtotal_of, is_rms, zero_centered, kept))
    (dh, *exact), (dh_rounded, *rounded) = both
    precisions = (precision, sums or precision, weights, weights)
    for name, ours, truth, theirs, of in zip(
        ("dx", "dresidual", "dweight", "dbias"), found, (dh, dh, *exact), (dh_rounded, dh_rounded, *rounded), precisions
    ):
        if ours is not None:
            check_close(test, name, ours, truth, round_to(theirs, of))


class Reference(unittest.TestCase):
    def test_its_gradients_are_those_of_its_result(self):
        h, weight = values((3, 11), 1, np.float64), values(11, 2, np.float64)
        dout, dtotal = values((3, 11), 3, np.float64), values((3, 11), 4, np.float64)
        for is_rms in (False, True):
            loss = lambda h, weight: (dout * normalized(h, weight, None, is_rms, True)).sum(axis=-1) + (dtotal * h).sum(axis=-1)
            dh, dweight, _ = gradients(h, weight, dout, dtotal, is_rms, True)
            for column, step in enumerate(np.eye(11) * 1e-6):
                by_x = (loss(h + step, weight) - loss(h - step, weight)) / 2e-6
                np.testing.assert_allclose(dh[:, column], by_x, rtol=1e-6, atol=1e-8)
                by_weight = (loss(h, weight + step) - loss(h, weight - step)).sum() / 2e-6
                np.testing.assert_allclose(dweight[column], by_weight, rtol=1e-6, atol=1e-8)


class Arrays(unittest.TestCase):
    def run_forward(self, precision, is_rms, columns, **given):
        """Both passes of rows of so many columns, with what is given beside them."""
        dtype = DTYPES[precision]
        shape = (2, 5, columns)
        x = values(shape, 1, dtype)
        weight, bias, residual = (given.get(name) for name in ("weight", "bias", "residual"))
        options = {"is_rms_norm": is_rms, "eps": EPS, "zero_centered_weight": given.get("zero_centered", False)}
        out, total, mean, rstd = layer_norm.forward(x, weight, bias, residual, return_statistics=True, **options)
        inputs, zero_centered = (x, weight, bias, residual), options["zero_centered_weight"]
        self.assertEqual((out.dtype, rstd.shape, rstd.dtype, mean is None), (dtype, shape[:-1], np.float32, is_rms))
        check_forward(self, out, inputs, precision, is_rms, zero_centered)
        sums = precision
        if residual is None:
            self.assertIsNone(total)
        else:
            sums = "f32" if residual.dtype == np.float32 else precision
            self.assertEqual(total.dtype, residual.dtype)
            np.testing.assert_array_equal(total, total_of(x, residual, np.float32).astype(residual.dtype))
        h = x if total is None else total
        dout = values(shape, 5, dtype)
        dtotal = None if total is None else values(shape, 6, total.dtype)
        found = layer_norm.backward(h, weight, bias, mean, rstd, dout, dtotal, **options)
        dx, dresidual, dweight, dbias = found
        self.assertEqual((dx.dtype, dresidual.dtype, dresidual is dx), (dtype, h.dtype, h.dtype == dtype))
        self.assertEqual([None if x is None else x.dtype for x in (dweight, dbias)], [None if x is None else x.dtype for x in (weight, bias)])
        weights = "f32" if weight is None or weight.dtype == np.float32 else precision
        check_backward(self, found, inputs, dout, dtotal, precision, is_rms, zero_centered, weights, sums)

    def test_types_and_columns(self):
        """Vectors and single elements, teams of all sizes, and columns that fill none of them."""
        for precision in DTYPES:
            for is_rms in (False, True):
                for columns in (1, 7, 64, 200, 1030):
                    with self.subTest(dtype=precision, is_rms=is_rms, columns=columns):
                        self.run_forward(precision, is_rms, columns)

    def test_weights_and_residuals(self):
        for precision, dtype in DTYPES.items():
            for is_rms in (False, True):
                for of_weights in (dtype, np.float32):
                    for of_residual in (None, dtype, np.float32):
                        with self.subTest(dtype=precision, is_rms=is_rms, weights=of_weights, residual=of_residual):
                            residual = None if of_residual is None else values((2, 5, 96), 4, of_residual)
                            weight, bias = values(96, 2, of_weights), values(96, 3, of_weights)
                            given = {"weight": weight, "bias": bias, "residual": residual, "zero_centered": of_residual is not None}
                            self.run_forward(precision, is_rms, 96, **given)

    def test_any_strides_in_place(self):
        """Rows inside of larger arrays, and axes in another order; what lies between the elements of the output stays."""
        weight = values(64, 2)
        inside = values((3, 6, 80), 1, np.float16)[1:, :5, 8:72]
        swapped = values((5, 2, 64), 2, np.float16).transpose(1, 0, 2)
        shared = np.broadcast_to(values((5, 64), 3, np.float16), (2, 5, 64))
        for x in (inside, swapped, shared):
            for first in (8, 3):
                memory = np.full((2, 6, 75), np.nan, dtype=np.float16)
                out = memory[:, :5, first : first + 64]
                returned, *_ = layer_norm.forward(x, weight, is_rms_norm=True, eps=EPS, out=out)
                self.assertIs(returned, out)
                check_forward(self, out, (x, weight, None, None), "f16", True)
                memory[:, :5, first : first + 64] = np.nan
                self.assertTrue(np.isnan(memory).all())

    def test_dropout_and_factors_of_rows(self):
        """What is dropped is 0 and what is not is doubled, forward and backward alike; other numbers drop others."""
        x = np.ones((2, 5, 200), np.float32)
        rowscale = np.arange(1, 11, dtype=np.float32).reshape(2, 5)
        dropped = {"dropout_p": 0.5, "rng_state": (42, 7)}
        _, total, mean, rstd = layer_norm.forward(x, return_statistics=True, rowscale=rowscale, **dropped)
        kept = total != 0
        np.testing.assert_array_equal(total, kept * 2 * rowscale[..., None])
        # Five standard deviations of 2000 throws.
        self.assertLess(abs(kept.mean() - 0.5), 5 * np.sqrt(0.25 / kept.size))
        zeros = np.zeros_like(x)
        dx, dresidual, _, _ = layer_norm.backward(total, None, None, mean, rstd, zeros, x, rowscale=rowscale, **dropped)
        np.testing.assert_array_equal(dx, total)
        np.testing.assert_array_equal(dresidual, x)
        dx, dresidual, _, _ = layer_norm.backward(total, None, None, mean, rstd, zeros, x, residual_gradient=False, **dropped)
        np.testing.assert_array_equal(dx, kept * 2)
        self.assertIsNone(dresidual)
        for seed, offset in ((43, 7), (42, 8)):
            self.assertFalse((layer_norm.forward(x, dropout_p=0.5, rng_state=(seed, offset))[1] == kept * 2).all())
        residual = values(x.shape, 3)
        out, total, _, _ = layer_norm.forward(x, residual=residual, eps=EPS, **dropped)
        check_forward(self, out, ((kept * 2).astype(np.float32), None, None, residual), "f32", False)
        np.testing.assert_array_equal(total, np.float32(2) * kept + residual)

    def test_no_rows(self):
        out, _, mean, rstd = layer_norm.forward(np.zeros((0, 8), np.float32), return_statistics=True)
        self.assertEqual((out.shape, mean.shape, rstd.shape), ((0, 8), (0,), (0,)))

    def test_statistics_are_made_where_they_are_asked_for(self):
        x = values((4, 16), 1)
        self.assertEqual(layer_norm.forward(x)[1:], (None, None, None))
        _, _, mean, rstd = layer_norm.forward(x, eps=EPS, return_statistics=True)
        exact = statistics(x.astype(np.float64), False)
        np.testing.assert_allclose(mean, exact[0][:, 0], rtol=1e-5)
        np.testing.assert_allclose(rstd, exact[1][:, 0], rtol=1e-5)

    def test_what_is_refused(self):
        x, weight = values((4, 16), 1), values(16, 2)
        half = x.astype(np.float16)
        frozen = np.empty_like(x)
        frozen.flags.writeable = False
        memory = values((8, 16), 3)
        for kind, words, call in (
            (ferroflash.InputTypeError, "x holds floating-point numbers of 64 bits", lambda: layer_norm.forward(x.astype(np.float64))),
            (ferroflash.InputTypeError, "weight holds f16; f32 is accepted", lambda: layer_norm.forward(x, weight.astype(np.float16))),
            (ferroflash.InputTypeError, "residual holds f16", lambda: layer_norm.forward(x, residual=half)),
            (ferroflash.InputTypeError, "bias holds f16; f32 is accepted", lambda: layer_norm.forward(half, weight, weight.astype(np.float16))),
            (ferroflash.InputTypeError, "x is a list", lambda: layer_norm.forward([[1.0]], out=x)),
            (ferroflash.InputTypeError, "weight is a tuple", lambda: layer_norm.forward(x, (-1, 2, weight.ctypes.data, (16,), (1,)))),
            (ferroflash.InputError, "weight has shape [15]", lambda: layer_norm.forward(x, weight[:15])),
            (ferroflash.InputError, "weight has shape [16] and strides [2]", lambda: layer_norm.forward(x, values(32, 2)[::2])),
            (ferroflash.InputError, "epsilon 0 is not accepted", lambda: layer_norm.forward(x, eps=0.0)),
            (ferroflash.InputError, "zero_centred is given, and no weight", lambda: layer_norm.forward(x, zero_centered_weight=True)),
            (ferroflash.InputError, "residual has shape [3, 16]", lambda: layer_norm.forward(x, residual=x[:3])),
            (ferroflash.InputError, "must be contiguous", lambda: layer_norm.forward(values((4, 32), 1)[:, ::2])),
            (ferroflash.InputError, "no axes", lambda: layer_norm.forward(np.ones((), np.float32))),
            (ferroflash.InputError, "out is read-only", lambda: layer_norm.forward(x, out=frozen)),
            (ferroflash.InputError, "overlap", lambda: layer_norm.forward(memory[:4], out=memory[1:5])),
            (ferroflash.InputError, "mean", lambda: layer_norm.forward(x, is_rms_norm=True, mean=np.empty(4, np.float32))),
            (ferroflash.InputError, "dropout_p is 0.5; rng_state must be given", lambda: layer_norm.forward(x, dropout_p=0.5)),
            (ferroflash.InputError, "dropout of 1 is not accepted", lambda: layer_norm.forward(x, dropout_p=1.0, rng_state=(1, 2))),
            (ferroflash.InputError, "rowscale has shape [16]", lambda: layer_norm.forward(x, rowscale=weight)),
            (ferroflash.InputTypeError, "rowscale holds f16; f32 is accepted", lambda: layer_norm.forward(x, rowscale=half[:, 0].copy())),
            (ferroflash.InputError, "rstd is needed", lambda: layer_norm.backward(x, None, None, None, None, x, is_rms_norm=True)),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words.replace("[", r"\[").replace("]", r"\]")):
                call()


@unittest.skipIf(torch is None, "torch is not installed")
class Torch(unittest.TestCase):
    def inputs(self, dtype, of_residual=None, of_weights=None, shape=(2, 5, 96)):
        generator = torch.Generator(DEVICE).manual_seed(1)
        new = lambda shape, dtype: (torch.randn(shape, generator=generator, device=DEVICE) + 0.5).to(dtype).requires_grad_()
        x, residual = new(shape, dtype), None if of_residual is None else new(shape, of_residual)
        return x, new(shape[-1:], of_weights or dtype), new(shape[-1:], of_weights or dtype), residual

    def test_results_and_gradients(self):
        precisions = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
        names = {dtype: name for name, dtype in precisions.items()}
        for precision, dtype in precisions.items():
            for is_rms in (False, True):
                for of_residual, of_weights in ((None, dtype), (dtype, torch.float32), (torch.float32, dtype)):
                    with self.subTest(dtype=precision, is_rms=is_rms, residual=of_residual, weights=of_weights):
                        tensors = self.inputs(dtype, of_residual, of_weights)
                        x, weight, bias, residual = tensors
                        function = layer_norm.rms_norm_fn if is_rms else layer_norm.layer_norm_fn
                        out, total = function(x, weight, bias, residual, eps=EPS, prenorm=True, zero_centered_weight=True)
                        self.assertEqual((out.dtype, total.dtype), (dtype, of_residual or dtype))
                        dout, dtotal = (torch.randn(x.shape, device=DEVICE).to(of.dtype) for of in (out, total))
                        if residual is None:
                            dtotal.zero_()  # the sum is x, to whose gradient PyTorch adds this
                        found = torch.autograd.grad([out, total], [x for x in tensors if x is not None], [dout, dtotal])
                        dx, dweight, dbias, *dresidual = (array(x) for x in found)
                        given = [None if x is None else array(x) for x in tensors]
                        check_forward(self, array(out), given, precision, is_rms, True)
                        found = (dx, dresidual[0] if dresidual else None, dweight, dbias)
                        sums = names[of_residual or dtype]
                        check_backward(self, found, given, array(dout), array(dtotal), precision, is_rms, True, names[of_weights], sums)

    def test_gradients_of_one_result_alone(self):
        x, weight, bias, residual = self.inputs(torch.float32, torch.float32)
        out, total = layer_norm.rms_norm_fn(x, weight, bias, residual, prenorm=True)
        dx, dresidual = torch.autograd.grad(total.sum(), [x, residual], retain_graph=True)
        self.assertTrue((dx == 1).all() and (dresidual == 1).all())
        (of_sum,) = torch.autograd.grad(out.sum(), [bias])
        self.assertTrue((of_sum == 10).all())

    def test_without_a_residual_the_sum_is_x(self):
        x, weight, _, _ = self.inputs(torch.bfloat16)
        self.assertIs(layer_norm.rms_norm_fn(x, weight, None, prenorm=True)[1], x)
        total = layer_norm.rms_norm_fn(x, weight, None, prenorm=True, residual_in_fp32=True)[1]
        self.assertTrue(total.dtype is torch.float32 and torch.equal(total, x.float()))

    def test_frozen_weights_take_no_sums(self):
        x, weight, bias, _ = self.inputs(torch.float32)
        expected = torch.autograd.grad(layer_norm.layer_norm_fn(x, weight, bias).square().sum(), x)[0]
        with mock.patch("ferroflash._native.norm_backward", wraps=ferroflash._native.norm_backward) as launched:
            out = layer_norm.layer_norm_fn(x, weight.detach(), bias.detach())
            self.assertTrue(torch.equal(torch.autograd.grad(out.square().sum(), x)[0], expected))
            self.assertEqual(launched.call_args.args[0][-2:], [None, None])
            out = layer_norm.layer_norm_fn(x, weight.detach(), bias)
            dx, dbias = torch.autograd.grad(out.sum(), [x, bias])
            self.assertTrue((dbias == 10).all())

    def test_compiled_as_eager(self):
        for of_residual in (None, torch.float32):
            tensors = self.inputs(torch.bfloat16, of_residual)
            given = [x for x in tensors if x is not None]
            call = lambda *tensors: layer_norm.layer_norm_fn(*tensors, prenorm=True)
            compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
            found = []
            for function in (call, compiled):
                out, total = function(*tensors)
                found.append((out, total, *torch.autograd.grad(out.float().square().sum() + total.float().sum(), given)))
            for eager, of_graph in zip(*found):
                self.assertTrue(torch.equal(eager, of_graph))

    def test_operations_fit_what_pytorch_asks_of_them(self):
        for of_residual in (None, torch.float32):
            tensors = self.inputs(torch.float16, of_residual)
            for is_rms in (False, True):
                torch.library.opcheck(torch.ops.ferroflash.norm, (*tensors, None, 0.0, None, is_rms, EPS, False))
                state = torch.tensor([1, 2], device=DEVICE)
                rowscale = torch.ones(2, 5, device=DEVICE)
                torch.library.opcheck(torch.ops.ferroflash.norm, (*tensors, rowscale, 0.5, state, is_rms, EPS, False))

    def test_strides(self):
        """A last axis with gaps is copied, and gradients come with any strides."""
        wide = torch.randn(4, 192, device=DEVICE)
        x = wide[:, ::2].requires_grad_()
        out = layer_norm.layer_norm_fn(x, None, None, eps=EPS)
        check_forward(self, array(out), (array(x), None, None, None), "f32", False)
        (of_columns,) = torch.autograd.grad(out, x, torch.randn(96, 4, device=DEVICE).t())
        self.assertEqual(of_columns.shape, x.shape)
        # Of the sum of a row whose mean is taken off, there is none.
        (of_sum,) = torch.autograd.grad(layer_norm.layer_norm_fn(x, None, None).sum(), x)
        self.assertLess(of_sum.abs().max().item(), 1e-5)

    def test_dropout_and_factors_of_rows(self):
        """The sum says what was kept; gradients have the mask of their own call, eager and compiled."""
        for of_residual in (None, torch.float32, torch.bfloat16):
            x, weight, bias, residual = self.inputs(torch.bfloat16, of_residual)
            rowscale = torch.arange(1, 11, device=DEVICE, dtype=torch.float32)
            call = lambda x, residual: layer_norm.layer_norm_fn(
                x, weight, bias, residual, dropout_p=0.5, rowscale=rowscale, prenorm=True
            )
            for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True)):
                ones = torch.ones_like(x).requires_grad_()
                zeros = None if residual is None else torch.zeros_like(residual).requires_grad_()
                out, total = function(ones, zeros)
                self.assertIs(total.dtype, of_residual or torch.bfloat16)
                scale = rowscale.reshape(2, 5, 1)
                kept = (total / scale).float()
                self.assertTrue(((kept == 0) | (kept == 2)).all() and (kept == 0).any() and (kept == 2).any())
                of = [ones] if zeros is None else [ones, zeros]
                found = torch.autograd.grad([out, total], of, [torch.zeros_like(out), torch.ones_like(total)])
                self.assertTrue(torch.equal(found[0].float(), kept * scale))
                if zeros is not None:
                    self.assertTrue((found[1] == 1).all())
                self.assertFalse(torch.equal(function(ones, zeros)[1], total))

    def test_given_outputs(self):
        x, weight, _, residual = self.inputs(torch.float16, torch.float32)
        out, total = torch.empty_like(x), torch.empty_like(residual)
        with torch.no_grad():
            found = layer_norm.rms_norm_fn(x, weight, None, residual, prenorm=True, out=out, residual_out=total)
        self.assertTrue(found[0] is out and found[1] is total)
        expected = layer_norm.rms_norm_fn(x, weight, None, residual, prenorm=True)
        self.assertTrue(torch.equal(out, expected[0]) and torch.equal(total, expected[1]))

    def test_modules(self):
        x = self.inputs(torch.float32)[0]
        norm = layer_norm.RMSNorm(96, device=DEVICE)
        self.assertEqual([name for name, _ in norm.named_parameters()], ["weight"])
        self.assertTrue(torch.equal(norm(x), layer_norm.rms_norm_fn(x, norm.weight, None, eps=1e-5)))
        centred = layer_norm.RMSNorm(96, zero_centered_weight=True, device=DEVICE)
        self.assertTrue((centred.weight == 0).all() and torch.equal(centred(x), norm(x)))
        norm = layer_norm.LayerNorm(96, device=DEVICE)
        out, total = norm(x, residual=x, prenorm=True)
        self.assertTrue(torch.equal(out, layer_norm.layer_norm_fn(x, norm.weight, norm.bias, x, eps=1e-5)) and torch.equal(total, x + x))
        self.assertIsNone(layer_norm.LayerNorm(96, bias=False, device=DEVICE).bias)
        self.assertEqual(str(centred), "RMSNorm(96, eps=1e-05, zero_centered_weight=True)")
        dropping = layer_norm.RMSNorm(96, dropout_p=0.5, device=DEVICE)
        self.assertEqual(str(dropping), "RMSNorm(96, eps=1e-05, dropout_p=0.5)")
        self.assertTrue((dropping(x) == 0).float().mean() > 0.3)
        self.assertTrue(torch.equal(dropping.eval()(x), norm_of_ones(x)))

    def test_what_is_refused(self):
        x, weight, bias, residual = self.inputs(torch.float16, torch.float16)
        out, total = layer_norm.rms_norm_fn(x, weight, bias, residual, prenorm=True)
        twice = lambda: torch.autograd.grad(torch.autograd.grad(out.float().sum(), x, create_graph=True)[0].sum(), x)
        missing = ferroflash.MissingFeatureError
        for kind, words, call in (
            (missing, "x1", lambda: layer_norm.rms_norm_fn(x, weight, bias, x1=x)),
            (missing, "weight1", lambda: layer_norm.rms_norm_fn(x, weight, bias, weight1=weight)),
            (missing, "bias1", lambda: layer_norm.layer_norm_fn(x, weight, bias, bias1=bias)),
            (missing, "layer_norm_fn: a gradient of rowscale", lambda: layer_norm.layer_norm_fn(x, weight, bias, rowscale=x[..., 0])),
            (ferroflash.InputError, "rowscale has shape .96,.; x makes it .2, 5.", lambda: layer_norm.rms_norm_fn(x, None, None, rowscale=weight.detach())),
            (ferroflash.InputError, "dropout of 1 is not accepted", lambda: layer_norm.rms_norm_fn(x, weight, bias, dropout_p=1.0)),
            (missing, "return_dropout_mask", lambda: layer_norm.rms_norm_fn(x, weight, bias, return_dropout_mask=True)),
            (missing, "out_dtype torch.float32 for x of torch.float16", lambda: layer_norm.rms_norm_fn(x, weight, bias, out_dtype=torch.float32)),
            (missing, "gradient through `out`", lambda: layer_norm.rms_norm_fn(x, weight, bias, out=torch.empty_like(x))),
            (missing, "gradient of gradients", twice),
            (missing, "a gradient of x", lambda: layer_norm.forward(x)),
            (ferroflash.InputError, "no residual", lambda: layer_norm.rms_norm_fn(x, weight, bias, residual_out=x)),
            (ferroflash.InputTypeError, "weight is a ndarray; a torch.Tensor", lambda: layer_norm.rms_norm_fn(x, np.ones(96), bias)),
            (ferroflash.InputTypeError, "x holds torch.float64", lambda: layer_norm.rms_norm_fn(x.double(), None, None)),
            (ferroflash.InputTypeError, "bias holds f32; f16 is accepted", lambda: layer_norm.rms_norm_fn(x, weight, bias.float())),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()
        # What is as without it is no reason to refuse a call.
        self.assertTrue(torch.equal(layer_norm.rms_norm_fn(x, weight, bias, residual, out_dtype=torch.float16), out))


def norm_of_ones(x):
    """RMSNorm with weights of 1."""
    return layer_norm.rms_norm_fn(x, torch.ones(x.shape[-1], device=DEVICE), None, eps=1e-5)


def array(tensor):
    """The tensor's values, in the precision that NumPy has at least."""
    return tensor.detach().float().cpu().numpy()


if __name__ == "__main__":
    unittest.main()
