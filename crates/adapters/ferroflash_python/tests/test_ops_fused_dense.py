"""Dense layers: on arrays of NumPy and tensors of PyTorch against a float64 reference, and everything that is refused.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device for PyTorch, `cuda`.
"""

import math
import os
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

    def test_compiled_as_eager(self):
        x, weight, bias, residual = self.inputs(torch.bfloat16)
        call = lambda *tensors: fused_dense.fused_dense_func(*tensors, activation="silu", residual=residual)
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
        self.assertTrue(torch.equal(call(x, weight, bias), compiled(x, weight, bias)))

    def test_what_is_refused(self):
        x, weight, _, _ = self.inputs(torch.float32)
        call, missing = fused_dense.fused_dense_func, ferroflash.MissingFeatureError
        trained = torch.nn.Parameter(weight)
        with self.assertRaisesRegex(missing, "fused_dense_func: a gradient of a dense layer .it computes under torch.no_grad"):
            call(x, trained)
        with self.assertRaisesRegex(missing, "fused_mlp_func: a gradient of a dense layer"):
            fused_dense.fused_mlp_func(x, weight, trained.t())
        with torch.no_grad():
            self.assertTrue(torch.equal(call(x, trained), call(x, weight)))
        with mock.patch("torch.distributed.get_world_size", lambda group: group):
            with self.assertRaisesRegex(missing, "fused_dense_func: a process_group of 2 processes"):
                call(x, weight, process_group=2)
            self.assertTrue(torch.equal(call(x, weight, process_group=1), call(x, weight)))
        with self.assertRaisesRegex(ferroflash.InputTypeError, "weight is a ndarray"):
            call(x, np.ones((3, 40)))


def array(tensor):
    """The tensor's values, in the precision that NumPy has at least."""
    return tensor.detach().float().cpu().numpy()


if __name__ == "__main__":
    unittest.main()
