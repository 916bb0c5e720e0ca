"""Cross-entropy: on arrays of NumPy and tensors of PyTorch against a float64 reference, and everything that is refused.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device for PyTorch, `cuda`.
"""

import os
import unittest
import warnings
from unittest import mock

import numpy as np

import ferroflash
from ferroflash.ops import cross_entropy
from reference import check_close, round_to

try:
    import torch
except ImportError:
    torch = None

DTYPES = {"f16": np.float16, "f32": np.float32}
DEVICE = os.environ.get("FERROFLASH_TEST_DEVICE", "cpu")
OPTIONS = {"label_smoothing": 0.1, "logit_scale": 0.7, "lse_square_scale": 1e-2}


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def rows_of(shape, dtype, seed=1):
    """Logits, targets of which some are ignored, and gradients of losses."""
    draw = np.random.default_rng(seed)
    logits = (draw.standard_normal(shape) * 3).astype(dtype)
    targets = draw.integers(0, shape[-1], shape[:-1], dtype=np.int32)
    targets[..., 1::4] = -100
    return logits, targets, draw.standard_normal(shape[:-1]).astype(np.float32)


def expected(logits, targets, dloss, number, label_smoothing=0.0, logit_scale=1.0, lse_square_scale=0.0, ignore_index=-100):
    """`(loss, lse, z_losses, dlogits)` by the definition, in this precision."""
    y = logits.astype(number) * number(logit_scale)
    most = y.max(axis=-1, keepdims=True)
    weights = np.exp(y - most)
    total = weights.sum(axis=-1, keepdims=True)
    lse = (most + np.log(total))[..., 0]
    counts = targets != ignore_index
    chosen = np.where(counts, targets, 0)[..., None] == np.arange(y.shape[-1])
    smoothing = number(label_smoothing)
    share = (1 - smoothing) * chosen + smoothing / number(y.shape[-1])
    z_losses = np.where(counts, number(lse_square_scale) * lse * lse, 0)
    loss = np.where(counts, (share * (lse[..., None] - y)).sum(axis=-1) + z_losses, 0)
    slope = weights / total * (1 + 2 * number(lse_square_scale) * lse)[..., None] - share
    return loss, lse, z_losses, np.where(counts[..., None], number(logit_scale) * dloss.astype(number)[..., None] * slope, 0)


def check_all(test, found, inputs, precision, **options):
    """Fails the test where a loss, a log-sum-exp, a loss of it or a gradient is outside the bound."""
    exact, rounded = (expected(*inputs, number, **options) for number in (np.float64, np.float32))
    precisions = ("f32", "f32", "f32", precision)
    for name, ours, truth, theirs, of in zip(("loss", "lse", "z_losses", "dlogits"), found, exact, rounded, precisions):
        if ours is not None:
            check_close(test, name, ours, truth, round_to(theirs, of))


class Reference(unittest.TestCase):
    def test_its_gradients_are_those_of_its_result(self):
        logits, targets, dloss = rows_of((6, 9), np.float64)
        loss = lambda logits: (expected(logits, targets, dloss, np.float64, **OPTIONS)[0] * dloss).sum(axis=-1)
        dlogits = expected(logits, targets, dloss, np.float64, **OPTIONS)[3]
        for row in range(6):
            for column in range(9):
                step = np.zeros_like(logits)
                step[row, column] = 1e-6
                np.testing.assert_allclose(dlogits[row, column], (loss(logits + step) - loss(logits - step)) / 2e-6, rtol=1e-5, atol=1e-8)


