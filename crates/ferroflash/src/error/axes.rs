//! What goes wrong with the axes of a tensor.

/// Axes that do not fit together, or that a tensor does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AxesError {
    /// More axes than a tensor can have.
    #[error("a tensor has at most {limit} axes; {found} were given")]
    TooMany {
        /// Number of axes given.
        found: usize,
        /// Most axes.
        limit: usize,
    },
    /// A shape and strides of different length.
    #[error("shape {shape:?} and strides {strides:?} have different numbers of axes")]
    Strides {
        /// Shape given.
        shape: Vec<usize>,
        /// Strides given.
        strides: Vec<usize>,
    },
    /// An axis that the tensor does not have.
    #[error("axis {found} does not exist; the tensor has {rank} axes, numbered from 0")]
    NoSuch {
        /// The axis given.
        found: usize,
        /// Axes of the tensor.
        rank: usize,
    },
    /// An order of axes that does not name each of them once.
    #[error("{found:?} is no order of {rank} axes; each number from 0 to below {rank} is wanted once")]
    Order {
        /// The order given.
        found: Vec<usize>,
        /// Axes of the tensor.
        rank: usize,
    },
    /// A view that no strides give in the new shape.
    #[error(
        "a view of shape {from:?} and strides {strides:?} has no shape {to:?}; the number of elements must be equal, and axes that \
         are merged must follow each other in memory"
    )]
    Reshape {
        /// Shape of the view.
        from: Vec<usize>,
        /// Its strides in elements.
        strides: Vec<usize>,
        /// Shape asked for.
        to: Vec<usize>,
    },
}
