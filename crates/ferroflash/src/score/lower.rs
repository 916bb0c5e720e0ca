//! From operations to PTX: the lines that take the place of a score hook, see `kernel_spec::specialise`.
//!
//! Operation `i` has register `score_f{i}`, `score_i{i}` or `score_p{i}`; numbers without a rounding of their own may be put together with
//! their neighbours by the assembler, a product and a sum for instance.

use super::op::{Axis, Binary, Code, Compare, Division, Id, IntBinary, Kind, Load, Logic, Op, Unary};
use kernel_spec::DType;
use std::f32::consts::{LN_2, LOG2_E};
use std::fmt::Write;

/// What a tensor holds and where its words are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// `None`: whole numbers.
    pub(super) dtype: Option<DType>,
    /// The word of the address; one for each axis follows, with the largest index in its low half and the stride in its high half.
    pub(super) word: usize,
}

/// The PTX of a program.
pub(super) fn lower(code: &Code, tensors: &[Placed]) -> String {
    let mut text = operations(code, tensors);
    push(&mut text, format_args!("mov.f32 $s, {};", operand(code, code.result)));
    text
}

/// The PTX of a program whose value is that of operation `value`, and of its derivative, behind which that operation stands.
pub(super) fn lower_with_derivative(derivative: &Code, value: Id, tensors: &[Placed]) -> String {
    let mut text = operations(derivative, tensors);
    push(&mut text, format_args!("mov.f32 $slope, {};", operand(derivative, derivative.result)));
    push(&mut text, format_args!("mov.f32 $s, {};", operand(derivative, value)));
    text
}

fn operations(code: &Code, tensors: &[Placed]) -> String {
    let mut text = String::new();
    for (kind, class, prefix) in [(Kind::Float, "f32", 'f'), (Kind::Int, "b32", 'i'), (Kind::Bool, "pred", 'p')] {
        if code.ops.iter().any(|op| op.kind() == kind) {
            push(&mut text, format_args!(".reg .{class} score_{prefix}<{}>;", code.ops.len()));
        }
    }
    for i in 0..code.ops.len() {
        // At most MAX_OPS.
        line(&mut text, code, Id(i as u16), tensors);
    }
    text
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    if !text.is_empty() {
        text.push(' ');
    }
    text.write_fmt(line).expect("memory takes it");
}

fn register(code: &Code, id: Id) -> String {
    let prefix = match code.op(id).kind() {
        Kind::Float => 'f',
        Kind::Int => 'i',
        Kind::Bool => 'p',
    };
    format!("score_{prefix}{}", id.index())
}

/// What stands for the value of an operation: a constant, an operand of the hook, or the operation's register.
fn operand(code: &Code, id: Id) -> String {
    match code.op(id) {
        Op::Float(bits) => immediate(f32::from_bits(*bits)),
        Op::Int(x) => x.to_string(),
        Op::Axis(axis) => match axis {
            Axis::Batch => "$batch",
            Axis::Head => "$head",
            Axis::Row => "$row",
            Axis::Key => "$key",
            Axis::QRows => "$q_rows",
            Axis::KvRows => "$kv_rows",
        }
        .to_owned(),
        _ => register(code, id),
    }
}

fn immediate(x: f32) -> String {
    format!("0f{:08X}", x.to_bits())
}

