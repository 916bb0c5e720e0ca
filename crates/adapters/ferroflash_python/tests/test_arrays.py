"""`ferroflash.forward` on arrays of NumPy: the emulator against the float64 reference, and everything that it refuses."""

import threading
import unittest
import warnings

import numpy as np

import ferroflash
from reference import check

DTYPES = {"f16": np.float16, "f32": np.float32}


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def inputs(dtype=np.float32, batch=2, q_rows=40, kv_rows=45, q_heads=4, kv_heads=2, dim=32):
    """q, k and v, of enough rows that the two maxima of the rule mean something."""
    shapes = [(batch, q_rows, q_heads, dim), (batch, kv_rows, kv_heads, dim), (batch, kv_rows, kv_heads, dim)]
    return [values(shape, seed, dtype) for seed, shape in enumerate(shapes)]


class Results(unittest.TestCase):
    def test_types_and_head_dims(self):
        for name, dtype in DTYPES.items():
            for dim in (8, 40, 64, 128, 256):
                with self.subTest(dtype=name, dim=dim):
                    tensors = inputs(dtype, dim=dim)
                    out, lse = ferroflash.forward(*tensors, causal=True, return_lse=True)
                    self.assertEqual((out.dtype, lse.dtype, out.shape), (dtype, np.float32, tensors[0].shape))
                    check(self, out, lse, tensors, name, causal=True)

    def test_masks(self):
        for q_rows, kv_rows in ((40, 45), (45, 40), (64, 7)):
            tensors = inputs(np.float16, q_rows=q_rows, kv_rows=kv_rows)
            for causal in (False, True):
                for left, right in ((None, None), (5, None), (None, 3), (0, 0), (9, 100), (1000, 2)):
                    with self.subTest(rows=(q_rows, kv_rows), causal=causal, window=(left, right)):
                        out, lse = ferroflash.forward(*tensors, causal=causal, window=(left, right), return_lse=True)
                        right = 0 if causal else right
                        check(self, out, lse, tensors, "f16", causal=causal, left=left, right=right)

    def test_scale_and_softcap(self):
        tensors = inputs(np.float16)
        for scale, softcap in ((0.3, 0.0), (-0.2, 0.0), (0.0, 0.0), (0.5, 4.0), (None, 30.0)):
            with self.subTest(scale=scale, softcap=softcap):
                out, lse = ferroflash.forward(*tensors, softmax_scale=scale, softcap=softcap, return_lse=True)
                check(self, out, lse, tensors, "f16", scale=scale, softcap=softcap)

    def test_grouped_heads(self):
        for q_heads, kv_heads in ((6, 6), (6, 2), (6, 1)):
            with self.subTest(heads=(q_heads, kv_heads)):
                tensors = inputs(np.float16, q_heads=q_heads, kv_heads=kv_heads)
                check(self, ferroflash.forward(*tensors), None, tensors, "f16")

    def test_no_keys(self):
        tensors = inputs(np.float32, kv_rows=0)
        out, lse = ferroflash.forward(*tensors, return_lse=True)
        self.assertFalse(out.any())
        self.assertTrue((lse == -np.inf).all())

    def test_any_strides_in_place(self):
        """Tensors inside of larger ones, on every axis and in other orders; what lies between their elements stays."""
        for dtype in DTYPES.values():
            packed = values((2, 40, 3, 4, 64), 1, dtype)
            by_head = values((2, 4, 40, 64), 2, dtype).transpose(0, 2, 1, 3)
            inside = values((3, 45, 6, 80), 3, dtype)[1:, 3:43, 1:5, 8:72]
            repeated = np.broadcast_to(values((2, 40, 1, 64), 4, dtype), (2, 40, 4, 64))
            for tensors in ([packed[:, :, i] for i in range(3)], [by_head] * 3, [inside] * 3, [by_head, inside, repeated]):
                memory = np.full((2, 42, 5, 72), np.nan, dtype=dtype)
                out = memory[:, 1:41, :4, 8:]
                returned = ferroflash.forward(*tensors, causal=True, out=out)
                self.assertIs(returned, out)
                check(self, out, None, tensors, "f16" if dtype is np.float16 else "f32", causal=True)
                kept = memory.copy()
                kept[:, 1:41, :4, 8:] = np.nan
                self.assertTrue(np.isnan(kept).all())

    def test_given_outputs_are_written_in_full(self):
        q, k, v = inputs(np.float16)
        out = np.full(q.shape, np.nan, dtype=np.float16)
        lse = np.full((2, 4, 40), np.nan, dtype=np.float32)
        returned = ferroflash.forward(q, k, v, out=out, lse=lse, return_lse=True)
        self.assertIs(returned[0], out)
        self.assertIs(returned[1], lse)
        check(self, out, lse, (q, k, v), "f16")
        self.assertIs(ferroflash.forward(q, k, v, out=out, lse=lse), out)

    def test_read_only_inputs(self):
        tensors = inputs(np.float16)
        for tensor in tensors:
            tensor.flags.writeable = False
        check(self, ferroflash.forward(*tensors), None, tensors, "f16")

    def test_the_lock_is_released(self):
        """Another thread of Python goes on while the emulator computes."""
        tensors = inputs(np.float32, q_rows=300, kv_rows=300)
        counted, stop = [0], threading.Event()

        def count():
            while not stop.is_set():
                counted[0] += 1

        thread = threading.Thread(target=count)
        thread.start()
        before = counted[0]
        ferroflash.forward(*tensors)
        during = counted[0] - before
        stop.set()
        thread.join()
        # With the lock held, it would have counted for the 5 ms of one slice at the most, before the call and after it.
        self.assertGreater(during, 0)


