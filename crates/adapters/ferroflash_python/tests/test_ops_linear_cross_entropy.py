"""Cross-entropy of the logits of a dense layer: on arrays of NumPy and tensors of PyTorch against a float64 reference, and everything that is refused.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device for PyTorch, `cuda`.
"""

import itertools
import os
import unittest
import warnings
from unittest import mock

import numpy as np

import ferroflash
from ferroflash.ops import cross_entropy, linear_cross_entropy
from reference import check_close, round_to

try:
    import torch
except ImportError:
    torch = None

DTYPES = {"f16": np.float16, "f32": np.float32}
DEVICE = os.environ.get("FERROFLASH_TEST_DEVICE", "cpu")
OPTIONS = {"label_smoothing": 0.1, "logit_scale": 0.7, "lse_square_scale": 1e-2}
FLAGS = ("input_gradient", "weight_gradient", "bias_gradient")


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def layer_of(shape, classes, dtype=np.float32, seed=1):
    """x, weights, targets of which some are ignored, biases, and gradients of losses."""
    draw = np.random.default_rng(seed)
    x, bias = draw.standard_normal(shape).astype(dtype), draw.standard_normal(classes).astype(dtype)
    weight = (draw.standard_normal((classes, shape[-1])) / np.sqrt(shape[-1])).astype(dtype)
    targets = draw.integers(0, classes, shape[:-1], dtype=np.int32)
    targets[..., 1::4] = -100
    return x, weight, targets, bias, draw.standard_normal(shape[:-1]).astype(np.float32)


def expected(
    x, weight, targets, bias, dloss, precision=None, label_smoothing=0.0, logit_scale=1.0, lse_square_scale=0.0, ignore_index=-100
):
    """`(loss, lse, z_losses, dx, dweight, dbias)` by the definition in float64, or as a straightforward program in the precision rounds them: logits in
    float32, and their gradients stored for the products."""
    number = np.float64 if precision is None else np.float32
    stored = (lambda y: y) if precision is None else (lambda y: round_to(y, precision).astype(number))
    rows, weight = x.reshape(-1, x.shape[-1]).astype(number), weight.astype(number)
    targets = targets.reshape(-1)
    y = rows @ weight.T if bias is None else rows @ weight.T + bias.astype(number)
    y = y * number(logit_scale)
    most = y.max(axis=-1, keepdims=True)
    weights = np.exp(y - most)
    total = weights.sum(axis=-1, keepdims=True)
    lse = (most + np.log(total))[..., 0]
    counts = targets != ignore_index
    chosen = np.where(counts, targets, 0)[..., None] == np.arange(y.shape[-1])
    smoothing, square = number(label_smoothing), number(lse_square_scale)
    share = (1 - smoothing) * chosen + smoothing / number(y.shape[-1])
    z_losses = np.where(counts, square * lse * lse, 0)
    loss = np.where(counts, (share * (lse[..., None] - y)).sum(axis=-1) + z_losses, 0)
    slope = weights / total * (1 + 2 * square * lse)[..., None] - share
    dlogits = np.where(counts[..., None], number(logit_scale) * dloss.reshape(-1, 1).astype(number) * slope, 0)
    kept = stored(dlogits)
    numbers = [of.reshape(x.shape[:-1]) for of in (loss, lse, z_losses)]
    return *numbers, stored(kept @ weight).reshape(x.shape), stored(kept.T @ rows), stored(kept.sum(axis=0))


NAMES = ("loss", "lse", "z_losses", "dx", "dweight", "dbias")


def check_all(test, found, inputs, precision, **options):
    """Fails the test where one of what is found is outside the bound; `None` is not looked at."""
    exact, rounded = expected(*inputs, **options), expected(*inputs, precision=precision, **options)
    for name, ours, truth, theirs in zip(NAMES, found, exact, rounded, strict=True):
        if ours is not None:
            check_close(test, name, ours, truth, theirs)


class Reference(unittest.TestCase):
    def test_its_gradients_are_those_of_its_result(self):
        x, weight, targets, bias, dloss = layer_of((6, 5), 9, np.float64)
        loss = lambda *of: (expected(of[0], of[1], targets, of[2], dloss, **OPTIONS)[0] * dloss).sum()
        given = (x, weight, bias)
        for at, gradient in enumerate(expected(x, weight, targets, bias, dloss, **OPTIONS)[3:]):
            for index in np.ndindex(gradient.shape):
                step = np.zeros(gradient.shape)
                step[index] = 1e-6
                more, less = ([y + sign * step if i == at else y for i, y in enumerate(given)] for sign in (1, -1))
                self.assertAlmostEqual(gradient[index], (loss(*more) - loss(*less)) / 2e-6, delta=1e-6)


