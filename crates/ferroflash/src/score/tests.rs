//! Lowered programs with one instruction changed: each change shows in the result, or the emulator reports it.

use super::*;
use crate::backend::RawStream;
use crate::tensor::Layout;
use crate::{Attention, Device, Indices, Kernel, Operand, Shape, Sizes, Tensor, f16};
use kernel_spec::{DType, Mask};
use std::collections::BTreeMap;

/// Every operation there is, each with a weight in the result.
fn everything() -> ScoreProgram {
    let program = ScoreProgram::new("everything", |p| {
        let x = p.score() - 0.3;
        let from_middle = p.key() - p.row() * 2 + 5;
        let functions = x.tanh() + x.sigmoid() + (-x.abs()).exp() + (x.abs() + 1.5).ln() + (x.abs() + 0.5).sqrt();
        let arithmetic = x / (x.abs() + 2.0) + x.min(p.constant(0.1)) + x.max(p.constant(-0.2)) * 0.5;
        let loads = p.floats("table").at([p.head(), from_middle])
            + p.floats("half").at([p.key()])
            // Along the first axis, of extent 1, every index will do.
            + p.ints("ids").at([from_middle, p.key() - 3]).to_float() * 0.2;
        let whole = from_middle.div_floor(4) + from_middle.rem_floor(8) * 2 - from_middle.div_floor(7)
            + from_middle.rem_floor(5)
            + from_middle.abs().min(p.int_constant(9)).max(p.q_rows() - p.kv_rows() + 27)
            + (p.row() * 3).min(p.key())
            + (p.batch() * p.key()).rem_floor(16)
            - (from_middle * from_middle).min(p.int_constant(60));
        let near = from_middle.lt(p.int_constant(3)) & from_middle.gt(p.int_constant(-4));
        let edges = from_middle.le(p.int_constant(-9)) | from_middle.ge(p.int_constant(21));
        let odd = p.key().rem_floor(2).eq(p.int_constant(1));
        let far = p.key().rem_floor(4).ne(p.int_constant(1));
        let high = x.gt(p.constant(0.4)) | x.le(p.constant(-0.9));
        let low = x.lt(p.constant(-0.25)) & x.ge(p.constant(-0.7));
        let chosen = near.select(p.constant(0.7), p.constant(-0.1))
            + edges.select(p.constant(0.5), p.constant(0.0))
            + (!odd).select(p.constant(0.4), p.constant(-0.3))
            + high.select(p.constant(0.3), p.constant(0.0))
            + low.select(p.constant(0.6), p.constant(0.0))
            + far.select_int(from_middle.rem_floor(3), p.int_constant(-2)).to_float() * 0.3;
        let sum = functions + arithmetic + loads + whole.to_float() * 0.1 + chosen;
        (p.key().ne(p.int_constant(7)) & p.bool_constant(true)).select(sum, p.hidden())
    });
    program.expect("a legal program")
}

/// What a statement becomes; a change may leave it as it is, and then is none.
fn changes(statement: &str) -> Vec<String> {
    const SWAPS: [(&str, &str); 35] = [
        ("add.f32", "sub.f32"),
        ("sub.f32", "add.f32"),
        ("mul.f32", "add.f32"),
        ("div.full.f32", "mul.f32"),
        ("min.f32", "max.f32"),
        ("max.f32", "min.f32"),
        ("neg.f32", "abs.f32"),
        ("abs.f32", "neg.f32"),
        ("ex2.approx", "lg2.approx"),
        ("lg2.approx", "ex2.approx"),
        ("sqrt.approx", "rcp.approx"),
        ("rcp.approx", "sqrt.approx"),
        ("add.s32", "sub.s32"),
        ("sub.s32", "add.s32"),
        ("mul.lo.s32", "add.s32"),
        ("min.s32", "max.s32"),
        ("max.s32", "min.s32"),
        ("abs.s32", "neg.s32"),
        ("div.s32", "rem.s32"),
        ("shr.s32", "shl.b32"),
        ("shr.s32", "shr.u32"),
        ("and.b32", "or.b32"),
        ("cvt.rn.f32.s32", "cvt.rn.f32.u32"),
        ("setp.lt.f32", "setp.gt.f32"),
        ("setp.le.f32", "setp.gt.f32"),
        ("setp.gt.f32", "setp.le.f32"),
        ("setp.ge.f32", "setp.lt.f32"),
        ("setp.lt.s32", "setp.le.s32"),
        ("setp.le.s32", "setp.lt.s32"),
        ("setp.gt.s32", "setp.ge.s32"),
        ("setp.ge.s32", "setp.gt.s32"),
        ("setp.eq", "setp.ne"),
        ("setp.ne", "setp.eq"),
        ("and.pred", "or.pred"),
        ("or.pred", "and.pred"),
    ];
    let mut changed: Vec<String> = SWAPS
        .iter()
        .filter(|(from, _)| statement.contains(from))
        .map(|(from, to)| statement.replace(from, to))
        .collect();
    for (from, to) in [
        ("not.pred", "mov.pred"),
        ("@there ", ""),
        ("@there ", "@!there "),
        ("{largest, stride}", "{stride, largest}"),
        ("shl.b64 at, at, 2", "shl.b64 at, at, 3"),
        ("shl.b64 at, at, 1", "shl.b64 at, at, 2"),
        ("add.s64 at, at,", "mov.b64 at,"),
        ("cvt.f32.f16", "cvt.f32.bf16"),
        ("$head", "$batch"),
        ("$batch", "$head"),
        ("$row", "$key"),
        ("$key", "$row"),
        ("$q_rows", "$kv_rows"),
        ("$kv_rows", "$q_rows"),
        ("$factor", "$word1"),
    ] {
        if statement.contains(from) {
            changed.push(statement.replace(from, to));
        }
    }
    // Operands of a choice the other way round.
    if let Some(operands) = statement.strip_prefix("selp.") {
        let (kind, operands) = operands.split_once(' ').expect("operands");
        let operands: Vec<&str> = operands.split(", ").collect();
        changed.push(format!("selp.{kind} {}, {}, {}, {}", operands[0], operands[2], operands[1], operands[3]));
    }
    // What makes a constant condition compares any number with itself.
    if statement.contains("$key, $key") {
        changed.retain(|changed| !changed.contains("$row"));
    }
    changed.retain(|changed| changed != statement);
    changed
}

