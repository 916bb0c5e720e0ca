//! Blocks of keys that a program hides from whole blocks of rows: found once, passed over in every call.

use super::options::Attention;
use super::params::bytes_of;
use super::problem::Sizes;
use super::request::Row;
use crate::backend::RawStream;
use crate::device::{Allocation, Device};
use crate::error::{Error, Operand, ProgramError, Result};
use crate::plan::{Binding, Buffer, Params, Step, check_device, run};
use crate::score::{Blocks, BoundProgram, ScoreShape};
use crate::specialise::Specialised;
use kernel_spec::families::blocks::{
    CLASSES, ClassesParams, HEAD_WORDS, LISTS, ListsParams, THREADS, UNIT_KEYS, UNIT_ROWS, UNITS_OF_WARP, list_words,
};
use kernel_spec::families::forward::features::PROGRAM;
use kernel_spec::{Band, Divisor, FeatureSet, Features, ForwardFeatures, MAX_ROWS};
use std::mem::offset_of;
use std::sync::Arc;

impl From<&Sizes> for ScoreShape {
    fn from(sizes: &Sizes) -> ScoreShape {
        let Sizes { batch, q_heads: heads, q_rows, kv_rows, .. } = *sizes;
        ScoreShape { batch, heads, q_rows, kv_rows }
    }
}

/// Pairs of units, with their keys: what 31 bits count.
const MAX_PAIRS: u128 = 1 << 31;

/// Those that `program` shows, found on the default stream of `device`.
fn find(program: &BoundProgram<'_>, device: &Device, shape: ScoreShape) -> Result<Blocks> {
    let name = || program.program().name().to_owned();
    let text = program.hides_text().ok_or_else(|| ProgramError::HidesNothing { name: name() })?;
    let ScoreShape { batch, heads, q_rows, kv_rows } = shape;
    for (tensor, rows) in [(Operand::Q, q_rows), (Operand::K, kv_rows)] {
        if rows >= MAX_ROWS as usize {
            return Err(Error::TooManyRows { tensor, found: rows });
        }
    }
    let [by_batch, by_head] = program.hides_by();
    let (batch, heads) = (if by_batch { batch } else { 1 }, if by_head { heads } else { 1 });
    let row_units = q_rows.div_ceil(UNIT_ROWS as usize);
    let key_pairs = kv_rows.div_ceil((UNIT_KEYS * UNITS_OF_WARP) as usize);
    let found = [batch, heads, row_units, key_pairs].iter().fold(1, |all: u128, &n| all.saturating_mul(n as u128));
    if found >= MAX_PAIRS {
        return Err(ProgramError::TooManyBlocks { name: name(), found, limit: MAX_PAIRS }.into());
    }
    // Fits, as does each factor that is not 0 with the others; where one is, nothing is launched.
    let count = found as u32;
    let divisor = |n: usize| Divisor::new(n.clamp(1, MAX_PAIRS as usize) as u32);
    let features = program.fill(ForwardFeatures::OFF, 1.0);
    let params = ClassesParams {
        classes: 0,
        q_rows: q_rows as u32,
        kv_rows: kv_rows as u32,
        key_pairs: divisor(key_pairs),
        row_units: divisor(row_units),
        heads: divisor(heads),
        count,
        features,
    };
    let params = Params::new(bytes_of(&params))
        .address(offset_of!(ClassesParams, classes), Binding::Operand(Operand::Blocks), 2)
        .with_program_words(offset_of!(ClassesParams, features), Some(program));
    let kernel = Specialised { program: Some(text), ..Specialised::with_features(&CLASSES, FeatureSet::of(PROGRAM)) };
    check_device(&CLASSES, device.info())?;
    let step = Step::new(kernel, ctas(count), "a warp has 64 rows of 32 keys".to_owned(), params);
    let classes = Allocation::new(device, RawStream::DEFAULT, 2 * u64::from(count))?;
    let operands: Vec<_> = std::iter::once((Operand::Blocks, classes.address())).chain(program.operands()).collect();
    run(device, RawStream::DEFAULT, &[step], &[], &operands)?;
    // Calls on any stream read them.
    device.backend().synchronize_stream(RawStream::DEFAULT)?;
    // Fit, as above.
    Ok(Blocks { classes, shape, own: [batch as u32, heads as u32], differ: [by_batch, by_head] })
}