class Refusals(unittest.TestCase):
    def refused(self, kind, words, *tensors, **options):
        with self.assertRaises(kind) as caught:
            ferroflash.forward(*tensors, **options)
        self.assertIn(words, str(caught.exception))
        self.assertIsInstance(caught.exception, ferroflash.Error)

    def test_shapes(self):
        q, k, v = inputs()
        refused = lambda words, *tensors: self.refused(ferroflash.InputError, words, *tensors)
        refused("attention takes tensors of 4 axes (batch, row, head, dim); 3 were given", q[0], k, v)
        refused("attention takes tensors of 4 axes (batch, row, head, dim); 5 were given", q[None], k, v)
        refused("a tensor has at most 8 axes; 9 were given", q[None, None, None, None, None], k, v)
        refused("k has batch 1, q has 2; they must be equal", q, k[:1], v)
        refused("v has 44 rows, k has 45; they must be equal", q, k, v[:, 1:])
        refused("v has 1 heads, k has 2; they must be equal", q, k, v[:, :, :1])
        refused("k has head_dim 24, q has 32; they must be equal", q, k[..., :24], v)
        refused("4 query heads are no multiple of 3 key-value heads", q, *inputs(kv_heads=3)[1:])
        refused("head_dim 12 is not supported; accepted are the multiples of 8 from 8 to 256", *inputs(dim=12))
        refused("head_dim 264 is not supported", *inputs(dim=264))
        refused("q has no batch; at least 1 is needed", q[:0], k[:0], v[:0])

    def test_types(self):
        q, k, v = inputs()
        refused = lambda words, *tensors: self.refused(ferroflash.InputTypeError, words, *tensors)
        refused("k holds f16, q holds f32; they must be equal", q, k.astype(np.float16), v)
        refused("q holds floating-point numbers of 64 bits; float16, bfloat16 and float32 are accepted", q.astype(np.float64), k, v)
        refused("v holds integers of 32 bits", q, k, v.astype(np.int32))
        refused("k is a list; objects that speak DLPack", q, k.tolist(), v)
        refused("new arrays are made for those of PyTorch, NumPy and CuPy", q.tolist(), k, v)

    def test_strides(self):
        q, k, v = inputs(dim=64)
        self.refused(ferroflash.InputError, "the last dim of k has stride 2", q[..., :32], k[..., ::2], v[..., :32])
        self.refused(ferroflash.InputError, "those below 0 are not accepted", q[:, ::-1], k, v)

    def test_outputs(self):
        q, k, v = inputs()
        refused = lambda words, **options: self.refused(ferroflash.InputError, words, q, k, v, **options)
        out = np.full(q.shape, np.nan, dtype=np.float32)
        refused("out has 39 rows, q has 40; they must be equal", out=out[:, 1:])
        refused("out has 3 heads, q has 4", out=out[:, :, 1:])
        self.refused(ferroflash.InputTypeError, "out holds f16, q holds f32", q, k, v, out=out.astype(np.float16))
        repeated = np.lib.stride_tricks.as_strided(out, out.shape, (0, *out.strides[1:]), writeable=True)
        refused("overlaps itself; every element needs its own memory", out=repeated)
        lse = np.full((2, 4, 40), np.nan, dtype=np.float32)
        refused("lse has 39 rows, q has 40", out=out, lse=np.ascontiguousarray(lse[:, :, 1:]))
        refused("lse has 3 heads, q has 4", out=out, lse=np.ascontiguousarray(lse[:, 1:]))
        refused("it must be contiguous", out=out, lse=lse[:, :, ::2])
        refused("lse has 2 axes; 3 (batch, head, row) are accepted", out=out, lse=lse[0])
        self.refused(ferroflash.InputTypeError, "lse holds f16; f32 is accepted", q, k, v, lse=lse.astype(np.float16))
        # Nothing was written by any of them.
        self.assertTrue(np.isnan(out).all() and np.isnan(lse).all())
        frozen = np.zeros_like(out)
        frozen.flags.writeable = False
        with self.assertRaises((ferroflash.InputError, BufferError)):
            ferroflash.forward(q, k, v, out=frozen)

    def test_numbers(self):
        q, k, v = inputs()
        refused = lambda words, **options: self.refused(ferroflash.InputError, words, q, k, v, **options)
        refused("scale inf is not accepted", softmax_scale=float("inf"))
        refused("scale NaN is not accepted", softmax_scale=float("nan"))
        refused("softcap -1 is not accepted", softcap=-1.0)
        refused("softcap inf is not accepted", softcap=float("inf"))
        refused("the left bound is -1; numbers of keys from 0 on are accepted", window=(-1, None))
        refused("the right bound is -2", window=(0, -2))
        with self.assertRaises(TypeError):
            ferroflash.forward(q, k, v, causal=True, unknown=1)

    def test_exceptions_are_of_pythons_kinds(self):
        for kind, of in (
            (ferroflash.InputError, ValueError),
            (ferroflash.InputTypeError, TypeError),
            (ferroflash.MissingFeatureError, NotImplementedError),
            (ferroflash.DeviceError, RuntimeError),
        ):
            self.assertTrue(issubclass(kind, of) and issubclass(kind, ferroflash.Error))


class Package(unittest.TestCase):
    def test_devices(self):
        self.assertEqual(ferroflash.devices()[-1], ("emulator", "PTX emulator on the CPU"))

    def test_names(self):
        self.assertRegex(ferroflash.__version__, r"^\d+\.\d+\.\d+$")
        self.assertIn("flash_attn_func", dir(ferroflash))
        with self.assertRaises(AttributeError):
            ferroflash.no_such_name

    def test_install_as_refuses_other_names(self):
        with self.assertRaisesRegex(ferroflash.InputError, "'flash_attn' and 'flash_attn_interface' are accepted"):
            ferroflash.install_as("xformers")


if __name__ == "__main__":
    unittest.main()
