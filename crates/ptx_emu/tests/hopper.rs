//! Tensor copies and wgmma against plain definitions: every swizzle, both majors, both A sources, fills and reductions.

use ptx_emu::*;

const HEAD: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 smem[];\n";

fn small(i: u32) -> i32 {
    (i.wrapping_mul(2654435761) >> 29) as i32 - 3
}

fn bf16(v: i32) -> u16 {
    ((v as f32).to_bits() >> 16) as u16
}

fn launch(e: &Emulator, body: &str, params: &[u64], seed: u64) {
    try_launch(e, body, params, seed).unwrap_or_else(|e| panic!("{e}"));
}

fn try_launch(e: &Emulator, body: &str, params: &[u64], seed: u64) -> Result<(), EmuError> {
    let names: Vec<String> = (0..params.len()).map(|i| format!(".param .u64 p{i}")).collect();
    let text = format!(
        "{HEAD}.visible .entry k({})\n{{\n.reg .pred %q<9>;\n.reg .b32 %r<64>;\n.reg .f32 %f<160>;\n.reg .b64 %rd<32>;\n{body}\n}}\n",
        names.join(", ")
    );
    let m = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut l = Launch::new([1, 1, 1], [128, 1, 1]).with_dynamic_shared_bytes(64 << 10).with_seed(seed);
    for p in params {
        l = l.with_ptr(*p);
    }
    e.launch(&m, "k", &l).map(drop)
}

fn upload(e: &Emulator, bytes: &[u8]) -> u64 {
    let p = e.alloc(bytes.len() as u64).unwrap();
    e.write(p, bytes).unwrap();
    p
}

fn download(e: &Emulator, p: u64, n: usize) -> Vec<u8> {
    let mut out = vec![0; n];
    e.read(p, &mut out).unwrap();
    out
}

/// The byte of a swizzled tile, by the definition of the pattern: 16-byte column XOR row, within the span.
fn swizzled(s: Swizzle, byte: usize) -> usize {
    let (row, chunk) = (byte / 128, byte / 16 % 8);
    let x = match s {
        Swizzle::None => 0,
        Swizzle::Bytes32 => byte >> 7 & 1,
        Swizzle::Bytes64 => byte >> 7 & 3,
        Swizzle::Bytes128 => byte >> 7 & 7,
    };
    row * 128 + (chunk ^ x) * 16 + byte % 16
}

/// Waits for one phase of the mbarrier at `smem`, after thread 0 issued `copy` (to `smem + 1024`), then copies the tile out.
fn load_tile(copy: &str, bytes: u32) -> String {
    format!(
        "ld.param.u64 %rd0, [p0];\nld.param.u64 %rd1, [p1];\nmov.u32 %r0, smem;\nadd.s32 %r1, %r0, 1024;\nmov.u32 %r2, %tid.x;\n\
         setp.ne.u32 %q0, %r2, 0;\n@%q0 bra ready;\nmbarrier.init.shared.b64 [%r0], 1;\nfence.proxy.async;\nready:\nbar.sync 0;\n@%q0 bra wait;\n\
         mbarrier.arrive.expect_tx.shared.b64 _, [%r0], {bytes};\n{copy}\nwait:\n\
         mbarrier.try_wait.parity.shared.b64 %q1, [%r0], 0;\n@!%q1 bra wait;\nmov.b32 %r3, %r2;\nout:\n\
         setp.ge.u32 %q2, %r3, {};\n@%q2 bra done;\nshl.b32 %r4, %r3, 2;\nadd.s32 %r5, %r1, %r4;\nld.shared.u32 %r6, [%r5];\n\
         cvt.u64.u32 %rd2, %r4;\nadd.s64 %rd3, %rd1, %rd2;\nst.global.u32 [%rd3], %r6;\nadd.s32 %r3, %r3, 128;\nbra out;\ndone:\nret;",
        bytes / 4
    )
}

