//! Blocks of keys that a program hides from whole blocks of rows.

use crate::device::{Allocation, Device};
use crate::error::{Operand, ProgramError, Result};
use std::sync::Arc;

/// The scores of a call: `[batch, head, row, key]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScoreShape {
    /// Batch entries.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Query rows of a batch entry.
    pub q_rows: usize,
    /// Keys of a batch entry.
    pub kv_rows: usize,
}

impl ScoreShape {
    fn extents(self) -> [usize; 4] {
        let ScoreShape { batch, heads, q_rows, kv_rows } = self;
        [batch, heads, q_rows, kv_rows]
    }
}

/// Blocks that were found for a program, without it and its tensors: [`BoundProgram::found_blocks`](super::BoundProgram::found_blocks).
#[derive(Clone, Debug)]
pub struct FoundBlocks {
    pub(super) blocks: Arc<Blocks>,
    /// The PTX that says which keys are hidden.
    pub(super) hides_text: Arc<str>,
}

/// What a program shows of the scores of a call, in units of rows and keys (`kernel_spec::families::blocks`): none, some or all of them.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// A byte for each unit.
    pub(crate) classes: Allocation,
    pub(crate) shape: ScoreShape,
    /// Batch entries and heads of which there are classes: all, or 1 where they do not differ.
    pub(crate) own: [u32; 2],
    /// Whether they differ from batch entry to batch entry, and from head to head.
    pub(crate) differ: [bool; 2],
}

impl Blocks {
    /// Where the classes are, for launches.
    pub(super) fn operand(&self) -> (Operand, u64) {
        (Operand::Blocks, self.classes.address())
    }

    pub(super) fn device(&self) -> &Device {
        self.classes.device()
    }

    /// Refuses calls of the program `name` on other scores than those that the blocks were found for.
    pub(crate) fn check(&self, name: &str, found: ScoreShape) -> Result<()> {
        // What all have alike may be there as often as it likes.
        let [by_batch, by_head] = self.differ;
        let expected = ScoreShape {
            batch: if by_batch { self.shape.batch } else { found.batch },
            heads: if by_head { self.shape.heads } else { found.heads },
            ..self.shape
        };
        if found == expected {
            return Ok(());
        }
        let (name, found, expected) = (name.to_owned(), found.extents(), self.shape.extents());
        Err(ProgramError::BlocksShape { name, found, expected }.into())
    }
}
