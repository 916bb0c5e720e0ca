//! Bulk copies and tensor copies.

use std::fmt::Write as _;

use ptx_emu::{Swizzle, TensorDataType, TensorFill};

use super::super::{Case, Compare, Input, Output, Tensor};
use super::{OWN_SHARED, case, hopper};

/// Waits for the bytes of a bulk copy, then reads the thread's own 16 bytes of a tile of `bytes`; zeros where the copy does not come
/// within 10000 polls, a hundred times what one takes.
fn load_with(copy: &str, bytes: u32) -> String {
    format!(
        "mov.u32 %t0, %tid.x;\nsetp.ne.u32 %q, %t0, 0;\nmov.u32 %t1, buffer;\nmov.u32 %t7, %ctaid.x;\n@%q bra ready;\n\
         mbarrier.init.shared.b64 [bar], 1;\nfence.proxy.async;\nready:\nbar.sync 0;\n@%q bra wait;\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {bytes};\n{copy}\nwait:\n\
         mov.b32 %c, 0;\npoll:\nadd.s32 %c, %c, 1;\nsetp.gt.u32 %q1, %c, 10000;\n@%q1 bra late;\n\
         mbarrier.try_wait.parity.shared::cta.b64 %q1, [bar], 0;\n@!%q1 bra poll;\n\
         shl.b32 %t2, %t0, 4;\nand.b32 %t2, %t2, {};\nadd.s32 %t2, %t2, %t1;\nld.shared.v4.u32 {{%d0, %d1, %d2, %d3}}, [%t2];\nlate:",
        bytes.min(2048) - 16
    )
}

/// Lets thread 0 store or reduce the 2048 bytes of `buffer`, which every thread has written its 16 bytes of; the output holds
/// other bytes before.
fn store_with(copy: &str) -> String {
    format!(
        "mul.wide.u32 %ld, %i, 16;\nadd.s64 %lc, %out, %ld;\nst.global.v4.u32 [%lc], {{%c, %a, %b, %c}};\n{OWN_SHARED}\
         fence.proxy.async;\nbar.sync 0;\nsetp.ne.u32 %q, %t0, 0;\n@%q bra done;\nmov.u32 %t1, buffer;\nmov.u32 %t7, %ctaid.x;\n{copy}\n\
         cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\ndone:"
    )
}

/// Coordinates in `%t3` and on, from factors of the block index and offsets.
fn coordinates(list: &[(i32, i32)]) -> (String, String) {
    let mut text = String::new();
    let mut names = Vec::new();
    for (i, (factor, offset)) in list.iter().enumerate() {
        let name = ["%t3", "%t4", "%t5", "%t6", "%d0"][i];
        writeln!(text, "mul.lo.s32 {name}, %t7, {factor};\nadd.s32 {name}, {name}, {offset};")
            .expect("a string takes all");
        names.push(name);
    }
    (text, names.join(", "))
}

