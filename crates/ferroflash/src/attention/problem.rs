//! What attention is computed on: sequences, heads, dims and element types.

use super::sequences::SequenceSizes;
use crate::error::{Error, Operand, Result, Unsupported};
use kernel_spec::{DType, MAX_HEAD_DIM, MAX_ROWS};

/// How the rows of a problem belong to sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Sequences {
    /// Sequences of equal length, each in memory of its own: tensors are `[batch, row, head, dim]`.
    Uniform {
        /// Sequences.
        batch: usize,
        /// Rows of q and out of each.
        q_rows: usize,
        /// Rows of k and v of each. May be 0.
        kv_rows: usize,
    },
    /// Sequences of any lengths one after the other: tensors are `[row, head, dim]`, see
    /// [`Attention::forward_packed`](crate::Attention::forward_packed).
    Packed {
        /// Sequences.
        batch: usize,
        /// Rows of q and out, over all sequences.
        q_rows: usize,
        /// Rows of k and v, over all sequences.
        kv_rows: usize,
    },
    /// Keys and values in a cache with room for more rows than are there, a number for each sequence, see
    /// [`Attention::forward_cached`](crate::Attention::forward_cached).
    Cached {
        /// Sequences.
        batch: usize,
        /// Rows of q and out.
        q_rows: QueryRows,
        /// Rows of k and v that there is room for in each.
        capacity: usize,
    },
    /// Keys and values in pages that sequences own through a table.
    Paged {
        /// Sequences.
        batch: usize,
        /// Rows of q and out.
        q_rows: QueryRows,
        /// Pages, over all sequences.
        pages: usize,
        /// Rows of k and v in a page.
        page_rows: usize,
        /// Pages of a sequence that the table has room for.
        width: usize,
    },
}

/// Rows of q and out where keys are in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueryRows {
    /// Of each sequence: q is `[batch, row, head, dim]`.
    Each(usize),
    /// Of all sequences, packed: q is `[row, head, dim]`.
    Packed(usize),
}

impl std::fmt::Display for QueryRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            QueryRows::Each(rows) => write!(f, "q_rows {rows}"),
            QueryRows::Packed(rows) => write!(f, "{rows} packed q_rows"),
        }
    }
}

/// An attention problem: everything about a call but its options and where its tensors lie.
///
/// ```
/// use ferroflash::{DType, Problem, Sequences};
/// let sequences = Sequences::Uniform { batch: 2, q_rows: 100, kv_rows: 150 };
/// let problem = Problem::new(sequences, 8, 2, 64, DType::Bf16);
/// assert_eq!(problem.to_string(), "batch 2, q_rows 100, kv_rows 150, heads 8/2, head_dim 64, bf16");
/// let wide_values = problem.with_dim_v(128).validate().unwrap_err();
/// assert_eq!(wide_values.to_string(), "not supported: v and out have 128 dims, q and k 64; equal numbers are accepted");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Problem {
    /// How rows belong to sequences.
    pub sequences: Sequences,
    /// Heads of q and out.
    pub q_heads: usize,
    /// Heads of k and v; divides `q_heads`.
    pub kv_heads: usize,
    /// Columns of q and k.
    pub dim_qk: usize,
    /// Columns of v and out.
    pub dim_v: usize,
    /// Element type of q, k and v.
    pub dtype: DType,
    /// Element type of out.
    pub out_dtype: DType,
}

impl Problem {
    /// A problem with as many columns in v as in q and k, and an output of the inputs' type.
    pub const fn new(sequences: Sequences, q_heads: usize, kv_heads: usize, head_dim: usize, dtype: DType) -> Problem {
        Problem { sequences, q_heads, kv_heads, dim_qk: head_dim, dim_v: head_dim, dtype, out_dtype: dtype }
    }

    /// Sets the columns of v and out.
    pub const fn with_dim_v(mut self, dim_v: usize) -> Problem {
        self.dim_v = dim_v;
        self
    }

    /// Sets the element type of out.
    pub const fn with_out_dtype(mut self, out_dtype: DType) -> Problem {
        self.out_dtype = out_dtype;
        self
    }

