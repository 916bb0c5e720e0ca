//! What x is multiplied with before a norm adds the residual: dropout, and a factor a row. Forward and backward ask alike, so that the gradient has the
//! mask of the output, and nothing of it lies in memory.
//!
//! A thread finds the marks of all of its elements of a row first, a bit for each, while the row is on its way or others of the multiprocessor load: the
//! words of the generator live no longer than it takes, and there is one copy of its code in an entry.

use cuda_std::{copy, math};
use kernel_spec::families::norm::features::BRANCH;
use kernel_spec::families::norm::{BranchParams, SLOTS};
use kernel_spec::{Features, philox};

use crate::operators::row::{Columns, Config, Vector};

/// What is done with the elements that a thread has of a row.
#[derive(Clone, Copy)]
pub struct Branch {
    /// Whether anything is.
    acts: bool,
    /// A bit for each element that is kept: element `e` of vector `v` is bit `v C::CHUNK + e`, of which each word has 32.
    kept: [u32; 2],
    /// What those are multiplied with.
    factor: f32,
}

impl Branch {
    /// Of the vectors of a thread, or of those of one tile, of row `row`.
    ///
    /// # Safety
    /// The factors of the rows are there where parameters name them, and so are seed and offset on the device.
    #[inline(always)]
    pub unsafe fn of<C: Config, const V: usize>(
        p: &BranchParams,
        features: &Features<{ SLOTS as usize }>,
        own: &Columns,
        row: u32,
        exists: bool,
    ) -> Branch {
        let mut branch = Branch { acts: features.has(BRANCH), kept: [u32::MAX; 2], factor: p.factor };
        if !branch.acts {
            return branch;
        }
        if p.rowscale != 0 && exists {
            // SAFETY: one number a row.
            branch.factor *= unsafe { copy::load_f32(p.rowscale + row as u64 * 4) };
        }
        if p.drops == 0 {
            return branch;
        }
        let (mut seed, mut offset) = (p.seed, p.offset);
        if p.on_device != 0 {
            // SAFETY: then it is the address of two numbers.
            let state = unsafe { [copy::load_u32x2(seed), copy::load_u32x2(seed + 8)] };
            let [on_device, first] = state.map(|[low, high]| low as u64 | (high as u64) << 32);
            (seed, offset) = (on_device, first.wrapping_add(offset));
        }
        branch.kept = [0; 2];
        let mut v = 0;
        // Hidden, or there would be a copy of the generator for each vector.
        while v < math::opaque(V as u32) {
            let column = own.column::<C>(v as usize);
            let words = philox::rows_words(seed, offset, row, column);
            // A vector of four columns is one half of a group.
            let second = C::CHUNK == 4 && column % philox::ROWS_GROUP != 0;
            let words = if second { [words[2], words[3], 0, 0] } else { words };
            let mut marks = 0;
            for e in 0..C::CHUNK {
                let number = words[e as usize / 2] >> (16 * (e % 2)) & 0xFFFF;
                marks |= u32::from(number <= p.threshold) << e;
            }
            // Words by their names: an array that a variable indexes lies in memory.
            let marks = marks << (v * C::CHUNK % 32);
            if V as u32 * C::CHUNK <= 32 || v * C::CHUNK < 32 {
                branch.kept[0] |= marks;
            } else {
                branch.kept[1] |= marks;
            }
            v += 1;
        }
        branch
    }

    /// A vector of x, or of its gradient. What is dropped is 0, whatever it was.
    #[inline(always)]
    pub fn on<C: Config>(&self, vector: usize, mut values: Vector) -> Vector {
        if !self.acts {
            return values;
        }
        for e in 0..C::CHUNK as usize {
            let bit = vector * C::CHUNK as usize + e;
            let kept = self.kept[bit / 32] >> (bit % 32) & 1 != 0;
            values[e] = if kept { values[e] * self.factor } else { 0.0 };
        }
        values
    }
}
