//! Programs, readably.

use super::op::{Axis, Binary, Code, Compare, Division, Id, IntBinary, Load, Logic, Op, Unary};
use super::scope::Declared;
use std::fmt::{self, Formatter};

/// Writes a program: what is used twice gets a name first, and the value is the last line.
pub(super) fn write(f: &mut Formatter<'_>, code: &Code, tensors: &[Declared]) -> fmt::Result {
    let mut uses = vec![0; code.ops.len()];
    for op in &code.ops {
        op.operands().iter().for_each(|id| uses[id.index()] += 1);
    }
    let mut texts: Vec<String> = Vec::with_capacity(code.ops.len());
    let mut names = 0;
    for (i, op) in code.ops.iter().enumerate() {
        let text = text(op, &texts, tensors);
        let is_leaf = op.operands().is_empty();
        texts.push(if uses[i] > 1 && !is_leaf {
            names += 1;
            writeln!(f, "  let x{names} = {}", without_parentheses(&text))?;
            format!("x{names}")
        } else {
            text
        });
    }
    write!(f, "  {}", without_parentheses(&texts[code.result.index()]))
}

/// Whole sums stand in parentheses, which the end of a line needs no more.
fn without_parentheses(text: &str) -> &str {
    let Some(inner) = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) else { return text };
    let mut depth = 0;
    for c in inner.chars() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return text,
            ')' => depth -= 1,
            _ => {}
        }
    }
    inner
}

fn text(op: &Op, texts: &[String], tensors: &[Declared]) -> String {
    let of = |id: Id| texts[id.index()].as_str();
    let call = |name: &str, operands: &[Id]| {
        let operands: Vec<&str> = operands.iter().map(|&id| without_parentheses(of(id))).collect();
        format!("{name}({})", operands.join(", "))
    };
    let infix = |[a, b]: [Id; 2], sign: &str| format!("({} {sign} {})", of(a), of(b));
    let element = |load: &Load| {
        let index: Vec<&str> = load.index().iter().map(|&id| without_parentheses(of(id))).collect();
        format!("{}[{}]", tensors[usize::from(load.tensor)].name, index.join(", "))
    };
    let select =
        |condition: Id, [yes, no]: [Id; 2]| format!("(if {} {{ {} }} else {{ {} }})", of(condition), of(yes), of(no));
    match *op {
        Op::Score => "score".to_owned(),
        Op::Float(bits) => format!("{:?}", f32::from_bits(bits)),
        Op::Int(x) => x.to_string(),
        Op::Bool(x) => x.to_string(),
        Op::Axis(axis) => match axis {
            Axis::Batch => "batch",
            Axis::Head => "head",
            Axis::Row => "row",
            Axis::Key => "key",
            Axis::QRows => "q_rows",
            Axis::KvRows => "kv_rows",
        }
        .to_owned(),
        Op::ToFloat(x) => call("float", &[x]),
        Op::LoadFloat(ref load) | Op::LoadInt(ref load) => element(load),
        Op::Unary(Unary::Neg, x) => format!("-{}", of(x)),
        Op::Unary(unary, x) => {
            let name = match unary {
                Unary::Abs => "abs",
                Unary::Exp => "exp",
                Unary::Ln => "ln",
                Unary::Sqrt => "sqrt",
                Unary::Tanh => "tanh",
                Unary::Sigmoid => "sigmoid",
                Unary::Neg => unreachable!("written as a sign"),
            };
            call(name, &[x])
        }
        Op::IntAbs(x) => call("abs", &[x]),
        Op::Binary(binary, x) => match binary {
            Binary::Add => infix(x, "+"),
            Binary::Sub => infix(x, "-"),
            Binary::Mul => infix(x, "*"),
            Binary::Div => infix(x, "/"),
            Binary::Min => call("min", &x),
            Binary::Max => call("max", &x),
        },
        Op::IntBinary(binary, x) => match binary {
            IntBinary::Add => infix(x, "+"),
            IntBinary::Sub => infix(x, "-"),
            IntBinary::Mul => infix(x, "*"),
            IntBinary::Min => call("min", &x),
            IntBinary::Max => call("max", &x),
        },
        Op::IntDivision(division, x, by) => match division {
            Division::Quotient => format!("({} div {by})", of(x)),
            Division::Remainder => format!("({} mod {by})", of(x)),
        },
        Op::SelectFloat(condition, x) | Op::SelectInt(condition, x) => select(condition, x),
        Op::CompareFloat(compare, x) | Op::CompareInt(compare, x) => infix(
            x,
            match compare {
                Compare::Lt => "<",
                Compare::Le => "<=",
                Compare::Eq => "==",
                Compare::Ne => "!=",
                Compare::Gt => ">",
                Compare::Ge => ">=",
            },
        ),
        Op::Logic(Logic::And, x) => infix(x, "and"),
        Op::Logic(Logic::Or, x) => infix(x, "or"),
        Op::Not(x) => format!("not {}", of(x)),
    }
}
