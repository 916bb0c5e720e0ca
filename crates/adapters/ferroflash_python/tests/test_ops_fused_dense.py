"""Dense layers and their gradients: on arrays of NumPy and tensors of PyTorch against a float64 reference, and everything that is refused.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device for PyTorch, `cuda`.
"""

import math
import os
import subprocess
import sys
import unittest
import warnings
from unittest import mock

import numpy as np

import ferroflash
from ferroflash.ops import fused_dense
from reference import check_close, round_to

try:
    import torch
except ImportError:
    torch = None

DTYPES = {"f16": np.float16, "f32": np.float32}
DEVICE = os.environ.get("FERROFLASH_TEST_DEVICE", "cpu")
ACTIVATIONS = (None, "relu", "gelu", "gelu_approx", "silu", "swiglu")


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def activated(z, activation):
    """The activations by their definitions."""
    if activation == "relu":
        return np.maximum(z, 0)
    if activation == "gelu":
        return z * (1 + np.vectorize(math.erf)(z / math.sqrt(2)).astype(z.dtype)) / 2
    if activation == "gelu_approx":
        return z * (1 + np.tanh(z.dtype.type(math.sqrt(2 / math.pi)) * (z + z.dtype.type(0.044715) * z**3))) / 2
    if activation == "silu":
        return z * sigmoid(z)
    if activation == "swiglu":
        gate, up = np.split(z, 2, axis=-1)
        return gate * sigmoid(gate) * up
    return z


def layer(x, weight, bias, residual, activation, number):
    """`(out, z)` in this precision."""
    z = x.astype(number) @ weight.astype(number).T
    z = z if bias is None else z + bias.astype(number)
    out = activated(z, activation)
    return (out if residual is None else out + residual.astype(number)), z


def check(test, out, z, inputs, precision, activation=None):
    exact, rounded = (layer(*inputs, activation, number) for number in (np.float64, np.float32))
    for name, ours, truth, theirs in zip(("out", "z"), (out, z), exact, rounded):
        if ours is not None:
            check_close(test, name, ours, truth, round_to(theirs, precision))


def through(z, dout, activation):
    """The gradient of the sums by the definition, in their precision."""
    number = z.dtype.type
    if activation == "relu":
        return dout * (z > 0)
    if activation == "gelu":
        below = (1 + np.vectorize(math.erf)(z / math.sqrt(2)).astype(z.dtype)) / 2
        return dout * (below + z * np.exp(-z * z / 2) / number(math.sqrt(2 * math.pi)))
    if activation == "gelu_approx":
        factor, cubic = number(math.sqrt(2 / math.pi)), number(0.044715)
        t = np.tanh(factor * (z + cubic * z**3))
        return dout * ((1 + t) / 2 + z * (1 - t * t) * factor * (1 + 3 * cubic * z * z) / 2)
    if activation == "silu":
        return dout * sigmoid(z) * (1 + z * (1 - sigmoid(z)))
    if activation == "swiglu":
        gate, up = np.split(z, 2, axis=-1)
        return np.concatenate((through(gate, dout * up, "silu"), dout * gate * sigmoid(gate)), axis=-1)
    return dout


def gradients(x, weight, bias, dout, activation, precision=None):
    """`(dx, dweight, dbias)` in float64, or as a straightforward program in the precision rounds them: the sums that it keeps, and their gradient where
    products read it."""
    number = np.float64 if precision is None else np.float32
    stored = (lambda y: y) if precision is None else (lambda y: round_to(y, precision).astype(number))
    _, z = layer(x, weight, bias, None, activation, number)
    dz = through(stored(z), dout.astype(number), activation).reshape(-1, weight.shape[0])
    dx = (stored(dz) @ weight.astype(number)).reshape(x.shape)
    return stored(dx), stored(stored(dz).T @ x.astype(number).reshape(len(dz), -1)), stored(dz.sum(axis=0))


