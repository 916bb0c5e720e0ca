//! What errors name.

/// One of the tensors of a call, for messages.
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
    /// Sinks of the query heads.
    Sink,
    /// Gradient with respect to the sinks.
    Dsink,
    /// First row of each packed sequence of q.
    QStarts,
    /// Rows of q in use.
    QUsed,
    /// First row of each packed sequence of k and v.
    KvStarts,
    /// Rows of k and v in use: the lengths of a cache.
    KvUsed,
    /// First row of k and v in use.
    KvFirst,
    /// Entry of the cache of each sequence.
    KvEntries,
    /// Pages of each sequence.
    Pages,
    /// Keys to append.
    NewK,
    /// Values to append.
    NewV,
    /// First new row of each sequence.
    NewStarts,
    /// Cosines.
    Cos,
    /// Sines.
    Sin,
    /// Position of the first new row of each sequence, or of each token.
    Positions,
    /// Position of the first row of each batch entry or sequence.
    Offsets,
    /// First token of each packed sequence.
    Starts,
    /// Rows that numbers name.
    Table,
    /// Gradient with respect to these.
    Dtable,
    /// Numbers that name rows of a table.
    Ids,
    /// A tensor of parameters of an optimiser, counted from 0.
    Parameter(usize),
    /// Its gradient.
    ParameterGradient(usize),
    /// Its first moments.
    Moment(usize),
    /// Its second moments.
    SecondMoment(usize),
    /// It in f32.
    Master(usize),
    /// The number of an optimiser's step.
    StepCount,
    /// What gradients are multiplied with.
    GradientFactor,
    /// The learning rate of an optimiser.
    LearningRate,
    /// A partial result that is merged with others, counted from 0.
    Part(usize),
    /// Its log-sum-exp.
    PartLse(usize),
    /// A tensor that a program on scores reads, counted from 0.
    ProgramTensor(usize),
    /// The blocks of keys that a program on scores shows.
    Blocks,
    /// Rows that an operator takes.
    X,
    /// Rows that are added to them.
    Residual,
    /// Factors of the rows of x, before the residual is added.
    Rowscale,
    /// The sum of the two.
    ResidualOut,
    /// What was normalised, for gradients.
    Normalised,
    /// Weights of the columns.
    Weight,
    /// Biases of the columns.
    Bias,
    /// Sums of a dense layer, before the activation.
    Z,
    /// Gradient with respect to them.
    Dz,
    /// Means of the rows.
    Mean,
    /// Reciprocal deviations of the rows.
    Rstd,
    /// Gradient with respect to the rows.
    Dx,
    /// Gradient with respect to the residual.
    Dresidual,
    /// Gradient with respect to the sum of the two.
    DresidualOut,
    /// Gradient with respect to the weights.
    Dweight,
    /// Gradient with respect to the biases.
    Dbias,
    /// What is added to the rows before their softmax.
    Mask,
    /// Rows of logits, a class a column.
    Logits,
    /// The class of each row.
    Targets,
    /// Losses of the rows.
    Loss,
    /// The part of the losses that is of the log-sum-exps.
    ZLosses,
    /// Gradient with respect to the losses.
    Dloss,
    /// Gradient with respect to the logits.
    Dlogits,
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbered;
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
            Operand::Sink => "sink",
            Operand::Dsink => "dsink",
            Operand::QStarts => "the starts of q",
            Operand::QUsed => "the rows of q in use",
            Operand::KvStarts => "the starts of k and v",
            Operand::KvUsed => "the lengths of k and v",
            Operand::KvFirst => "the first rows of the cache",
            Operand::KvEntries => "the entries of the cache",
            Operand::Pages => "the table of pages",
            Operand::NewK => "the new k",
            Operand::NewV => "the new v",
            Operand::NewStarts => "the starts of the new rows",
            Operand::Cos => "cos",
            Operand::Sin => "sin",
            Operand::Positions => "the positions",
            Operand::Offsets => "the offsets",
            Operand::Starts => "the starts of the sequences",
            Operand::Table => "table",
            Operand::Dtable => "dtable",
            Operand::Ids => "ids",
            Operand::StepCount => "the number of the step",
            Operand::GradientFactor => "the factor of the gradients",
            Operand::LearningRate => "the learning rate",
            Operand::Parameter(index) => {
                numbered = format!("parameter {index}");
                &numbered
            }
            Operand::ParameterGradient(index) => {
                numbered = format!("the gradient of parameter {index}");
                &numbered
            }
            Operand::Moment(index) => {
                numbered = format!("the moment of parameter {index}");
                &numbered
            }
            Operand::SecondMoment(index) => {
                numbered = format!("the second moment of parameter {index}");
                &numbered
            }
            Operand::Master(index) => {
                numbered = format!("the master of parameter {index}");
                &numbered
            }
            Operand::Blocks => "the blocks of the program",
            Operand::X => "x",
            Operand::Residual => "residual",
            Operand::Rowscale => "rowscale",
            Operand::ResidualOut => "residual_out",
            Operand::Normalised => "what was normalised",
            Operand::Weight => "weight",
            Operand::Bias => "bias",
            Operand::Z => "z",
            Operand::Dz => "dz",
            Operand::Mean => "mean",
            Operand::Rstd => "rstd",
            Operand::Dx => "dx",
            Operand::Dresidual => "dresidual",
            Operand::DresidualOut => "dresidual_out",
            Operand::Dweight => "dweight",
            Operand::Dbias => "dbias",
            Operand::Mask => "mask",
            Operand::Logits => "logits",
            Operand::Targets => "targets",
            Operand::Loss => "loss",
            Operand::ZLosses => "z_losses",
            Operand::Dloss => "dloss",
            Operand::Dlogits => "dlogits",
            Operand::Part(index) => {
                numbered = format!("part {index}");
                &numbered
            }
            Operand::PartLse(index) => {
                numbered = format!("the log-sum-exp of part {index}");
                &numbered
            }
            Operand::ProgramTensor(index) => {
                numbered = format!("tensor {index} of the program");
                &numbered
            }
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
