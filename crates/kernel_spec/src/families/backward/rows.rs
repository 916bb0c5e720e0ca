//! The rows of the backward pass: every compiled kernel, with its tile and its policies. Data, and nothing that computes.

/// Calls `$callback!` with every row of the backward pass. A new head dim or tile is a row here, and nothing else.
///
/// Row: `pass dim [dtype symbol, ..] q_block x kv_block, warps, min_ctas, [feature, ..], { policy, .. }, "why this tile";`
/// - `dim`: columns of all tiles; 0 where the pass has none.
/// - `dtype`: element type of all tensors.
/// - `q_block`, `kv_block`: rows of the tiles of queries and output gradients, and of keys and values.
/// - `min_ctas`: thread blocks that must fit on a multiprocessor, which bounds the registers of a thread.
/// - the features, of [`features`](crate::families::forward::features), are those that the entry runs with, each alone, without a spill. Of rows
///   that differ in nothing else but their tile, a call takes the first that accepts its features.
/// - the policies are the fields of the pass's struct in [`policy`](crate::families::backward::policy), which says what each gains.
#[macro_export]
macro_rules! for_each_backward_row {
    ($callback:ident) => {
        $callback! {
            // delta = sum(dout out) - dlse: no tile; head dim plays no part.
            Delta 0 [F16 backward_delta_f16, Bf16 backward_delta_bf16, F32 backward_delta_f32] 64 x 0, 8, 4, [], {}, "bound by reading; enough rows that starting thread blocks costs little";
            // dsink = -sum(e^(sink - lse) delta): one thread block a head; neither head dim nor type play a part.
            Sinks 0 [F32 backward_sinks] 128 x 0, 8, 4, [], {}, "a thread block adds all rows of a head, so that no other has to wait for it";
            // dk and dv: a block of keys walks over the queries that see it.
            Keys 32 [F16 backward_keys_f16_d32, Bf16 backward_keys_bf16_d32] 32 x 128, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 1 }, "as d64";
            Keys 64 [F16 backward_keys_f16_d64, Bf16 backward_keys_bf16_d64] 32 x 128, 4, 2, [], { stages: 2, columns: 1 }, "two 16-key fragments a warp reuse each fragment of queries and output gradients";
            Keys 64 [F16 backward_keys_f16_d64_narrow, Bf16 backward_keys_bf16_d64_narrow] 32 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 1 }, "the registers of two fragments do not hold a softcap as well";
            Keys 96 [F16 backward_keys_f16_d96, Bf16 backward_keys_bf16_d96] 64 x 64, 4, 2, [SOFTCAP], { stages: 2, columns: 1 }, "the accumulators of one 16-key fragment fit; 73 KiB, two thread blocks on sm_80";
            Keys 96 [F16 backward_keys_f16_d96_program, Bf16 backward_keys_bf16_d96_program] 32 x 64, 4, 2, [PROGRAM], { stages: 2, columns: 1 }, "the registers of the tile above do not hold a program";
            Keys 128 [F16 backward_keys_f16_d128, Bf16 backward_keys_bf16_d128] 32 x 64, 4, 2, [SOFTCAP], { stages: 2, columns: 1 }, "as d96; 64 KiB, two thread blocks on sm_80";
            Keys 128 [F16 backward_keys_f16_d128_program, Bf16 backward_keys_bf16_d128_program] 16 x 64, 4, 2, [PROGRAM], { stages: 2, columns: 1 }, "the registers of the tile above do not hold a program";
            Keys 192 [F16 backward_keys_f16_d192, Bf16 backward_keys_bf16_d192] 32 x 32, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 2 }, "as d256; 76 KiB, two thread blocks on sm_80";
            Keys 256 [F16 backward_keys_f16_d256, Bf16 backward_keys_bf16_d256] 32 x 32, 4, 2, [SOFTCAP, PROGRAM], { stages: 1, columns: 2 }, "a warp has registers for half of the columns; a second stage would need 100 KiB";
            Keys 32 [F32 backward_keys_f32_d32] 32 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 1 }, "as d96";
            Keys 64 [F32 backward_keys_f32_d64] 32 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 1 }, "as d96";
            Keys 96 [F32 backward_keys_f32_d96] 32 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 1, columns: 1 }, "two 8-query fragments a warp reuse each fragment of keys; 72 KiB fits sm_86 and sm_89";
            Keys 128 [F32 backward_keys_f32_d128] 16 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 1, columns: 1 }, "80 KiB fits sm_86 and sm_89; the scores of 32 queries spill";
            Keys 192 [F32 backward_keys_f32_d192] 16 x 32, 4, 2, [SOFTCAP, PROGRAM], { stages: 1, columns: 2 }, "76 KiB; a second stage would need 100";
            Keys 256 [F32 backward_keys_f32_d256] 16 x 16, 2, 2, [SOFTCAP, PROGRAM], { stages: 1, columns: 2 }, "66 KiB; 32 keys would need 100";
            // dq: a block of queries walks over the keys that it sees.
            Queries 32 [F16 backward_queries_f16_d32, Bf16 backward_queries_bf16_d32] 128 x 64, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as d128";
            Queries 64 [F16 backward_queries_f16_d64, Bf16 backward_queries_bf16_d64] 128 x 64, 4, 2, [], { slots: 2 }, "as d128";
            Queries 64 [F16 backward_queries_f16_d64_narrow, Bf16 backward_queries_bf16_d64_narrow] 64 x 64, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "the registers of two fragments do not hold a softcap as well";
            Queries 96 [F16 backward_queries_f16_d96, Bf16 backward_queries_bf16_d96] 128 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as d128";
            Queries 128 [F16 backward_queries_f16_d128, Bf16 backward_queries_bf16_d128] 128 x 32, 4, 2, [SOFTCAP], { slots: 2 }, "two 16-row fragments a warp reuse each fragment of keys and values; 80 KiB, two thread blocks on sm_80";
            Queries 128 [F16 backward_queries_f16_d128_program, Bf16 backward_queries_bf16_d128_program] 64 x 64, 4, 2, [PROGRAM], { slots: 2 }, "the registers of two fragments do not hold a program";
            Queries 192 [F16 backward_queries_f16_d192, Bf16 backward_queries_bf16_d192] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as d256";
            Queries 256 [F16 backward_queries_f16_d256, Bf16 backward_queries_bf16_d256] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "the accumulator of one 16-row fragment fits; 96 KiB fits sm_86 and sm_89";
            Queries 32 [F32 backward_queries_f32_d32] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as d128";
            Queries 64 [F32 backward_queries_f32_d64] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as d128";
            Queries 96 [F32 backward_queries_f32_d96] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as d128";
            Queries 128 [F32 backward_queries_f32_d128] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "96 KiB fits sm_86 and sm_89";
            Queries 192 [F32 backward_queries_f32_d192] 32 x 32, 2, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "96 KiB fits sm_86 and sm_89";
            Queries 256 [F32 backward_queries_f32_d256] 32 x 16, 2, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "96 KiB fits sm_86 and sm_89";
            // With dropout: rows of their own, whose text has it in the loops.
            Keys 32 [F16 backward_keys_f16_d32_dropout, Bf16 backward_keys_bf16_d32_dropout] 32 x 64, 4, 2, [PROGRAM, DROPOUT], { stages: 2, columns: 1 }, "as d64; the registers of two 16-key fragments do not hold it";
            Keys 64 [F16 backward_keys_f16_d64_dropout, Bf16 backward_keys_bf16_d64_dropout] 32 x 64, 4, 2, [PROGRAM, DROPOUT], { stages: 2, columns: 1 }, "as the row with programs";
            Keys 96 [F16 backward_keys_f16_d96_dropout, Bf16 backward_keys_bf16_d96_dropout] 16 x 64, 4, 2, [PROGRAM, DROPOUT], { stages: 2, columns: 1 }, "the registers of 32 queries do not hold it";
            Keys 128 [F16 backward_keys_f16_d128_dropout, Bf16 backward_keys_bf16_d128_dropout] 16 x 64, 4, 2, [PROGRAM, DROPOUT], { stages: 2, columns: 1 }, "as the row with programs";
            Keys 256 [F16 backward_keys_f16_d256_dropout, Bf16 backward_keys_bf16_d256_dropout] 32 x 32, 4, 2, [PROGRAM, DROPOUT], { stages: 1, columns: 2 }, "as the row with programs; 192 dims take it, too, whose second stage spills";
            Keys 32 [F32 backward_keys_f32_d32_dropout] 32 x 64, 4, 2, [PROGRAM, DROPOUT], { stages: 2, columns: 1 }, "as the row with programs";
            Keys 64 [F32 backward_keys_f32_d64_dropout] 32 x 64, 4, 2, [PROGRAM, DROPOUT], { stages: 2, columns: 1 }, "as the row with programs";
            Keys 96 [F32 backward_keys_f32_d96_dropout] 32 x 64, 4, 2, [PROGRAM, DROPOUT], { stages: 1, columns: 1 }, "as the row with programs";
            Keys 128 [F32 backward_keys_f32_d128_dropout] 16 x 32, 4, 2, [PROGRAM, DROPOUT], { stages: 1, columns: 2 }, "as d192";
            Keys 192 [F32 backward_keys_f32_d192_dropout] 16 x 32, 4, 2, [PROGRAM, DROPOUT], { stages: 1, columns: 2 }, "as the row with programs";
            Keys 256 [F32 backward_keys_f32_d256_dropout] 16 x 16, 2, 2, [PROGRAM, DROPOUT], { stages: 1, columns: 2 }, "as the row with programs";
            Queries 32 [F16 backward_queries_f16_d32_dropout, Bf16 backward_queries_bf16_d32_dropout] 128 x 64, 4, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 64 [F16 backward_queries_f16_d64_dropout, Bf16 backward_queries_bf16_d64_dropout] 64 x 64, 4, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 96 [F16 backward_queries_f16_d96_dropout, Bf16 backward_queries_bf16_d96_dropout] 128 x 32, 4, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 128 [F16 backward_queries_f16_d128_dropout, Bf16 backward_queries_bf16_d128_dropout] 64 x 64, 4, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 192 [F16 backward_queries_f16_d192_dropout, Bf16 backward_queries_bf16_d192_dropout] 64 x 32, 4, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 256 [F16 backward_queries_f16_d256_dropout, Bf16 backward_queries_bf16_d256_dropout] 64 x 32, 4, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 32 [F32 backward_queries_f32_d32_dropout] 64 x 32, 4, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 64 [F32 backward_queries_f32_d64_dropout] 64 x 32, 4, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 96 [F32 backward_queries_f32_d96_dropout] 64 x 32, 4, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 128 [F32 backward_queries_f32_d128_dropout] 64 x 32, 4, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 192 [F32 backward_queries_f32_d192_dropout] 32 x 32, 2, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
            Queries 256 [F32 backward_queries_f32_d256_dropout] 32 x 16, 2, 2, [PROGRAM, DROPOUT], { slots: 2 }, "as the row with programs";
        }
    };
}

