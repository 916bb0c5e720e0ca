//! What operators over a list of tensors will do, decided before they do it.

use super::plan::Operation;
use crate::plan::{Buffer, Step};
use crate::tensor::TensorView;

/// What an operator over a list of tensors will launch and allocate, and why. Prints as a few lines.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ListPlan {
    /// The operator.
    pub name: &'static str,
    /// The launches in order.
    pub steps: Vec<Step>,
    /// The tensors of each launch, as they are numbered in the call. Those without elements are in none.
    pub tensors: Vec<Vec<usize>>,
    /// Device memory that is allocated for the duration of the call, in the order in which steps number it.
    pub buffers: Vec<Buffer>,
    /// Elements of all tensors.
    pub elements: u64,
    /// Bytes to read and write: what is overwritten counts twice.
    pub bytes: u64,
    /// Why these launches.
    pub reason: String,
}

impl ListPlan {
    /// That of no tensors.
    pub(super) fn nothing(name: &'static str) -> ListPlan {
        let reason = "there are no tensors".to_owned();
        ListPlan { name, steps: Vec::new(), tensors: Vec::new(), buffers: Vec::new(), elements: 0, bytes: 0, reason }
    }
}

impl Operation for ListPlan {
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

impl AsRef<[Step]> for ListPlan {
    fn as_ref(&self) -> &[Step] {
        &self.steps
    }
}

impl std::fmt::Display for ListPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ListPlan { name, steps, tensors, buffers, elements, bytes, reason } = self;
        let count: usize = tensors.iter().map(Vec::len).sum();
        writeln!(f, "{name}: {reason}")?;
        write!(f, "  problem    {count} tensors of {elements} elements: {bytes} bytes to read and write")?;
        steps.iter().try_for_each(|step| write!(f, "\n{step}"))?;
        buffers.iter().try_for_each(|buffer| write!(f, "\n{buffer}"))
    }
}

/// Elements of a tensor.
pub(super) fn elements_of(view: &TensorView<'_>) -> u64 {
    view.shape().iter().product::<usize>() as u64
}
