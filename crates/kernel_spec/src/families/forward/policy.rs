//! Choices that a row makes for its pass. They change how fast a kernel is, never what it computes.

/// None: one tile of scores a thread block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scores {}

/// None: one warp a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Softmax {}

/// Of the naive product with the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Output {
    /// Places in shared memory for a tile of probabilities and one of values.
    pub slots: u32,
}

/// Of v1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V1 {
    /// Places in shared memory that tiles of keys and values pass through in turn.
    pub slots: u32,
}

/// Of v2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V2 {
    /// Places in shared memory that tiles of keys and values pass through in turn.
    pub slots: u32,
    /// Wait for the values before the softmax rather than after it. No barrier then stands between the two, and the assembler lets
    /// exponentials run under the product with the values (H200, bf16, against FlashAttention-2 in the same run: 1.16 to 1.22 instead
    /// of 1.07 to 1.14 at head dim 64). It costs registers: at head dim 128 it spills.
    pub early_values: bool,
}

/// Of v3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V3 {
    /// Buffers of keys, and as many of values.
    pub stages: u32,
    /// Buffers of queries. With a second one, the next tile's queries arrive while the last output leaves; at 192 and 256 dims it does
    /// not fit beside two stages of 96 and 64 keys and values.
    pub q_buffers: u32,
    /// Whether the multiplying warpgroups take turns at starting products. Above 128 dims the products are so long that turns only
    /// cost.
    pub turns: bool,
    /// Whether the output is rescaled only when it has to be. That pays where the output has many columns, 2 % at 192 dims from 4096
    /// rows on and 3 to 7 % at 256, and with three warpgroups, up to 3 % at 64, 6 % at 96 and 9 % at 128; elsewhere the branch costs
    /// what it saves, or up to 3 % (H200, docs/perf-log.md).
    pub lazy: bool,
    /// Whether a warpgroup skips a block of keys that none of its rows sees. A whole key block can be hidden from one warpgroup and
    /// visible to another only if `WARPGROUP_ROWS + kv_block <= q_block`; elsewhere there is next to nothing to skip, and to look for it
    /// costs 1 to 3 % (H200, docs/perf-log.md).
    pub skips: bool,
    /// Whether the log-sum-exp is written behind the output of a tile rather than before it.
    ///
    /// This and [`Self::remembers`] change nothing but the order in which ptxas puts the instructions between two tiles, and that
    /// decides which warpgroup's products wait for which: up to 7 % at 64 dims and 1 % at 128 (H200, docs/perf-log.md).
    pub lse_last: bool,
    /// Whether a thread keeps in a register, until its last tile is done, that it has met numbers which are not finite, rather than
    /// writing that to shared memory behind every tile.
    pub remembers: bool,
    /// Registers of a thread of the loading warpgroup: the least that holds the schedule; what it gives back goes to the others.
    pub load_registers: u32,
    /// Registers of a thread that multiplies. 65536 of them on a multiprocessor, given out in eights: 24 + 2 * 240 and 32 + 3 * 160
    /// for the threads of a thread block use all that the block has at entry.
    pub math_registers: u32,
}