/// Calls `$callback!` with every row of the backward pass over packed sequences; see [`for_each_backward_row!`], which has reasons for the tiles
/// that are the same there.
#[macro_export]
macro_rules! for_each_packed_backward_row {
    ($callback:ident) => {
        $callback! {
            PackedDelta 0 [F16 backward_packed_delta_f16, Bf16 backward_packed_delta_bf16, F32 backward_packed_delta_f32] 64 x 0, 8, 3, [], {}, "what a sequence is takes registers, which four thread blocks do not have";
            PackedKeys 32 [F16 backward_packed_keys_f16_d32, Bf16 backward_packed_keys_bf16_d32] 32 x 128, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 1 }, "as of equal sequences";
            PackedKeys 64 [F16 backward_packed_keys_f16_d64, Bf16 backward_packed_keys_bf16_d64] 32 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 1 }, "the registers of two fragments do not hold what a sequence is as well";
            PackedKeys 96 [F16 backward_packed_keys_f16_d96, Bf16 backward_packed_keys_bf16_d96] 32 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 1 }, "the registers of 64 queries do not hold a softcap and what a sequence is as well";
            PackedKeys 128 [F16 backward_packed_keys_f16_d128, Bf16 backward_packed_keys_bf16_d128] 32 x 64, 4, 2, [SOFTCAP], { stages: 2, columns: 1 }, "as of equal sequences";
            PackedKeys 128 [F16 backward_packed_keys_f16_d128_program, Bf16 backward_packed_keys_bf16_d128_program] 16 x 64, 4, 2, [PROGRAM], { stages: 2, columns: 1 }, "as of equal sequences";
            PackedKeys 192 [F16 backward_packed_keys_f16_d192, Bf16 backward_packed_keys_bf16_d192] 32 x 32, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 2 }, "as of equal sequences";
            PackedKeys 256 [F16 backward_packed_keys_f16_d256, Bf16 backward_packed_keys_bf16_d256] 32 x 32, 4, 2, [SOFTCAP, PROGRAM], { stages: 1, columns: 2 }, "as of equal sequences";
            PackedKeys 32 [F32 backward_packed_keys_f32_d32] 32 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 1 }, "as of equal sequences";
            PackedKeys 64 [F32 backward_packed_keys_f32_d64] 32 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 2, columns: 1 }, "as of equal sequences";
            PackedKeys 96 [F32 backward_packed_keys_f32_d96] 32 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 1, columns: 1 }, "as of equal sequences";
            PackedKeys 128 [F32 backward_packed_keys_f32_d128] 16 x 64, 4, 2, [SOFTCAP, PROGRAM], { stages: 1, columns: 1 }, "as of equal sequences";
            PackedKeys 192 [F32 backward_packed_keys_f32_d192] 16 x 32, 4, 2, [SOFTCAP, PROGRAM], { stages: 1, columns: 2 }, "as of equal sequences";
            PackedKeys 256 [F32 backward_packed_keys_f32_d256] 16 x 16, 2, 2, [SOFTCAP, PROGRAM], { stages: 1, columns: 2 }, "as of equal sequences";
            PackedQueries 32 [F16 backward_packed_queries_f16_d32, Bf16 backward_packed_queries_bf16_d32] 64 x 64, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as d64, with a softcap";
            PackedQueries 64 [F16 backward_packed_queries_f16_d64, Bf16 backward_packed_queries_bf16_d64] 64 x 64, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "the registers of two fragments do not hold what a sequence is as well";
            PackedQueries 96 [F16 backward_packed_queries_f16_d96, Bf16 backward_packed_queries_bf16_d96] 128 x 32, 4, 2, [SOFTCAP], { slots: 2 }, "as of equal sequences";
            PackedQueries 96 [F16 backward_packed_queries_f16_d96_program, Bf16 backward_packed_queries_bf16_d96_program] 64 x 32, 4, 2, [PROGRAM], { slots: 2 }, "the registers of two fragments do not hold a program";
            PackedQueries 128 [F16 backward_packed_queries_f16_d128, Bf16 backward_packed_queries_bf16_d128] 64 x 64, 4, 2, [SOFTCAP], { slots: 2 }, "as d64; 64 KiB, two thread blocks on sm_80";
            PackedQueries 128 [F16 backward_packed_queries_f16_d128_program, Bf16 backward_packed_queries_bf16_d128_program] 64 x 32, 4, 2, [PROGRAM], { slots: 2 }, "the registers of 64 keys do not hold a program";
            PackedQueries 192 [F16 backward_packed_queries_f16_d192, Bf16 backward_packed_queries_bf16_d192] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as of equal sequences";
            PackedQueries 256 [F16 backward_packed_queries_f16_d256, Bf16 backward_packed_queries_bf16_d256] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as of equal sequences";
            PackedQueries 32 [F32 backward_packed_queries_f32_d32] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as of equal sequences";
            PackedQueries 64 [F32 backward_packed_queries_f32_d64] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as of equal sequences";
            PackedQueries 96 [F32 backward_packed_queries_f32_d96] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as of equal sequences";
            PackedQueries 128 [F32 backward_packed_queries_f32_d128] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as of equal sequences";
            PackedQueries 192 [F32 backward_packed_queries_f32_d192] 32 x 32, 2, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as of equal sequences";
            PackedQueries 256 [F32 backward_packed_queries_f32_d256] 32 x 16, 2, 2, [SOFTCAP, PROGRAM], { slots: 2 }, "as of equal sequences";
        }
    };
}

