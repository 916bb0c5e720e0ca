//! One problem of an operator, and what of it all implementations share.

use super::OperatorName;
use super::lists::Model;
use crate::workload::Pass;
use kernel_spec::DType;
use std::fmt;

/// One problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    pub(super) operator: OperatorName,
    pub(super) pass: Pass,
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Numbers that are summed over, of a product.
    pub(super) depth: Option<usize>,
    /// Whose parameters they are, of a list of tensors that are not all alike.
    pub(super) model: Option<Model>,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { operator, dtype, rows, columns, depth, model, .. } = self;
        if let Some(model) = model {
            return write!(f, "{} {dtype}, {rows} tensors of {}, {columns} elements", operator.name(), model.name());
        }
        write!(f, "{} {} {dtype}, {rows} rows of {columns} columns", operator.name(), self.pass_name())?;
        depth.map_or(Ok(()), |depth| write!(f, ", {depth} deep"))
    }
}

impl Cell {
    pub(super) fn is_backward(&self) -> bool {
        self.pass == Pass::Backward
    }

    pub(super) fn pass_name(&self) -> &'static str {
        if self.is_backward() { "backward" } else { "forward" }
    }
}
