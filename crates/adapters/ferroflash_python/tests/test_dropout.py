"""Dropout: results and gradients beside the float64 reference with the same numbers, and element by element beside PyTorch's flash backend.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device, `cuda`, for the functions of flash_attn. What compares with PyTorch takes a GPU.
"""

import os
import unittest
import warnings

import numpy as np

import ferroflash
from reference import check, check_gradients, kept_weights

try:
    import torch
except ImportError:
    torch = None

DEVICE = os.environ.get("FERROFLASH_TEST_DEVICE", "cpu")
HAS_GPU = torch is not None and torch.cuda.is_available()
SEED, OFFSET = 0x1234_5678_9ABC_DEF0, 2**64 - 1000


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


class Reference(unittest.TestCase):
    def test_known_answer(self):
        """Key and counter 0, from the file of known answers of Random123: the first lane of the first block has these bytes."""
        words = (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)
        octets = np.array(words, dtype="<u4").view(np.uint8)
        for threshold in range(0, 255, 5):
            # In the middle between two thresholds.
            kept = kept_weights(1 - (threshold + 0.5) / 255, 0, 0, 1, 1, 16, 32)[0, 0] > 0
            for i, octet in enumerate(octets):
                fragment, element = i // 4, i % 4
                self.assertEqual(kept[element // 2 * 8, 8 * fragment + element % 2], octet <= threshold)

    def test_share(self):
        for p in (0.1, 0.5):
            kept = kept_weights(p, SEED, OFFSET, 2, 3, 100, 200)
            share = (np.floor((1 - p) * 255) + 1) / 256
            deviation = (share * (1 - share) / kept.size) ** 0.5
            self.assertLess(abs((kept > 0).mean() - share), 4 * deviation)
            self.assertEqual(set(np.unique(kept)), {0.0, float(np.float32(1) / (np.float32(1) - np.float32(p)))})


class Arrays(unittest.TestCase):
    def test_results_and_gradients(self):
        for dtype, name in ((np.float16, "f16"), (np.float32, "f32")):
            for p, options in ((0.1, {"causal": True}), (0.5, {"softcap": 5.0}), (0.3, {"window": (7, 3)})):
                q, k, v, dout = (values(shape, i, dtype) for i, shape in enumerate(((2, 40, 4, 32), (2, 45, 2, 32), (2, 45, 2, 32), (2, 40, 4, 32))))
                dropped = {"dropout_p": p, "rng_state": (SEED, OFFSET)}
                out, lse = ferroflash.forward(q, k, v, return_lse=True, **dropped, **options)
                kept = kept_weights(p, SEED, OFFSET, 2, 4, 40, 45)
                of_reference = dict(options)
                if "window" in of_reference:
                    of_reference["left"], of_reference["right"] = of_reference.pop("window")
                check(self, out, lse, (q, k, v), name, kept=kept, **of_reference)
                _, plain = ferroflash.forward(q, k, v, return_lse=True, **options)
                np.testing.assert_array_equal(lse, plain)
                if "softcap" in options:
                    with self.assertRaises(ferroflash.MissingFeatureError):
                        ferroflash.backward(q, k, v, out, lse, dout, **dropped, **options)
                    continue
                found = ferroflash.backward(q, k, v, out, lse, dout, **dropped, **options)
                check_gradients(self, found, (q, k, v), dout, None, name, kept=kept, **of_reference)

    def test_calls_that_do_not_overlap(self):
        self.assertEqual(ferroflash.dropout_numbers(2, 4), 256)
        q = values((2, 20, 4, 32), 0)
        call = lambda offset, p=0.5: ferroflash.forward(q, q, q, dropout_p=p, rng_state=(SEED, offset))
        np.testing.assert_array_equal(call(0), call(0))
        self.assertFalse(np.array_equal(call(0), call(256)))
        np.testing.assert_array_equal(call(5, 0.0), ferroflash.forward(q, q, q))

    def test_refusals(self):
        q = values((1, 3, 2, 8), 0)
        for kind, words, options in (
            (ferroflash.InputError, "rng_state must be given", {"dropout_p": 0.1}),
            (ferroflash.InputError, "dropout of 1 is not accepted; probabilities from 0 to below 1", {"dropout_p": 1.0, "rng_state": (0, 0)}),
            (ferroflash.InputError, "dropout of -0.5 is not accepted", {"dropout_p": -0.5, "rng_state": (0, 0)}),
            (ferroflash.InputError, "the offset is -1", {"dropout_p": 0.5, "rng_state": (0, -1)}),
            (ferroflash.InputError, "the seed is 18446744073709551616", {"dropout_p": 0.5, "rng_state": (2**64, 0)}),
            (ferroflash.InputTypeError, "(seed, offset) is accepted", {"dropout_p": 0.5, "rng_state": 3}),
        ):
            with self.assertRaises(kind) as caught:
                ferroflash.forward(q, q, q, **options)
            self.assertIn(words, str(caught.exception))


@unittest.skipIf(torch is None, "torch is not installed")
class Torch(unittest.TestCase):
    def tensors(self, dtype):
        generator = torch.Generator(DEVICE).manual_seed(1)
        shapes = (2, 40, 4, 32), (2, 45, 2, 32), (2, 45, 2, 32), (2, 40, 4, 32)
        return [torch.randn(shape, generator=generator, device=DEVICE).to(dtype) for shape in shapes]

    def test_states_in_tensors(self):
        """Seed and offset as numbers, and as a tensor that the kernels read where it is."""
        q, k, v, _ = self.tensors(torch.float16)
        signed = [number - (number >> 63 << 64) for number in (SEED, OFFSET)]
        state = torch.tensor(signed, dtype=torch.int64, device=DEVICE)
        ours = [ferroflash.forward(q, k, v, dropout_p=0.3, rng_state=given) for given in ((SEED, OFFSET), state)]
        self.assertTrue(torch.equal(*ours))
        with self.assertRaises(ferroflash.InputTypeError):
            ferroflash.forward(q, k, v, dropout_p=0.3, rng_state=state.int())
        with self.assertRaises(ferroflash.InputError):
            ferroflash.forward(q, k, v, dropout_p=0.3, rng_state=state[:1])

    def test_training(self):
        """Numbers of the generator, the same in the backward pass: beside the reference, with what was drawn."""
        for dtype, name in ((torch.float16, "f16"), (torch.float32, "f32")):
            q, k, v, dout = self.tensors(dtype)
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            torch.manual_seed(5)
            _, (seed, offset) = ferroflash._torch.drawn(0.2, q)
            torch.manual_seed(5)
            out, lse, _ = ferroflash.flash_attn_func(*leaves, dropout_p=0.2, causal=True, return_attn_probs=True)
            out.backward(dout)
            kept = kept_weights(0.2, seed, offset, 2, 4, 40, 45)
            arrays = [x.detach().double().cpu().numpy() for x in (q, k, v, out, lse, dout, *(x.grad for x in leaves))]
            check(self, arrays[3], arrays[4], arrays[:3], name, causal=True, kept=kept)
            check_gradients(self, arrays[6:], arrays[:3], arrays[5], None, name, causal=True, kept=kept)
            # Another call draws others.
            self.assertFalse(torch.equal(ferroflash.flash_attn_func(q, k, v, 0.2, causal=True), out))

    def test_packed_in_one_tensor(self):
        q, k, v, _ = self.tensors(torch.float16)
        kv = torch.stack((k, v), 2)
        torch.manual_seed(6)
        expected = ferroflash.flash_attn_func(q, k, v, 0.4)
        torch.manual_seed(6)
        self.assertTrue(torch.equal(ferroflash.flash_attn_kvpacked_func(q, kv, 0.4), expected))
        qkv = torch.stack((q, q, q), 2)
        torch.manual_seed(6)
        expected = ferroflash.flash_attn_func(q, q, q, 0.4)
        torch.manual_seed(6)
        self.assertTrue(torch.equal(ferroflash.flash_attn_qkvpacked_func(qkv, 0.4), expected))

    def test_the_operation(self):
        """Under torch.func and for fake tensors: seed and offset are a tensor, which is kept for the gradients."""
        q, k, v, dout = self.tensors(torch.float32)
        state = torch.tensor([9, 40], dtype=torch.int64, device=DEVICE)
        options = (None, False, -1, -1, 0.0, False, True, "", "", None, 0.3, state, None)
        out, _ = torch.ops.ferroflash.forward(q, k, v, *options)
        self.assertTrue(torch.equal(out, ferroflash.forward(q, k, v, dropout_p=0.3, rng_state=(9, 40))))
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        torch.ops.ferroflash.forward(*leaves, *options)[0].backward(dout)
        again = [x.clone().requires_grad_() for x in (q, k, v)]
        ferroflash.forward(*again, dropout_p=0.3, rng_state=(9, 40)).backward(dout)
        for one, other in zip(leaves, again):
            self.assertTrue(torch.equal(one.grad, other.grad))

    def test_compiled(self):
        if DEVICE == "cpu":
            self.skipTest("compiling takes a GPU's compiler")
        q, k, v, dout = self.tensors(torch.float16)
        compiled = torch.compile(ferroflash.flash_attn_func, fullgraph=True)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = compiled(*leaves, dropout_p=0.5)
        out.backward(dout)
        self.assertTrue(all(torch.isfinite(x.grad).all() for x in leaves))
        self.assertFalse(torch.equal(compiled(q, k, v, dropout_p=0.5), compiled(q, k, v, dropout_p=0.5)))


@unittest.skipUnless(HAS_GPU, "no GPU for PyTorch")
class BesidePyTorch(unittest.TestCase):
    """Every probability that PyTorch's flash backend drops, and no other: seed and offset are those that it returns."""

    def of_pytorch(self, q, k, v, p, causal, with_mask):
        """(out, lse, seed, offset, mask) of tensors `[batch, head, row, dim]`, by whichever form of the operation there is."""
        call = torch.ops.aten._scaled_dot_product_flash_attention
        out, lse, _, _, _, _, *numbers, mask = call(q, k, v, p, causal, with_mask)
        first, second = numbers
        if first.numel() == 2:  # one tensor of both, since PyTorch 2.7
            seed, offset = first.flatten().tolist()
        else:
            seed, offset = first.item(), second.item()
        return out, lse, seed % 2**64, offset % 2**64, mask

    def test_every_element(self):
        for dtype in (torch.float16, torch.bfloat16):
            for dim in (32, 64, 128, 256):
                for p in (0.1, 0.5):
                    with self.subTest(dtype=dtype, dim=dim, p=p):
                        batch, heads, rows, keys = 2, 3, 200, 300
                        q = torch.zeros(batch, heads, rows, dim, device="cuda", dtype=dtype)
                        k = torch.zeros(batch, heads, keys, dim, device="cuda", dtype=dtype)
                        # All weights are equal. Each of some keys has a column of its own: what is not 0 there is kept.
                        for first in range(0, keys, dim):
                            count = min(dim, keys - first)
                            v = torch.zeros_like(k)
                            v[:, :, torch.arange(first, first + count), torch.arange(count)] = 1
                            theirs, _, seed, offset, _ = self.of_pytorch(q, k, v, p, False, False)
                            ours = ferroflash.forward(
                                *(x.transpose(1, 2) for x in (q, k, v)), dropout_p=p, rng_state=(seed, offset)
                            ).transpose(1, 2)
                            self.assertTrue(torch.equal(ours != 0, theirs != 0), f"keys from {first} on")
                            kept = kept_weights(p, seed, offset, batch, heads, rows, keys)[..., first : first + count] > 0
                            np.testing.assert_array_equal((ours != 0)[..., :count].cpu().numpy(), kept)

    def test_debug_mask(self):
        """The sign of what PyTorch returns for its own tests: negative where a probability is dropped."""
        for p in (0.17, 0.6):
            batch, heads, rows, keys, dim = 2, 4, 256, 384, 64
            q, k, v = (torch.randn(batch, heads, n, dim, device="cuda", dtype=torch.float16) for n in (rows, keys, keys))
            *_, seed, offset, mask = self.of_pytorch(q, k, v, p, False, True)
            if mask.numel() == 0:
                self.skipTest("this PyTorch returns no mask")
            kept = kept_weights(p, seed, offset, batch, heads, rows, keys) > 0
            theirs = mask[:, :, :rows, :keys].float().cpu().numpy()
            # Weights that round to 0 have no sign to tell.
            told = theirs != 0
            self.assertGreater(told.mean(), 0.9)
            np.testing.assert_array_equal((theirs > 0)[told], kept[told])

    def test_results_and_gradients(self):
        for dim in (64, 128):
            q, k, v, dout = (
                torch.randn(2, 4, n, dim, device="cuda", dtype=torch.bfloat16) for n in (333, 333, 333, 333)
            )
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            out, lse, seed, offset, _ = self.of_pytorch(*leaves, 0.3, True, False)
            out.backward(dout)
            ours, our_lse = ferroflash.forward(
                *(x.transpose(1, 2) for x in (q, k, v)), causal=True, dropout_p=0.3, rng_state=(seed, offset), return_lse=True
            )
            torch.testing.assert_close(ours.transpose(1, 2), out.detach(), atol=2e-2, rtol=2e-2)
            torch.testing.assert_close(our_lse, lse.detach()[..., :333], atol=1e-3, rtol=1e-3)
            gradients = ferroflash.backward(
                *(x.transpose(1, 2) for x in (q, k, v)), ours, our_lse, dout.transpose(1, 2),
                causal=True, dropout_p=0.3, rng_state=(seed, offset),
            )  # fmt: skip
            for found, leaf in zip(gradients, leaves):
                torch.testing.assert_close(found.transpose(1, 2), leaf.grad, atol=5e-2, rtol=5e-2)

    def test_the_generator(self):
        """What a call draws, and how far it moves the generator on, is what PyTorch's flash backend draws in its place."""
        q = torch.randn(2, 3, 64, 64, device="cuda", dtype=torch.float16)
        torch.manual_seed(11)
        first = self.of_pytorch(q, q, q, 0.3, False, False)
        second = self.of_pytorch(q, q, q, 0.3, False, False)
        torch.manual_seed(11)
        rows = q.transpose(1, 2)
        _, (seed, offset) = ferroflash._torch.drawn(0.3, rows)
        self.assertEqual((seed, offset), first[2:4])
        _, (seed, offset) = ferroflash._torch.drawn(0.3, rows)
        self.assertEqual((seed, offset), second[2:4])
        torch.manual_seed(11)
        ours = ferroflash.flash_attn_func(rows, rows, rows, 0.3).transpose(1, 2)
        torch.testing.assert_close(ours, first[0], atol=2e-2, rtol=2e-2)

    def test_graphs_draw_anew(self):
        q = torch.randn(1, 64, 2, 64, device="cuda", dtype=torch.float16)
        ferroflash.flash_attn_func(q, q, q, 0.5)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = ferroflash.flash_attn_func(q, q, q, 0.5)
        found = []
        for _ in range(3):
            graph.replay()
            torch.cuda.synchronize()
            found.append(out.clone())
        self.assertFalse(torch.equal(found[0], found[1]) or torch.equal(found[1], found[2]))


if __name__ == "__main__":
    unittest.main()
