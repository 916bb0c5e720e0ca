"""Attention by its definition in float64, and the rule by which a result is right: independent of the library, in NumPy alone.

    max |out - exact| <= 2 * max |rounded - exact| + 1e-5

`rounded` is what a straightforward program in the tensors' own precision gives.
"""

import numpy as np


def round_to(values, precision):
    """The values as they are after a store in this precision: "f16", "bf16" or "f32"."""
    if precision == "bf16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
        # To nearest, ties to even.
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return rounded.astype(np.uint32).view(np.float32).astype(np.float64)
    return np.asarray(values, dtype={"f16": np.float16, "f32": np.float32}[precision]).astype(np.float64)


def visible(rows, keys, causal=False, left=None, right=None):
    """Which keys each row sees: `[row, key]`. The mask ends at the last row and the last key."""
    seen = np.ones((rows, keys), dtype=bool)
    for row in range(rows):
        diagonal = row + keys - rows
        for key in range(keys):
            if causal and key > diagonal:
                seen[row, key] = False
            if left is not None and key < diagonal - left:
                seen[row, key] = False
            if right is not None and key > diagonal + right:
                seen[row, key] = False
    return seen


def attention(q, k, v, mask, scale, softcap=0.0, precision=None, change=None, first_batch=0, kept=None, sink=None):
    """`(out, lse)` of q `[batch, row, head, dim]`, in float64, or as the precision rounds it. `change` is a program on scores `[batch, head, row, key]`,
    which is told the number of the first batch entry; `kept` is what dropout multiplies weights with, see `kept_weights`; `sink` a score
    more of each head, without a value."""
    number = np.float64 if precision is None else np.float32
    q, k, v = (np.asarray(x, dtype=number).transpose(0, 2, 1, 3) for x in (q, k, v))
    group = q.shape[1] // max(k.shape[1], 1)
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    scores = (q @ k.transpose(0, 1, 3, 2)) * number(scale)
    if softcap:
        scores = number(softcap) * np.tanh(scores / number(softcap))
    if change is not None:
        scores = np.asarray(change(scores, first_batch), dtype=number)
    scores = np.where(mask, scores, number(-np.inf))
    of_head = np.full(q.shape[1], -np.inf) if sink is None else np.asarray(sink)
    of_head = of_head.astype(number)[None, :, None, None]
    most = np.maximum(np.max(scores, axis=3, keepdims=True, initial=-np.inf), of_head)
    sees = most > -np.inf
    weights = np.exp(scores - np.where(sees, most, 0))
    total = weights.sum(axis=3, keepdims=True) + np.exp(of_head - np.where(sees, most, 0))
    with np.errstate(divide="ignore"):
        lse = np.where(sees, np.where(sees, most, 0) + np.log(total), -np.inf)[..., 0]
    weights = weights / np.where(sees, total, 1)
    if kept is not None:
        weights = weights * kept.astype(number)
    if precision is not None:
        weights = round_to(weights, precision).astype(number)
    out = (weights @ v).transpose(0, 2, 1, 3)
    return (out if precision is None else round_to(out, precision)).astype(np.float64), lse.astype(np.float64)


