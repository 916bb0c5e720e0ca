//! What an operator will do, decided before it does it.

use crate::plan::{Buffer, Step};
use kernel_spec::DType;

/// What all operators say of a call before it.
pub trait Operation: std::fmt::Display + AsRef<[Step]> {
    /// The operator, as `bench --operator` knows it.
    fn name(&self) -> &'static str;

    /// The launches in order.
    fn steps(&self) -> &[Step];

    /// Device memory that is allocated for the duration of the call, in the order in which steps number it.
    fn buffers(&self) -> &[Buffer];

    /// Bytes of all tensors of the call, each counted once: what has to be read or written whatever the kernel is.
    fn bytes(&self) -> u64;

    /// Why these launches.
    fn reason(&self) -> &str;

    /// Bytes of device memory allocated for the duration of the call.
    fn workspace_bytes(&self) -> u64 {
        self.buffers().iter().map(|buffer| buffer.bytes).sum()
    }

    /// Entry points in launch order.
    fn symbols(&self) -> Vec<&'static str> {
        self.steps().iter().map(|step| step.kernel.entry.symbol).collect()
    }
}

/// What an operator will launch and allocate, and why. Prints as a few lines.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OperatorPlan {
    /// The operator.
    pub name: &'static str,
    /// `forward` or `backward`.
    pub pass: &'static str,
    /// Rows: the product of all axes but the last.
    pub rows: usize,
    /// Columns of a row.
    pub columns: usize,
    /// Element type of the rows.
    pub dtype: DType,
    /// The launches in order.
    pub steps: Vec<Step>,
    /// Device memory that is allocated for the duration of the call, in the order in which steps number it.
    pub buffers: Vec<Buffer>,
    /// Bytes of all tensors of the call, each counted once.
    pub bytes: u64,
    /// Why these launches.
    pub reason: String,
}

impl Operation for OperatorPlan {
    fn name(&self) -> &'static str {
        self.name
    }

    fn steps(&self) -> &[Step] {
        &self.steps
    }

    fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn reason(&self) -> &str {
        &self.reason
    }
}

impl AsRef<[Step]> for OperatorPlan {
    fn as_ref(&self) -> &[Step] {
        &self.steps
    }
}

impl std::fmt::Display for OperatorPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let OperatorPlan { name, pass, rows, columns, dtype, bytes, reason, .. } = self;
        writeln!(f, "{name} {pass}: {reason}")?;
        writeln!(f, "  problem    {rows} rows of {columns} columns, {dtype}: {bytes} bytes to read and write")?;
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for buffer in &self.buffers {
            writeln!(f, "{buffer}")?;
        }
        write!(f, "  memory     {} bytes of workspace", self.workspace_bytes())
    }
}