pub(super) fn bulk_copies(v: &mut Vec<Case>) {
    use TensorDataType::*;
    let element = |t: TensorDataType| t.bytes();
    for bytes in [16u32, 512, 2048] {
        let copy = format!(
            "mul.wide.u32 %la, %t7, 1040;\nld.param.u64 %lb, [in];\nadd.s64 %la, %la, %lb;\n\
             cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%t1], [%la], {bytes}, [bar];"
        );
        v.push(hopper(case("bulk copies", load_with(&copy, bytes), Input::Bits, Output::Quad)));
    }
    let rows = "mul.wide.u32 %la, %t7, 2048;\nadd.s64 %la, %la, %out;\n";
    let copy = format!("{rows}cp.async.bulk.global.shared::cta.bulk_group [%la+32], [%t1], 2000;");
    v.push(hopper(case("bulk copies", store_with(&copy), Input::Bits, Output::Own)));
    for (op, input) in [
        ("add.u32", Input::Bits),
        ("add.s32", Input::Bits),
        ("add.u64", Input::Bits),
        ("min.u32", Input::Bits),
        ("max.s32", Input::Bits),
        ("min.s64", Input::Bits),
        ("and.b32", Input::Bits),
        ("or.b64", Input::Bits),
        ("xor.b32", Input::Bits),
        ("inc.u32", Input::Bits),
        ("dec.u32", Input::Bits),
        ("add.f32", Input::SmallF32),
        ("add.f32", Input::F32),
        ("add.noftz.f16", Input::F16),
        ("add.noftz.bf16", Input::Bf16),
        ("add.noftz.f16", Input::SmallF16),
        ("min.f16", Input::SmallF16),
        ("max.f16", Input::SmallF16),
        ("add.noftz.bf16", Input::SmallBf16),
        ("max.bf16", Input::SmallBf16),
    ] {
        let copy = format!("{rows}cp.reduce.async.bulk.global.shared::cta.bulk_group.{op} [%la], [%t1], 2048;");
        v.push(hopper(case("bulk reductions", store_with(&copy), input, Output::Own)));
    }
    // Loads of every rank, type and swizzle: the tensor is the input buffer, the block index moves the box across its edges.
    let mut load = |rank: usize, data_type, box_dims: &[u32], swizzle, fill, input| {
        let e = element(data_type) as u64;
        let row = 192u64;
        let dims: Vec<u64> = [(row - 16) / e, 5, 3, 4, 2][..rank].to_vec();
        let dims = if rank == 1 { vec![1008 / e] } else { dims };
        let dims = if rank == 2 { vec![(row - 16) / e, 120] } else { dims };
        let strides: Vec<u64> = [row, row * 5, row * 15, row * 60][..rank - 1].to_vec();
        let across = 16 / e as i32;
        let all = [(across, 0), (0, 2), (0, 1), (0, 1), (0, 0)];
        let (mut setup, names) = coordinates(&all[..rank]);
        if rank == 2 {
            setup = coordinates(&[(across, 0), (16, 3)]).0;
        }
        let bytes = box_dims.iter().product::<u32>() * e as u32;
        let copy = format!(
            "{setup}cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes [%t1], [%map, {{{names}}}], [bar];"
        );
        // The last coordinate of five goes through an output register.
        let tensor = Tensor { of_output: false, data_type, dims, strides, box_dims: box_dims.to_vec(), swizzle, fill };
        let c = case("tensor loads", load_with(&copy, bytes), input, Output::Quad);
        v.push(hopper(Case { tensor: Some(tensor), ..c }));
    };
    for swizzle in [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128] {
        let columns = match swizzle {
            Swizzle::Bytes32 => 16,
            Swizzle::Bytes64 => 32,
            _ => 64,
        };
        load(2, Bfloat16, &[columns, 1024 / columns], swizzle, TensorFill::Zero, Input::Bits);
        load(3, Float16, &[columns, 4, 256 / columns], swizzle, TensorFill::Nan, Input::Bits);
        load(4, Uint16, &[columns, 2, 2, 2], swizzle, TensorFill::Zero, Input::Bits);
        load(5, Bfloat16, &[columns, 2, 2, 2, 2], swizzle, TensorFill::Nan, Input::Bits);
        load(2, Float32, &[columns / 2, 16], swizzle, TensorFill::Nan, Input::Bits);
        load(2, Uint8, &[2 * columns, 16], swizzle, TensorFill::Zero, Input::Bits);
    }
    load(1, Uint16, &[256], Swizzle::None, TensorFill::Zero, Input::Bits);
    load(1, Float32, &[64], Swizzle::None, TensorFill::Nan, Input::Bits);
    load(2, Uint32, &[16, 8], Swizzle::None, TensorFill::Zero, Input::Bits);
    load(2, Int32, &[16, 8], Swizzle::Bytes64, TensorFill::Zero, Input::Bits);
    load(2, Uint64, &[8, 8], Swizzle::Bytes64, TensorFill::Zero, Input::Bits);
    load(2, Int64, &[16, 8], Swizzle::Bytes128, TensorFill::Zero, Input::Bits);
    load(2, Float64, &[8, 8], Swizzle::None, TensorFill::Nan, Input::Bits);
    // Stores and reductions: the tensor is the output buffer, 64-column rows of 16 bits of which 56 are in the tensor.
    let mut store = |op: &str, rank: usize, data_type, swizzle, input| {
        let e = element(data_type) as u64;
        let columns: u32 = match swizzle {
            Swizzle::None | Swizzle::Bytes128 => 128 / e as u32,
            Swizzle::Bytes64 => 64 / e as u32,
            Swizzle::Bytes32 => 32 / e as u32,
        };
        let inside = (128 - 16) / e;
        let (dims, strides, box_dims, at) = match rank {
            1 => (vec![16000 / e], vec![], vec![256], vec![(2048 / e as i32, 0)]),
            2 => (vec![inside, 120], vec![128], vec![columns, 16], vec![(0, 0), (16, 0)]),
            3 => (vec![inside, 4, 30], vec![128, 512], vec![columns, 4, 4], vec![(0, 16 / e as i32), (0, 1), (4, 0)]),
            4 => (
                vec![inside, 2, 2, 31],
                vec![128, 256, 512],
                vec![columns, 2, 2, 4],
                vec![(0, 16 / e as i32), (0, 0), (0, 1), (4, 0)],
            ),
            _ => (
                vec![inside, 2, 2, 2, 16],
                vec![128, 256, 512, 1024],
                vec![columns, 2, 2, 2, 2],
                vec![(0, 0), (0, 1), (0, 0), (0, 0), (2, 0)],
            ),
        };
        let (setup, names) = coordinates(&at);
        let instruction = match op {
            "" => format!("cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group"),
            op => format!("cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{op}.tile.bulk_group"),
        };
        let copy = format!("{setup}{instruction} [%map, {{{names}}}], [%t1];");
        let tensor = Tensor { of_output: true, data_type, dims, strides, box_dims, swizzle, fill: TensorFill::Zero };
        let family = if op.is_empty() { "tensor stores" } else { "tensor reductions" };
        v.push(hopper(Case { tensor: Some(tensor), ..case(family, store_with(&copy), input, Output::Own) }));
    };
    for rank in 1..=5 {
        store("", rank, Bfloat16, Swizzle::None, Input::Bits);
    }
    for swizzle in [Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128] {
        store("", 2, Float16, swizzle, Input::Bits);
        store("", 3, Float32, swizzle, Input::Bits);
    }
    for (op, data_type, input) in [
        ("add", Uint32, Input::Bits),
        ("add", Int32, Input::Bits),
        ("add", Uint64, Input::Bits),
        ("add", Float32, Input::SmallF32),
        ("add", Float32, Input::F32),
        ("add", Float16, Input::SmallF16),
        ("add", Bfloat16, Input::SmallBf16),
        ("min", Int32, Input::Bits),
        ("max", Uint32, Input::Bits),
        ("min", Float16, Input::SmallF16),
        ("max", Bfloat16, Input::SmallBf16),
        ("and", Uint32, Input::Bits),
        ("or", Int32, Input::Bits),
        ("xor", Uint32, Input::Bits),
        ("inc", Uint32, Input::Bits),
        ("dec", Uint32, Input::Bits),
    ] {
        store(op, 2, data_type, Swizzle::Bytes128, input);
    }
    tensor_edges(v);
}