def check_gradients(test, found, x, weight, bias, dout, precision, activation=None):
    """Fails the test where one of dx, dweight and dbias is outside the bound."""
    inputs = (x, weight, bias, dout, activation)
    for name, ours, truth, theirs in zip(("dx", "dweight", "dbias"), found, gradients(*inputs), gradients(*inputs, precision)):
        if ours is not None:
            check_close(test, name, ours, truth, theirs)


class Reference(unittest.TestCase):
    def test_its_gradients_are_those_of_its_result(self):
        for activation in ACTIVATIONS:
            with self.subTest(activation=activation):
                sums = 10 if activation == "swiglu" else 5
                x, weight, bias = (values(shape, seed, np.float64) for seed, shape in enumerate(((3, 7), (sums, 7), (sums,))))
                dout = values((3, 5), 9, np.float64)
                loss = lambda *inputs: (dout * layer(*inputs, None, activation, np.float64)[0]).sum()
                found = gradients(x, weight, bias, dout, activation)
                for at, gradient in enumerate(found):
                    for index in np.ndindex(gradient.shape):
                        step = np.zeros(gradient.shape)
                        step[index] = 1e-6
                        more, less = ([y + sign * step if i == at else y for i, y in enumerate((x, weight, bias))] for sign in (1, -1))
                        self.assertAlmostEqual(gradient[index], (loss(*more) - loss(*less)) / 2e-6, delta=1e-6)


