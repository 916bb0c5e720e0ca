"""`forward_packed` and `forward_cached` on arrays of NumPy: the emulator against the float64 reference, and everything that they refuse.

Memory that no call may read is NaN, and numbers that none may follow would be far outside.
"""

import unittest
import warnings

import numpy as np

import ferroflash
from reference import check_gradients_of_sequences, check_sequences, turned

DTYPES = {"f16": np.float16, "f32": np.float32}
HEADS, KV_HEADS, DIM = 4, 2, 64
# The number of a page that is none.
NO_PAGE = 2_147_480_000


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float16):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def starts(lengths):
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)


def int32(numbers):
    return np.array(numbers, dtype=np.int32)


def nan(shape, dtype=np.float16):
    return np.full(shape, np.nan, dtype=dtype)


class Cache:
    """Keys and values of sequences, which `put` puts into memory that is NaN elsewhere."""

    def __init__(self, lengths, seed, dtype=np.float16, padding=None):
        self.lengths, self.dtype = lengths, dtype
        self.first = [0] * len(lengths) if padding is None else padding
        self.keys = [values((2, length, KV_HEADS, DIM), seed + b, dtype) for b, length in enumerate(lengths)]

    def ends(self):
        """Rows in use, the padding before them included."""
        return [first + length for first, length in zip(self.first, self.lengths)]

    def contiguous(self, capacity, entries):
        """`(k, v)` with sequence `b` in entry `entries[b]`."""
        caches = nan((2, max(entries) + 2, capacity, KV_HEADS, DIM), self.dtype)
        for keys, entry, first in zip(self.keys, entries, self.first):
            caches[:, entry, first : first + keys.shape[1]] = keys
        return caches

    def paged(self, page_rows, width, seed):
        """`(k, v), table` with the pages in random order."""
        batch = len(self.lengths)
        pages = np.random.default_rng(seed).permutation(batch * width + 3)[: batch * width].reshape(batch, width)
        caches = nan((2, batch * width + 3, page_rows, KV_HEADS, DIM), self.dtype)
        for b, keys in enumerate(self.keys):
            for row in range(keys.shape[1]):
                at = self.first[b] + row
                caches[:, pages[b, at // page_rows], at % page_rows] = keys[:, row]
        return caches, pages.astype(np.int32)

    def read(self, caches, entries=None, table=None, page_rows=None, count=None):
        """Rows of `(k, v)` of each sequence, up to `count` behind the padding."""
        found = []
        for b, first in enumerate(self.first):
            rows = np.arange(first, first + count[b])
            at = (entries[b], rows) if table is None else (table[b, rows // page_rows], rows % page_rows)
            found.append((caches[0][at], caches[1][at]))
        return found


class Packed(unittest.TestCase):
    def check(self, q_lengths, kv_lengths, dtype="f16", dim=DIM, slack=0, **options):
        q_rows, kv_rows = [n + slack for n in q_lengths], [n + slack for n in kv_lengths]
        q = values((sum(q_rows), HEADS, dim), 1, DTYPES[dtype])
        k, v = values((2, sum(kv_rows), KV_HEADS, dim), 2, DTYPES[dtype])
        q_starts, kv_starts = starts(q_rows), starts(kv_rows)
        used = {}
        if slack:
            used = {"q_used": int32(q_lengths), "kv_used": int32(kv_lengths)}
            for b, length in enumerate(kv_lengths):
                k[kv_starts[b] + length : kv_starts[b + 1]] = np.nan
                v[kv_starts[b] + length : kv_starts[b + 1]] = np.nan
        out, lse = nan(q.shape, DTYPES[dtype]), nan((HEADS, q.shape[0]), np.float32)
        given = {name: value for name, value in options.items() if name not in ("left", "right")}
        if "left" in options:
            given["window"] = options["left"], options["right"]
        scale = given.pop("scale", None)
        returned = ferroflash.forward_packed(
            q, k, v, q_starts, kv_starts, **used, **given, softmax_scale=scale, out=out, lse=lse, return_lse=True
        )
        self.assertIs(returned[0], out)
        rows = [slice(at, at + length) for at, length in zip(q_starts, q_lengths)]
        keys = [slice(at, at + length) for at, length in zip(kv_starts, kv_lengths)]
        inputs = [(q[i], k[j], v[j]) for i, j in zip(rows, keys)]
        options = {name: value for name, value in options.items() if name in ("causal", "left", "right", "scale", "softcap")}
        check_sequences(self, [out[i] for i in rows], [lse[:, i] for i in rows], inputs, dtype, **options)
        for i in rows:
            out[i], lse[:, i] = np.nan, np.nan
        self.assertTrue(np.isnan(out).all() and np.isnan(lse).all())

    def test_types_and_masks(self):
        """Lengths of 0 on either side, and more rows than keys; a causal mask ends at each sequence's own last row and key."""
        q_lengths, kv_lengths = [40, 0, 33, 70, 5, 64], [57, 20, 0, 31, 90, 64]
        for dtype in DTYPES:
            for options in ({}, {"causal": True}, {"left": 9, "right": 4}, {"softcap": 5.0, "scale": 0.3}):
                with self.subTest(dtype=dtype, **options):
                    self.check(q_lengths, kv_lengths, dtype, **options)

    def test_head_dims_and_hints(self):
        for dim in (8, 40, 128, 256):
            self.check([30, 41], [60, 33], dim=dim, causal=True, longest_q=41, longest_kv=60)

    def test_rows_in_use(self):
        self.check([40, 0, 33], [57, 20, 0], slack=7, causal=True)

    def test_splits(self):
        for options in ({"splits": 3}, {"split_keys": 64, "longest_kv": 200}):
            self.check([1, 2, 1, 0] * 40, [200, 0, 70, 3] * 40, causal=True, **options)

    def test_new_arrays(self):
        q = values((12, HEADS, DIM), 1)
        at = starts([5, 7])
        out = ferroflash.forward_packed(q, q, q, at, at, causal=True)
        self.assertEqual((out.shape, out.dtype), (q.shape, q.dtype))
        out, lse = ferroflash.forward_packed(q, q, q, at, at, causal=True, return_lse=True)
        self.assertEqual((lse.shape, lse.dtype), ((HEADS, 12), np.float32))
        alone = ferroflash.forward_packed(q[5:], q[5:], q[5:], starts([7]), starts([7]), causal=True)
        np.testing.assert_array_equal(out[5:], alone)


class Cached(unittest.TestCase):
    LENGTHS = [37, 0, 64, 5, 130, 80, 17, 90]

    def check(self, cache, caches, q_rows, dtype="f16", scatter=None, causal=True, **options):
        batch = len(cache.lengths)
        q = values((batch, q_rows, HEADS, DIM), 7, DTYPES[dtype])
        lengths = int32(cache.ends())
        out, lse = ferroflash.forward_cached(q, *caches, lengths=lengths, causal=causal, return_lse=True, **options)
        inputs = [(q[b], *cache.keys[b]) for b in range(batch)]
        check_sequences(self, list(out), list(lse), inputs, dtype, causal=causal)

    def test_lengths_and_entries(self):
        for dtype in DTYPES:
            cache = Cache(self.LENGTHS, 10, DTYPES[dtype])
            for q_rows in (1, 3, 40):
                self.check(cache, cache.contiguous(150, range(8)), q_rows, dtype, entries=int32(range(8)))
                entries = [9, 3, 0, 7, 1, 5, 2, 8]
                self.check(cache, cache.contiguous(150, entries), q_rows, dtype, entries=int32(entries), splits=2)

    def test_no_lengths_is_all_rows(self):
        cache = Cache([50] * 8, 10)
        q = values((8, 4, HEADS, DIM), 7)
        caches = [np.stack([keys[i] for keys in cache.keys]) for i in range(2)]
        out = ferroflash.forward_cached(q, *caches, causal=True)
        again = ferroflash.forward_cached(q, *caches, causal=True, lengths=int32([50] * 8))
        np.testing.assert_array_equal(out, again)

    def test_padding_on_the_left(self):
        cache = Cache(self.LENGTHS, 10, padding=[3, 0, 9, 1, 0, 20, 2, 7])
        for q_rows in (1, 40):
            entries = int32(range(8))
            self.check(cache, cache.contiguous(150, range(8)), q_rows, first=int32(cache.first), entries=entries, causal=False)
            self.check(cache, cache.contiguous(150, range(8)), q_rows, first=int32(cache.first), entries=entries)
            caches, table = cache.paged(16, 10, 1)
            self.check(cache, caches, q_rows, first=int32(cache.first), pages=table)

    def test_pages(self):
        """In random order, of any size; rows and pages that are not in use are NaN, and their numbers would fault."""
        for page_rows, width in ((16, 9), (1, 130), (48, 3), (256, 1)):
            cache = Cache(self.LENGTHS, 10)
            caches, table = cache.paged(page_rows, width, 1)
            for b, length in enumerate(self.LENGTHS):
                table[b, -(-length // page_rows) :] = NO_PAGE
            # A table inside of a larger one.
            larger = np.full((8, width + 5), NO_PAGE, dtype=np.int32)
            larger[:, :width] = table
            for q_rows in (1, 33):
                self.check(cache, caches, q_rows, pages=table)
                self.check(cache, caches, q_rows, pages=larger[:, :width], causal=False, split_keys=64)

    def test_packed_queries(self):
        cache = Cache(self.LENGTHS, 10)
        caches, table = cache.paged(16, 9, 1)
        q_lengths = [1, 7, 0, 40, 1, 2, 30, 1]
        q, at = values((sum(q_lengths), HEADS, DIM), 7), starts(q_lengths)
        options = {"lengths": int32(self.LENGTHS), "pages": table, "q_starts": at, "longest_q": 40, "causal": True}
        out, lse = ferroflash.forward_cached(q, *caches, **options, return_lse=True)
        rows = [slice(*at[b : b + 2]) for b in range(8)]
        inputs = [(q[rows[b]], *cache.keys[b]) for b in range(8)]
        check_sequences(self, [out[i] for i in rows], [lse[:, i] for i in rows], inputs, "f16", causal=True)


class Appending(unittest.TestCase):
    LENGTHS = [37, 0, 64, 5, 100, 80, 17, 90]

    def check(self, where, q_rows, new_rows, dtype="f16", rotary=None, padding=None, causal=True):
        """Appends `new_rows` to caches where they are, and checks what is written as well as what is computed; `rotary` is `(dims, interleaved)`."""
        number, batch = DTYPES[dtype], len(self.LENGTHS)
        cache = Cache(self.LENGTHS, 10, number, padding)
        ends, keywords, layout = cache.ends(), {}, {}
        if where == "pages":
            caches, table = cache.paged(16, 9, 1)
            keywords, layout = {"pages": table}, {"table": table, "page_rows": 16}
        else:
            entries = [9, 3, 0, 7, 1, 5, 2, 8] if where == "entries" else list(range(batch))
            caches = cache.contiguous(150, entries)
            keywords, layout = {"entries": int32(entries)}, {"entries": entries}
        q, new = values((batch, q_rows, HEADS, DIM), 7, number), values((2, batch, new_rows, KV_HEADS, DIM), 8, number)
        if padding is not None:
            keywords["first"] = int32(padding)
        turned_q, turned_k = q.astype(np.float64), new[0].astype(np.float64)
        if rotary is not None:
            dims, interleaved = rotary
            angles = np.random.default_rng(9).uniform(0, 6, (150, dims // 2))
            cos, sin = np.cos(angles).astype(number), np.sin(angles).astype(number)
            keywords.update(rotary_cos=cos, rotary_sin=sin, rotary_interleaved=interleaved)
            for b, end in enumerate(ends):
                turned_k[b] = turned(new[0][b], cos, sin, end + np.arange(new_rows), interleaved, dtype)
                advances = np.arange(q_rows) if causal else np.zeros(q_rows, dtype=int)
                turned_q[b] = turned(q[b], cos, sin, end + advances, interleaved, dtype)
        before = caches.copy()
        out, lse = ferroflash.forward_cached(
            q, *caches, *new, lengths=int32(ends), causal=causal, return_lse=True, **keywords
        )
        counts = [length + new_rows for length in self.LENGTHS]
        found = cache.read(caches, count=counts, **layout)
        for b, (k, v) in enumerate(found):
            old = self.LENGTHS[b]
            np.testing.assert_array_equal(k[:old], cache.keys[b][0])
            np.testing.assert_array_equal(v[:old], cache.keys[b][1])
            np.testing.assert_array_equal(v[old:], new[1][b])
            # A unit in the last place: the sum of two products is rounded once there, and in f32 before.
            np.testing.assert_allclose(k[old:].astype(np.float64), turned_k[b], rtol=2 * np.finfo(number).eps, atol=1e-6)
        # Nothing else of the cache was written.
        written = np.isnan(before) & ~np.isnan(caches)
        self.assertEqual(written.sum(), new.size)
        inputs = [(turned_q[b], k, v) for b, (k, v) in enumerate(found)]
        check_sequences(self, list(out), list(lse), inputs, dtype, causal=causal)

    def test_contiguous_and_paged(self):
        for where in ("contiguous", "entries", "pages"):
            for q_rows, new_rows in ((1, 1), (33, 33), (20, 7)):
                with self.subTest(where=where, rows=(q_rows, new_rows)):
                    self.check(where, q_rows, new_rows)

    def test_rotary(self):
        for where in ("entries", "pages"):
            for dtype in DTYPES:
                for interleaved in (False, True):
                    for dims, causal in ((DIM, True), (16, True), (32, False)):
                        with self.subTest(where=where, dtype=dtype, interleaved=interleaved, dims=dims, causal=causal):
                            self.check(where, 35, 35, dtype, (dims, interleaved), causal=causal)

    def test_padding_on_the_left(self):
        self.check("entries", 35, 35, rotary=(DIM, False), padding=[3, 0, 9, 1, 0, 20, 2, 7])

    def test_packed_new_rows(self):
        cache = Cache(self.LENGTHS, 10)
        caches = cache.contiguous(150, range(8))
        lengths = [1, 7, 0, 40, 1, 2, 30, 1]
        at = starts(lengths)
        q, new = values((sum(lengths), HEADS, DIM), 7), values((2, sum(lengths), KV_HEADS, DIM), 8)
        out, lse = ferroflash.forward_cached(
            q, *caches, *new, lengths=int32(self.LENGTHS), entries=int32(range(8)), q_starts=at, new_starts=at, causal=True, return_lse=True
        )
        rows = [slice(*at[b : b + 2]) for b in range(8)]
        keys = [np.concatenate((cache.keys[b], new[:, rows[b]]), axis=1) for b in range(8)]
        inputs = [(q[rows[b]], *keys[b]) for b in range(8)]
        check_sequences(self, [out[i] for i in rows], [lse[:, i] for i in rows], inputs, "f16", causal=True)


class Gradients(unittest.TestCase):
    """Of packed sequences, some without rows on a side, with rows that nobody may read before and behind those in use."""

    Q, KV = [40, 0, 17, 30], [45, 5, 0, 33]

    def laid(self, lengths, heads, seed, dtype):
        """A tensor, NaN but for the sequences, and these."""
        each = [values((length, heads, DIM), seed + i, dtype) for i, length in enumerate(lengths)]
        at = starts([length + 2 for length in lengths])
        tensor = nan((at[-1], heads, DIM), dtype)
        for first, rows in zip(at, each):
            tensor[first : first + len(rows)] = rows
        return tensor, each, at

    def check(self, name, with_dlse=False, given=False, **options):
        dtype = DTYPES[name]
        (q, of_q, q_at), (dout, of_dout, _) = self.laid(self.Q, HEADS, 1, dtype), self.laid(self.Q, HEADS, 31, dtype)
        (k, of_k, kv_at), (v, of_v, _) = self.laid(self.KV, KV_HEADS, 11, dtype), self.laid(self.KV, KV_HEADS, 21, dtype)
        numbers = {"q_used": int32(self.Q), "kv_used": int32(self.KV)}
        out, lse = ferroflash.forward_packed(q, k, v, q_at, kv_at, return_lse=True, out=nan(q.shape, dtype), **numbers, **options)
        dlse = values(lse.shape, 41, np.float32) if with_dlse else None
        into = {f"d{of}": nan(x.shape, dtype) for of, x in (("q", q), ("k", k), ("v", v))} if given else {}
        found = ferroflash.backward_packed(q, k, v, out, lse, dout, q_at, kv_at, dlse=dlse, **numbers, **into, **options)
        rows = lambda tensor, at, lengths: [tensor[first : first + length] for first, length in zip(at, lengths)]
        of_lse = [dlse[:, first : first + length] if with_dlse else None for first, length in zip(q_at, self.Q)]
        each = list(zip(rows(found[0], q_at, self.Q), rows(found[1], kv_at, self.KV), rows(found[2], kv_at, self.KV)))
        left, right = options.get("window", (None, None))
        told = {"causal": options.get("causal", False), "left": left, "right": right, "softcap": options.get("softcap", 0.0)}
        check_gradients_of_sequences(self, each, list(zip(of_q, of_k, of_v, of_dout, of_lse)), name, **told)
        for tensor, at, lengths in ((found[0], q_at, self.Q), (found[1], kv_at, self.KV), (found[2], kv_at, self.KV)):
            for first, length in zip(at, lengths):
                unused = tensor[first + length : first + length + 2]
                self.assertTrue(np.isnan(unused).all() if given else (unused == 0).all())

    def test_types_and_masks(self):
        for name in DTYPES:
            self.check(name, causal=True)
        self.check("f16", with_dlse=True, window=(9, 2), softcap=2.0)

    def test_given_memory(self):
        self.check("f32", given=True, with_dlse=True)

    def test_refusals(self):
        q, at = values((12, HEADS, DIM), 1), starts([5, 7])
        lse = np.zeros((HEADS, 12), np.float32)
        run = lambda *arrays, **named: lambda: ferroflash.backward_packed(*arrays, **named)
        error, mistyped = ferroflash.InputError, ferroflash.InputTypeError
        for exception, message, call in (
            (error, "lse has 3 axes; 2 .head, row. are accepted", run(q, q, q, q, lse[None], q, at, at)),
            (error, "lse has 11 rows", run(q, q, q, q, np.zeros((HEADS, 11), np.float32), q, at, at)),
            (mistyped, "lse holds f16; f32 is accepted", run(q, q, q, q, lse.astype(np.float16), q, at, at)),
            (error, "the starts of k and v holds 2 numbers; 3 are needed", run(q, q, q, q, lse, q, at, at[:2])),
            (error, "the starts of q is needed", run(q, q, q, q, lse, q, None, at)),
            (error, "dout has 11 rows", run(q, q, q, q, lse, q[:11], at, at)),
            (error, "dq overlaps q", run(q, q, q, q, lse, q, at, at, dq=q)),
        ):
            with self.subTest(message), self.assertRaisesRegex(exception, message):
                call()


class Refusals(unittest.TestCase):
    def refused(self, kind, words, call):
        with self.assertRaises(kind) as caught:
            call()
        self.assertIn(words, str(caught.exception))

    def test_packed(self):
        q = values((12, HEADS, DIM), 1)
        at = starts([5, 7])

        def refused(words, *tensors, kind=ferroflash.InputError, **options):
            self.refused(kind, words, lambda: ferroflash.forward_packed(*tensors, **options))

        refused("q has 4 axes; 3 are accepted where rows are packed (row, head, dim)", q[None], q, q, at, at)
        refused("the starts of k and v holds 2 numbers; 3 are needed", q, q, q, at, at[:2])
        refused("the lengths of k and v holds 3 numbers; 2 are needed", q, q, q, at, at, kv_used=at)
        refused("the starts of q of shape [2] and strides [2]: one contiguous axis", q, q, q, at[::2], at)
        refused("the starts of q holds integers of 64 bits; int32 is accepted", q, q, q, at.astype(np.int64), at, kind=ferroflash.InputTypeError)
        refused("the starts of q is a list", q, q, q, at.tolist(), at, kind=ferroflash.InputTypeError)
        refused("k holds f32, q holds f16", q, q.astype(np.float32), q, at, at, kind=ferroflash.InputTypeError)
        refused("lse has 3 axes; 2 (head, row) are accepted", q, q, q, at, at, lse=nan((1, HEADS, 12), np.float32))
        refused("lse has 11 rows, q has 12", q, q, q, at, at, lse=nan((HEADS, 11), np.float32))
        refused("out has 11 rows, q has 12", q, q, q, at, at, out=nan((11, HEADS, DIM)))
        refused("4 query heads are no multiple of 3", q, q[:, :3], q[:, :3], at, at)
        refused("splits is -1", q, q, q, at, at, splits=-1)
        refused("one of the two is accepted", q, q, q, at, at, splits=2, split_keys=64)
        refused("splits of 65 keys are not accepted", q, q, q, at, at, split_keys=65)
        refused("100000 splits are not accepted", q, q, q, at, at, splits=100000)

    def test_caches(self):
        q, k = values((2, 3, HEADS, DIM), 1), values((2, 30, KV_HEADS, DIM), 2)
        new, at, table = k[:, :3], int32([4, 5]), int32([[0, 1], [1, 0]])
        cos = values((30, DIM // 2), 3)

        def refused(words, *tensors, kind=ferroflash.InputError, **options):
            self.refused(kind, words, lambda: ferroflash.forward_cached(*tensors, **options))

        refused("k has batch 1, q has 2", q, k[:1], k[:1])
        refused("the new k: the new v must be given, too", q, k, k, new, lengths=at)
        refused("the new k: the lengths of k and v must be given, too", q, k, k, new, new)
        refused("cos: the new k must be given, too", q, k, k, lengths=at, rotary_cos=cos, rotary_sin=cos)
        refused("cos: sin must be given, too", q, k, k, new, new, lengths=at, rotary_cos=cos)
        refused("the positions: cos must be given, too", q, k, k, new, new, lengths=at, rotary_positions=at)
        refused("the rows of q in use: the starts of q must be given, too", q, k, k, q_used=at)
        refused("a cache of pages takes no cache entries", q, k, k, pages=table, entries=at)
        refused("the table of pages is for 1 sequences, q has 2", q, k, k, pages=table[:1])
        refused("the table of pages has 1 axes; 2 (batch, page) are accepted", q, k, k, pages=at)
        refused("the last axis of the table of pages has stride 2", q, k, k, pages=np.repeat(table, 2, axis=1)[:, ::2])
        refused("the lengths of k and v holds 1 numbers; 2 are needed", q, k, k, lengths=at[:1])
        refused("cos has shape [30, 40]", q, k, k, new, new, lengths=at, rotary_cos=values((30, 40), 3), rotary_sin=values((30, 40), 3))
        refused("the new k has batch 1, q has 2", q, k, k, new[:1], new[:1], lengths=at)
        refused("lse has 2 axes; 3 (batch, head, row) are accepted", q, k, k, lse=nan((HEADS, 6), np.float32))
        before = k.copy()
        frozen = k.copy()
        frozen.flags.writeable = False
        with self.assertRaises((ferroflash.InputError, BufferError)):
            ferroflash.forward_cached(q, frozen, frozen, new, new, lengths=at)
        np.testing.assert_array_equal(k, before)


if __name__ == "__main__":
    unittest.main()