/// Tensor copies that begin before, between or behind the elements of a tensor, or at other places of shared memory.
fn tensor_edges(v: &mut Vec<Case>) {
    use Compare::{Bits, Refused};
    use Swizzle::{Bytes32, Bytes64, Bytes128};
    use TensorFill::{Nan, Zero};
    // Rows of 192 bytes of bf16, of which `dims[0]` elements are in the tensor; at a shared offset from the buffer.
    let mut load = |inner: u64, at: &[(i32, i32)], swizzle, fill, offset: u32, compare| {
        let rank = at.len();
        let dims = if rank == 2 { vec![inner, 120] } else { [inner, 5, 3, 4, 2][..rank].to_vec() };
        let strides = [192, 960, 2880, 11520][..rank - 1].to_vec();
        let columns = match swizzle {
            Bytes32 => 16,
            Bytes64 => 32,
            _ => 64,
        };
        let box_dims = [columns, 8, 1, 1, 1][..rank].to_vec();
        let bytes = box_dims.iter().product::<u32>() * 2;
        let (setup, names) = coordinates(at);
        let copy = format!(
            "{setup}cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes [%t1], [%map, {{{names}}}], [bar];"
        );
        let body = load_with(&copy, bytes);
        let body = body.replace("mov.u32 %t1, buffer;", &format!("mov.u32 %t1, buffer;\nadd.s32 %t1, %t1, {offset};"));
        let data_type = TensorDataType::Bfloat16;
        let tensor = Tensor { of_output: false, data_type, dims, strides, box_dims, swizzle, fill };
        let c = case("tensor loads, edges", body, Input::Bits, Output::Quad);
        v.push(hopper(Case { tensor: Some(tensor), compare, ..c }));
    };
    // A row that is no multiple of 16 bytes, and coordinates that are none: those are refused.
    load(95, &[(0, 0), (16, 0)], Swizzle::None, Zero, 0, Bits);
    load(95, &[(8, 0), (16, 0)], Bytes128, Nan, 0, Bits);
    load(88, &[(12, 0), (16, 0)], Swizzle::None, Zero, 0, Refused);
    load(95, &[(13, 1), (16, 0)], Bytes64, Nan, 0, Refused);
    load(95, &[(8, 0), (0, 1), (0, 1)], Swizzle::None, Zero, 0, Bits);
    // Before the tensor.
    load(88, &[(0, -8), (16, 0)], Swizzle::None, Zero, 0, Bits);
    load(88, &[(0, 0), (17, -5)], Swizzle::None, Zero, 0, Bits);
    load(88, &[(8, -8)], Swizzle::None, Zero, 0, Bits);
    load(95, &[(8, -16), (17, -5)], Bytes128, Nan, 0, Bits);
    load(95, &[(16, -8), (1, -2), (1, -3)], Bytes64, Nan, 0, Bits);
    load(88, &[(0, 0), (0, 0), (0, 0), (0, -1), (0, 0)], Swizzle::None, Nan, 0, Bits);
    // Behind it.
    load(88, &[(16, 0), (16, 0)], Swizzle::None, Nan, 0, Bits);
    load(88, &[(0, 0), (40, 0)], Bytes32, Nan, 0, Bits);
    load(88, &[(8, 0), (1, 0), (1, 0), (1, 0)], Swizzle::None, Zero, 0, Bits);
    // Elsewhere in shared memory: 128 bytes are the least alignment.
    for offset in [128, 384] {
        for swizzle in [Swizzle::None, Bytes32, Bytes64, Bytes128] {
            load(88, &[(8, 0), (16, 0)], swizzle, Nan, offset, Bits);
        }
    }
    for offset in [16, 64] {
        load(88, &[(8, 0), (16, 0)], Swizzle::None, Zero, offset, Refused);
    }
    load(88, &[(8, 0), (16, 0)], Bytes32, Zero, 64, Refused);
    let mut store = |op: &str, inner: u64, at: &[(i32, i32)], swizzle, offset: u32, compare| {
        let rank = at.len();
        let dims = if rank == 2 { vec![inner, 120] } else { [inner, 4, 30][..rank].to_vec() };
        let strides = [128, 512][..rank - 1].to_vec();
        let box_dims = [if swizzle == Bytes64 { 32 } else { 64 }, 8, 1][..rank].to_vec();
        let (setup, names) = coordinates(at);
        let instruction = match op {
            "" => format!("cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group"),
            op => format!("cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{op}.tile.bulk_group"),
        };
        let body = store_with(&format!("{setup}{instruction} [%map, {{{names}}}], [%t1];"));
        let body = body.replace("mov.u32 %t1, buffer;", &format!("mov.u32 %t1, buffer;\nadd.s32 %t1, %t1, {offset};"));
        let data_type = TensorDataType::Bfloat16;
        let tensor = Tensor { of_output: true, data_type, dims, strides, box_dims, swizzle, fill: Zero };
        let family = if op.is_empty() { "tensor stores, edges" } else { "tensor reductions, edges" };
        let c = case(family, body, Input::SmallBf16, Output::Own);
        v.push(hopper(Case { tensor: Some(tensor), compare, ..c }));
    };
    for op in ["", "add"] {
        for inner in [49, 50, 52, 55] {
            store(op, inner, &[(0, 0), (16, 0)], Swizzle::None, 0, Bits);
        }
        store(op, 55, &[(0, 0), (16, 0)], Bytes128, 0, Bits);
        store(op, 56, &[(0, 4), (16, 0)], Swizzle::None, 0, Refused);
        store(op, 55, &[(0, 24), (16, 2)], Bytes64, 128, Bits);
        store(op, 56, &[(0, 64), (16, 0)], Swizzle::None, 0, Bits);
        store(op, 56, &[(0, 0), (120, 0)], Swizzle::None, 0, Bits);
        store(op, 56, &[(0, 8), (0, 0), (4, 2)], Bytes128, 384, Bits);
        store(op, 56, &[(0, -8), (16, 0)], Swizzle::None, 0, Refused);
        // The same row for every block: the rows behind the first would be the neighbour's, and writing those a race.
        store(op, 56, &[(0, 0), (0, -2)], Bytes128, 0, Refused);
        store(op, 56, &[(0, 0), (0, -1), (4, 0)], Swizzle::None, 0, Refused);
        store(op, 56, &[(0, 0), (16, 0)], Swizzle::None, 16, Refused);
        store(op, 56, &[(0, 0), (16, 0)], Swizzle::None, 64, Refused);
    }
}
