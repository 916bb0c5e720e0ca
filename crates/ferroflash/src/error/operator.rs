//! What of the operators around attention is refused.

use super::names::Operand;
use kernel_spec::DType;
use kernel_spec::families::rows::MAX_COLUMNS;

/// Why an operator does not run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// The number that is added to the variance.
    #[error("epsilon {found} is not accepted; it must be above 0 and finite")]
    Epsilon {
        /// The number given.
        found: f32,
    },
    /// The factor on what a softmax is taken of.
    #[error("scale {found} is not accepted; it must be finite")]
    Scale {
        /// The factor given.
        found: f32,
    },
    /// The factor on logits.
    #[error(
        "logit scale {found} is not accepted; it must be above 0, and finite also after multiplication with log2(e), in f32"
    )]
    LogitScale {
        /// The factor given.
        found: f32,
    },
    /// The share of a target that all classes have alike.
    #[error("label smoothing {found} is not accepted; 0 to 1 is")]
    Smoothing {
        /// The share given.
        found: f32,
    },
    /// The factor on squares of log-sum-exps.
    #[error("z-loss factor {found} is not accepted; it must be 0 or above, and finite")]
    ZLoss {
        /// The factor given.
        found: f32,
    },
    /// Query rows of a causal softmax are an axis.
    #[error("{tensor} has {found} axes; causal rows need at least 2, of query rows and of columns")]
    CausalAxes {
        /// The tensor.
        tensor: Operand,
        /// Its axes.
        found: usize,
    },
    /// Not one number a row.
    #[error("{tensor} are {found}; {of} has {expected} rows, and needs one for each")]
    Count {
        /// The numbers.
        tensor: Operand,
        /// How many there are.
        found: usize,
        /// The tensor whose rows they are of.
        of: Operand,
        /// Its rows.
        expected: usize,
    },
    /// A scalar has no rows.
    #[error("{tensor} has no axes; at least the one of the columns is needed")]
    NoColumns {
        /// The tensor.
        tensor: Operand,
    },
    /// Columns that no kernel takes.
    #[error("rows have {found} columns; 1 to {MAX_COLUMNS} are accepted")]
    Columns {
        /// Extent of the last axis.
        found: usize,
    },
    /// Shapes differ.
    #[error("{tensor} has shape {found:?}; {of} makes it {expected:?}")]
    Shape {
        /// The tensor that differs.
        tensor: Operand,
        /// Its shape.
        found: Vec<usize>,
        /// The tensor that it goes with.
        of: Operand,
        /// The shape that goes with that one.
        expected: Vec<usize>,
    },
    /// An element type that does not go with the others.
    #[error("{tensor} holds {found}; {} is accepted", .accepted.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(" or "))]
    DType {
        /// The tensor.
        tensor: Operand,
        /// Its element type.
        found: DType,
        /// The types that go with the others.
        accepted: Vec<DType>,
    },
    /// A tensor that the kernels read as one run of numbers.
    #[error("{tensor} has shape {shape:?} and strides {strides:?}; it must be contiguous")]
    NotContiguous {
        /// The tensor.
        tensor: Operand,
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides in elements.
        strides: Vec<usize>,
    },
    /// Axes of rows that stay apart.
    #[error(
        "the axes before the last, of extents {extents:?}, are {found} that cannot be read as one another's continuation in all tensors; up to 3 are accepted"
    )]
    RowAxes {
        /// Extents of the axes before the last.
        extents: Vec<usize>,
        /// Axes that are left when those that continue each other are one.
        found: usize,
    },
    /// Axes of rows that one stride does not step through.
    #[error(
        "the axes before the last, of extents {extents:?}, are {found} that cannot be read as one another's continuation in all tensors; one stride between rows is accepted"
    )]
    RowStrides {
        /// Extents of the axes before the last.
        extents: Vec<usize>,
        /// Axes that are left when those that continue each other are one.
        found: usize,
    },
    /// Weights of another shape than the rows make them.
    #[error("weight has shape {found:?}; {} is accepted, with at least one row{}", if *.gated { format!("[2 n, {columns}]") } else { format!("[n, {columns}]") }, if *.gated { " for the gate and as many for what it opens" } else { "" })]
    Weights {
        /// Their shape.
        found: Vec<usize>,
        /// Columns of x.
        columns: usize,
        /// Whether the activation takes two products.
        gated: bool,
    },
    /// More rows than the kernels count.
    #[error("{found} rows; fewer than {limit} are accepted")]
    Rows {
        /// Rows.
        found: u128,
        /// The first number that is too large.
        limit: u64,
    },
    /// An option that means nothing without another.
    #[error("{given} is given, and no {needed}, without which it means nothing")]
    Without {
        /// What was given.
        given: &'static str,
        /// What it goes with.
        needed: &'static str,
    },
    /// A tensor that gradients are computed from.
    #[error("gradients of {operator} are computed from {tensor}, which is not given")]
    Missing {
        /// The operator.
        operator: &'static str,
        /// The tensor.
        tensor: Operand,
    },
    /// A call that would write nothing.
    #[error("no gradient of {operator} is asked for; at least one of {accepted} is needed")]
    NothingAsked {
        /// The operator.
        operator: &'static str,
        /// What it has gradients of.
        accepted: &'static str,
    },
    /// A tensor of something that the call has not.
    #[error("{tensor} is given, and the call has no {needed}")]
    Unwanted {
        /// The tensor.
        tensor: Operand,
        /// What it would be of.
        needed: &'static str,
    },
    /// A tensor has another number of axes.
    #[error("{tensor} has {found} axes; {accepted} is accepted")]
    AxisCount {
        /// The tensor.
        tensor: Operand,
        /// Number of its axes.
        found: usize,
        /// The shapes that are accepted.
        accepted: &'static str,
    },
    /// An array of numbers on the device has another length.
    #[error("{tensor} holds {found} numbers; {expected} are needed")]
    IndexCount {
        /// The array.
        tensor: Operand,
        /// Numbers of it.
        found: usize,
        /// Numbers needed.
        expected: usize,
    },
    /// Two options that say the same in different ways.
    #[error("{first} and {second} are given; one of the two is accepted")]
    Both {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A table of cosines or sines that does not fit.
    #[error(
        "{tensor} has shape {shape:?}; [positions, turned columns / 2] is accepted, with 1 or more positions and 1 to {} columns",
        .columns / 2
    )]
    RotaryTable {
        /// `cos` or `sin`.
        tensor: Operand,
        /// Its shape.
        shape: Vec<usize>,
        /// Columns of a head.
        columns: usize,
    },
    /// Positions that the tables do not have.
    #[error("rows from position {first} on reach position {last}; the tables have {positions}, from 0 on")]
    PastTable {
        /// Position of the first row.
        first: usize,
        /// Position of the last row.
        last: usize,
        /// Rows of the tables.
        positions: usize,
    },
    /// A table of a number of rows that no kernel takes.
    #[error("the table has {found} rows; 1 to {limit} are accepted")]
    Vocabulary {
        /// Rows of the table.
        found: usize,
        /// Most rows.
        limit: u64,
    },
    /// A row of the table that it does not have.
    #[error("padding is row {found}; the table has {vocabulary}, from 0 on")]
    Padding {
        /// The row given.
        found: usize,
        /// Rows of the table.
        vocabulary: usize,
    },
    /// A tensor that does not have a row for each number.
    #[error("{tensor} has shape {found:?}; [.., {columns}] is accepted, with {rows} rows")]
    RowsOf {
        /// The tensor.
        tensor: Operand,
        /// Its shape.
        found: Vec<usize>,
        /// Rows needed: the product of all axes but the last.
        rows: usize,
        /// Columns needed.
        columns: usize,
    },
    /// A factor that is no finite number.
    #[error("{name} {found} is not accepted; it must be finite")]
    NotFinite {
        /// The option.
        name: &'static str,
        /// The number given.
        found: f32,
    },
    /// An option of an optimiser that is outside of its range.
    #[error("{name} {found} is not accepted; it must be {accepted}")]
    Hyperparameter {
        /// The option.
        name: &'static str,
        /// The number given.
        found: f64,
        /// The numbers that are accepted.
        accepted: &'static str,
    },
    /// Tensors are on different devices.
    #[error("{tensor} is on device {found}, {of} is on {expected}; they must be on the same device")]
    Device {
        /// The tensor.
        tensor: Operand,
        /// Its device.
        found: String,
        /// The tensor that it goes with.
        of: Operand,
        /// Its device.
        expected: String,
    },
}

impl OperatorError {
    /// A mean where RMSNorm would have to read or write it.
    pub(crate) const UNWANTED_MEAN: OperatorError =
        OperatorError::Unwanted { tensor: Operand::Mean, needed: "mean: RMSNorm has none" };
}