#[test]
fn every_change_of_a_lowered_program_shows() {
    let device = Device::emulator().expect("it is built in");
    let table: Vec<f32> = (0..3 * 30).map(|i| (i * 37 % 23) as f32 / 9.0 - 1.1).collect();
    let half: Vec<f16> = (0..25).map(|i| f16::from_f32((i * 11 % 7) as f32 / 4.0 - 0.8)).collect();
    let ids: Vec<i32> = (0..35).map(|i| i * 13 % 9 - 4).collect();
    let table = Tensor::from_slice(&device, &table, [3, 30], Layout::RowMajor).unwrap();
    let half = Tensor::from_slice(&device, &half, [25], Layout::RowMajor).unwrap();
    let ids = Indices::from_slice(&device, &ids).unwrap();
    let tensors = [
        ("table", table.view().into()),
        ("half", half.view().into()),
        ("ids", ProgramTensor::ints(ids.view(), [1, 35]).unwrap()),
    ];
    let bound = everything().bind(&tensors).unwrap();
    let sizes = Sizes { batch: 2, q_rows: 20, kv_rows: 40, q_heads: 4, kv_heads: 4, head_dim: 8, dtype: DType::F32 };
    let data = |seed: usize, rows: usize| -> Vec<f64> {
        (0..2 * rows * 4 * 8).map(|i| f64::from(((i * 7919 + seed * 104_729) % 41) as f32 / 20.0 - 1.0)).collect()
    };
    let [q, k, v] = [data(1, 20), data(2, 40), data(3, 40)];
    let attention = Attention::new().with_kernel(Kernel::V2).with_mask(Mask::Full).with_scale(0.4).with_program(&bound);
    let expected = crate::reference::forward(&q, &k, &v, sizes, &attention).unwrap().out;
    let upload = |data: &[f64], rows| {
        let data: Vec<f32> = data.iter().map(|&x| x as f32).collect();
        Tensor::from_slice(&device, &data, Shape::new(2, rows, 4, 8), Layout::Bshd).unwrap()
    };
    let (q, k, v, out) = (upload(&q, 20), upload(&k, 40), upload(&v, 40), upload(&expected, 20));
    let plan = attention.plan(&device, sizes).unwrap();
    let mut operands = vec![
        (Operand::Q, q.address()),
        (Operand::K, k.address()),
        (Operand::V, v.address()),
        (Operand::Out, out.address()),
    ];
    operands.extend(bound.operands());
    // The largest error, or what the emulator says.
    let run = |text: &str| -> Result<f64> {
        let mut steps = plan.steps.clone();
        steps[0].kernel.program = Some(text.into());
        crate::plan::run(&device, RawStream::DEFAULT, &steps, &plan.buffers, &operands)?;
        device.synchronize()?;
        Ok(crate::reference::max_abs_difference(&out.to_f64_vec()?, &expected))
    };
    let text = bound.text();
    assert!(run(text).unwrap() < 2e-6, "as it is");
    let statements: Vec<&str> = text.split_inclusive("; ").collect();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unseen = Vec::new();
    for (i, statement) in statements.iter().enumerate() {
        for changed in changes(statement) {
            let mutant = format!("{}{changed}{}", statements[..i].concat(), statements[i + 1..].concat());
            *kinds.entry(statement.split(' ').find(|word| word.contains('.')).unwrap_or("")).or_default() += 1;
            if run(&mutant).is_ok_and(|error| error < 1e-4) {
                unseen.push(format!("{statement} -> {changed}"));
            }
        }
    }
    println!("{} changes of {} kinds of instructions", kinds.values().sum::<usize>(), kinds.len());
    assert!(kinds.len() >= 30, "{kinds:?}");
    assert!(unseen.is_empty(), "{unseen:#?}");
}
