#!/usr/bin/env python3
"""Writes safetensors files with torch, runs `ferroflash attend` on them, and compares with torch in float64.

    attend_check.py --ferroflash ./ferroflash
    attend_check.py --ferroflash ./ferroflash --device emulator --small

The rule is that of ferroflash's own tests: max|out - float64| <= 2 * max|naive in the same precision - float64| + 1e-5.
Needs PyTorch; the file format is read and written here, so that no other package is needed. Exit status 1 when a result is wrong.
"""

import argparse
import itertools
import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile

import torch
from torch.nn.functional import scaled_dot_product_attention

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TYPES = {name: dtype for dtype, name in NAMES.items()}


def save(path, tensors):
    """The safetensors format: length of the header in 8 bytes, the header in JSON, the data."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def load(path):
    raw = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8:8 + length]), bytearray(raw[8 + length:])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            tensors[name] = torch.frombuffer(data[start:end], dtype=TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def bottom_right_causal(q_rows, kv_rows):
    """True where a query sees a key: aligned to the last query and the last key, as ferroflash counts."""
    return torch.ones(q_rows, kv_rows, dtype=torch.bool).tril(kv_rows - q_rows)


def expected(q, k, v, causal):
    """float64 output and log-sum-exp, and the output of the same formula in the tensors' precision. [batch, head, row, dim]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    mask = bottom_right_causal(q.shape[2], k.shape[2]) if causal else torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    scale = 1 / math.sqrt(q.shape[3])
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    scores = (q.double() @ k.double().mT * scale).masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(-1)
    scores32 = (q.float() @ k.float().mT * scale).masked_fill(~mask, -math.inf)
    rounded = (scores32.softmax(-1).to(q.dtype).float() @ v.float()).to(q.dtype)
    return exact, lse, rounded


def check(args, folder, dtype, causal, heads, kv_heads, rows, kv_rows, dim, layout, kernel):
    shape = lambda h, r: (2, h, r, dim)
    q = torch.randn(shape(heads, rows)).to(dtype)
    k, v = torch.randn(shape(kv_heads, kv_rows)).to(dtype), torch.randn(shape(kv_heads, kv_rows)).to(dtype)
    in_file = lambda tensor: tensor if layout == "bhsd" else tensor.transpose(1, 2)
    source, target = folder / "in.safetensors", folder / "out.safetensors"
    save(source, {"q": in_file(q), "k": in_file(k), "v": in_file(v)})
    command = [args.ferroflash, "attend", "--input", source, "--output", target, "--layout", layout, "--kernel", kernel,
               "--device", args.device] + (["--causal"] if causal else [])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result = load(target)
    out, lse = in_file(result["out"]), result["lse"]
    exact, exact_lse, rounded = expected(q, k, v, causal)
    error = (out.double() - exact).abs().max().item()
    bound = 2 * (rounded.double() - exact).abs().max().item() + 1e-5
    lse_error = (lse.double() - exact_lse).abs().max().item()
    # The scores are sums of `dim` products in f32; the log-sum-exp of these sizes is below 16, whose last place is 1e-6.
    good = error <= bound and lse_error <= 2e-5 and out.dtype == dtype
    print(f"{NAMES[dtype]:>5} {'causal' if causal else 'full':>6} heads {heads}/{kv_heads} rows {rows}/{kv_rows} dim {dim:>3} "
          f"{layout} {kernel:>9}: error {error:.2e} of {bound:.2e}, lse {lse_error:.2e} {'ok' if good else 'WRONG'}",
          flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferroflash", required=True, metavar="PROGRAM", help="the ferroflash program")
    parser.add_argument("--device", default="cuda:0", help="device of ferroflash (default: cuda:0)")
    parser.add_argument("--small", action="store_true", help="sizes for the emulator")
    args = parser.parse_args()
    torch.manual_seed(0)
    # heads, kv_heads, q_rows, kv_rows, head_dim; every query of the causal ones sees a key.
    shapes = [(4, 2, 33, 65, 64)] if args.small else [(4, 4, 512, 512, 64), (8, 2, 333, 777, 128), (6, 1, 130, 130, 80)]
    good = []
    with tempfile.TemporaryDirectory() as folder:
        for shape, dtype, causal in itertools.product(shapes, NAMES, (False, True)):
            for layout, kernel in (("bshd", "v2"), ("bhsd", "v2"), ("bhsd", "v1"), ("bshd", "naive"), ("bhsd", "reference")):
                good.append(check(args, pathlib.Path(folder), dtype, causal, *shape, layout, kernel))
    print(f"{sum(good)} of {len(good)} results are within the tolerance rule")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