/// Calls `$callback!` with every row of the backward pass that is Hopper's alone; see [`for_each_backward_row!`].
#[macro_export]
macro_rules! for_each_fused_backward_row {
    ($callback:ident) => {
        $callback! {
            // dq, dk and dv on Hopper: a block of keys walks over the queries that see it, and adds to the sums of dq.
            Fused 64 [F16 backward_fused_f16_d64, Bf16 backward_fused_bf16_d64] 128 x 128, 12, 1, [], { kv_stages: 2, stages: 2, dscores_stages: 2 }, "scores of 128 queries by 64 keys, their gradients, and those of 64 keys and values fill the registers of a warpgroup; a second buffer of keys, +7 % at 512 rows";
            Fused 96 [F16 backward_fused_f16_d96, Bf16 backward_fused_bf16_d96] 64 x 128, 12, 1, [], { kv_stages: 1, stages: 2, dscores_stages: 3 }, "as d128";
            Fused 128 [F16 backward_fused_f16_d128, Bf16 backward_fused_bf16_d128] 64 x 128, 12, 1, [], { kv_stages: 1, stages: 2, dscores_stages: 3 }, "as d64, with half of the queries; a third buffer of the gradients of scores, +3 % at 2048 rows causal, leaves no room for a second of keys";
            // The same, for equal bits from run to run.
            Ordered 64 [F16 backward_ordered_f16_d64, Bf16 backward_ordered_bf16_d64] 128 x 128, 12, 1, [], { kv_stages: 2, stages: 2, dscores_stages: 2 }, "the tile of the fused pass";
            Ordered 96 [F16 backward_ordered_f16_d96, Bf16 backward_ordered_bf16_d96] 64 x 128, 12, 1, [], { kv_stages: 1, stages: 2, dscores_stages: 3 }, "the tile of the fused pass";
            Ordered 128 [F16 backward_ordered_f16_d128, Bf16 backward_ordered_bf16_d128] 64 x 128, 12, 1, [], { kv_stages: 1, stages: 2, dscores_stages: 3 }, "the tile of the fused pass";
            // From the sums to dq.
            Round 64 [F16 backward_round_f16_d64, Bf16 backward_round_bf16_d64] 128 x 0, 8, 2, [], {}, "the tile of the fused pass";
            Round 96 [F16 backward_round_f16_d96, Bf16 backward_round_bf16_d96] 64 x 0, 8, 2, [], {}, "the tile of the fused pass";
            Round 128 [F16 backward_round_f16_d128, Bf16 backward_round_bf16_d128] 64 x 0, 8, 2, [], {}, "the tile of the fused pass";
        }
    };
}