    /// The sizes of a problem that is of the kind that kernels take: uniform sequences, one head dim, one element type.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for every other kind.
    pub fn sizes(&self) -> Result<Sizes> {
        let Problem { sequences, q_heads, kv_heads, dim_qk, dtype, .. } = *self;
        let Sequences::Uniform { batch, q_rows, kv_rows } = sequences else {
            return Err(Error::Unsupported(Unsupported::Sequences { found: sequences.name(), accepted: "uniform" }));
        };
        self.check_one_dim_and_type()?;
        Ok(Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim: dim_qk, dtype })
    }

    /// That v and out are as q and k are.
    pub(crate) fn check_one_dim_and_type(&self) -> Result<()> {
        let Problem { dim_qk, dim_v, dtype, out_dtype, .. } = *self;
        if dim_v != dim_qk {
            return Err(Error::Unsupported(Unsupported::ValueDim { dim_v, dim_qk }));
        }
        if out_dtype != dtype {
            return Err(Error::Unsupported(Unsupported::OutDType { found: out_dtype, accepted: dtype }));
        }
        Ok(())
    }

    /// Checks everything about the problem that does not depend on a device: what [`Attention::plan`](crate::Attention::plan) refuses on
    /// every device. Sequences of every kind are accepted.
    ///
    /// ```
    /// use ferroflash::{DType, Problem, QueryRows, Sequences};
    /// let cached = |capacity| Sequences::Cached { batch: 8, q_rows: QueryRows::Each(1), capacity };
    /// let problem = |capacity| Problem::new(cached(capacity), 32, 8, 128, DType::Bf16);
    /// assert!(problem(4096).validate().is_ok());
    /// let error = problem(1 << 30).validate().unwrap_err();
    /// assert_eq!(error.to_string(), "k has 1073741824 rows; fewer than 536870912 are accepted");
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::EmptyAxis`], [`Error::HeadDim`], [`Error::HeadGroups`], [`Error::TooManyRows`].
    pub fn validate(&self) -> Result<()> {
        self.check_one_dim_and_type()?;
        self.sequence_sizes().map_or_else(|| self.sizes()?.validate(), |sizes| sizes.validate())
    }

    /// The sizes of a call over packed, cached or paged sequences; `None` for uniform ones.
    pub(crate) fn sequence_sizes(&self) -> Option<SequenceSizes> {
        let Problem { q_heads, kv_heads, dim_qk: head_dim, dtype, .. } = *self;
        let of = |batch, rows, kv_entries, kv_rows| {
            let (q_rows, packed_q) = match rows {
                QueryRows::Each(rows) => (rows, false),
                QueryRows::Packed(rows) => (rows, true),
            };
            SequenceSizes {
                batch,
                q_rows,
                packed_q,
                kv_rows,
                kv_entries,
                page_rows: None,
                packed_kv: false,
                q_heads,
                kv_heads,
                head_dim,
                dtype,
                longest_q: q_rows,
                longest_kv: kv_rows,
                new_rows: 0,
                packed_new: false,
            }
        };
        match self.sequences {
            Sequences::Uniform { .. } => None,
            Sequences::Packed { batch, q_rows, kv_rows } => {
                Some(SequenceSizes { packed_kv: true, ..of(batch, QueryRows::Packed(q_rows), 1, kv_rows) })
            }
            Sequences::Cached { batch, q_rows, capacity } => Some(of(batch, q_rows, batch, capacity)),
            Sequences::Paged { batch, q_rows, pages, page_rows, width } => {
                let room = width.saturating_mul(page_rows);
                Some(SequenceSizes { page_rows: Some(page_rows), ..of(batch, q_rows, pages, room) })
            }
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Problem { sequences, q_heads, kv_heads, dim_qk, dim_v, dtype, out_dtype } = self;
        match sequences {
            Sequences::Uniform { batch, q_rows, kv_rows } => {
                write!(f, "batch {batch}, q_rows {q_rows}, kv_rows {kv_rows}")?;
            }
            Sequences::Packed { batch, q_rows, kv_rows } => {
                write!(f, "{batch} packed sequences, q_rows {q_rows}, kv_rows {kv_rows}")?;
            }
            Sequences::Cached { batch, q_rows, capacity } => {
                write!(f, "batch {batch}, {q_rows}, cache of {capacity} rows")?;
            }
            Sequences::Paged { batch, q_rows, pages, page_rows, width } => {
                write!(f, "batch {batch}, {q_rows}, {pages} pages of {page_rows} rows, at most {width} a sequence")?;
            }
        }
        write!(f, ", heads {q_heads}/{kv_heads}, head_dim {dim_qk}")?;
        if dim_v != dim_qk {
            write!(f, ", dim_v {dim_v}")?;
        }
        write!(f, ", {dtype}")?;
        if out_dtype != dtype { write!(f, ", out {out_dtype}") } else { Ok(()) }
    }
}

impl Sequences {
    /// The kind of sequences, for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Sequences::Uniform { .. } => "uniform",
            Sequences::Packed { .. } => "packed",
            Sequences::Cached { .. } => "cached",
            Sequences::Paged { .. } => "paged",
        }
    }
}

/// The sizes of a problem with uniform sequences, one head dim and one element type, all in one place. Such a problem has no others:
/// what newer ones have besides is in [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Sequences.
    pub batch: usize,
    /// Rows of q and out.
    pub q_rows: usize,
    /// Rows of k and v. May be 0.
    pub kv_rows: usize,
    /// Heads of q and out.
    pub q_heads: usize,
    /// Heads of k and v; divides `q_heads`.
    pub kv_heads: usize,
    /// Columns of q, k, v and out.
    pub head_dim: usize,
    /// Element type of q, k, v and out.
    pub dtype: DType,
}

impl Sizes {
    /// Checks everything about the sizes that does not depend on a device; see [`Problem::validate`].
    ///
    /// # Errors
    /// [`Error::EmptyAxis`], [`Error::HeadDim`], [`Error::HeadGroups`], [`Error::TooManyRows`].
    pub fn validate(&self) -> Result<()> {
        let empty = |tensor, axis| Err(Error::EmptyAxis { tensor, axis });
        match self {
            Sizes { batch: 0, .. } => return empty(Operand::Q, "batch"),
            Sizes { q_rows: 0, .. } => return empty(Operand::Q, "rows"),
            Sizes { q_heads: 0, .. } => return empty(Operand::Q, "heads"),
            Sizes { kv_heads: 0, .. } => return empty(Operand::K, "heads"),
            _ => {}
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(8) || self.head_dim > MAX_HEAD_DIM as usize {
            return Err(Error::HeadDim { found: self.head_dim });
        }
        if !self.q_heads.is_multiple_of(self.kv_heads) {
            return Err(Error::HeadGroups { q_heads: self.q_heads, kv_heads: self.kv_heads });
        }
        for (tensor, found) in [(Operand::Q, self.q_rows), (Operand::K, self.kv_rows)] {
            if found >= MAX_ROWS as usize {
                return Err(Error::TooManyRows { tensor, found });
            }
        }
        Ok(())
    }

    /// Elements from one row of the naive kernel's scores to the next: whole 16-byte pieces in every element type.
    pub(crate) fn score_stride(&self) -> usize {
        self.kv_rows.next_multiple_of(8)
    }

    /// Rows of the score matrices, over all heads and sequences.
    pub(crate) fn score_rows(&self) -> u128 {
        self.batch as u128 * self.q_heads as u128 * self.q_rows as u128
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Problem::from(*self).fmt(f)
    }
}

impl From<Sizes> for Problem {
    fn from(sizes: Sizes) -> Problem {
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = sizes;
        Problem::new(Sequences::Uniform { batch, q_rows, kv_rows }, q_heads, kv_heads, head_dim, dtype)
    }
}

impl From<&Sizes> for Problem {
    fn from(sizes: &Sizes) -> Problem {
        Problem::from(*sizes)
    }
}

impl From<&Problem> for Problem {
    fn from(problem: &Problem) -> Problem {
        *problem
    }
}