/// The buffer of the lists for the tiles of a row of v3, whose schedule has so many slots, and the step that writes them there.
pub(super) fn lists(blocks: &Blocks, row: &Row, band: Band, slots: u64, buffer: usize) -> Result<(Buffer, Step)> {
    let ScoreShape { q_rows, kv_rows, .. } = blocks.shape;
    let (q_block, kv_block) = (row.variant.q_block, row.variant.kv_block);
    let (tiles, kv_tiles) = (q_rows.div_ceil(q_block as usize), kv_rows.div_ceil(kv_block as usize));
    let words = list_words(kv_tiles as u32);
    let [batch, heads] = blocks.own;
    let count = u128::from(batch) * u128::from(heads) * tiles as u128;
    let all_words = u128::from(HEAD_WORDS) + count * u128::from(words) + u128::from(slots);
    // Kernels count words in 32 bits.
    if all_words >= MAX_PAIRS {
        let name = "lists of blocks".to_owned();
        return Err(ProgramError::TooManyBlocks { name, found: all_words, limit: MAX_PAIRS }.into());
    }
    let count = count as u32;
    let head_words = if heads == 1 { 0 } else { tiles as u32 * words };
    let batch_words = if batch == 1 { 0 } else { heads * tiles as u32 * words };
    let params = ListsParams {
        classes: 0,
        lists: 0,
        q_rows: q_rows as u32,
        kv_rows: kv_rows as u32,
        q_block,
        kv_block,
        tiles: Divisor::new((tiles as u32).max(1)),
        row_units: q_rows.div_ceil(UNIT_ROWS as usize) as u32,
        key_pairs: kv_rows.div_ceil((UNIT_KEYS * UNITS_OF_WARP) as usize) as u32,
        words,
        head_words,
        batch_words,
        count,
        band,
        unused: 0,
        features: Features::OFF,
    };
    let params = Params::new(bytes_of(&params))
        .address(offset_of!(ListsParams, classes), Binding::Operand(Operand::Blocks), 2)
        .address(offset_of!(ListsParams, lists), Binding::Buffer(buffer), 16);
    let tile = format!("a warp lists the blocks of {kv_block} keys that a tile of {q_block} rows visits");
    let step = Step::new(Specialised::plain(&LISTS), ctas(count), tile, params);
    let bytes = all_words as u64 * size_of::<u32>() as u64;
    Ok((Buffer { name: "lists of blocks", bytes, reason: "the keys that the program leaves to each tile" }, step))
}

/// Refuses a call whose program has blocks of other scores.
pub(super) fn check(attention: &Attention<'_>, sizes: &Sizes) -> Result<()> {
    let Some(program) = attention.changing_program() else { return Ok(()) };
    program.blocks().map_or(Ok(()), |blocks| blocks.check(program.program().name(), sizes.into()))
}

/// Refuses blocks where sequences have lengths of their own; `found` says how they lie.
pub(super) fn check_none(attention: &Attention<'_>, found: &'static str) -> Result<()> {
    match attention.changing_program() {
        Some(program) if program.blocks().is_some() => {
            let name = program.program().name().to_owned();
            Err(ProgramError::BlocksOfSequences { name, found }.into())
        }
        _ => Ok(()),
    }
}

/// Thread blocks of either kernel for so many warps.
fn ctas(warps: u32) -> u32 {
    warps.div_ceil(THREADS / 32)
}

impl<'a> BoundProgram<'a> {
    /// The program together with the blocks of keys that it hides from whole blocks of rows, for calls on scores of this shape: v3 passes over
    /// them. What is left of a program that only hides keys runs in those blocks alone of which it hides some.
    ///
    /// The blocks are found now, on the default stream of `device`, which is waited for, with the tensors as they are then, and serve every call that the program is
    /// given to, with any mask, of every layer: make them once for a batch. Tensors that change afterwards need new ones. Other kernels visit all
    /// blocks, as do gradients; the result is the same.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::score::{ProgramTensor, ScoreProgram, ScoreShape};
    /// use ferroflash::{Attention, DType, Device, Indices, Layout, Shape, Tensor};
    /// let device = Device::emulator()?;
    /// let rows = 300;
    /// let ids: Vec<i32> = (0..rows as i32).map(|row| row / 100).collect();
    /// let ids = Indices::from_slice(&device, &ids)?;
    /// let documents = ScoreProgram::mask("documents", |p| {
    ///     let ids = p.ints("ids");
    ///     ids.at([p.row()]).eq(ids.at([p.key()]))
    /// })?;
    /// let shape = ScoreShape { batch: 1, heads: 2, q_rows: rows, kv_rows: rows };
    /// let bound = documents.bind(&[("ids", ProgramTensor::ints(ids.view(), [rows])?)])?.with_blocks(&device, shape)?;
    /// let q = Tensor::zeros(&device, DType::F16, Shape::new(1, rows, 2, 64), Layout::Bshd)?;
    /// let output = Attention::new().causal().with_program(&bound).forward(&q.view(), &q.view(), &q.view())?;
    /// assert!(output.plan.symbols().eq(["block_lists", "v3_f16_d64_masked"]));
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ProgramError::HidesNothing`] where no key is hidden whatever its score is; [`ProgramError::TooManyBlocks`], [`Error::TooManyRows`],
    /// [`Error::DeviceMismatch`], and those of the device. Calls on scores of another shape give [`ProgramError::BlocksShape`].
    pub fn with_blocks(self, device: &Device, shape: ScoreShape) -> Result<BoundProgram<'a>> {
        for (name, of) in self.devices() {
            if of != device {
                let (found, expected) = (of.info().id(), device.info().id());
                return Err(ProgramError::Device { name: name.to_owned(), found, expected }.into());
            }
        }
        let blocks = find(&self, device, shape)?;
        Ok(self.with_found_blocks(Arc::new(blocks)))
    }
}