/// Adds what computes an operation, if anything has to be computed.
fn line(text: &mut String, code: &Code, id: Id, tensors: &[Placed]) {
    let of = |id: Id| operand(code, id);
    let to = register(code, id);
    match *code.op(id) {
        Op::Float(_) | Op::Int(_) | Op::Axis(_) => {}
        Op::Score => push(
            text,
            format_args!(
                "{{ .reg .b32 low, high; mov.b64 {{low, high}}, $factor; mov.b32 {to}, low; }} mul.f32 {to}, $s, {to};"
            ),
        ),
        Op::ToFloat(x) => push(text, format_args!("cvt.rn.f32.s32 {to}, {};", of(x))),
        Op::LoadFloat(ref load) | Op::LoadInt(ref load) => self::load(text, code, &to, load, tensors),
        Op::Unary(unary, x) => self::unary(text, unary, &to, &of(x)),
        Op::Binary(binary, [a, b]) => {
            let name = match binary {
                Binary::Add => "add.f32",
                Binary::Sub => "sub.f32",
                Binary::Mul => "mul.f32",
                // Within two units in the last place, over the whole range.
                Binary::Div => "div.full.f32",
                Binary::Min => "min.f32",
                Binary::Max => "max.f32",
            };
            push(text, format_args!("{name} {to}, {}, {};", of(a), of(b)));
        }
        Op::SelectFloat(condition, [yes, no]) => {
            push(text, format_args!("selp.f32 {to}, {}, {}, {};", of(yes), of(no), of(condition)));
        }
        Op::IntAbs(x) => push(text, format_args!("abs.s32 {to}, {};", of(x))),
        Op::IntBinary(binary, [a, b]) => {
            let name = match binary {
                IntBinary::Add => "add.s32",
                IntBinary::Sub => "sub.s32",
                IntBinary::Mul => "mul.lo.s32",
                IntBinary::Min => "min.s32",
                IntBinary::Max => "max.s32",
            };
            push(text, format_args!("{name} {to}, {}, {};", of(a), of(b)));
        }
        Op::IntDivision(division, x, by) => self::division(text, division, &to, &of(x), by),
        Op::SelectInt(condition, [yes, no]) => {
            push(text, format_args!("selp.b32 {to}, {}, {}, {};", of(yes), of(no), of(condition)));
        }
        Op::Bool(x) => push(text, format_args!("setp.{}.u32 {to}, $key, $key;", if x { "eq" } else { "ne" })),
        Op::CompareFloat(compare, [a, b]) => {
            // A comparison with NaN holds for "not equal" alone.
            let name = if compare == Compare::Ne { "neu" } else { name(compare) };
            push(text, format_args!("setp.{name}.f32 {to}, {}, {};", of(a), of(b)));
        }
        Op::CompareInt(compare, [a, b]) => {
            push(text, format_args!("setp.{}.s32 {to}, {}, {};", name(compare), of(a), of(b)));
        }
        Op::Logic(logic, [a, b]) => {
            let name = match logic {
                Logic::And => "and",
                Logic::Or => "or",
            };
            push(text, format_args!("{name}.pred {to}, {}, {};", of(a), of(b)));
        }
        Op::Not(x) => push(text, format_args!("not.pred {to}, {};", of(x))),
    }
}

fn name(compare: Compare) -> &'static str {
    match compare {
        Compare::Lt => "lt",
        Compare::Le => "le",
        Compare::Eq => "eq",
        Compare::Ne => "ne",
        Compare::Gt => "gt",
        Compare::Ge => "ge",
    }
}

fn unary(text: &mut String, unary: Unary, to: &str, x: &str) {
    match unary {
        Unary::Neg => push(text, format_args!("neg.f32 {to}, {x};")),
        Unary::Abs => push(text, format_args!("abs.f32 {to}, {x};")),
        Unary::Exp => push(text, format_args!("mul.f32 {to}, {x}, {}; ex2.approx.f32 {to}, {to};", immediate(LOG2_E))),
        Unary::Ln => push(text, format_args!("lg2.approx.f32 {to}, {x}; mul.f32 {to}, {to}, {};", immediate(LN_2))),
        Unary::Sqrt => push(text, format_args!("sqrt.approx.f32 {to}, {x};")),
        Unary::Sigmoid => push(
            text,
            format_args!(
                "mul.f32 {to}, {x}, {}; ex2.approx.f32 {to}, {to}; add.f32 {to}, {to}, {}; rcp.approx.f32 {to}, {to};",
                immediate(-LOG2_E),
                immediate(1.0)
            ),
        ),
        // As the softcap's, `kernels::attention::score::tanh`: the instruction's error of 2^-11 is too large.
        Unary::Tanh => {
            let [a, b, c, d] = [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0].map(immediate);
            let (one, factor, small) = (immediate(1.0), immediate(-2.0 * LOG2_E), immediate(0.25));
            push(
                text,
                format_args!(
                    "{{ .reg .f32 square, series, size, power, sum; .reg .pred is_small; mul.f32 square, {x}, {x}; \
                     fma.rn.f32 series, square, {a}, {b}; fma.rn.f32 series, series, square, {c}; \
                     fma.rn.f32 series, series, square, {d}; mul.f32 series, series, square; \
                     fma.rn.f32 series, series, {x}, {x}; abs.f32 size, {x}; mul.f32 power, size, {factor}; \
                     ex2.approx.f32 power, power; add.f32 sum, power, {one}; rcp.approx.f32 sum, sum; \
                     sub.f32 power, {one}, power; mul.f32 power, power, sum; copysign.f32 power, {x}, power; \
                     setp.lt.f32 is_small, size, {small}; selp.f32 {to}, series, power, is_small; }}"
                ),
            );
        }
    }
}