#[test]
fn tensor_loads_swizzle_and_fill() {
    // A 3-D tensor of bf16 [4, 20, 72]; a box of [2, 8, 64 or less] that starts outside of it on two sides.
    let data: Vec<u16> = (0..4 * 20 * 72).map(|i| i as u16).collect();
    let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    for (swizzle, columns) in [
        (Swizzle::None, 64u32),
        (Swizzle::Bytes128, 64),
        (Swizzle::Bytes64, 32),
        (Swizzle::Bytes32, 16),
        (Swizzle::None, 8),
    ] {
        for fill in [TensorFill::Zero, TensorFill::Nan] {
            for (x, y, z) in [(0i32, 0i32, 0i32), (40, 15, 3), (-8, -3, -1), (72, 0, 0), (8, 8, 1)] {
                let e = Emulator::default();
                let t = upload(&e, &bytes);
                let spec = TensorMapSpec {
                    data_type: TensorDataType::Bfloat16,
                    address: t,
                    dims: vec![72, 20, 4],
                    strides: vec![144, 144 * 20],
                    box_dims: vec![columns, 8, 2],
                    swizzle,
                    fill,
                };
                let map = upload(&e, TensorMap::encode(&spec).unwrap().as_bytes());
                let size = columns * 8 * 2 * 2;
                let out = e.alloc(size as u64).unwrap();
                let copy = format!(
                    "mov.b32 %r10, {x};\nmov.b32 %r11, {y};\nmov.b32 %r12, {z};\n\
                     cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0, {{%r10, %r11, %r12}}], [%r0];"
                );
                launch(&e, &load_tile(&copy, size), &[map, out], 3);
                let got = download(&e, out, size as usize);
                for k in 0..2i32 {
                    for j in 0..8i32 {
                        for i in 0..columns as i32 {
                            let inside =
                                (0..72).contains(&(x + i)) && (0..20).contains(&(y + j)) && (0..4).contains(&(z + k));
                            let want = if inside {
                                data[(((z + k) * 20 + y + j) * 72 + x + i) as usize]
                            } else if fill == TensorFill::Nan {
                                0x7ff7
                            } else {
                                0
                            };
                            let linear = (((k * 8 + j) * columns as i32 + i) * 2) as usize;
                            let at = swizzled(swizzle, linear);
                            assert_eq!(
                                u16::from_le_bytes([got[at], got[at + 1]]),
                                want,
                                "{swizzle:?} {fill:?} at {i} {j} {k}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// A tensor of bf16 [8, 64] whose first rows are read through a map of these axes behind its columns, from this address on.
fn load_eight_rows(e: &Emulator, address: u64, axes: [(u64, u64); 4], corner: [i32; 4]) -> Result<Vec<u8>, EmuError> {
    let spec = TensorMapSpec {
        data_type: TensorDataType::Bfloat16,
        address,
        dims: std::iter::once(64).chain(axes.map(|(extent, _)| extent)).collect(),
        strides: axes.map(|(_, stride)| stride).to_vec(),
        box_dims: vec![64, 8, 1, 1, 1],
        swizzle: Swizzle::None,
        fill: TensorFill::Zero,
    };
    let map = upload(e, TensorMap::encode(&spec).unwrap().as_bytes());
    let out = e.alloc(1024).unwrap();
    let [a, b, c, d] = corner;
    let copy = format!(
        "mov.b32 %r10, 0;\nmov.b32 %r11, {a};\nmov.b32 %r12, {b};\nmov.b32 %r13, {c};\nmov.b32 %r14, {d};\n\
         cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0, {{%r10, %r11, %r12, %r13, %r14}}], [%r0];"
    );
    try_launch(e, &load_tile(&copy, 1024), &[map, out], 3)?;
    Ok(download(e, out, 1024))
}

/// Strides and coordinates whose products are 2^64 together lead to where the tensor is, as on an H200.
#[test]
fn addresses_of_tensors_wrap() {
    let e = Emulator::default();
    let bytes: Vec<u8> = (0..1024u32).map(|i| (i * 7 + 1) as u8).collect();
    let t = upload(&e, &bytes);
    let (rows, steps) = (1 << 30, 1 << 30);
    let axes = [(rows, 128), (1, 128), (9, 128), (steps + 1, (1 << 34) - 128)];
    // Rows 2 to 5 of the tensor; what follows is behind the end of the first axis.
    let (first, n) = (2, 3);
    let corner = [(rows - n) as i32, 0, (first + n) as i32, steps as i32];
    let found = load_eight_rows(&e, t, axes, corner).unwrap();
    assert_eq!(found[..384], bytes[256..640]);
    assert!(found[384..].iter().all(|&byte| byte == 0));
}

/// On an H200, a box with nothing inside of the tensor is zeros, but the address that the map begins at has to be memory all the same.
#[test]
fn boxes_outside_touch_where_the_map_begins() {
    let e = Emulator::default();
    let t = upload(&e, &[1; 1024]);
    let axes = [(8, 128), (1, 128), (9, 128), (1, 128)];
    let outside = [8, 0, 0, 0];
    assert_eq!(load_eight_rows(&e, t, axes, outside).unwrap(), [0; 1024]);
    // Rows that begin eight before the tensor: those that are there can be read, and of others, no box.
    let before = t - 1024;
    assert_eq!(load_eight_rows(&e, before, axes, [4, 0, 4, 0]).unwrap()[..512], [1; 512]);
    let error = load_eight_rows(&e, before, axes, outside).unwrap_err().to_string();
    assert!(error.contains(&format!("{before:#x}")), "{error}");
}

#[test]
fn plain_bulk_loads_copy_bytes() {
    let e = Emulator::default();
    let bytes: Vec<u8> = (0..4096u32).map(|i| (i * 7) as u8).collect();
    let (src, out) = (upload(&e, &bytes), e.alloc(2048).unwrap());
    let copy = "add.s64 %rd0, %rd0, 1008;\ncp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0], 2048, [%r0];";
    for seed in 0..20 {
        launch(&e, &load_tile(copy, 2048), &[src, out], seed);
        assert_eq!(download(&e, out, 2048), bytes[1008..3056]);
    }
}

#[test]
fn tensor_stores_clip_and_reduce() {
    // f32 [6, 12] in global memory; a box [4, 8] at (2, 8) reaches outside on both sides.
    for reduce in [false, true] {
        let e = Emulator::default();
        let old: Vec<f32> = (0..72).map(|i| i as f32).collect();
        let t = upload(&e, &old.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        let spec = TensorMapSpec {
            data_type: TensorDataType::Float32,
            address: t,
            dims: vec![12, 6],
            strides: vec![48],
            box_dims: vec![8, 4],
            swizzle: Swizzle::None,
            fill: TensorFill::Zero,
        };
        let map = upload(&e, TensorMap::encode(&spec).unwrap().as_bytes());
        let op = if reduce {
            "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group"
        } else {
            "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group"
        };
        let body = format!(
            "ld.param.u64 %rd0, [p0];\nmov.u32 %r0, smem;\nmov.u32 %r2, %tid.x;\nshl.b32 %r3, %r2, 2;\nadd.s32 %r4, %r0, %r3;\n\
             setp.lt.u32 %q1, %r2, 32;\nadd.s32 %r5, %r2, 1000;\ncvt.rn.f32.u32 %f0, %r5;\n@%q1 st.shared.f32 [%r4], %f0;\n\
             fence.proxy.async.shared::cta;\nbar.sync 0;\nsetp.ne.u32 %q0, %r2, 0;\n@%q0 bra done;\nmov.b32 %r6, 8;\nmov.b32 %r7, 4;\n\
             {op} [%rd0, {{%r6, %r7}}], [%r0];\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\ndone:\nret;"
        );
        launch(&e, &body, &[map], 1);
        let got = download(&e, t, 288);
        for r in 0..6 {
            for c in 0..12 {
                let i = r * 12 + c;
                let v = f32::from_le_bytes(got[4 * i..4 * i + 4].try_into().unwrap());
                let want = match (r >= 4 && c >= 8, reduce) {
                    (false, _) => old[i],
                    (true, false) => 1000.0 + ((r - 4) * 8 + c - 8) as f32,
                    (true, true) => old[i] + 1000.0 + ((r - 4) * 8 + c - 8) as f32,
                };
                assert_eq!(v, want, "row {r}, column {c}");
            }
        }
    }
}

/// Descriptor bits of a swizzle.
fn mode(s: Swizzle) -> u64 {
    match s {
        Swizzle::None => 0,
        Swizzle::Bytes128 => 1,
        Swizzle::Bytes64 => 2,
        Swizzle::Bytes32 => 3,
    }
}

/// A tile of bf16 as wgmma wants it: element (mn, k) at the byte that the canonical layout of the PTX ISA names. Returns the
/// bytes, the leading and the stride offset.
fn tile(
    mn: usize,
    k: usize,
    swizzle: Swizzle,
    mn_major: bool,
    value: impl Fn(usize, usize) -> i32,
) -> (Vec<u8>, u64, u64) {
    let span = match swizzle {
        Swizzle::None => 16,
        Swizzle::Bytes32 => 32,
        Swizzle::Bytes64 => 64,
        Swizzle::Bytes128 => 128,
    };
    let per = span / 2;
    // Blocks of (span bytes) x 8 rows, packed one after the other along the contiguous side, then along the other.
    let block = span * 8;
    let (inner, outer) = if mn_major { (mn, k) } else { (k, mn) };
    let inner_blocks = inner.div_ceil(per);
    let mut out = vec![0u8; inner_blocks * outer.div_ceil(8) * block];
    for i in 0..mn {
        for j in 0..k {
            let (a, b) = if mn_major { (i, j) } else { (j, i) };
            let linear = (b / 8 * inner_blocks + a / per) * block + b % 8 * span + a % per * 2;
            let at = if swizzle == Swizzle::None { linear } else { swizzled(swizzle, linear) };
            out[at..at + 2].copy_from_slice(&bf16(value(i, j)).to_le_bytes());
        }
    }
    let (next_inner, next_outer) = (block as u64, (inner_blocks * block) as u64);
    // Without a swizzle the roles of the two offsets are the other way round for MN-major tiles.
    let (leading, stride) =
        if mn_major && swizzle == Swizzle::None { (next_outer, next_inner) } else { (next_inner, next_outer) };
    (out, leading, stride)
}

#[test]
fn wgmma_multiplies_every_layout() {
    let a_value = |i: usize, k: usize| small((i * 16 + k) as u32);
    for n in [8usize, 64, 136] {
        let b_value = |j: usize, k: usize| small((j * 16 + k + 7777) as u32);
        for swizzle in [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128] {
            for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
                for from_regs in [false, true] {
                    if from_regs && trans_a {
                        continue;
                    }
                    let e = Emulator::default();
                    let (a, la, sa) = tile(64, 16, swizzle, trans_a, a_value);
                    let (b, lb, sb) = tile(n, 16, swizzle, trans_b, b_value);
                    let (pa, pb) = (upload(&e, &a), upload(&e, &b));
                    let out = e.alloc(64 * n as u64 * 4).unwrap();
                    let b_at = 32768;
                    let desc =
                        |leading: u64, stride: u64| (leading >> 4) << 16 | (stride >> 4) << 32 | mode(swizzle) << 62;
                    let acc: Vec<String> = (0..n / 2).map(|i| format!("%f{i}")).collect();
                    let acc = acc.join(", ");
                    let fragment: String = (0..4)
                        .map(|r| {
                            let word = |h: usize| format!("%r{}", 20 + 2 * r + h);
                            // Row g + 8 (r & 1) of the warp's 16, columns 2t and 2t + 1 and 8 (r >> 1) on.
                            format!(
                                "mad.lo.s32 %r12, %r9, 1, {};\nshl.b32 %r12, %r12, 4;\nadd.s32 %r12, %r12, %r10;\nadd.s32 %r12, %r12, {};\n\
                                 shl.b32 %r12, %r12, 2;\ncvt.u64.u32 %rd9, %r12;\nadd.s64 %rd9, %rd8, %rd9;\nld.global.u32 {w}, [%rd9];\n\
                                 ld.global.u32 {v}, [%rd9+4];\nshr.u32 {w}, {w}, 16;\nprmt.b32 {w}, {w}, {v}, 0x7610;\n",
                                8 * (r & 1),
                                8 * (r >> 1),
                                w = word(0),
                                v = word(1)
                            )
                        })
                        .collect();
                    let plain: Vec<u8> =
                        (0..64 * 16).flat_map(|i| (a_value(i / 16, i % 16) as f32).to_le_bytes()).collect();
                    let pr = upload(&e, &plain);
                    let operand = if from_regs { "{%r20, %r22, %r24, %r26}" } else { "%rd5" };
                    let flags = if from_regs {
                        format!("1, 1, {}", trans_b as u32)
                    } else {
                        format!("1, 1, {}, {}", trans_a as u32, trans_b as u32)
                    };
                    let stores: String = (0..n / 2)
                        .map(|i| {
                            let (col, row) = (8 * (i / 4) + i % 2, 8 * (i / 2 % 2));
                            format!("st.global.f32 [%rd7+{}], %f{i};\n", (row * n + col) * 4)
                        })
                        .collect();
                    let copy = |param: &str, bytes: usize, at: usize, label: &str| {
                        format!(
                            "ld.param.u64 %rd0, [{param}];\nmov.b32 %r3, %r2;\n{label}:\nsetp.ge.u32 %q1, %r3, {};\n@%q1 bra {label}_end;\n\
                             shl.b32 %r4, %r3, 2;\ncvt.u64.u32 %rd1, %r4;\nadd.s64 %rd1, %rd0, %rd1;\nld.global.u32 %r5, [%rd1];\n\
                             add.s32 %r4, %r0, %r4;\nst.shared.u32 [%r4+{at}], %r5;\nadd.s32 %r3, %r3, 128;\nbra {label};\n{label}_end:\n",
                            bytes / 4
                        )
                    };
                    let body = format!(
                        "mov.u32 %r0, smem;\nmov.u32 %r2, %tid.x;\n{}{}fence.proxy.async;\nbar.sync 0;\n\
                         shr.u32 %r6, %r0, 4;\ncvt.u64.u32 %rd2, %r6;\nadd.s64 %rd5, %rd2, {};\nadd.s64 %rd6, %rd2, {};\n\
                         shr.u32 %r7, %r2, 5;\nshl.b32 %r7, %r7, 4;\nand.b32 %r8, %r2, 31;\nshr.u32 %r9, %r8, 2;\nadd.s32 %r9, %r9, %r7;\n\
                         and.b32 %r10, %r8, 3;\nshl.b32 %r10, %r10, 1;\nld.param.u64 %rd8, [p3];\n{fragment}\
                         setp.ne.u32 %q2, %r2, %r2;\nwgmma.fence.sync.aligned;\n\
                         wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{acc}}}, {operand}, %rd6, %q2, {flags};\n\
                         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
                         mad.lo.s32 %r11, %r9, {n}, %r10;\nshl.b32 %r11, %r11, 2;\ncvt.u64.u32 %rd7, %r11;\nld.param.u64 %rd4, [p2];\n\
                         add.s64 %rd7, %rd4, %rd7;\n{stores}ret;",
                        copy("p0", a.len(), 0, "ca"),
                        copy("p1", b.len(), b_at, "cb"),
                        desc(la, sa) as i64,
                        (desc(lb, sb) + (b_at as u64 >> 4)) as i64,
                    );
                    launch(&e, &body, &[pa, pb, out, pr], 5);
                    let got = download(&e, out, 64 * n * 4);
                    for i in 0..64 {
                        for j in 0..n {
                            let at = (i * n + j) * 4;
                            let v = f32::from_le_bytes(got[at..at + 4].try_into().unwrap());
                            let want: i32 = (0..16).map(|k| a_value(i, k) * b_value(j, k)).sum();
                            assert_eq!(
                                v, want as f32,
                                "({i}, {j}) of n {n}, {swizzle:?}, transposes {trans_a} {trans_b}, A in registers {from_regs}"
                            );
                        }
                    }
                }
            }
        }
    }
}
