//! The operations of a program: a list in which each uses earlier ones, and none is there twice.

/// An operation, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(pub(super) u16);

impl Id {
    pub(super) fn index(self) -> usize {
        self.0.into()
    }
}

/// What an operation gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Float,
    Int,
    Bool,
}

/// Where a score is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Axis {
    Batch,
    Head,
    Row,
    Key,
    QRows,
    KvRows,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unary {
    Neg,
    Abs,
    Exp,
    Ln,
    Sqrt,
    Tanh,
    Sigmoid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum IntBinary {
    Add,
    Sub,
    Mul,
    Min,
    Max,
}

/// With a divisor above 0, towards minus infinity, as Python has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Division {
    Quotient,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Compare {
    Lt,
    Le,
    Eq,
    Ne,
    Gt,
    Ge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Logic {
    And,
    Or,
}

/// Most axes of a tensor that a program reads.
pub(super) const MAX_AXES: usize = 4;

/// An element of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Load {
    /// Which of the program's tensors.
    pub(super) tensor: u8,
    /// Its axes.
    pub(super) rank: u8,
    /// An index for each axis; those behind play no part, and are equal.
    index: [Id; MAX_AXES],
}

impl Load {
    pub(super) fn new(tensor: u8, index: &[Id]) -> Load {
        let mut all = [Id(0); MAX_AXES];
        all[..index.len()].copy_from_slice(index);
        // At most MAX_AXES.
        Load { tensor, rank: index.len() as u8, index: all }
    }

    pub(super) fn index(&self) -> &[Id] {
        &self.index[..self.rank.into()]
    }
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Op {
    /// The scaled score.
    Score,
    /// The bits of an `f32`.
    Float(u32),
    ToFloat(Id),
    LoadFloat(Load),
    Unary(Unary, Id),
    Binary(Binary, [Id; 2]),
    SelectFloat(Id, [Id; 2]),
    Axis(Axis),
    Int(i32),
    LoadInt(Load),
    IntAbs(Id),
    IntBinary(IntBinary, [Id; 2]),
    IntDivision(Division, Id, i32),
    SelectInt(Id, [Id; 2]),
    Bool(bool),
    CompareFloat(Compare, [Id; 2]),
    CompareInt(Compare, [Id; 2]),
    Logic(Logic, [Id; 2]),
    Not(Id),
}

impl Op {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Op::Score
            | Op::Float(_)
            | Op::ToFloat(_)
            | Op::LoadFloat(_)
            | Op::Unary(..)
            | Op::Binary(..)
            | Op::SelectFloat(..) => Kind::Float,
            Op::Axis(_)
            | Op::Int(_)
            | Op::LoadInt(_)
            | Op::IntAbs(_)
            | Op::IntBinary(..)
            | Op::IntDivision(..)
            | Op::SelectInt(..) => Kind::Int,
            Op::Bool(_) | Op::CompareFloat(..) | Op::CompareInt(..) | Op::Logic(..) | Op::Not(_) => Kind::Bool,
        }
    }

    /// What it is made of.
    pub(super) fn operands(&self) -> Vec<Id> {
        match *self {
            Op::Score | Op::Float(_) | Op::Axis(_) | Op::Int(_) | Op::Bool(_) => Vec::new(),
            Op::ToFloat(x) | Op::Unary(_, x) | Op::IntAbs(x) | Op::IntDivision(_, x, _) | Op::Not(x) => vec![x],
            Op::Binary(_, x)
            | Op::IntBinary(_, x)
            | Op::CompareFloat(_, x)
            | Op::CompareInt(_, x)
            | Op::Logic(_, x) => x.to_vec(),
            Op::SelectFloat(condition, [a, b]) | Op::SelectInt(condition, [a, b]) => vec![condition, a, b],
            Op::LoadFloat(load) | Op::LoadInt(load) => load.index().to_vec(),
        }
    }
}

/// Operations in an order in which each stands behind those that it is made of, and the one whose value is the program's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) ops: Vec<Op>,
    pub(super) result: Id,
}

impl Code {
    /// The same without what the result is not made of.
    pub(super) fn without_the_unused(&self) -> Code {
        let mut used = vec![false; self.ops.len()];
        used[self.result.index()] = true;
        for (i, op) in self.ops.iter().enumerate().rev() {
            if used[i] {
                op.operands().iter().for_each(|operand| used[operand.index()] = true);
            }
        }
        let mut moved = vec![Id(0); self.ops.len()];
        let mut ops = Vec::new();
        for (i, op) in self.ops.iter().enumerate().filter(|(i, _)| used[*i]) {
            // As many as there were, at most.
            moved[i] = Id(ops.len() as u16);
            ops.push(op.map(|id| moved[id.index()]));
        }
        Code { ops, result: moved[self.result.index()] }
    }

    pub(super) fn op(&self, id: Id) -> &Op {
        &self.ops[id.index()]
    }
}

impl Op {
    /// The same of other operands.
    fn map(&self, moved: impl Fn(Id) -> Id) -> Op {
        let load = |load: Load| {
            let index: Vec<Id> = load.index().iter().map(|&id| moved(id)).collect();
            Load::new(load.tensor, &index)
        };
        match *self {
            Op::ToFloat(x) => Op::ToFloat(moved(x)),
            Op::Unary(unary, x) => Op::Unary(unary, moved(x)),
            Op::IntAbs(x) => Op::IntAbs(moved(x)),
            Op::IntDivision(division, x, by) => Op::IntDivision(division, moved(x), by),
            Op::Not(x) => Op::Not(moved(x)),
            Op::Binary(binary, x) => Op::Binary(binary, x.map(moved)),
            Op::IntBinary(binary, x) => Op::IntBinary(binary, x.map(moved)),
            Op::CompareFloat(compare, x) => Op::CompareFloat(compare, x.map(moved)),
            Op::CompareInt(compare, x) => Op::CompareInt(compare, x.map(moved)),
            Op::Logic(logic, x) => Op::Logic(logic, x.map(moved)),
            Op::SelectFloat(condition, x) => Op::SelectFloat(moved(condition), x.map(moved)),
            Op::SelectInt(condition, x) => Op::SelectInt(moved(condition), x.map(moved)),
            Op::LoadFloat(x) => Op::LoadFloat(load(x)),
            Op::LoadInt(x) => Op::LoadInt(load(x)),
            Op::Score | Op::Float(_) | Op::Axis(_) | Op::Int(_) | Op::Bool(_) => *self,
        }
    }
}
