//! The sizes of a call over sequences, and everything of them that can be refused without tensors.

use crate::error::{Error, Operand, Result};
use kernel_spec::{DType, MAX_HEAD_DIM, MAX_ROWS};

/// The sizes of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SequenceSizes {
    pub(crate) batch: usize,
    /// Rows of q of a sequence, or of all where they are packed.
    pub(crate) q_rows: usize,
    /// Whether they are.
    pub(crate) packed_q: bool,
    /// Rows of k and v of a batch entry, of all pages of a sequence, or of all sequences where they are packed.
    pub(crate) kv_rows: usize,
    /// Batch entries of k and v, or pages.
    pub(crate) kv_entries: usize,
    pub(crate) page_rows: Option<usize>,
    pub(crate) packed_kv: bool,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) dtype: DType,
    /// Rows of q of the longest sequence, as far as they are known.
    pub(crate) longest_q: usize,
    /// Rows of k and v, likewise.
    pub(crate) longest_kv: usize,
    /// Rows that are appended to each sequence, or to all where they are packed.
    pub(crate) new_rows: usize,
    pub(crate) packed_new: bool,
}

impl SequenceSizes {
    /// Rows of q over all sequences.
    pub(crate) fn tokens(&self) -> usize {
        if self.packed_q { self.q_rows } else { self.batch * self.q_rows }
    }

    /// New rows over all sequences.
    pub(crate) fn new_tokens(&self) -> usize {
        if self.packed_new { self.new_rows } else { self.batch * self.new_rows }
    }

    /// Checks everything that does not depend on tensors.
    pub(crate) fn validate(&self) -> Result<()> {
        let empty = |tensor, axis| Err(Error::EmptyAxis { tensor, axis });
        match self {
            SequenceSizes { batch: 0, .. } => return empty(Operand::Q, "batch"),
            SequenceSizes { q_heads: 0, .. } => return empty(Operand::Q, "heads"),
            SequenceSizes { kv_heads: 0, .. } => return empty(Operand::K, "heads"),
            SequenceSizes { kv_entries: 0, .. } => return empty(Operand::K, "batch"),
            SequenceSizes { page_rows: Some(0), .. } => return empty(Operand::K, "rows"),
            _ => {}
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(8) || self.head_dim > MAX_HEAD_DIM as usize {
            return Err(Error::HeadDim { found: self.head_dim });
        }
        if !self.q_heads.is_multiple_of(self.kv_heads) {
            return Err(Error::HeadGroups { q_heads: self.q_heads, kv_heads: self.kv_heads });
        }
        let tokens = self.batch.saturating_mul(if self.packed_q { 0 } else { self.q_rows }).max(self.q_rows);
        let new = self.batch.saturating_mul(if self.packed_new { 0 } else { self.new_rows }).max(self.new_rows);
        // Sequences and entries are counted in 32 bits on the device, too.
        let all = [
            (Operand::Q, tokens.max(self.batch)),
            (Operand::K, self.kv_rows.max(self.kv_entries)),
            (Operand::NewK, new),
        ];
        for (tensor, found) in all {
            if found >= MAX_ROWS as usize {
                return Err(Error::TooManyRows { tensor, found });
            }
        }
        Ok(())
    }
}