class Arrays(unittest.TestCase):
    def run_both(self, inputs, chunk_bytes=None, **options):
        x, weight, targets, bias, dloss = inputs
        numbers = linear_cross_entropy.forward(x, weight, targets, bias, **options)
        found = linear_cross_entropy.backward(x, weight, targets, bias, numbers[1], dloss, chunk_bytes=chunk_bytes, **options)
        self.assertEqual({of.dtype for of in numbers}, {np.dtype(np.float32)})
        for ours, of in zip(found, (x, weight, bias)):
            self.assertEqual(ours is None, of is None)
            self.assertTrue(of is None or (ours.dtype, ours.shape) == (of.dtype, of.shape))
        check_all(self, (*numbers, *found), inputs, "f16" if x.dtype == np.float16 else "f32", **options)
        return *numbers, *found

    def test_types_and_classes(self):
        """Rows and classes that are no multiples of vectors and tiles, with biases and without."""
        for precision, dtype in DTYPES.items():
            for (shape, classes), options in itertools.product((((2, 9, 40), 64), ((17, 9), 101), ((5, 16), 1), ((33, 24), 700)), ({}, OPTIONS)):
                with self.subTest(dtype=precision, shape=shape, classes=classes, options=options):
                    x, weight, targets, bias, dloss = layer_of(shape, classes, dtype)
                    self.run_both((x, weight, targets, bias if options else None, dloss), **options)

    def test_each_option(self):
        for name, values in (("label_smoothing", (0.3, 1.0)), ("logit_scale", (0.25, 3.0)), ("lse_square_scale", (0.1,))):
            for value in values:
                with self.subTest(option=name, value=value):
                    self.run_both(layer_of((19, 16), 40), **{name: value})

    def test_chunks(self):
        """In chunks of 256 classes, as in one; gradients of weights are complete in a chunk, so that they have the same bits."""
        for dtype in DTYPES.values():
            inputs = layer_of((21, 16), 600, dtype)
            whole, cut = self.run_both(inputs), self.run_both(inputs, chunk_bytes=0)
            np.testing.assert_array_equal(whole[4], cut[4])

    def test_ignored_targets(self):
        x, weight, targets, bias, dloss = layer_of((9, 16), 40)
        loss, *_, dx, _, _ = self.run_both((x, weight, targets, bias, dloss))
        self.assertTrue((targets[1::4] == -100).all() and not loss[1::4].any() and not dx[1::4].any())
        other = np.where(targets == -100, 7, targets)
        loss, *_, dx, _, _ = self.run_both((x, weight, other, bias, dloss), ignore_index=int(other[0]))
        self.assertFalse(loss[0] or dx[0].any())
        # Without one, -100 is no class.
        loss, _, _ = linear_cross_entropy.forward(x, weight, targets, bias, ignore_index=None)
        self.assertTrue(np.isnan(loss[1::4]).all() and np.isfinite(loss[0::4]).all())

    def test_targets_that_are_no_class(self):
        x, weight, targets, bias, dloss = layer_of((9, 16), 40)
        targets[0], targets[2] = 40, -1
        loss, lse, _ = linear_cross_entropy.forward(x, weight, targets)
        dx, _, _ = linear_cross_entropy.backward(x, weight, targets, None, lse, dloss)
        self.assertEqual(np.isnan(loss).nonzero()[0].tolist(), [0, 2])
        self.assertEqual(np.isnan(dx).all(axis=1).nonzero()[0].tolist(), [0, 2])

    def test_strides_and_given_outputs(self):
        x, weight, targets, bias, dloss = layer_of((9, 50), 101, np.float16)
        x, weight = x[:, 3:43], weight[:, 8:48]
        given = [np.full(9, np.nan, np.float32) for _ in range(3)]
        found = linear_cross_entropy.forward(x, weight, targets, bias, loss=given[0], lse=given[1], z_losses=given[2])
        for array, returned in zip(given, found):
            self.assertIs(array, returned)
        wide = np.full((9, 47), np.nan, np.float16), np.full((101, 41), np.nan, np.float16), np.full(105, np.nan, np.float16)
        dx, dweight, dbias = wide[0][:, 7:], wide[1][:, 1:], wide[2][3:104]
        gradients = linear_cross_entropy.backward(x, weight, targets, bias, found[1], dloss, dx=dx, dweight=dweight, dbias=dbias)
        self.assertTrue(gradients[0] is dx and gradients[1] is dweight and gradients[2] is dbias)
        check_all(self, (*found, *gradients), (x, weight, targets, bias, dloss), "f16")
        dx[:], dweight[:], dbias[:] = np.nan, np.nan, np.nan
        self.assertTrue(all(np.isnan(memory).all() for memory in wide))

    def test_gradients_that_are_asked_for(self):
        x, weight, targets, bias, dloss = layer_of((9, 16), 40)
        lse = linear_cross_entropy.forward(x, weight, targets, bias)[1]
        call = lambda **more: linear_cross_entropy.backward(x, weight, targets, bias, lse, dloss, **more)
        every = call()
        for asked in range(1, 8):
            wanted = [bool(asked >> at & 1) for at in range(3)]
            for is_wanted, ours, theirs in zip(wanted, call(**dict(zip(FLAGS, wanted))), every):
                self.assertEqual(ours is not None, is_wanted)
                if is_wanted:
                    np.testing.assert_array_equal(ours, theirs)
        with self.assertRaisesRegex(ferroflash.InputError, "dx, dweight and dbias"):
            call(**dict.fromkeys(FLAGS, False))

    def test_no_rows(self):
        x, targets, none = np.zeros((0, 8), np.float32), np.zeros(0, np.int32), np.zeros(0, np.float32)
        weight, bias = np.ones((5, 8), np.float32), np.ones(5, np.float32)
        loss, lse, _ = linear_cross_entropy.forward(x, weight, targets, bias)
        dx, dweight, dbias = linear_cross_entropy.backward(x, weight, targets, bias, lse, none)
        self.assertEqual((loss.shape, dx.shape), ((0,), (0, 8)))
        self.assertTrue((dweight == 0).all() and (dbias == 0).all())

    def test_what_is_refused(self):
        x, weight, targets, bias, dloss = layer_of((9, 16), 40)
        lse = linear_cross_entropy.forward(x, weight, targets)[1]
        forward = linear_cross_entropy.forward
        backward = lambda *of, **more: linear_cross_entropy.backward(x, weight, targets, None, *of, **more)
        for kind, words, call in (
            (ferroflash.InputTypeError, "x holds floating-point numbers of 64 bits", lambda: forward(x.astype(np.float64), weight, targets)),
            (ferroflash.InputTypeError, "x is a list", lambda: forward([1.0], weight, targets)),
            (ferroflash.InputTypeError, "weight holds f16; f32", lambda: forward(x, weight.astype(np.float16), targets)),
            (ferroflash.InputTypeError, "bias holds f16; f32", lambda: forward(x, weight, targets, bias.astype(np.float16))),
            (ferroflash.InputTypeError, "targets holds integers of 64 bits; int32", lambda: forward(x, weight, targets.astype(np.int64))),
            (ferroflash.InputTypeError, "loss holds f16", lambda: forward(x, weight, targets, loss=np.empty(9, np.float16))),
            (ferroflash.InputError, r"\[n, 16\]", lambda: forward(x, weight[:, :15], targets)),
            (ferroflash.InputError, r"bias has shape \[39\]", lambda: forward(x, weight, targets, bias[:39])),
            (ferroflash.InputError, "targets are 8; x has 9 rows", lambda: forward(x, weight, targets[:8])),
            (ferroflash.InputError, "targets is needed", lambda: forward(x, weight, None)),
            (ferroflash.InputError, "smoothing 2", lambda: forward(x, weight, targets, label_smoothing=2.0)),
            (ferroflash.InputError, "scale 0", lambda: forward(x, weight, targets, logit_scale=0.0)),
            (ferroflash.InputError, "ignore_index is 4294967296", lambda: forward(x, weight, targets, ignore_index=1 << 32)),
            (ferroflash.InputError, "chunk_bytes is -1; numbers from 0", lambda: backward(lse, dloss, chunk_bytes=-1)),
            (ferroflash.InputError, r"dloss has shape \[8\]", lambda: backward(lse, dloss[:8])),
            (ferroflash.InputError, "lse is needed", lambda: backward(None, dloss)),
            (ferroflash.InputError, "dbias is given, and the call has no bias", lambda: backward(lse, dloss, dbias=np.empty_like(bias))),
            (ferroflash.InputError, "overlap", lambda: backward(lse, dloss, dx=x)),
            (ferroflash.InputTypeError, "dweight holds f16; f32", lambda: backward(lse, dloss, dweight=weight.astype(np.float16))),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()


@unittest.skipIf(torch is None, "torch is not installed")
class Torch(unittest.TestCase):
    def inputs(self, dtype=None, shape=(2, 9, 16), classes=40, labels=None):
        x, weight, targets, bias, dloss = layer_of(shape, classes)
        x, weight, bias = (torch.from_numpy(of).to(DEVICE, dtype or torch.float32).requires_grad_() for of in (x, weight, bias))
        return x, weight, torch.from_numpy(targets).to(DEVICE, labels or torch.int64), bias, torch.from_numpy(dloss).to(DEVICE)

    def test_results_and_gradients(self):
        of_types = (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32))
        for (precision, dtype), options in itertools.product(of_types, ({}, OPTIONS)):
            with self.subTest(dtype=precision, options=options):
                labels = torch.int32 if options else torch.int64
                x, weight, targets, bias, dloss = self.inputs(dtype, labels=labels)
                named = {"reduction": "none", "return_z_loss": True, **options}
                losses, z_losses = linear_cross_entropy.linear_cross_entropy(x, weight, targets, bias, **named)
                self.assertFalse(z_losses.requires_grad)
                found = torch.autograd.grad(losses, (x, weight, bias), dloss)
                arrays = [array(of) for of in (x, weight, targets, bias, dloss)]
                check_all(self, (array(losses), None, array(z_losses), *map(array, found)), arrays, precision, **options)

    def test_reductions(self):
        """As those of the logits' own losses."""
        x, weight, targets, bias, _ = self.inputs()
        logits = torch.nn.functional.linear(x, weight, bias)
        for reduction in ("mean", "sum", "none"):
            for ignore_index in (-100, 7):
                of = targets if ignore_index == -100 else targets.clamp(min=0)
                options = {"reduction": reduction, "label_smoothing": 0.1, "ignore_index": ignore_index}
                theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), of.flatten(), **options)
                for ours in (
                    linear_cross_entropy.linear_cross_entropy(x, weight, of, bias, **options),
                    linear_cross_entropy.FusedLinearCrossEntropyLoss(**options)(weight, x, of, bias),
                ):
                    torch.testing.assert_close(ours.flatten(), theirs.flatten())
                    expected = torch.autograd.grad(theirs.sum(), (x, weight, bias), retain_graph=True)
                    for a, b in zip(torch.autograd.grad(ours.sum(), (x, weight, bias)), expected):
                        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        every = linear_cross_entropy.linear_cross_entropy(x, weight, targets.clamp(min=0), bias, ignore_index=None)
        torch.testing.assert_close(every, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.clamp(min=0).flatten()))

    def test_only_what_is_needed_is_computed(self):
        x, weight, targets, bias, _ = self.inputs()
        call = lambda *of: linear_cross_entropy.linear_cross_entropy(*of[:2], targets, of[2], chunk_bytes=1)
        every = torch.autograd.grad(call(x, weight, bias), (x, weight, bias))
        with mock.patch("ferroflash._native.linear_cross_entropy_backward", wraps=ferroflash._native.linear_cross_entropy_backward) as launched:
            for asked in range(1, 8):
                wanted = [bool(asked >> at & 1) for at in range(3)]
                tensors = [y if is_wanted else y.detach() for y, is_wanted in zip((x, weight, bias), wanted)]
                found = torch.autograd.grad(call(*tensors), [y for y in tensors if y.requires_grad])
                self.assertEqual([y is not None for y in launched.call_args.args[0][-3:]], wanted)
                self.assertEqual(launched.call_args.args[-1], 1)
                for ours, theirs in zip(found, (y for y, is_wanted in zip(every, wanted) if is_wanted)):
                    self.assertTrue(torch.equal(ours, theirs))

    def test_strides(self):
        """Rows that no one stride steps through are copied, and so are columns with gaps."""
        x, weight, targets, bias, dloss = self.inputs()
        call = lambda x, weight: linear_cross_entropy.linear_cross_entropy(x, weight, targets, bias, reduction="none")
        expected = call(x, weight)
        turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        gaps = weight.detach().t().contiguous().t().requires_grad_()
        found = call(turned, gaps)
        self.assertTrue(torch.equal(found, expected))
        gradients = torch.autograd.grad(expected, (x, weight), dloss)
        for ours, theirs in zip(torch.autograd.grad(found, (turned, gaps), dloss), gradients):
            self.assertTrue(torch.equal(ours, theirs))

    def test_compiled_as_eager(self):
        x, weight, targets, bias, _ = self.inputs(torch.bfloat16)
        for of_bias in (bias, None):
            call = lambda x, weight, targets: linear_cross_entropy.linear_cross_entropy(x, weight, targets, of_bias, **OPTIONS)
            found = []
            for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)):
                loss = function(x, weight, targets)
                found.append((loss, *torch.autograd.grad(loss, (x, weight))))
            for eager, of_graph in zip(*found):
                self.assertTrue(torch.equal(eager, of_graph))

    def test_operations_fit_what_pytorch_asks_of_them(self):
        x, weight, targets, bias, dloss = self.inputs(torch.float32, labels=torch.int32)
        options, operations = (0.1, 1.0, 0.0, -100, None), torch.ops.ferroflash
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operations.linear_cross_entropy, (x, weight, bias, targets, *options), test_utils=tests)
        x, weight, bias = x.detach(), weight.detach(), bias.detach()
        lse = operations.linear_cross_entropy(x, weight, bias, targets, *options)[1]
        for wanted in ((True, True, True), (True, False, False)):
            torch.library.opcheck(operations.linear_cross_entropy_backward, (x, weight, bias, targets, lse, dloss, *options, *wanted))

    def test_autocast(self):
        """Tensors take its type, and gradients theirs."""
        x, weight, targets, bias, _ = self.inputs()
        call = lambda *of: linear_cross_entropy.linear_cross_entropy(of[0], of[1], targets, of[2])
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = call(x, weight, bias)
        low = [of.detach().bfloat16().requires_grad_() for of in (x, weight, bias)]
        expected = call(*low)
        self.assertTrue(torch.equal(loss, expected))
        for ours, theirs in zip(torch.autograd.grad(loss, (x, weight, bias)), torch.autograd.grad(expected, low)):
            self.assertTrue(ours.dtype is torch.float32 and torch.equal(ours, theirs.float()))

    def test_the_layer(self):
        x, _, targets, _, _ = self.inputs()
        layer = linear_cross_entropy.LinearCrossEntropy(16, 40, True, DEVICE, label_smoothing=0.1, return_z_loss=True, lse_square_scale=0.1)
        self.assertIsInstance(layer, torch.nn.Linear)
        self.assertEqual(set(dict(layer.named_parameters())), {"weight", "bias"})
        logits = layer(x)
        torch.testing.assert_close(logits, torch.nn.functional.linear(x, layer.weight, layer.bias))
        expected = cross_entropy.CrossEntropyLoss(label_smoothing=0.1, lse_square_scale=0.1, return_z_loss=True)(logits, targets)
        torch.testing.assert_close(layer(x, targets), expected)
        layer(x, targets)[0].backward()
        self.assertTrue(all(parameter.grad is not None for parameter in layer.parameters()))
        self.assertIsNone(linear_cross_entropy.LinearCrossEntropy(16, 40).bias)
        with self.assertRaisesRegex(TypeError, "smoothing"):
            linear_cross_entropy.LinearCrossEntropy(16, 40, smoothing=0.1)

    def test_what_is_refused(self):
        x, weight, targets, bias, _ = self.inputs()
        call, missing = linear_cross_entropy.linear_cross_entropy, ferroflash.MissingFeatureError
        twice = lambda: torch.autograd.grad(torch.autograd.grad(call(x, weight, targets), x, create_graph=True)[0].sum(), x)
        for kind, words, refused in (
            (missing, "gradient of gradients", twice),
            (missing, "forward: recording a gradient of x", lambda: linear_cross_entropy.forward(x, weight, targets.int())),
            (ferroflash.InputTypeError, "targets hold torch.float32", lambda: call(x, weight, targets.float())),
            (ferroflash.InputTypeError, "x is a ndarray", lambda: call(np.ones((9, 16)), weight, targets)),
            (ferroflash.InputTypeError, "target is a ndarray", lambda: call(x, weight, np.ones(9))),
            (ferroflash.InputTypeError, "x holds torch.float64", lambda: call(x.double(), weight, targets)),
            (ferroflash.InputTypeError, "weight holds f16; f32", lambda: call(x, weight.half(), targets)),
            (ferroflash.InputError, r"one for each row, \(2, 9\), is accepted", lambda: call(x, weight, targets[:1])),
            (ferroflash.InputError, r"\[n, 16\]", lambda: call(x, weight[:, :15], targets)),
            (ferroflash.InputError, "reduction is 'most'", lambda: call(x, weight, targets, reduction="most")),
            (ferroflash.InputError, "reduction is 'most'", lambda: linear_cross_entropy.FusedLinearCrossEntropyLoss(reduction="most")),
            (ferroflash.InputError, "chunk_bytes is -1", lambda: call(x, weight, targets, chunk_bytes=-1)),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                refused()


def array(tensor):
    """The tensor's values, in the precision that NumPy has at least."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


if __name__ == "__main__":
    unittest.main()