/// Towards minus infinity; `by` is above 0.
fn division(text: &mut String, division: Division, to: &str, x: &str, by: i32) {
    if by.count_ones() == 1 {
        match division {
            Division::Quotient => push(text, format_args!("shr.s32 {to}, {x}, {};", by.trailing_zeros())),
            Division::Remainder => push(text, format_args!("and.b32 {to}, {x}, {};", by - 1)),
        }
        return;
    }
    // The instruction rounds towards 0.
    push(text, format_args!("{{ .reg .b32 rest, less; .reg .pred below; div.s32 {to}, {x}, {by};"));
    push(text, format_args!("mul.lo.s32 rest, {to}, {by}; sub.s32 rest, {x}, rest; setp.lt.s32 below, rest, 0;"));
    match division {
        Division::Quotient => push(text, format_args!("selp.b32 less, 1, 0, below; sub.s32 {to}, {to}, less; }}")),
        Division::Remainder => push(text, format_args!("selp.b32 less, {by}, 0, below; add.s32 {to}, rest, less; }}")),
    }
}

/// An element, or 0 outside of the tensor, where nothing is read.
fn load(text: &mut String, code: &Code, to: &str, load: &Load, tensors: &[Placed]) {
    let Placed { dtype, word } = tensors[usize::from(load.tensor)];
    push(text, format_args!("{{ .reg .b64 at; .reg .b32 largest, stride; .reg .pred there, inside; mov.b64 at, 0;"));
    for (axis, &index) in load.index().iter().enumerate() {
        let index = operand(code, index);
        push(text, format_args!("mov.b64 {{largest, stride}}, $word{};", word + 1 + axis));
        // A negative index is a large one.
        if axis == 0 {
            push(text, format_args!("setp.le.u32 there, {index}, largest;"));
        } else {
            push(text, format_args!("setp.le.u32 inside, {index}, largest; and.pred there, there, inside;"));
        }
        push(text, format_args!("mad.wide.u32 at, {index}, stride, at;"));
    }
    let bytes = dtype.map_or(size_of::<i32>(), DType::bytes);
    push(text, format_args!("shl.b64 at, at, {}; add.s64 at, at, $word{word};", bytes.trailing_zeros()));
    match dtype {
        None => push(text, format_args!("mov.b32 {to}, 0; @there ld.global.nc.b32 {to}, [at];")),
        Some(DType::F32) => push(text, format_args!("mov.f32 {to}, 0f00000000; @there ld.global.nc.f32 {to}, [at];")),
        Some(dtype) => {
            push(text, format_args!(".reg .b16 half; mov.b16 half, 0; @there ld.global.nc.b16 half, [at];"));
            if dtype == DType::F16 {
                push(text, format_args!("cvt.f32.f16 {to}, half;"));
            } else {
                push(text, format_args!("mov.b32 {to}, {{0, half}};"));
            }
        }
    }
    push(text, format_args!("}}"));
}