class Arrays(unittest.TestCase):
    def run_both(self, inputs, **options):
        logits, targets, dloss = inputs
        loss, lse, z_losses = cross_entropy.forward(logits, targets, **options)
        dlogits = cross_entropy.backward(logits, targets, lse, dloss, **options)
        self.assertEqual((loss.dtype, dlogits.dtype, dlogits.shape), (np.float32, logits.dtype, logits.shape))
        precision = "f16" if logits.dtype == np.float16 else "f32"
        check_all(self, (loss, lse, z_losses, dlogits), inputs, precision, **options)
        return loss, dlogits

    def test_types_and_classes(self):
        """Rows of one class and of many, those that are no multiples of vectors, and one that is read in tiles."""
        for precision, dtype in DTYPES.items():
            for classes in (1, 5, 64, 1001, 17000):
                with self.subTest(dtype=precision, classes=classes):
                    self.run_both(rows_of((2, 5, classes), dtype))
                    self.run_both(rows_of((2, 5, classes), dtype), **OPTIONS)

    def test_each_option(self):
        for name, values in (("label_smoothing", (0.3, 1.0)), ("logit_scale", (0.25, 3.0)), ("lse_square_scale", (0.1,))):
            for value in values:
                with self.subTest(option=name, value=value):
                    self.run_both(rows_of((9, 40), np.float32), **{name: value})

    def test_ignored_targets(self):
        logits, targets, dloss = rows_of((9, 40), np.float32)
        logits[1] = np.nan  # is not looked at
        loss, lse, _ = cross_entropy.forward(logits, targets)
        dlogits = cross_entropy.backward(logits, targets, lse, dloss)
        self.assertTrue((targets[1::4] == -100).all() and not loss[1::4].any() and not dlogits[1::4].any())
        self.assertTrue(np.isfinite(loss).all() and np.isfinite(dlogits).all())
        other = np.where(targets == -100, 7, targets)
        loss, dlogits = self.run_both((rows_of((9, 40), np.float32)[0], other, dloss), ignore_index=int(other[0]))
        self.assertFalse(loss[0] or dlogits[0].any())
        # Without one, -100 is no class.
        loss, _, _ = cross_entropy.forward(logits, targets, ignore_index=None)
        self.assertTrue(np.isnan(loss[1::4]).all() and np.isfinite(loss[0::4]).all())

    def test_targets_that_are_no_class(self):
        logits, targets, dloss = rows_of((9, 40), np.float32)
        targets[0], targets[2] = 40, -1
        loss, lse, _ = cross_entropy.forward(logits, targets)
        dlogits = cross_entropy.backward(logits, targets, lse, dloss)
        self.assertEqual(np.isnan(loss).nonzero()[0].tolist(), [0, 2])
        self.assertEqual(np.isnan(dlogits).all(axis=1).nonzero()[0].tolist(), [0, 2])

    def test_strides_and_given_outputs(self):
        logits, targets, dloss = rows_of((9, 80), np.float16)
        inside = logits[:, 3:43]
        targets = np.minimum(targets, 39)
        memory = np.full((9, 60), np.nan, dtype=np.float16)
        given = [np.full(9, np.nan, dtype=np.float32) for _ in range(3)]
        found = cross_entropy.forward(inside, targets, loss=given[0], lse=given[1], z_losses=given[2])
        for array, returned in zip(given, found):
            self.assertIs(array, returned)
        dlogits = memory[:, 11:51]
        self.assertIs(cross_entropy.backward(inside, targets, given[1], dloss, dlogits=dlogits), dlogits)
        check_all(self, (*given, dlogits), (inside, targets, dloss), "f16")
        memory[:, 11:51] = np.nan
        self.assertTrue(np.isnan(memory).all())

    def test_in_place(self):
        logits, targets, dloss = rows_of((9, 40), np.float16)
        _, lse, _ = cross_entropy.forward(logits, targets)
        expected = cross_entropy.backward(logits, targets, lse, dloss)
        returned = cross_entropy.backward(logits, targets, lse, dloss, dlogits=logits)
        self.assertIs(returned, logits)
        np.testing.assert_array_equal(logits, expected)

    def test_what_is_refused(self):
        logits, targets, dloss = rows_of((9, 40), np.float32)
        lse = cross_entropy.forward(logits, targets)[1]
        forward, backward = cross_entropy.forward, cross_entropy.backward
        for kind, words, call in (
            (ferroflash.InputTypeError, "logits holds floating-point numbers of 64 bits", lambda: forward(logits.astype(np.float64), targets)),
            (ferroflash.InputTypeError, "targets holds integers of 64 bits; int32", lambda: forward(logits, targets.astype(np.int64))),
            (ferroflash.InputTypeError, "loss holds f16", lambda: forward(logits, targets, loss=np.empty(9, np.float16))),
            (ferroflash.InputTypeError, "logits is a list", lambda: forward([[1.0]], targets)),
            (ferroflash.InputTypeError, "dlogits holds f16", lambda: backward(logits, targets, lse, dloss, dlogits=logits.astype(np.float16))),
            (ferroflash.InputError, "targets are 8; logits has 9 rows", lambda: forward(logits, targets[:8])),
            (ferroflash.InputError, "targets of shape .9. has strides .2.", lambda: forward(logits, np.repeat(targets, 2)[::2])),
            (ferroflash.InputError, "label smoothing 1.5", lambda: forward(logits, targets, label_smoothing=1.5)),
            (ferroflash.InputError, "logit scale 0", lambda: forward(logits, targets, logit_scale=0)),
            (ferroflash.InputError, "z-loss factor -1", lambda: forward(logits, targets, lse_square_scale=-1)),
            (ferroflash.InputError, "ignore_index is 4294967296", lambda: forward(logits, targets, ignore_index=1 << 32)),
            (ferroflash.InputError, "targets is needed", lambda: forward(logits, None)),
            (ferroflash.InputError, "dloss has shape .8.", lambda: backward(logits, targets, lse, dloss[:8])),
            (ferroflash.InputError, "overlap", lambda: backward(logits[:4], targets[:4], lse[:4], dloss[:4], dlogits=logits[1:5])),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()


@unittest.skipIf(torch is None, "torch is not installed")
class Torch(unittest.TestCase):
    def inputs(self, dtype=None, shape=(9, 40), labels=None):
        logits, targets, dloss = (torch.from_numpy(x).to(DEVICE) for x in rows_of(shape, np.float32))
        return logits.to(dtype or torch.float32).requires_grad_(), targets.to(labels or torch.int64), dloss

    def test_results_and_gradients(self):
        for precision, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
            for labels in (torch.int64, torch.int32):
                for options in ({}, OPTIONS):
                    with self.subTest(dtype=precision, labels=labels, options=options):
                        logits, targets, dloss = self.inputs(dtype, (3, 4, 40), labels)
                        losses, z_losses = cross_entropy.cross_entropy_loss(logits, targets, **options)
                        self.assertEqual((losses.dtype, losses.requires_grad, z_losses.requires_grad), (torch.float32, True, False))
                        (dlogits,) = torch.autograd.grad(losses, logits, dloss)
                        inputs = [array(x) for x in (logits, targets, dloss)]
                        check_all(self, (array(losses), None, array(z_losses), array(dlogits)), inputs, precision, **options)

    def test_gradients_in_place_of_the_logits(self):
        logits, targets, dloss = self.inputs(torch.bfloat16)
        expected = torch.autograd.grad(cross_entropy.cross_entropy_loss(logits, targets)[0], logits, dloss)[0]
        # Logits of a model are no leaf.
        copy = logits * 1
        losses, _ = cross_entropy.cross_entropy_loss(copy, targets, inplace_backward=True)
        (found,) = torch.autograd.grad(losses, copy, dloss, retain_graph=True)
        self.assertEqual(found.data_ptr(), copy.data_ptr())
        self.assertTrue(torch.equal(found, expected))
        with self.assertRaisesRegex(ferroflash.InputError, "the logits are gone"):
            torch.autograd.grad(losses, copy, dloss)

    def test_compiled_as_eager(self):
        logits, targets, _ = self.inputs(torch.bfloat16)
        call = lambda logits, targets: cross_entropy.cross_entropy_loss(logits, targets, inplace_backward=True, **OPTIONS)
        found = []
        for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)):
            losses, z_losses = function(logits * 1, targets)
            found.append((losses, z_losses, *torch.autograd.grad(losses.sum(), logits)))
        for eager, of_graph in zip(*found):
            self.assertTrue(torch.equal(eager, of_graph))

    def test_operation_fits_what_pytorch_asks_of_it(self):
        logits, targets, _ = self.inputs(torch.float16, labels=torch.int32)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.ferroflash.cross_entropy, (logits, targets, 0.1, 1.0, 0.0, -100), test_utils=tests)

    def test_strides(self):
        logits, targets, dloss = self.inputs(shape=(9, 80))
        gaps, targets = logits[:, ::2], targets.clamp(max=39)
        losses, _ = cross_entropy.cross_entropy_loss(gaps, targets)
        (found,) = torch.autograd.grad(losses, gaps, dloss)
        check_all(self, (array(losses), None, None, array(found)), [array(x) for x in (gaps, targets, dloss)], "f32")

    def test_labels_beyond_32_bits_are_no_class(self):
        logits, targets, _ = self.inputs()
        targets[0], targets[2] = 1 << 32, -(1 << 40)
        losses, _ = cross_entropy.cross_entropy_loss(logits, targets)
        self.assertEqual(losses.isnan().nonzero().flatten().tolist(), [0, 2])

    def test_module(self):
        logits, targets, _ = self.inputs()
        of_pytorch = torch.nn.functional.cross_entropy
        for reduction in ("mean", "sum", "none"):
            loss = cross_entropy.CrossEntropyLoss(reduction=reduction, label_smoothing=0.1)(logits, targets)
            torch.testing.assert_close(loss, of_pytorch(logits, targets, reduction=reduction, label_smoothing=0.1))
        loss, z_loss = cross_entropy.CrossEntropyLoss(lse_square_scale=0.1, return_z_loss=True)(logits, targets)
        torch.testing.assert_close(z_loss, (0.1 * logits.logsumexp(-1).square())[targets != -100].mean())
        torch.testing.assert_close(loss - z_loss, of_pytorch(logits, targets))

    def test_what_is_refused(self):
        logits, targets, _ = self.inputs()
        call, missing = cross_entropy.cross_entropy_loss, ferroflash.MissingFeatureError
        twice = lambda: torch.autograd.grad(torch.autograd.grad(call(logits, targets)[0].sum(), logits, create_graph=True)[0].sum(), logits)
        for kind, words, refused in (
            (missing, "precomputed_lse", lambda: call(logits, targets, torch.zeros(9))),
            (missing, "gradient of gradients", twice),
            (missing, "a gradient of logits", lambda: cross_entropy.forward(logits, targets.int())),
            (ferroflash.InputTypeError, "precomputed_lse is a float", lambda: call(logits, targets, 0.1)),
            (ferroflash.InputTypeError, "labels hold torch.float32", lambda: call(logits, targets.float())),
            (ferroflash.InputTypeError, "logits is a ndarray", lambda: call(np.ones((9, 40)), targets)),
            (ferroflash.InputTypeError, "logits holds torch.float64", lambda: call(logits.double(), targets)),
            (ferroflash.InputError, r"one for each row, \(9,\), is accepted", lambda: call(logits, targets[:8])),
            (ferroflash.InputError, "reduction is 'most'", lambda: cross_entropy.CrossEntropyLoss(reduction="most")),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                refused()
        with mock.patch("torch.distributed.get_world_size", lambda group: group):
            with self.assertRaisesRegex(missing, "a process_group of 2 processes"):
                call(logits, targets, process_group=2)
            self.assertTrue(torch.equal(call(logits, targets, process_group=1)[0], call(logits, targets)[0]))


def array(tensor):
    """The tensor's values, in the precision that NumPy has at least."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


if __name__ == "__main__":
    unittest.main()