def kept_weights(p, seed, offset, batch, heads, rows, keys):
    """What dropout multiplies weights with, `[batch, head, row, key]`: 0, or `1 / (1 - p)` where the random byte of Philox4x32 with 7 rounds is at
    most `floor((1 - p) 255)`. The bytes are FlashAttention-2's: blocks of 16 rows by 32 keys belong to the 32 lanes of a warp, 16 bytes to each."""
    b, h, row, key = np.ogrid[:batch, :heads, :rows, :keys]
    lane = row % 8 * 4 + key % 8 // 2
    mask, whole = np.uint64(0xFFFFFFFF), lambda x: np.broadcast_to(np.uint64(x), np.broadcast_shapes(b.shape, h.shape, row.shape, key.shape))
    with np.errstate(over="ignore"):
        low = np.uint64(offset) + ((b * heads + h) * 32 + lane).astype(np.uint64)
    words = [whole(low & mask), whole(low >> np.uint64(32)), whole(row // 16), whole(key // 32)]
    keys_of_round = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
    for _ in range(7):
        first, second = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        high, low_word = (lambda x: x >> np.uint64(32)), (lambda x: x & mask)
        words = [
            high(second) ^ words[1] ^ keys_of_round[0],
            low_word(second),
            high(first) ^ words[3] ^ keys_of_round[1],
            low_word(first),
        ]
        keys_of_round = [(keys_of_round[0] + np.uint64(0x9E3779B9)) & mask, (keys_of_round[1] + np.uint64(0xBB67AE85)) & mask]
    word = np.choose(np.broadcast_to(key % 32 // 8, words[0].shape), words)
    byte = word >> (8 * (row % 16 // 8 * 2 + key % 2)).astype(np.uint64) & np.uint64(0xFF)
    kept = np.float32(1) - np.float32(p)
    return np.where(byte <= np.floor(float(kept) * 255), np.float64(np.float32(1) / kept), 0.0)


def alibi(slopes):
    """The program on scores of slopes `(heads,)` or `(batch, heads)`: `-slope * |row + keys - rows - key|`."""
    slopes = np.atleast_2d(np.asarray(slopes, dtype=np.float64))

    def change(scores, first_batch):
        batch, _, rows, keys = scores.shape
        distance = np.abs(np.arange(rows)[:, None] + keys - rows - np.arange(keys))
        of_batch = slopes if len(slopes) == 1 else slopes[first_batch : first_batch + batch]
        return scores - of_batch[:, :, None, None] * distance

    return change


def derivative(change, scores, first_batch):
    """What a program does to small differences of scores, by such differences: 0 where it hides keys."""
    step = 1e-6
    scores = np.asarray(scores, dtype=np.float64)
    more, less = (np.broadcast_to(change(moved, first_batch), scores.shape) for moved in (scores + step, scores - step))
    seen = np.isfinite(more) & np.isfinite(less)
    return (np.where(seen, more, 0) - np.where(seen, less, 0)) / (2 * step)


def gradients(q, k, v, dout, dlse, mask, scale, softcap=0.0, precision=None, change=None, first_batch=0, kept=None, sink=None):
    """`(dq, dk, dv)`, with a `sink` `(dq, dk, dv, dsink)`, of `sum(dout * out) + sum(dlse * lse)`, in float64, or as a straightforward program in the precision rounds them: weights
    and gradients of scores where they meet a tensor, the output that they are compared with, and the results. `change` and `kept` are as in `attention`."""
    number = np.float64 if precision is None else np.float32
    stored = (lambda x: x) if precision is None else (lambda x: round_to(x, precision).astype(number))
    out, lse = attention(q, k, v, mask, scale, softcap, precision, change, first_batch, kept, sink)
    kept = number(1) if kept is None else kept.astype(number)
    q, k, v, dout, out = (np.asarray(x, dtype=number).transpose(0, 2, 1, 3) for x in (q, k, v, dout, out))
    batch, kv_heads, keys, dim = k.shape
    group = q.shape[1] // kv_heads
    wide_k, wide_v = (np.repeat(x, group, axis=1) for x in (k, v))
    scores, slopes = (q @ wide_k.transpose(0, 1, 3, 2)) * number(scale), number(1)
    if softcap:
        bent = np.tanh(scores / number(softcap))
        scores, slopes = number(softcap) * bent, 1 - bent * bent
    if change is not None:
        slopes = slopes * derivative(change, scores, first_batch).astype(number)
        scores = np.asarray(change(scores, first_batch), dtype=number)
    scores = np.where(mask, scores, number(-np.inf))
    weights = np.exp(scores - np.where(np.isfinite(lse), lse, 0)[..., None].astype(number))
    of_rows = (dout * out).sum(axis=3, keepdims=True)
    if dlse is not None:
        of_rows = of_rows - np.asarray(dlse, dtype=number)[..., None]
    of_scores = stored(weights * (kept * (dout @ wide_v.transpose(0, 1, 3, 2)) - of_rows) * slopes)
    dq = number(scale) * (of_scores @ wide_k)
    summed = lambda x: x.reshape(batch, kv_heads, group, keys, dim).sum(axis=2)
    dk = number(scale) * summed(of_scores.transpose(0, 1, 3, 2) @ q)
    dv = summed(stored(weights * kept).transpose(0, 1, 3, 2) @ dout)
    found = [stored(x).astype(np.float64).transpose(0, 2, 1, 3) for x in (dq, dk, dv)]
    if sink is not None:
        # The weight of the sink times the gradient of its score, as any other's whose value is 0. It is float32 always.
        lse = np.where(np.isfinite(lse), lse, 0).astype(number)
        weight = np.exp(np.asarray(sink, dtype=number)[None, :, None] - lse)
        found.append(-(weight * of_rows[..., 0]).sum(axis=(0, 2)).astype(np.float64))
    return found


def check_gradients(
    test, found, inputs, dout, dlse, precision, *, causal=False, left=None, right=None, scale=None, softcap=0.0, change=None, kept=None, sink=None
):
    """Fails the test where a gradient is outside the bound, whose factor is 2 for dq and 3 for the sums over groups and rows, as in
    FlashAttention's own tests."""
    q, k, v, dout = (np.asarray(x, dtype=np.float64) for x in (*inputs, dout))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    mask = visible(q.shape[1], k.shape[1], causal, left, right)
    exact = gradients(q, k, v, dout, dlse, mask, scale, softcap, None, change, 0, kept, sink)
    rounded = gradients(q, k, v, dout, dlse, mask, scale, softcap, precision, change, 0, kept, sink)
    test.assertEqual(len(found), len(exact))
    for name, factor, ours, truth, theirs in zip(("dq", "dk", "dv", "dsink"), (2, 3, 3, 3), found, exact, rounded):
        ours = np.asarray(ours, dtype=np.float64)
        test.assertEqual(ours.shape, truth.shape)
        error, bound = _largest(ours - truth), factor * _largest(theirs - truth) + 1e-5
        test.assertLessEqual(error, bound, f"{name} is off by {error}")


def check_gradients_of_sequences(
    test, found, inputs, precision, *, causal=False, left=None, right=None, scale=None, softcap=0.0, change=None, sink=None, dsink=None
):
    """:func:`check_gradients` of several sequences as one result: `inputs` has `(q, k, v, dout, dlse)` of each, `found` its three gradients. `dsink` is
    the sum of all."""
    sums = np.zeros((2, 0 if sink is None else len(sink)))
    errors, bounds = np.zeros(3), np.zeros(3)
    for batch, (ours, (*tensors, dlse)) in enumerate(zip(found, inputs, strict=True)):
        q, k, v, dout = (np.asarray(x, dtype=np.float64)[None] for x in tensors)
        factor = q.shape[3] ** -0.5 if scale is None else scale
        mask = visible(q.shape[1], k.shape[1], causal, left, right)
        given = (q, k, v, dout, None if dlse is None else dlse[None], mask, factor, softcap)
        exact, rounded = (gradients(*given, of, change, batch, None, sink) for of in (None, precision))
        if sink is not None:
            sums += [exact.pop(), rounded.pop()]
        for which, (x, truth, theirs) in enumerate(zip(ours, exact, rounded)):
            test.assertEqual(np.shape(x), truth.shape[1:])
            errors[which] = max(errors[which], _largest(np.asarray(x, dtype=np.float64) - truth[0]))
            bounds[which] = max(bounds[which], _largest(theirs - truth))
    for name, factor, error, bound in zip(("dq", "dk", "dv"), (2, 3, 3), errors, bounds):
        test.assertLessEqual(error, factor * bound + 1e-5, f"{name} is off by {error}")
    if sink is not None:
        error, bound = _largest(np.asarray(dsink, dtype=np.float64) - sums[0]), 3 * _largest(sums[1] - sums[0]) + 1e-5
        test.assertLessEqual(error, bound, f"dsink is off by {error}")


def check(
    test, out, lse, inputs, precision, *, causal=False, left=None, right=None, scale=None, softcap=0.0, change=None, kept=None, sink=None
):
    """Fails the test where a result is outside the bound. `inputs` are q, k and v with the values that the tensors hold."""
    q, k, v = (np.asarray(x, dtype=np.float64) for x in inputs)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    mask = visible(q.shape[1], k.shape[1], causal, left, right)
    exact, exact_lse = attention(q, k, v, mask, scale, softcap, None, change, 0, kept, sink)
    rounded, rounded_lse = attention(q, k, v, mask, scale, softcap, precision, change, 0, kept, sink)
    out = np.asarray(out, dtype=np.float64)
    test.assertEqual(out.shape, exact.shape)
    error, bound = _largest(out - exact), 2 * _largest(rounded - exact) + 1e-5
    test.assertLessEqual(error, bound, f"out is off by {error}")
    if lse is not None:
        lse = np.asarray(lse, dtype=np.float64)
        test.assertEqual(lse.shape, exact_lse.shape)
        seen = np.isfinite(exact_lse)
        np.testing.assert_array_equal(lse[~seen], exact_lse[~seen])
        largest = np.abs(exact_lse[seen]).max(initial=0.0)
        units = 16 * float(np.spacing(np.float32(largest)))
        error = _largest(lse[seen] - exact_lse[seen])
        bound = 2 * _largest(rounded_lse[seen] - exact_lse[seen]) + 1e-5 + units
        test.assertLessEqual(error, bound, f"lse is off by {error}")


def check_sequences(
    test, out, lse, inputs, precision, *, causal=False, left=None, right=None, scale=None, softcap=0.0, change=None, sink=None
):
    """:func:`check` of several sequences as one result: `out` and `inputs` have for each what `check` takes of a batch of 1, `lse` `[head, row]`."""
    errors, bounds, row_errors, row_bounds, most = [], [1e-5], [], [1e-5], 0.0
    for batch, (of_out, of_lse, tensors) in enumerate(zip(out, lse, inputs, strict=True)):
        q, k, v = (np.asarray(x, dtype=np.float64)[None] for x in tensors)
        factor = q.shape[3] ** -0.5 if scale is None else scale
        mask = visible(q.shape[1], k.shape[1], causal, left, right)
        exact, exact_lse = attention(q, k, v, mask, factor, softcap, None, change, batch, None, sink)
        rounded, rounded_lse = attention(q, k, v, mask, factor, softcap, precision, change, batch, None, sink)
        test.assertEqual(np.shape(of_out), exact.shape[1:])
        test.assertEqual(np.shape(of_lse), exact_lse.shape[1:])
        errors.append(_largest(np.asarray(of_out, dtype=np.float64) - exact[0]))
        bounds.append(2 * _largest(rounded - exact) + 1e-5)
        seen = np.isfinite(exact_lse[0])
        of_lse = np.asarray(of_lse, dtype=np.float64)
        np.testing.assert_array_equal(of_lse[~seen], exact_lse[0][~seen])
        row_errors.append(_largest(of_lse[seen] - exact_lse[0][seen]))
        row_bounds.append(2 * _largest(rounded_lse[0][seen] - exact_lse[0][seen]) + 1e-5)
        most = max(most, np.abs(exact_lse[0][seen]).max(initial=0.0))
    test.assertLessEqual(max(errors), max(bounds), "out")
    test.assertLessEqual(max(row_errors), max(row_bounds) + 16 * float(np.spacing(np.float32(most))), "lse")


def turned(rows, cos, sin, positions, interleaved, precision):
    """Rows `[row, head, dim]` turned by their positions in float32, and rounded. Products of two numbers of 16 bits are exact there."""
    half = cos.shape[1]
    rows, result = np.asarray(rows, dtype=np.float64), np.array(rows, dtype=np.float64)
    firsts = np.arange(half) * 2 if interleaved else np.arange(half)
    seconds = firsts + 1 if interleaved else firsts + half
    c, s = (np.asarray(x, dtype=np.float64)[positions][:, None] for x in (cos, sin))
    x, y = rows[..., firsts], rows[..., seconds]
    result[..., firsts], result[..., seconds] = x * c - y * s, x * s + y * c
    return round_to(result.astype(np.float32), precision)


def _largest(differences):
    """The largest magnitude; infinite where one is NaN."""
    magnitudes = np.abs(differences)
    return float(np.where(np.isnan(magnitudes), np.inf, magnitudes).max(initial=0.0))


def check_close(test, name, found, exact, rounded):
    """Fails the test where a result of an operator is outside the bound. `exact` and `rounded` are of float64 and of a straightforward program in the
    result's own precision; what is not finite has to be the same."""
    found = np.asarray(found, dtype=np.float64)
    test.assertEqual(found.shape, np.shape(exact), name)
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(found[~finite], exact[~finite], name)
    error, bound = _largest((found - exact)[finite]), 2 * _largest((rounded - exact)[finite]) + 1e-5
    test.assertLessEqual(error, bound, f"{name} is off by {error}")
