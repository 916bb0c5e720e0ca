//! What a row has to be, so that a launch of it cannot fail.

use super::{Pass, Policy, Variant, features, memory};
use crate::families::blocks;
use crate::{layout, philox};

/// Registers of a multiprocessor, which a thread block that is alone has at entry, in eights for each thread.
const REGISTERS: u32 = 65536;

impl Variant {
    /// Panics, at compile time, when the row fits neither its GPUs nor the instructions of its pass.
    pub(in crate::families) const fn check(&self) {
        assert!(
            self.entry.shared_bytes <= self.entry.arch.shared_bytes(),
            "a variant needs more shared memory than its GPUs have"
        );
        if matches!(self.pass, Pass::Softmax | Pass::Merge | Pass::Append | Pass::Tiles) {
            return;
        }
        let warps_of_rows = match self.pass {
            Pass::V1 | Pass::Decode | Pass::ClusterDecode => 1,
            Pass::V3 | Pass::PackedV3 | Pass::SplitV3 => self.warps - memory::WARPGROUP_WARPS,
            _ => self.warps,
        };
        assert!(self.q_block.is_multiple_of(16 * warps_of_rows), "warps own whole 16-row fragments");
        if self.is_listed() {
            let units =
                self.q_block.is_multiple_of(blocks::UNIT_ROWS) && self.kv_block.is_multiple_of(blocks::UNIT_KEYS);
            assert!(units, "tiles with lists are made of whole units");
            assert!(
                self.q_block <= blocks::MOST_ROWS && self.kv_block <= blocks::MOST_KEYS,
                "no more units than lists look at"
            );
        }
        if self.entry.takes(features::DROPOUT) && matches!(self.pass, Pass::V1 | Pass::V2) {
            let keys = if warps_of_rows == 1 { self.kv_block / self.warps } else { self.kv_block };
            assert!(
                philox::has_marks([self.q_block / warps_of_rows, keys]),
                "dropout has marks for the tile of a warp"
            );
        }
        // Panics where rows do not split into panels.
        layout::panel_bytes((self.tile_cols(self.head_dim())) as usize * self.dtype.bytes());
        if let Policy::V3(policy) | Policy::PackedV3(policy) | Policy::SplitV3(policy) = self.policy {
            let hidden_blocks = memory::WARPGROUP_ROWS + self.kv_block <= self.q_block;
            assert!(!policy.skips || hidden_blocks, "a warpgroup finds no block to skip");
            // A warpgroup that asks for more than the others have given back waits for ever.
            let groups = self.entry.threads / (32 * memory::WARPGROUP_WARPS);
            let at_entry = groups * (REGISTERS / (self.entry.threads * self.entry.min_ctas) / 8 * 8);
            let taken = policy.load_registers + (groups - 1) * policy.math_registers;
            assert!(taken <= at_entry, "warpgroups take more registers than the thread block has at entry");
        }
    }
}
