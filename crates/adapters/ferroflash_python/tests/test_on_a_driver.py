"""Arrays on a GPU, against the stand-in for the driver: which stream waits, what is launched with which addresses, what is refused.

The driver is opened once in the life of a process, so that each test is a process of its own.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap
import unittest

SOURCE = os.environ.get("FERROFLASH_FAKE_DRIVER")

# Arrays that are nothing but what they say of themselves.
ARRAYS = '''
import ctypes, sys
import ferroflash

def strides_of(shape):
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.insert(0, strides[0] * extent)
    return tuple(strides)

class Interface:
    """What CuPy and Numba speak."""
    def __init__(self, address, shape=(2, 5, 4, 64), typestr="<f2", strides=None, **more):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "data": (address, False), "version": 3,
            "strides": strides and tuple(stride * int(typestr[-1]) for stride in strides), **more,
        }
        self.shape, self.address = shape, address

class Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]

class Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]

class Described(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device", Device), ("ndim", ctypes.c_int32), ("dtype", Type),
                ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
                ("byte_offset", ctypes.c_uint64)]

class Managed(ctypes.Structure):
    _fields_ = [("tensor", Described), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]

class Packed:
    """What every package of tensors speaks; from before version 1, so that only a stream is asked for."""
    def __init__(self, address, shape=(2, 5, 4, 64), device=(2, 0), code=2, offset=0):
        self.shape, self.device, self.streams = shape, device, []
        sizes = (ctypes.c_int64 * 4)(*shape)
        steps = (ctypes.c_int64 * 4)(*strides_of(shape))
        self.kept = sizes, steps
        self.described = Managed(Described(address, Device(*device), 4, Type(code, 16, 1), sizes, steps, offset), None, None)
    def __dlpack_device__(self):
        return self.device
    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return make(ctypes.addressof(self.described), b"dltensor", None)

def refused(kind, words, call):
    try:
        call()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
'''


@unittest.skipIf(SOURCE is None or shutil.which("rustc") is None, "FERROFLASH_FAKE_DRIVER names no source, or there is no rustc")
class OnADriver(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        library = pathlib.Path(cls.folder.name, "libcuda.so.1")
        rustc = ["rustc", "--edition", "2024", "--crate-type", "cdylib", "--crate-name", "cuda", "-Cpanic=abort", "-o", str(library)]
        subprocess.run([*rustc, SOURCE, "-Clink-arg=-Wl,-soname,libcuda.so.1"], check=True, capture_output=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def run_program(self, program, **settings):
        """What the driver was told."""
        log = pathlib.Path(self.folder.name, "log")
        log.write_text("")
        environment = {**os.environ, "LD_LIBRARY_PATH": self.folder.name, "FAKE_LOG": str(log), **settings}
        program = ARRAYS + textwrap.dedent(program)
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return log.read_text().splitlines()

    def launches(self, log):
        return [line for line in log if line.startswith("launch")]

    def test_addresses_and_the_callers_stream(self):
        log = self.run_program("""
            q, k, v, out = (Interface(0x70000000 + i * 0x100000) for i in range(4))
            assert ferroflash.forward(q, k, v, out=out, causal=True, stream=0x77) is out
            lse = Interface(0x71000000, (2, 4, 5), "<f4")
            assert ferroflash.forward(q, k, v, out=out, lse=lse, return_lse=True) == (out, lse)
        """)
        self.assertEqual(len(self.launches(log)), 2, log)
        text = "\n".join(log)
        for address in ("0x70000000", "0x70100000", "0x70200000"):
            self.assertIn(address, text)
        self.assertIn(f" stream {0x77} ", self.launches(log)[0])
        self.assertIn(" stream 0 ", self.launches(log)[1])

    def test_sequences_on_the_callers_stream(self):
        log = self.run_program("""
            q, out, k, v = (Interface(0x70000000 + i * 0x100000, (9, 4, 64)) for i in range(4))
            starts, lengths, table = Interface(0x71000000, (3,), "<i4"), Interface(0x71001000, (2,), "<i4"), Interface(0x71002000, (2, 3), "<i4")
            lse = Interface(0x71003000, (4, 9), "<f4")
            assert ferroflash.forward_packed(q, k, v, starts, starts, out=out, lse=lse, return_lse=True, causal=True, stream=0x77) == (out, lse)
            k, v = (Interface(0x72000000 + i * 0x100000, (8, 16, 4, 64)) for i in range(2))
            new = [Interface(0x73000000 + i * 0x100000, (2, 1, 4, 64)) for i in range(4)]
            f = lambda *more, **options: ferroflash.forward_cached(new[0], k, v, *more, lengths=lengths, pages=table, out=new[1], **options)
            f(stream=0x88)
            f(*new[2:], stream=0x99, splits=1)
            T, E = ferroflash.InputTypeError, ferroflash.InputError
            refused(T, "the lengths of k and v holds `<i8`; `<i4` is accepted", lambda: ferroflash.forward_cached(new[0], k, v, lengths=Interface(0x71001000, (2,), "<i8"), out=new[1]))
            refused(E, "out overlaps q in memory", lambda: ferroflash.forward_cached(new[0], k, v, lengths=lengths, pages=table, out=Interface(new[0].address, (2, 1, 4, 64))))
            refused(E, "overlaps", lambda: f(Interface(k.address, (2, 1, 4, 64)), new[3]))
            elsewhere = Packed(k.address, (8, 16, 4, 64), device=(2, 1))
            refused(E, "k is on device cuda:1, q is on cuda:0", lambda: ferroflash.forward_cached(new[0], elsewhere, v, lengths=lengths, pages=table, out=new[1], device=0))
        """)
        of_stream = [[line.split()[1] for line in self.launches(log) if f" stream {stream} " in line] for stream in (0x77, 0x88, 0x99)]
        self.assertTrue(all(of_stream), log)
        self.assertEqual(sum(map(len, of_stream)), len(self.launches(log)), log)
        # New rows are written before any is read.
        self.assertTrue(of_stream[2][0].startswith("append_f16") and len(of_stream[2]) == 2, of_stream)

    def test_gradients_on_the_callers_stream(self):
        log = self.run_program("""
            q, k, v, out, dout, dq, dk, dv = (Interface(0x70000000 + i * 0x100000) for i in range(8))
            lse, dlse = (Interface(0x71000000 + i * 0x1000, (2, 4, 5), "<f4") for i in range(2))
            f = lambda **options: ferroflash.backward(q, k, v, out, lse, dout, dq=dq, dk=dk, dv=dv, **options)
            assert f(dlse=dlse, causal=True, stream=0x77) == (dq, dk, dv)
            refused(ferroflash.InputError, "dq overlaps", lambda: ferroflash.backward(q, k, v, out, lse, dout, dq=Interface(q.address), dk=dk, dv=dv))
            refused(ferroflash.InputTypeError, "k is a __main__.Interface; new arrays are made for those of PyTorch, NumPy and CuPy, and for "
                    "others `dk` must be given", lambda: ferroflash.backward(q, k, v, out, lse, dout, dq=dq))
            other = Packed(0x70400000, device=(2, 1))
            refused(ferroflash.InputError, "dout is on device cuda:1, q is on cuda:0",
                    lambda: ferroflash.backward(q, k, v, out, lse, other, dq=dq, dk=dk, dv=dv, device=0))
        """)
        launches = self.launches(log)
        self.assertGreaterEqual(len(launches), 2, log)
        self.assertTrue(all(f" stream {0x77} " in launch for launch in launches), launches)

    def test_gradients_of_equal_bits_are_other_kernels(self):
        """The fused kernel of compute capability 9.0 adds to dq in any order, unless equal bits are asked for."""
        log = self.run_program("""
            # More keys than the two blocks whose sums have one result in any order.
            q, k, v, out, dout, dq, dk, dv = (Interface(0x70000000 + i * 0x100000, (1, 1000, 4, 64)) for i in range(8))
            lse = Interface(0x71000000, (1, 4, 1000), "<f4")
            f = lambda **options: ferroflash.backward(q, k, v, out, lse, dout, dq=dq, dk=dk, dv=dv, **options)
            f(stream=0x11)
            f(stream=0x22, deterministic=False)
            f(stream=0x33, deterministic=True)
        """)
        # launch SYMBOL ..
        symbols = [[line.split()[1] for line in self.launches(log) if f" stream {stream} " in line] for stream in (0x11, 0x22, 0x33)]
        fused = [any(symbol.startswith("backward_fused_") for symbol in of_call) for of_call in symbols]
        self.assertEqual(fused, [True, True, False], symbols)
        self.assertTrue(any(symbol.startswith("backward_ordered_") for symbol in symbols[2]), symbols)

    def test_operators_on_the_callers_stream(self):
        log = self.run_program("""
            from ferroflash import optim
            from ferroflash.ops import cross_entropy, fused_dense, layer_norm, rotary, softmax
            at = lambda i: 0x70000000 + i * 0x100000
            x, out, dx = (Interface(at(i), (8, 64)) for i in range(3))
            weight, statistics = Interface(at(3), (64,), "<f4", stream=0x55), Interface(at(4), (8,), "<f4")
            options = {"is_rms_norm": True, "stream": 0x77}
            layer_norm.forward(x, weight, out=out, rstd=statistics, **options)
            layer_norm.backward(x, None, None, None, statistics, out, dx=dx, **options)
            softmax.forward(x, out=out, stream=0x88)
            losses = {name: Interface(at(5) + 0x1000 * i, (8,), "<f4") for i, name in enumerate(("loss", "lse", "z_losses"))}
            targets = Interface(at(6), (8,), "<i4")
            cross_entropy.forward(x, targets, **losses, stream=0x99)
            cross_entropy.backward(x, targets, losses["lse"], losses["loss"], dlogits=x, stream=0x99)
            q, cos, sin = Interface(at(7), (2, 5, 4, 64)), Interface(at(8), (5, 32), "<f4"), Interface(at(9), (5, 32), "<f4")
            assert rotary.forward(q, cos, sin, inplace=True, stream=0xAA) is q
            moments = [Interface(at(10 + i), (8, 64), "<f4") for i in range(3)]
            optim.step([x], [out], [moments[0]], [moments[1]], 1, masters=[moments[2]], stream=0xBB)
            E = ferroflash.InputError
            elsewhere = Packed(at(3), (64,), device=(2, 1))
            refused(E, "weight is on device cuda:1, x is on cuda:0", lambda: layer_norm.forward(x, elsewhere, out=out, device=0))
            refused(E, "out overlaps x", lambda: layer_norm.forward(x, out=Interface(x.address, (8, 64))))
            refused(ferroflash.InputTypeError, "targets holds `<i8`; `<i4` is accepted", lambda: cross_entropy.forward(x, Interface(at(6), (8,), "<i8"), **losses))
            refused(ferroflash.InputTypeError, "`out` must be given", lambda: softmax.forward(x))
        """)
        symbols = {stream: [line.split()[1] for line in self.launches(log) if f" stream {stream} " in line] for stream in range(0x77, 0xBC)}
        of_losses = ["cross_entropy_f16", "cross_entropy_backward_f16"]
        starts = {0x77: ["norm_f16", "norm_backward_f16"], 0x88: ["softmax_f16"], 0x99: of_losses, 0xAA: ["rotary_f16"], 0xBB: ["adamw_f16"]}
        for stream, expected in starts.items():
            found = symbols[stream]
            self.assertTrue(len(found) == len(expected) and all(map(str.startswith, found, expected)), log)
        self.assertEqual(sum(map(len, symbols.values())), len(self.launches(log)))
        # The writer of the weights is waited for.
        self.assertTrue(any(line.startswith(f"stream {0x77} waits for event") for line in log[: log.index(self.launches(log)[0])]), log)

    def test_dense_layers_on_the_callers_stream(self):
        log = self.run_program("""
            from ferroflash.ops import fused_dense
            x, out, z, dx = (Interface(0x70000000 + i * 0x100000, (8, 64)) for i in range(4))
            weight, dweight = Interface(0x71000000, (64, 64), stream=0x55), Interface(0x72000000, (64, 64))
            bias, dbias = Interface(0x73000000, (64,)), Interface(0x74000000, (64,))
            fused_dense.forward(x, weight, bias, activation="silu", out=out, z=z, stream=0x77)
            given = {"dx": dx, "dweight": dweight, "dbias": dbias}
            assert fused_dense.backward(x, weight, bias, z, out, activation="silu", **given, stream=0x88) == tuple(given.values())
            one = {"weight_gradient": False, "bias_gradient": False, "dx": dx}
            assert fused_dense.backward(x, weight, bias, None, out, **one, stream=0x99) == (dx, None, None)
            I = ferroflash.InputError
            refused(I, "dx overlaps x", lambda: fused_dense.backward(x, weight, bias, None, out, **{**one, "dx": Interface(x.address, (8, 64))}))
            refused(ferroflash.InputTypeError, "`dweight` must be given", lambda: fused_dense.backward(x, weight, None, None, out, dx=dx))
        """)
        symbols = {stream: [line.split()[1] for line in self.launches(log) if f" stream {stream} " in line] for stream in (0x77, 0x88, 0x99)}
        self.assertEqual(sum(map(len, symbols.values())), len(self.launches(log)), log)
        launched = {0x77: ["dense_"], 0x88: ["dense_dz_", "norm_parts_", "dense_dx_", "dense_dw_"], 0x99: ["dense_dx_"]}
        for stream, expected in launched.items():
            found = symbols[stream]
            self.assertTrue(len(found) == len(expected) and all(map(str.startswith, found, expected)), log)

    def test_losses_of_layers_masks_and_numbers_on_the_callers_stream(self):
        log = self.run_program("""
            from ferroflash import optim
            from ferroflash.ops import linear_cross_entropy, softmax
            at = lambda i: 0x70000000 + i * 0x100000
            x, dx = (Interface(at(i), (8, 64)) for i in range(2))
            weight, dweight = Interface(at(2), (100, 64), stream=0x55), Interface(at(3), (100, 64))
            losses = {name: Interface(at(4) + 0x1000 * i, (8,), "<f4") for i, name in enumerate(("loss", "lse", "z_losses"))}
            targets = Interface(at(5), (8,), "<i4")
            assert linear_cross_entropy.forward(x, weight, targets, **losses, stream=0x77) == tuple(losses.values())
            given = {"dx": dx, "dweight": dweight}
            of_forward = (x, weight, targets, None, losses["lse"], losses["loss"])
            assert linear_cross_entropy.backward(*of_forward, **given, stream=0x88) == (dx, dweight, None)
            # Rows share the mask, which starts anywhere.
            seen = Interface(at(6) + 3, (8, 64), "|b1", (0, 1))
            softmax.forward(x, mask=seen, out=dx, stream=0x99)
            moments = [Interface(at(7 + i), (8, 64), "<f4") for i in range(2)]
            rate, number = Interface(at(9), (1,), "<f4"), Interface(at(10), (1,), "<i4")
            optim.step([x], [dx], [moments[0]], [moments[1]], number, lr=rate, stream=0xAA)
            T, E = ferroflash.InputTypeError, ferroflash.InputError
            accepted = "`|b1`, `<f2` and `<f4` are accepted, and bfloat16 through DLPack"
            refused(T, f"mask holds `|u1`; {accepted}", lambda: softmax.forward(x, mask=Interface(at(6), (8, 64), "|u1"), out=dx))
            refused(T, "x holds `|b1`; `<f2` and `<f4` are accepted", lambda: softmax.forward(seen, out=dx))
            refused(E, "out overlaps mask", lambda: softmax.forward(x, mask=Interface(dx.address + 8, (8, 64), "|b1"), out=dx))
            refused(E, "dx overlaps x", lambda: linear_cross_entropy.backward(*of_forward, dx=Interface(x.address, (8, 64)), dweight=dweight))
            refused(E, "parameter 0 overlaps the learning rate", lambda: optim.step([x], [dx], [moments[0]], [moments[1]], 1, lr=Interface(x.address, (1,), "<f4")))
        """)
        symbols = {stream: [line.split()[1] for line in self.launches(log) if f" stream {stream} " in line] for stream in (0x77, 0x88, 0x99, 0xAA)}
        self.assertEqual(sum(map(len, symbols.values())), len(self.launches(log)), log)
        launched = {
            0x77: ["linear_cross_entropy_", "linear_cross_entropy_"],
            0x88: ["linear_cross_entropy_dlogits_", "dense_dx_", "dense_dw_"],
            0x99: ["softmax_f16"],
            0xAA: ["adamw_f16"],
        }
        for stream, expected in launched.items():
            found = symbols[stream]
            self.assertTrue(len(found) == len(expected) and all(map(str.startswith, found, expected)), (found, expected))

    def test_programs_on_the_callers_stream(self):
        """The writers of what a program reads are waited for, too, and outputs do not touch it."""
        log = self.run_program("""
            q, k, v, out = (Interface(0x70000000 + i * 0x100000) for i in range(4))
            slopes = Interface(0x71000000, (2, 4), "<f4", stream=0x55)
            options = {"program": ferroflash.ScoreProgram.alibi(), "tensors": {"slopes": slopes}}
            ferroflash.forward(q, k, v, out=out, stream=0x77, **options)
            refused(ferroflash.InputError, "overlaps", lambda: ferroflash.forward(q, k, v, out=Interface(slopes.address), **options))
            elsewhere = {"slopes": Packed(0x72000000, (1, 4, 1, 1), device=(2, 1))}
            refused(ferroflash.InputError, "slopes is on device cuda:1, q is on cuda:0",
                    lambda: ferroflash.forward(q, k, v, out=out, device=0, program=options["program"], tensors=elsewhere))
        """)
        (launch,) = self.launches(log)
        self.assertIn(f" stream {0x77} ", launch)
        before = log[: log.index(launch)]
        self.assertTrue(any(line.startswith("record event") and line.endswith(f"on stream {0x55}") for line in before), log)
        self.assertTrue(any(line.startswith(f"stream {0x77} waits for event") for line in before), log)

    def test_gradients_through_programs_on_the_callers_stream(self):
        log = self.run_program("""
            q, k, v, out, dout, dq, dk, dv = (Interface(0x70000000 + i * 0x100000) for i in range(8))
            lse, slopes = Interface(0x71000000, (2, 4, 5), "<f4"), Interface(0x72000000, (2, 4), "<f4", stream=0x55)
            options = {"program": ferroflash.ScoreProgram.alibi(), "tensors": {"slopes": slopes}}
            into = {"dq": dq, "dk": dk, "dv": dv}
            assert ferroflash.backward(q, k, v, out, lse, dout, stream=0x77, **into, **options) == (dq, dk, dv)
            f = lambda **more: lambda: ferroflash.backward(q, k, v, out, lse, dout, **{**into, **options, **more})
            refused(ferroflash.InputError, "overlaps", f(dk=Interface(slopes.address)))
            refused(ferroflash.MissingFeatureError, "gradients through a softcap and the program alibi", f(softcap=5.0))
            q, k, v, out, dout, dq, dk, dv = (Interface(x.address, (9, 4, 64)) for x in (q, k, v, out, dout, dq, dk, dv))
            starts, lse, into = Interface(0x73000000, (3,), "<i4"), Interface(0x71000000, (4, 9), "<f4"), {"dq": dq, "dk": dk, "dv": dv}
            ferroflash.backward_packed(q, k, v, out, lse, dout, starts, starts, stream=0x88, **into, **options)
            f = lambda **more: lambda: ferroflash.backward_packed(q, k, v, out, lse, dout, starts, starts, **{**into, **options, **more})
            refused(ferroflash.InputError, "overlaps", f(dk=Interface(slopes.address, (9, 4, 64))))
            refused(ferroflash.MissingFeatureError, "gradients through a softcap and the program alibi", f(softcap=5.0))
        """)
        launches = self.launches(log)
        for stream in (0x77, 0x88):
            ours = [at for at, line in enumerate(log) if line in launches and f" stream {stream} " in line]
            self.assertGreaterEqual(len(ours), 2, log)
            waits = [line for line in log[: ours[0]] if line.startswith(f"stream {stream} waits for event")]
            recorded = [line.split()[2] for line in log[: ours[0]] if line.startswith("record event") and line.endswith(f"on stream {0x55}")]
            self.assertTrue({line.split()[5] for line in waits} & set(recorded), log)
        self.assertTrue(all(any(f" stream {stream} " in line for stream in (0x77, 0x88)) for line in launches), log)

    def test_sinks_on_the_callers_stream(self):
        """The writer of sinks is waited for, too; their gradient is a launch more, and overlaps nothing."""
        log = self.run_program("""
            q, k, v, out, dout, dq, dk, dv = (Interface(0x70000000 + i * 0x100000) for i in range(8))
            lse, sink = Interface(0x71000000, (2, 4, 5), "<f4"), Interface(0x72000000, (4,), "<f4", stream=0x55)
            dsink, into = Interface(0x73000000, (4,), "<f4"), {"dq": dq, "dk": dk, "dv": dv}
            ferroflash.forward(q, k, v, out=out, lse=lse, sink=sink, stream=0x77)
            f = lambda **more: ferroflash.backward(q, k, v, out, lse, dout, **{**into, "sink": sink, **more})
            assert f(dsink=dsink, stream=0x88) == (dq, dk, dv, dsink)
            E = ferroflash.InputError
            refused(E, "overlaps", lambda: ferroflash.forward(q, k, v, out=Interface(sink.address), sink=sink))
            refused(E, "dsink overlaps", lambda: f(dsink=Interface(dq.address, (4,), "<f4")))
            refused(ferroflash.InputTypeError, "sink is a __main__.Interface; new arrays are made for those of PyTorch, NumPy and CuPy", f)
            refused(E, "sink is on device cuda:1, q is on cuda:0", lambda: f(device=0, sink=Packed(0x74000000, device=(2, 1)), dsink=dsink))
            refused(E, "dsink is on device cuda:1, q is on cuda:0", lambda: f(device=0, dsink=Packed(0x74000000, device=(2, 1))))
        """)
        launches = self.launches(log)
        for stream in (0x77, 0x88):
            first = next(at for at, line in enumerate(log) if line in launches and f" stream {stream} " in line)
            waits = {line.split()[5] for line in log[:first] if line.startswith(f"stream {stream} waits for event")}
            recorded = {line.split()[2] for line in log[:first] if line.startswith("record event") and line.endswith(f"on stream {0x55}")}
            self.assertTrue(waits & recorded, log)
        self.assertTrue(launches[-1].startswith("launch backward_sinks") and f" stream {0x88} " in launches[-1], launches)

    def test_blocks_of_a_mask_are_found_once(self):
        """On the default stream, which is waited for; each call lists those of its tiles."""
        log = self.run_program("""
            mask = ferroflash.create_block_mask(lambda b, h, i, j: i >= j, None, None, 300, 300, device="cuda")
            from ferroflash._program import Bound
            q, k, v, out = (Interface(0x72000000 + i * 0x100000, (2, 300, 4, 64)) for i in range(4))
            for score_mod in (None, None, lambda score, b, h, i, j: score * 0.5):
                program = mask._with(score_mod)
                assert isinstance(program, Bound)
                ferroflash.forward(q, k, v, out=out, program=program, stream=0x77)
            refused(ferroflash.InputError, "the blocks of", lambda: ferroflash.forward(*(Interface(x.address, (2, 299, 4, 64)) for x in (q, k, v)),
                    out=Interface(out.address, (2, 299, 4, 64)), program=mask._with(None)))
        """)
        launches = [line.split()[1] for line in self.launches(log)]
        self.assertEqual(launches.count("block_classes"), 1, launches)
        self.assertEqual(launches.count("block_lists"), 3, launches)
        self.assertTrue(launches[0] == "block_classes" and sum("_masked" in name for name in launches) == 2, launches)
        self.assertEqual(sum("_listed" in name for name in launches), 1, launches)

    def test_dlpack_is_told_the_stream(self):
        log = self.run_program("""
            q, k, v = (Packed(0x70000000 + i * 0x100000) for i in range(3))
            out = Packed(0x70300000, offset=0x200)
            ferroflash.forward(q, k, v, out=out, stream=0x77)
            ferroflash.forward(q, k, v, out=out)
            ferroflash.forward(q, k, v, out=out, stream=2)
            assert q.streams == out.streams == [0x77, 1, 2], q.streams
            # bfloat16 is a type of DLPack alone; the library compares types.
            refused(ferroflash.InputTypeError, "out holds bf16, q holds f16", lambda: ferroflash.forward(q, k, v, out=Packed(0x70300000, code=4)))
        """)
        self.assertEqual(len(self.launches(log)), 3, log)

    def test_the_writers_stream_is_waited_for(self):
        log = self.run_program("""
            q = Interface(0x70000000, stream=0x55)
            k, v, out = (Interface(0x70000000 + i * 0x100000) for i in range(1, 4))
            ferroflash.forward(q, k, v, out=out, stream=0x77)
        """)
        told = [line.split()[:6] for line in log if line.startswith(("record", "launch", "stream"))]
        recorded, waited, launched = (" ".join(line) for line in told)
        self.assertRegex(recorded, r"^record event (\d+) flags")
        self.assertTrue(waited.startswith(f"stream {0x77} waits for event {recorded.split()[2]}"), told)
        self.assertTrue(launched.startswith("launch v3_f16_d64"), told)
        self.assertTrue(any(line.endswith(f"on stream {0x55}") for line in log), log)

    def test_refusals_on_a_gpu(self):
        log = self.run_program("""
            q, k, v, out = (Interface(0x70000000 + i * 0x100000) for i in range(4))
            f = lambda *tensors, **options: (lambda: ferroflash.forward(*tensors, **options))
            E, T, D = ferroflash.InputError, ferroflash.InputTypeError, ferroflash.DeviceError
            refused(T, "new arrays are made for those of PyTorch, NumPy and CuPy", f(q, k, v))
            refused(E, "out overlaps q in memory", f(q, k, v, out=Interface(q.address + 64)))
            refused(E, "lse overlaps out", f(q, k, v, out=out, lse=Interface(out.address, (2, 4, 5), "<f4")))
            refused(E, "no multiple of the 2 bytes of one f16 element", f(Interface(0x70000001), k, v, out=out))
            refused(E, "the last dim of k has stride 2", f(q, Interface(k.address, strides=(10240, 2048, 512, 2)), v, out=out))
            refused(E, "those below 0 are not accepted", f(Interface(q.address, strides=(-1280, 256, 64, 1)), k, v, out=out))
            refused(T, "q holds `<f8`", f(Interface(q.address, typestr="<f8"), k, v, out=out))
            refused(T, "k holds f32, q holds f16", f(q, Interface(k.address, typestr="<f4"), v, out=out))
            refused(E, "k has a mask", f(q, Interface(k.address, mask=q), v, out=out))
            read_only = Interface(out.address)
            read_only.__cuda_array_interface__["data"] = (out.address, True)
            refused(E, "out is read-only", f(q, k, v, out=read_only))
            refused(E, "k is on device cuda:1, q is on cuda:0", f(q, Packed(k.address, device=(2, 1)), v, out=out, device=0))
            refused(E, "q is on a device of DLPack's type 10", f(Packed(q.address, device=(10, 0)), k, v, out=out))
            refused(T, "q holds integers of 16 bits", f(Packed(q.address, code=0), k, v, out=out))
            refused(D, "cuda:7 does not exist", f(q, k, v, out=out, device=7))
            refused(E, "head_dim 20 is not supported", f(*(Interface(0x70000000 + i * 0x100000, (2, 5, 4, 20)) for i in range(3)), out=Interface(0x70300000, (2, 5, 4, 20))))
        """)
        self.assertEqual(self.launches(log), [])

    def test_one_of_two_gpus_has_to_be_named(self):
        log = self.run_program(
            """
            q, k, v, out = (Interface(0x70000000 + i * 0x100000) for i in range(4))
            refused(ferroflash.InputError, "`device` is needed", lambda: ferroflash.forward(q, k, v, out=out))
            ferroflash.forward(q, k, v, out=out, device=1)
            """,
            FAKE_GPUS="2",
        )
        self.assertEqual(len(self.launches(log)), 1, log)

    def test_no_gpu(self):
        self.run_program(
            """
            q, k, v, out = (Interface(0x70000000 + i * 0x100000) for i in range(4))
            refused(ferroflash.DeviceError, "the CUDA driver finds no GPU", lambda: ferroflash.forward(q, k, v, out=out))
            """,
            FAKE_GPUS="0",
        )


if __name__ == "__main__":
    unittest.main()
