//! Programs as text, which `_program.py` writes: the name, a line for each operation, and `result` with the number of one of these. A line is the
//! operation, constants and the numbers of earlier lines, counted from 0.

use ferroflash::score::{Bool, Float, Int, Scope, ScoreProgram};

/// The text of [`ScoreProgram::alibi`].
const ALIBI: &str = "alibi";

/// What a line gives.
#[derive(Clone, Copy)]
enum Value<'p> {
    Float(Float<'p>),
    Int(Int<'p>),
    Bool(Bool<'p>),
}

/// The program of a text.
///
/// # Panics
/// For a text that `_program.py` does not write.
pub(super) fn read(text: &str) -> ferroflash::Result<ScoreProgram> {
    if text == ALIBI {
        return Ok(ScoreProgram::alibi());
    }
    let mut lines = text.lines();
    let name = lines.next().unwrap_or_default();
    ScoreProgram::new(name, |scope| {
        let mut values = Vec::new();
        for line in lines {
            let value = operation(scope, &values, line).unwrap_or_else(|| panic!("`{line}` is no operation"));
            values.push(value);
        }
        match values.last() {
            Some(&Value::Float(score)) => score,
            _ => panic!("`{text}` gives no number"),
        }
    })
}

/// The value of a line, unless it is none.
fn operation<'p>(scope: &'p Scope, values: &[Value<'p>], line: &str) -> Option<Value<'p>> {
    use Value::{Bool, Float, Int};
    let words: Vec<&str> = line.split(' ').collect();
    let (&operation, given) = words.split_first()?;
    let value = |word: &str| values.get(word.parse::<usize>().ok()?).copied();
    let int = |word: &str| match value(word)? {
        Int(value) => Some(value),
        _ => None,
    };
    Some(match (operation, given) {
        ("score", []) => Float(scope.score()),
        ("batch", []) => Int(scope.batch()),
        ("head", []) => Int(scope.head()),
        ("row", []) => Int(scope.row()),
        ("key", []) => Int(scope.key()),
        ("q_rows", []) => Int(scope.q_rows()),
        ("kv_rows", []) => Int(scope.kv_rows()),
        ("float", [number]) => Float(scope.constant(number.parse().ok()?)),
        ("int", [number]) => Int(scope.int_constant(number.parse().ok()?)),
        ("bool", [number]) => Bool(scope.bool_constant(*number == "1")),
        ("floats", [name, index @ ..]) => {
            let index = index.iter().map(|word| int(word)).collect::<Option<Vec<_>>>()?;
            Float(match index[..] {
                [a] => scope.floats(name).at([a]),
                [a, b] => scope.floats(name).at([a, b]),
                [a, b, c] => scope.floats(name).at([a, b, c]),
                [a, b, c, d] => scope.floats(name).at([a, b, c, d]),
                _ => return None,
            })
        }
        ("ints", [name, index @ ..]) => {
            let index = index.iter().map(|word| int(word)).collect::<Option<Vec<_>>>()?;
            Int(match index[..] {
                [a] => scope.ints(name).at([a]),
                [a, b] => scope.ints(name).at([a, b]),
                [a, b, c] => scope.ints(name).at([a, b, c]),
                [a, b, c, d] => scope.ints(name).at([a, b, c, d]),
                _ => return None,
            })
        }
        ("div_floor", [of, divisor]) => Int(int(of)?.div_floor(divisor.parse().ok()?)),
        ("rem_floor", [of, divisor]) => Int(int(of)?.rem_floor(divisor.parse().ok()?)),
        ("result", [of]) => value(of)?,
        (_, [of]) => match (operation, value(of)?) {
            ("neg", Float(x)) => Float(-x),
            ("abs", Float(x)) => Float(x.abs()),
            ("exp", Float(x)) => Float(x.exp()),
            ("log", Float(x)) => Float(x.ln()),
            ("sqrt", Float(x)) => Float(x.sqrt()),
            ("tanh", Float(x)) => Float(x.tanh()),
            ("sigmoid", Float(x)) => Float(x.sigmoid()),
            ("neg", Int(x)) => Int(-x),
            ("abs", Int(x)) => Int(x.abs()),
            ("to_float", Int(x)) => Float(x.to_float()),
            ("not", Bool(x)) => Bool(!x),
            _ => return None,
        },
        (_, [a, b]) => match (operation, value(a)?, value(b)?) {
            ("add", Float(a), Float(b)) => Float(a + b),
            ("sub", Float(a), Float(b)) => Float(a - b),
            ("mul", Float(a), Float(b)) => Float(a * b),
            ("div", Float(a), Float(b)) => Float(a / b),
            ("min", Float(a), Float(b)) => Float(a.min(b)),
            ("max", Float(a), Float(b)) => Float(a.max(b)),
            ("lt", Float(a), Float(b)) => Bool(a.lt(b)),
            ("le", Float(a), Float(b)) => Bool(a.le(b)),
            ("gt", Float(a), Float(b)) => Bool(a.gt(b)),
            ("ge", Float(a), Float(b)) => Bool(a.ge(b)),
            ("add", Int(a), Int(b)) => Int(a + b),
            ("sub", Int(a), Int(b)) => Int(a - b),
            ("mul", Int(a), Int(b)) => Int(a * b),
            ("min", Int(a), Int(b)) => Int(a.min(b)),
            ("max", Int(a), Int(b)) => Int(a.max(b)),
            ("lt", Int(a), Int(b)) => Bool(a.lt(b)),
            ("le", Int(a), Int(b)) => Bool(a.le(b)),
            ("gt", Int(a), Int(b)) => Bool(a.gt(b)),
            ("ge", Int(a), Int(b)) => Bool(a.ge(b)),
            ("eq", Int(a), Int(b)) => Bool(a.eq(b)),
            ("ne", Int(a), Int(b)) => Bool(a.ne(b)),
            ("and", Bool(a), Bool(b)) => Bool(a & b),
            ("or", Bool(a), Bool(b)) => Bool(a | b),
            _ => return None,
        },
        ("select", [condition, yes, no]) => match (value(condition)?, value(yes)?, value(no)?) {
            (Bool(condition), Float(yes), Float(no)) => Float(condition.select(yes, no)),
            (Bool(condition), Int(yes), Int(no)) => Int(condition.select_int(yes, no)),
            _ => return None,
        },
        _ => return None,
    })
}