class Arrays(unittest.TestCase):
    def test_types_and_activations(self):
        for precision, dtype in DTYPES.items():
            for activation in ACTIVATIONS:
                for n, k in ((24, 40), (7, 9)):
                    for more in (False, True):
                        with self.subTest(dtype=precision, activation=activation, n=n, k=k, more=more):
                            sums = 2 * n if activation == "swiglu" else n
                            x, weight = values((2, 5, k), 1, dtype), values((sums, k), 2, dtype)
                            bias, residual = (values(sums, 3, dtype), values((2, 5, n), 4, dtype)) if more else (None, None)
                            out, z = fused_dense.forward(x, weight, bias, residual, activation=activation, return_z=more)
                            self.assertEqual((out.dtype, out.shape, z is None), (dtype, (2, 5, n), not more))
                            check(self, out, z, (x, weight, bias, residual), precision, activation)

    def test_strides_and_given_outputs(self):
        x, weight = values((6, 50), 1, np.float16)[:, 3:43], values((24, 70), 2, np.float16)[:, 8:48]
        memory = np.full((6, 30), np.nan, np.float16)
        out = memory[:, 5:29]
        self.assertIs(fused_dense.forward(x, weight, out=out)[0], out)
        check(self, out, None, (x, weight, None, None), "f16")
        memory[:, 5:29] = np.nan
        self.assertTrue(np.isnan(memory).all())

    def inputs(self, dtype, n, k, activation, shape=(2, 5)):
        sums = 2 * n if activation == "swiglu" else n
        return values((*shape, k), 1, dtype), values((sums, k), 2, dtype), values(sums, 3, dtype), values((*shape, n), 4, dtype)

    def test_gradients(self):
        """From sums that are kept, and from those that are computed again."""
        for precision, dtype in DTYPES.items():
            for activation in ACTIVATIONS:
                for n, k in ((24, 40), (7, 9)):
                    for keeps in (False, True) if activation else (False,):
                        with self.subTest(dtype=precision, activation=activation, n=n, k=k, keeps=keeps):
                            x, weight, bias, dout = self.inputs(dtype, n, k, activation)
                            bias = bias if keeps or n == 24 else None
                            _, z = fused_dense.forward(x, weight, bias, activation=activation, return_z=keeps)
                            found = fused_dense.backward(x, weight, bias, z, dout, activation=activation)
                            given = (x, weight, bias)
                            for ours, of in zip(found, given):
                                self.assertEqual(ours is None, of is None)
                                self.assertTrue(of is None or (ours.dtype, ours.shape) == (dtype, of.shape))
                            check_gradients(self, found, *given, dout, precision, activation)

    def test_many_rows(self):
        """More than one part of rows adds to the biases, and the last is not whole."""
        x, weight, bias, dout = self.inputs(np.float16, 16, 8, "silu", (3, 121))
        found = fused_dense.backward(x, weight, bias, None, dout, activation="silu")
        check_gradients(self, found, x, weight, bias, dout, "f16", "silu")
        again = fused_dense.backward(x, weight, bias, None, dout, activation="silu")
        for first, second in zip(found, again):
            np.testing.assert_array_equal(first, second)

    def test_gradients_that_are_asked_for(self):
        x, weight, bias, dout = self.inputs(np.float32, 24, 40, "relu")
        every = fused_dense.backward(x, weight, bias, None, dout, activation="relu")
        flags = ("input_gradient", "weight_gradient", "bias_gradient")
        for asked in range(1, 8):
            wanted = [bool(asked >> at & 1) for at in range(3)]
            found = fused_dense.backward(x, weight, bias, None, dout, activation="relu", **dict(zip(flags, wanted)))
            for is_wanted, ours, expected in zip(wanted, found, every):
                self.assertEqual(ours is not None, is_wanted)
                if is_wanted:
                    np.testing.assert_array_equal(ours, expected)
        # What is given is written, whatever is to be made.
        none, dbias = dict.fromkeys(flags, False), np.empty_like(bias)
        self.assertIs(fused_dense.backward(x, weight, bias, None, dout, activation="relu", dbias=dbias, **none)[2], dbias)
        np.testing.assert_array_equal(dbias, every[2])
        with self.assertRaisesRegex(ferroflash.InputError, "dx, dweight and dbias"):
            fused_dense.backward(x, weight, bias, None, dout, activation="relu", **none)

    def test_strides_and_given_gradients(self):
        x, weight = values((6, 50), 1, np.float16)[:, 3:43], values((24, 70), 2, np.float16)[:, 8:48]
        dout, bias = values((6, 29), 4, np.float16)[:, 5:], values(24, 3, np.float16)
        _, z = fused_dense.forward(x, weight, bias, activation="gelu", return_z=True)
        wide = np.full((6, 47), np.nan, np.float16), np.full((24, 41), np.nan, np.float16)
        dx, dweight = wide[0][:, 7:], wide[1][:, 1:]
        found = fused_dense.backward(x, weight, bias, z, dout, activation="gelu", dx=dx, dweight=dweight)
        self.assertTrue(found[0] is dx and found[1] is dweight)
        check_gradients(self, found, x, weight, bias, dout, "f16", "gelu")
        dx[:], dweight[:] = np.nan, np.nan
        self.assertTrue(all(np.isnan(memory).all() for memory in wide))

    def test_gradients_of_no_rows(self):
        dx, dweight, dbias = fused_dense.backward(np.zeros((0, 8), np.float32), values((4, 8), 1), values(4, 2), None, np.zeros((0, 4), np.float32))
        self.assertEqual(dx.shape, (0, 8))
        self.assertTrue((dweight == 0).all() and (dbias == 0).all())

    def test_gradients_that_are_refused(self):
        x, weight, bias, dout = self.inputs(np.float32, 24, 40, None)
        backward, half = fused_dense.backward, np.float16
        for kind, words, call in (
            (ferroflash.InputError, "z is given, and the call has no activation", lambda: backward(x, weight, bias, dout, dout)),
            (ferroflash.InputError, "dbias is given, and the call has no bias", lambda: backward(x, weight, None, None, dout, dbias=bias)),
            (ferroflash.InputError, "dout is needed", lambda: backward(x, weight, bias, None, None)),
            (ferroflash.InputError, r"dout has shape \[2, 5, 23\]", lambda: backward(x, weight, bias, None, dout[..., :23])),
            (ferroflash.InputError, r"z has shape \[2, 5, 40\]", lambda: backward(x, weight, bias, x, dout, activation="silu")),
            (ferroflash.InputError, r"dx has shape \[2, 5, 24\]", lambda: backward(x, weight, bias, None, dout, dx=np.empty_like(dout))),
            (ferroflash.InputError, "overlap", lambda: backward(x, weight, bias, None, dout, dx=x)),
            (ferroflash.InputError, "activation is 'sqrelu'; 'identity', 'relu'", lambda: backward(x, weight, bias, None, dout, activation="sqrelu")),
            (ferroflash.InputTypeError, "dout holds f16; f32", lambda: backward(x, weight, bias, None, dout.astype(half))),
            (ferroflash.InputTypeError, "dweight holds f16; f32", lambda: backward(x, weight, bias, None, dout, dweight=weight.astype(half))),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()

    def test_what_is_refused(self):
        x, weight = values((6, 40), 1), values((24, 40), 2)
        for kind, words, call in (
            (ferroflash.InputTypeError, "x holds floating-point numbers of 64 bits", lambda: fused_dense.forward(x.astype(np.float64), weight)),
            (ferroflash.InputTypeError, "weight holds f16; f32", lambda: fused_dense.forward(x, weight.astype(np.float16))),
            (ferroflash.InputTypeError, "activation is a function", lambda: fused_dense.forward(x, weight, activation=sigmoid)),
            (ferroflash.InputError, "activation is 'sqrelu'; 'identity', 'relu'", lambda: fused_dense.forward(x, weight, activation="sqrelu")),
            (ferroflash.InputError, r"\[n, 40\]", lambda: fused_dense.forward(x, weight[:, :39])),
            (ferroflash.InputError, "weight has 1 axes", lambda: fused_dense.forward(x, weight[0])),
            (ferroflash.InputError, r"bias has shape \[23\]", lambda: fused_dense.forward(x, weight, weight[0, :23])),
            (ferroflash.InputError, r"residual has shape \[6, 40\]", lambda: fused_dense.forward(x, weight, residual=x)),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()


@unittest.skipIf(torch is None, "torch is not installed")
class Torch(unittest.TestCase):
    def inputs(self, dtype, n=24, sums=24):
        new = lambda shape, seed: torch.from_numpy(values(shape, seed)).to(DEVICE, dtype)
        return new((2, 5, 40), 1), new((sums, 40), 2), new((sums,), 3), new((2, 5, n), 4)

    def test_results(self):
        for precision, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
            for activation in ACTIVATIONS:
                with self.subTest(dtype=precision, activation=activation):
                    tensors = self.inputs(dtype, sums=48 if activation == "swiglu" else 24)
                    x, weight, bias, residual = tensors
                    out, same = fused_dense.fused_dense_func(x, weight, bias, True, activation=activation, residual=residual)
                    self.assertIs(same, x)
                    check(self, array(out), None, [array(tensor) for tensor in tensors], precision, activation)

    def test_two_layers(self):
        x, weight, bias, _ = self.inputs(torch.float16)
        back = weight.t().contiguous()
        hidden = fused_dense.fused_dense_func(x, weight, bias, activation="gelu_approx")
        expected = fused_dense.fused_dense_func(hidden, back, x[0, 0], residual=x)
        self.assertTrue(torch.equal(fused_dense.fused_mlp_func(x, weight, back, bias, x[0, 0], residual=x), expected))

    def trained(self, dtype, activation=None):
        """x, weight, bias and residual that require gradients, and a gradient of the result."""
        tensors = self.inputs(dtype, sums=48 if activation == "swiglu" else 24)
        return [tensor.requires_grad_() for tensor in tensors], torch.from_numpy(values((2, 5, 24), 5)).to(DEVICE, dtype)

    def test_gradients(self):
        for precision, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
            for activation in ACTIVATIONS:
                with self.subTest(dtype=precision, activation=activation):
                    tensors, dout = self.trained(dtype, activation)
                    x, weight, bias, residual = tensors
                    out = fused_dense.fused_dense_func(x, weight, bias, activation=activation, residual=residual)
                    check(self, array(out), None, [array(tensor) for tensor in tensors], precision, activation)
                    *found, dresidual = torch.autograd.grad(out, tensors, dout)
                    self.assertTrue(torch.equal(dresidual, dout))
                    given = [array(tensor) for tensor in (x, weight, bias, dout)]
                    check_gradients(self, [array(tensor) for tensor in found], *given, precision, activation)

    def test_gradients_of_two_layers(self):
        """As those of one after the other, with the sums kept or computed again."""
        (x, weight, bias, _), _ = self.trained(torch.float32, "swiglu")
        back, bias2 = (torch.randn(shape, device=DEVICE, requires_grad=True) for shape in ((40, 24), (40,)))
        tensors = (x, weight, back, bias, bias2)
        hidden = fused_dense.fused_dense_func(x, weight, bias, activation="swiglu")
        expected = torch.autograd.grad(fused_dense.fused_dense_func(hidden, back, bias2, residual=x).square().sum(), tensors)
        for more, kept in (({}, True), ({"save_pre_act": False}, False), ({"checkpoint_lvl": 1}, False), ({"checkpoint_lvl": 2}, False)):
            with mock.patch("ferroflash._native.dense", wraps=ferroflash._native.dense) as launched:
                out = fused_dense.fused_mlp_func(*tensors, "swiglu", residual=x, **more)
            self.assertEqual([call.args[0][-1] is not None for call in launched.call_args_list], [kept, False])
            for ours, theirs in zip(torch.autograd.grad(out.square().sum(), tensors), expected):
                self.assertTrue(torch.equal(ours, theirs))

    def test_only_what_is_needed_is_kept_and_computed(self):
        (x, weight, bias, residual), dout = self.trained(torch.float32)
        layer = lambda *tensors, activation="silu": fused_dense.fused_dense_func(*tensors[:3], activation=activation, residual=tensors[3])
        every = torch.autograd.grad(layer(x, weight, bias, residual), (x, weight, bias), dout)
        with mock.patch("ferroflash._native.dense", wraps=ferroflash._native.dense) as launched:
            keeps = lambda: launched.call_args.args[0][-1] is not None
            layer(x, weight, bias, residual)
            self.assertTrue(keeps())
            with torch.no_grad():
                layer(x, weight, bias, residual)
            self.assertFalse(keeps())
            layer(x.detach(), weight.detach(), bias.detach(), residual)
            self.assertFalse(keeps())
            layer(x, weight, bias, residual, activation=None)
            self.assertFalse(keeps())
        with mock.patch("ferroflash._native.dense_backward", wraps=ferroflash._native.dense_backward) as launched:
            for asked in range(1, 8):
                wanted = [bool(asked >> at & 1) for at in range(3)]
                tensors = [y if is_wanted else y.detach() for y, is_wanted in zip((x, weight, bias), wanted)]
                found = torch.autograd.grad(layer(*tensors, residual), [y for y in tensors if y.requires_grad], dout)
                self.assertEqual([y is not None for y in launched.call_args.args[0][-3:]], wanted)
                for ours, expected in zip(found, (y for y, is_wanted in zip(every, wanted) if is_wanted)):
                    self.assertTrue(torch.equal(ours, expected))
            launched.reset_mock()
            (dresidual,) = torch.autograd.grad(layer(x.detach(), weight.detach(), None, residual), residual, dout)
            self.assertTrue(torch.equal(dresidual, dout) and not launched.called)

    def test_strides(self):
        """Rows that no one stride steps through are copied, and gradients come with any strides."""
        (x, weight, bias, residual), dout = self.trained(torch.float32)
        call = lambda *tensors: fused_dense.fused_dense_func(*tensors[:3], activation="relu", residual=tensors[3])
        out = call(x, weight, bias, residual)
        found = torch.autograd.grad(out, (x, weight, bias, residual), dout)
        swapped = lambda tensor: tensor.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        others = (swapped(x), weight.detach().t().contiguous().t().requires_grad_(), bias, swapped(residual))
        of_others = call(*others)
        self.assertTrue(torch.equal(out, of_others))
        for ours, expected in zip(torch.autograd.grad(of_others, others, swapped(dout).detach()), found):
            self.assertTrue(torch.equal(ours, expected))
        for wide in (lambda dout: dout.sum(), lambda dout: dout.sum(dim=(0, 1)).square().sum(), lambda dout: dout[..., ::2].sum()):
            (dx,) = torch.autograd.grad(wide(call(x, weight, bias, residual)), x)
            (dout,) = torch.autograd.grad(wide(leaf := call(x, weight, bias, residual).detach().requires_grad_()), leaf)
            (expected,) = torch.autograd.grad(call(x, weight, bias, residual), x, dout.contiguous())
            self.assertTrue(torch.equal(dx, expected))

    def test_compiled_as_eager(self):
        for activation in (None, "silu", "swiglu"):
            tensors, _ = self.trained(torch.bfloat16, activation)
            call = lambda *tensors: fused_dense.fused_dense_func(*tensors[:3], activation=activation, residual=tensors[3])
            compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
            found = []
            for function in (call, compiled):
                out = function(*tensors)
                found.append((out, *torch.autograd.grad(out.float().square().sum(), tensors)))
            for eager, of_graph in zip(*found):
                self.assertTrue(torch.equal(eager, of_graph))
            with torch.no_grad():
                self.assertTrue(torch.equal(call(*tensors), compiled(*tensors)))

    def test_a_compiled_module(self):
        model = fused_dense.FusedMLP(40, 24, activation="swiglu", checkpoint_lvl=2, device=DEVICE)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        x = self.inputs(torch.float32)[0]
        found = [torch.autograd.grad(module(x, residual=x).square().sum(), list(model.parameters())) for module in (model, compiled)]
        for eager, of_graph in zip(*found):
            self.assertTrue(torch.equal(eager, of_graph))

    def test_operations_fit_what_pytorch_asks_of_them(self):
        for activation, library_name in ((None, "identity"), ("gelu", "gelu_erf"), ("swiglu", "swiglu")):
            (x, weight, bias, residual), dout = self.trained(torch.float16, activation)
            for keeps in (False, True) if activation else (False,):
                torch.library.opcheck(torch.ops.ferroflash.dense, (x, weight, bias, residual, library_name, keeps))
            x, weight, bias = x.detach(), weight.detach(), bias.detach()
            torch.library.opcheck(torch.ops.ferroflash.dense_backward, (x, weight, bias, None, dout, library_name, True, False, True))

    def test_autocast(self):
        """Tensors take its type, and gradients theirs."""
        (x, weight, bias, residual), dout = self.trained(torch.float32)
        with torch.autocast(DEVICE, torch.bfloat16):
            call = lambda *tensors: fused_dense.fused_dense_func(*tensors[:3], activation="gelu", residual=tensors[3])
            out = call(x, weight, bias, residual)
            compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
            self.assertTrue(torch.equal(out, compiled(x, weight, bias, residual)))
        low = [tensor.bfloat16() for tensor in (x, weight, bias, residual)]
        expected = call(*low)
        self.assertTrue(torch.equal(out, expected))
        with torch.autocast(DEVICE, torch.bfloat16), self.assertRaisesRegex(ferroflash.InputTypeError, "x holds torch.float64"):
            call(x.double(), weight, bias, residual)
        dout = dout.bfloat16()
        for ours, theirs in zip(torch.autograd.grad(out, (x, weight), dout), torch.autograd.grad(expected, (x, weight), dout)):
            self.assertTrue(ours.dtype is torch.float32 and torch.equal(ours, theirs))

    def test_modules(self):
        x = self.inputs(torch.float32)[0]
        dense = fused_dense.FusedDense(40, 24, device=DEVICE)
        self.assertIsInstance(dense, torch.nn.Linear)
        self.assertTrue(torch.equal(dense(x), fused_dense.fused_dense_func(x, dense.weight, dense.bias)))
        torch.testing.assert_close(dense(x), torch.nn.functional.linear(x, dense.weight, dense.bias), atol=1e-5, rtol=1e-5)
        gated = fused_dense.FusedDense(40, 24, False, True, DEVICE, torch.float32, activation="swiglu")
        out, same = gated(x)
        self.assertEqual((gated.bias, gated.weight.shape, out.shape), (None, (48, 40), (2, 5, 24)))
        self.assertIs(same, x)
        model = fused_dense.FusedMLP(40, device=DEVICE)
        self.assertEqual(
            {name: tuple(value.shape) for name, value in model.named_parameters()},
            {"fc1.weight": (160, 40), "fc1.bias": (160,), "fc2.weight": (40, 160), "fc2.bias": (40,)},
        )
        hidden = torch.nn.functional.gelu(model.fc1(x), approximate="tanh")
        torch.testing.assert_close(model(x), model.fc2(hidden), atol=1e-5, rtol=1e-5)
        model(x).square().sum().backward()
        self.assertTrue(all(parameter.grad is not None for parameter in model.parameters()))
        model = fused_dense.FusedMLP(40, 24, 8, bias1=False, bias2=False, activation="relu", return_residual=True, device=DEVICE)
        out, same = model(x)
        self.assertEqual((model.fc1.bias, model.fc2.bias, out.shape), (None, None, (2, 5, 8)))
        self.assertIs(same, x)

    def test_flash_attn_has_them(self):
        program = """
import ferroflash
ferroflash.install_as("flash_attn")
from flash_attn.ops.fused_dense import FusedDense, FusedMLP, fused_dense_func, fused_mlp_func
import flash_attn.ops.triton.layer_norm
import ferroflash.ops.fused_dense as ours
assert (FusedDense, FusedMLP, fused_dense_func) == (ours.FusedDense, ours.FusedMLP, ours.fused_dense_func)
try:
    from flash_attn.ops.fused_dense import ColumnParallelLinear
except ImportError:
    pass
else:
    raise AssertionError("layers of several processes")
"""
        subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)

    def test_what_is_refused(self):
        (x, weight, bias, residual), _ = self.trained(torch.float32)
        call, missing = fused_dense.fused_dense_func, ferroflash.MissingFeatureError
        twice = lambda: torch.autograd.grad(torch.autograd.grad(call(x, weight, activation="silu").sum(), x, create_graph=True)[0].sum(), x)
        for kind, words, refused in (
            (missing, "gradient of gradients", twice),
            (missing, "forward: recording a gradient of weight", lambda: fused_dense.forward(x.detach(), weight)),
            (missing, "fused_dense_func: the activation 'sqrelu'", lambda: call(x, weight, activation="sqrelu")),
            (missing, "fused_mlp_func: the activation 'sqrelu'", lambda: fused_dense.fused_mlp_func(x, weight, weight.t(), activation="sqrelu")),
            (missing, "FusedDense: the activation 'sqrelu'", lambda: fused_dense.FusedDense(8, 8, activation="sqrelu")),
            (missing, "FusedMLP: the activation 'sqrelu'", lambda: fused_dense.FusedMLP(8, activation="sqrelu")),
            (ferroflash.InputError, "checkpoint_lvl is 3; 0, 1 and 2", lambda: fused_dense.FusedMLP(8, checkpoint_lvl=3)),
            (ferroflash.InputError, "checkpoint_lvl is -1", lambda: fused_dense.fused_mlp_func(x, weight, weight.t(), checkpoint_lvl=-1)),
            (ferroflash.InputError, "activation is 'tanh'; 'identity', 'relu'", lambda: call(x, weight, activation="tanh")),
            (ferroflash.InputTypeError, "weight is a ndarray", lambda: call(x, np.ones((3, 40)))),
            (ferroflash.InputTypeError, "bias holds f16; f32", lambda: call(x, weight, bias.half())),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                refused()
        with mock.patch("torch.distributed.get_world_size", lambda group: group):
            with self.assertRaisesRegex(missing, "fused_dense_func: a process_group of 2 processes"):
                call(x, weight, process_group=2)
            with self.assertRaisesRegex(missing, "a process_group of 2 processes"):
                fused_dense.FusedMLP(40, device=DEVICE)(x, 2)
            self.assertTrue(torch.equal(call(x, weight, process_group=1), call(x, weight)))


def array(tensor):
    """The tensor's values, in the precision that NumPy has at least."""
    return tensor.detach().float().cpu().numpy()


if __name__ == "__main__":
    unittest.main()
