//! What errors name.

/// One of the tensors of an attention problem, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operand {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output.
    Out,
    /// Log-sum-exp of the rows.
    Lse,
    /// Gradient with respect to the output.
    Dout,
    /// Gradient with respect to the log-sum-exp.
    Dlse,
    /// Gradient with respect to the queries.
    Dq,
    /// Gradient with respect to the keys.
    Dk,
    /// Gradient with respect to the values.
    Dv,
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Operand::Q => "q",
            Operand::K => "k",
            Operand::V => "v",
            Operand::Out => "out",
            Operand::Lse => "lse",
            Operand::Dout => "dout",
            Operand::Dlse => "dlse",
            Operand::Dq => "dq",
            Operand::Dk => "dk",
            Operand::Dv => "dv",
        })
    }
}

/// A version or compute capability, printed as `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Before the dot.
    pub major: u32,
    /// After the dot.
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
