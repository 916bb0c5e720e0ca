//! The rows of attention: every compiled kernel, with its tile and its policies. Data, and nothing that computes.

/// Calls `$callback!` with every row of forward attention. A new head dim or tile is a row here, and nothing else.
///
/// Row: `pass dim_qk/dim_v [dtype symbol, ..] q_block x kv_block, warps, min_ctas, from_keys, [feature, ..], { policy, .. }, "why this tile";`
/// - `dim_qk`, `dim_v`: columns of queries and keys, and of values and output; 0 where the pass has none.
/// - `dtype`: element type of q, k and v, and of the output.
/// - `q_block`, `kv_block`: rows of the query tile and of the key and value tiles.
/// - `min_ctas`: thread blocks that must fit on a multiprocessor, which bounds the registers of a thread.
/// - `from_keys`: keys that a query row must see on average for this tile to be chosen before others of the head dim.
/// - the features, of [`features`](crate::families::forward::features), are those that the entry runs with, each and together, without a
///   spill. Of rows that differ in nothing else but their tile, a call takes the first that accepts its features.
/// - the policies are the fields of the pass's struct in [`policy`](crate::families::forward::policy), which says what each gains.
#[macro_export]
macro_rules! for_each_forward_row {
    ($callback:ident) => {
        $callback! {
            // Naive, scores = q k^T: one tile a thread block, bound by writing f32 scores.
            Scores 32/0 [F16 naive_scores_f16_d32, Bf16 naive_scores_bf16_d32] 128 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "as d128";
            Scores 64/0 [F16 naive_scores_f16_d64, Bf16 naive_scores_bf16_d64] 128 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "as d128";
            Scores 96/0 [F16 naive_scores_f16_d96, Bf16 naive_scores_bf16_d96] 128 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "as d128";
            Scores 128/0 [F16 naive_scores_f16_d128, Bf16 naive_scores_bf16_d128] 128 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "two 16-row fragments a warp reuse each key fragment";
            Scores 192/0 [F16 naive_scores_f16_d192, Bf16 naive_scores_bf16_d192] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "as d256";
            Scores 256/0 [F16 naive_scores_f16_d256, Bf16 naive_scores_bf16_d256] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "64 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            Scores 32/0 [F32 naive_scores_f32_d32] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "as d128";
            Scores 64/0 [F32 naive_scores_f32_d64] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "as d128";
            Scores 96/0 [F32 naive_scores_f32_d96] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "as d128";
            Scores 128/0 [F32 naive_scores_f32_d128] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "48 KiB of tiles";
            Scores 192/0 [F32 naive_scores_f32_d192] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "as d256";
            Scores 256/0 [F32 naive_scores_f32_d256] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "96 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            // Naive, probs = softmax(scores): one warp a row, no tile; head dim plays no part.
            Softmax 0/0 [F16 naive_softmax_f16, Bf16 naive_softmax_bf16, F32 naive_softmax_f32] 4 x 0, 4, 4, 0, [SOFTCAP, PROGRAM, SINK], {}, "one warp a row, bound by reading scores";
            Softmax 0/0 [F16 naive_softmax_f16_dropout, Bf16 naive_softmax_bf16_dropout, F32 naive_softmax_f32_dropout] 4 x 0, 4, 4, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], {}, "as without dropout, which would be in the loop over the columns";
            // Naive, out = probs v.
            Output 0/32 [F16 naive_output_f16_d32, Bf16 naive_output_bf16_d32] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as d128";
            Output 0/64 [F16 naive_output_f16_d64, Bf16 naive_output_bf16_d64] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as d128";
            Output 0/96 [F16 naive_output_f16_d96, Bf16 naive_output_bf16_d96] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as d128";
            Output 0/128 [F16 naive_output_f16_d128, Bf16 naive_output_bf16_d128] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "one key block of probabilities and values is loaded while the last is multiplied";
            Output 0/192 [F16 naive_output_f16_d192, Bf16 naive_output_bf16_d192] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as d128";
            Output 0/256 [F16 naive_output_f16_d256, Bf16 naive_output_bf16_d256] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "80 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            Output 0/32 [F32 naive_output_f32_d32] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as d128";
            Output 0/64 [F32 naive_output_f32_d64] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as d128";
            Output 0/96 [F32 naive_output_f32_d96] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as d128";
            Output 0/128 [F32 naive_output_f32_d128] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "48 KiB of tiles";
            Output 0/192 [F32 naive_output_f32_d192] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as d256";
            Output 0/256 [F32 naive_output_f32_d256] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "80 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            // v1: keys split over warps. The exchange buffer (warps x q_block x head_dim x 4 bytes) keeps q_block small.
            V1 32/32 [F16 v1_f16_d32, Bf16 v1_bf16_d32] 32 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "as d64";
            V1 64/64 [F16 v1_f16_d64, Bf16 v1_bf16_d64] 32 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "52 KiB of shared memory, 32 of them for the exchange";
            V1 96/96 [F16 v1_f16_d96, Bf16 v1_bf16_d96] 32 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "as d64";
            V1 128/128 [F16 v1_f16_d128, Bf16 v1_bf16_d128] 16 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "32 query rows would need 104 KiB";
            V1 192/192 [F16 v1_f16_d192, Bf16 v1_bf16_d192] 16 x 32, 2, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "as d256";
            V1 256/256 [F16 v1_f16_d256, Bf16 v1_bf16_d256] 16 x 32, 2, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "four warps would need 136 KiB";
            V1 32/32 [F32 v1_f32_d32] 16 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "as d128";
            V1 64/64 [F32 v1_f32_d64] 16 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "as d128";
            V1 96/96 [F32 v1_f32_d96] 16 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "as d128";
            V1 128/128 [F32 v1_f32_d128] 16 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "eight keys a warp, 72 KiB";
            V1 192/192 [F32 v1_f32_d192] 16 x 16, 2, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "as d256";
            V1 256/256 [F32 v1_f32_d256] 16 x 16, 2, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2 }, "eight keys a warp, 80 KiB";
            // v1 with dropout: rows of their own, whose text has it in the loop over the keys. The registers of f32 at 256 dims do not hold it.
            V1 32/32 [F16 v1_f16_d32_dropout, Bf16 v1_bf16_d32_dropout] 32 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            V1 64/64 [F16 v1_f16_d64_dropout, Bf16 v1_bf16_d64_dropout] 32 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            V1 96/96 [F16 v1_f16_d96_dropout, Bf16 v1_bf16_d96_dropout] 32 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            V1 128/128 [F16 v1_f16_d128_dropout, Bf16 v1_bf16_d128_dropout] 16 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            V1 192/192 [F16 v1_f16_d192_dropout, Bf16 v1_bf16_d192_dropout] 16 x 32, 2, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            V1 256/256 [F16 v1_f16_d256_dropout, Bf16 v1_bf16_d256_dropout] 16 x 32, 2, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            V1 32/32 [F32 v1_f32_d32_dropout] 16 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            V1 64/64 [F32 v1_f32_d64_dropout] 16 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            V1 96/96 [F32 v1_f32_d96_dropout] 16 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            V1 128/128 [F32 v1_f32_d128_dropout] 16 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            V1 192/192 [F32 v1_f32_d192_dropout] 16 x 16, 2, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2 }, "as the row without dropout";
            // v2: query rows split over warps, no exchange.
            V2 32/32 [F16 v2_f16_d32, Bf16 v2_bf16_d32] 128 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "bound by exponentials: 128 keys gain nothing";
            V2 64/64 [F16 v2_f16_d64, Bf16 v2_bf16_d64] 128 x 128, 4, 2, 0, [SINK], { slots: 2, early_values: true }, "few dims leave registers for 128 keys: half the barriers and rescales, +14 % over 64 keys";
            V2 64/64 [F16 v2_f16_d64_narrow, Bf16 v2_bf16_d64_narrow] 128 x 64, 4, 2, 0, [SOFTCAP], { slots: 2, early_values: true }, "the registers of 128 keys do not hold a softcap as well";
            V2 64/64 [F16 v2_f16_d64_program, Bf16 v2_bf16_d64_program] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "the registers of the tile above do not hold a program";
            V2 96/96 [F16 v2_f16_d96, Bf16 v2_bf16_d96] 128 x 64, 4, 2, 0, [SINK], { slots: 2, early_values: true }, "as d128";
            V2 96/96 [F16 v2_f16_d96_program, Bf16 v2_bf16_d96_program] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "the registers of the tile above do not hold a program";
            V2 128/128 [F16 v2_f16_d128, Bf16 v2_bf16_d128] 128 x 64, 4, 2, 0, [SINK], { slots: 2, early_values: false }, "two 16-row fragments a warp reuse each key and value fragment; 64 KiB, two thread blocks on sm_80 too";
            V2 128/128 [F16 v2_f16_d128_program, Bf16 v2_bf16_d128_program] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "the registers of the tile above do not hold a program";
            V2 192/192 [F16 v2_f16_d192, Bf16 v2_bf16_d192] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "as d256";
            V2 256/256 [F16 v2_f16_d256, Bf16 v2_bf16_d256] 64 x 64, 4, 2, 0, [SOFTCAP, SINK], { slots: 2, early_values: true }, "the accumulator of one 16-row fragment fits; 8 warps on 128 rows are 8 to 20 % slower; 96 KiB fits sm_86 and sm_89";
            V2 256/256 [F16 v2_f16_d256_program, Bf16 v2_bf16_d256_program] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "the registers of the tile above do not hold a program";
            V2 32/32 [F32 v2_f32_d32] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "as d128";
            V2 64/64 [F32 v2_f32_d64] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "as d128";
            V2 96/96 [F32 v2_f32_d96] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "as d128";
            V2 128/128 [F32 v2_f32_d128] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: false }, "64 KiB";
            V2 192/192 [F32 v2_f32_d192] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "96 KiB fits sm_86 and sm_89";
            V2 256/256 [F32 v2_f32_d256] 64 x 16, 4, 2, 0, [SOFTCAP, PROGRAM, SINK], { slots: 2, early_values: true }, "96 KiB fits sm_86 and sm_89";
            // v2 with dropout, likewise.
            V2 32/32 [F16 v2_f16_d32_dropout, Bf16 v2_bf16_d32_dropout] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            V2 64/64 [F16 v2_f16_d64_dropout, Bf16 v2_bf16_d64_dropout] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            V2 96/96 [F16 v2_f16_d96_dropout, Bf16 v2_bf16_d96_dropout] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            V2 128/128 [F16 v2_f16_d128_dropout, Bf16 v2_bf16_d128_dropout] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            V2 192/192 [F16 v2_f16_d192_dropout, Bf16 v2_bf16_d192_dropout] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            V2 256/256 [F16 v2_f16_d256_dropout, Bf16 v2_bf16_d256_dropout] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            V2 32/32 [F32 v2_f32_d32_dropout] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            V2 64/64 [F32 v2_f32_d64_dropout] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            V2 96/96 [F32 v2_f32_d96_dropout] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            V2 128/128 [F32 v2_f32_d128_dropout] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: false }, "as the row with programs";
            V2 192/192 [F32 v2_f32_d192_dropout] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            V2 256/256 [F32 v2_f32_d256_dropout] 64 x 16, 4, 2, 0, [SOFTCAP, PROGRAM, DROPOUT, SINK], { slots: 2, early_values: true }, "as the row with programs";
            // v3: one loading warpgroup, the others multiply 64 query rows each.
            V3 64/64 [F16 v3_f16_d64, Bf16 v3_bf16_d64] 128 x 128, 12, 1, 0, [],
                { stages: 3, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: true, load_registers: 24, math_registers: 240 },
                "short rows: 192 query rows would leave a quarter of a tile empty at 512; a third stage, +2 % there";
            V3 64/64 [F16 v3_f16_d64_long, Bf16 v3_bf16_d64_long] 192 x 128, 16, 1, 1152, [],
                { stages: 2, q_buffers: 2, turns: true, lazy: true, skips: true, lse_last: true, remembers: false, load_registers: 32, math_registers: 160 },
                "three warpgroups hide more of each other's waits than two, +6 to 17 %";
            V3 96/96 [F16 v3_f16_d96, Bf16 v3_bf16_d96] 128 x 128, 12, 1, 0, [],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as d128";
            V3 96/96 [F16 v3_f16_d96_long, Bf16 v3_bf16_d96_long] 192 x 96, 16, 1, 1536, [],
                { stages: 2, q_buffers: 2, turns: true, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 32, math_registers: 160 },
                "as d64_long, +2 to 13 %; 112 keys are 2 % slower at 3072 rows and no faster at 16384";
            V3 128/128 [F16 v3_f16_d128, Bf16 v3_bf16_d128] 128 x 128, 12, 1, 0, [],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "64 keys are 4 to 12 % slower up to 2048 rows, and 160 at 1024";
            V3 128/128 [F16 v3_f16_d128_long, Bf16 v3_bf16_d128_long] 192 x 80, 16, 1, 2304, [],
                { stages: 3, q_buffers: 2, turns: true, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 32, math_registers: 160 },
                "as d64_long, +1 to 6 %; with 96 keys the registers of three warpgroups spill, 64 are up to 7 % slower";
            V3 192/192 [F16 v3_f16_d192, Bf16 v3_bf16_d192] 128 x 64, 12, 1, 0, [],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "short rows: fewer of 64 keys are hidden than of 96, +3 to 9 % under a causal mask up to 2048 rows";
            V3 192/192 [F16 v3_f16_d192_long, Bf16 v3_bf16_d192_long] 128 x 96, 12, 1, 2048, [],
                { stages: 2, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "longer steps, +1 to 4 % without a mask";
            V3 256/256 [F16 v3_f16_d256, Bf16 v3_bf16_d256] 128 x 64, 12, 1, 0, [],
                { stages: 2, q_buffers: 1, turns: false, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "80 keys, the most whose two stages fit, are 1 to 7 % slower up to 4096 rows: fewer of 64 are hidden or missing";
            // v3 with sinks: the plain tiles, since a sink comes in behind the steps.
            V3 64/64 [F16 v3_f16_d64_sink, Bf16 v3_bf16_d64_sink] 128 x 128, 12, 1, 0, [SINK],
                { stages: 3, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: true, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            V3 64/64 [F16 v3_f16_d64_sink_long, Bf16 v3_bf16_d64_sink_long] 192 x 128, 16, 1, 1152, [SINK],
                { stages: 2, q_buffers: 2, turns: true, lazy: true, skips: true, lse_last: true, remembers: false, load_registers: 32, math_registers: 160 },
                "as the plain row of long rows";
            V3 96/96 [F16 v3_f16_d96_sink, Bf16 v3_bf16_d96_sink] 128 x 128, 12, 1, 0, [SINK],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            V3 96/96 [F16 v3_f16_d96_sink_long, Bf16 v3_bf16_d96_sink_long] 192 x 96, 16, 1, 1536, [SINK],
                { stages: 2, q_buffers: 2, turns: true, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 32, math_registers: 160 },
                "as the plain row of long rows";
            V3 128/128 [F16 v3_f16_d128_sink, Bf16 v3_bf16_d128_sink] 128 x 128, 12, 1, 0, [SINK],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            V3 128/128 [F16 v3_f16_d128_sink_long, Bf16 v3_bf16_d128_sink_long] 192 x 80, 16, 1, 2304, [SINK],
                { stages: 3, q_buffers: 2, turns: true, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 32, math_registers: 160 },
                "as the plain row of long rows";
            V3 192/192 [F16 v3_f16_d192_sink, Bf16 v3_bf16_d192_sink] 128 x 64, 12, 1, 0, [SINK],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            V3 192/192 [F16 v3_f16_d192_sink_long, Bf16 v3_bf16_d192_sink_long] 128 x 96, 12, 1, 2048, [SINK],
                { stages: 2, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of long rows";
            V3 256/256 [F16 v3_f16_d256_sink, Bf16 v3_bf16_d256_sink] 128 x 64, 12, 1, 0, [SINK],
                { stages: 2, q_buffers: 1, turns: false, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            // v3 with other features: rows of their own, because a test that is off would still move the schedule of the plain ones. Scores that change need
            // registers: fewer keys at a time.
            V3 64/64 [F16 v3_f16_d64_program, Bf16 v3_bf16_d64_program] 128 x 112, 12, 1, 0, [PROGRAM, SINK],
                { stages: 3, q_buffers: 1, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "with 128 keys a bias of 16 bits spills, and with 96 a cap of tanh";
            V3 64/64 [F16 v3_f16_d64_scored, Bf16 v3_bf16_d64_scored] 128 x 128, 12, 1, 0, [SOFTCAP, PROGRAM, SINK],
                { stages: 3, q_buffers: 1, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows, but for the second buffer of queries: the step between two tiles spills with a softcap";
            V3 96/96 [F16 v3_f16_d96_scored, Bf16 v3_bf16_d96_scored] 128 x 128, 12, 1, 0, [SOFTCAP, SINK],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows: +6 % over 96 keys";
            V3 96/96 [F16 v3_f16_d96_program, Bf16 v3_bf16_d96_program] 128 x 96, 12, 1, 0, [SOFTCAP, PROGRAM, SINK],
                { stages: 2, q_buffers: 1, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "with 128 keys a cap of tanh spills";
            V3 128/128 [F16 v3_f16_d128_scored, Bf16 v3_bf16_d128_scored] 128 x 128, 12, 1, 0, [SOFTCAP, SINK],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows: +7 % over 80 keys, +4 % over 192 x 64";
            V3 128/128 [F16 v3_f16_d128_program, Bf16 v3_bf16_d128_program] 128 x 80, 12, 1, 0, [SOFTCAP, PROGRAM, SINK],
                { stages: 3, q_buffers: 1, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "with 96 keys a bias spills, with 128 most programs do";
            V3 192/192 [F16 v3_f16_d192_program, Bf16 v3_bf16_d192_program] 128 x 48, 12, 1, 0, [PROGRAM, SINK],
                { stages: 3, q_buffers: 1, turns: false, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "with 64 keys a bias spills 52 bytes; here a cap of tanh 12";
            V3 256/256 [F16 v3_f16_d256_program, Bf16 v3_bf16_d256_program] 128 x 48, 12, 1, 0, [PROGRAM, SINK],
                { stages: 2, q_buffers: 1, turns: false, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "with 64 keys most programs spill; here a bias and a cap of tanh do, 64 and 100 bytes";
            // v3 with lists of the blocks that a program leaves, see `families::blocks`. A program that only hides keys runs in few blocks: its rows have
            // the tiles of plain ones.
            V3 64/64 [F16 v3_f16_d64_masked, Bf16 v3_bf16_d64_masked] 128 x 128, 12, 1, 0, [PROGRAM, BLOCKS, MASK_ONLY, SINK],
                { stages: 3, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            V3 96/96 [F16 v3_f16_d96_masked, Bf16 v3_bf16_d96_masked] 128 x 128, 12, 1, 0, [PROGRAM, BLOCKS, MASK_ONLY, SINK],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            V3 128/128 [F16 v3_f16_d128_masked, Bf16 v3_bf16_d128_masked] 128 x 128, 12, 1, 0, [PROGRAM, BLOCKS, MASK_ONLY, SINK],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            V3 192/192 [F16 v3_f16_d192_masked, Bf16 v3_bf16_d192_masked] 128 x 64, 12, 1, 0, [PROGRAM, BLOCKS, MASK_ONLY, SINK],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            V3 256/256 [F16 v3_f16_d256_masked, Bf16 v3_bf16_d256_masked] 128 x 64, 12, 1, 0, [PROGRAM, BLOCKS, MASK_ONLY, SINK],
                { stages: 2, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            V3 64/64 [F16 v3_f16_d64_listed, Bf16 v3_bf16_d64_listed] 128 x 112, 12, 1, 0, [PROGRAM, BLOCKS, SINK],
                { stages: 3, q_buffers: 1, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the row with programs";
            V3 96/96 [F16 v3_f16_d96_listed, Bf16 v3_bf16_d96_listed] 128 x 96, 12, 1, 0, [SOFTCAP, PROGRAM, BLOCKS, SINK],
                { stages: 2, q_buffers: 1, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the row with programs";
            V3 128/128 [F16 v3_f16_d128_listed, Bf16 v3_bf16_d128_listed] 128 x 80, 12, 1, 0, [SOFTCAP, PROGRAM, BLOCKS, SINK],
                { stages: 3, q_buffers: 1, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the row with programs";
            V3 192/192 [F16 v3_f16_d192_listed, Bf16 v3_bf16_d192_listed] 128 x 48, 12, 1, 0, [SOFTCAP, PROGRAM, BLOCKS, SINK],
                { stages: 3, q_buffers: 1, turns: false, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the row with programs";
            V3 256/256 [F16 v3_f16_d256_listed, Bf16 v3_bf16_d256_listed] 128 x 48, 12, 1, 0, [SOFTCAP, PROGRAM, BLOCKS, SINK],
                { stages: 2, q_buffers: 1, turns: false, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the row with programs";
            V3 192/192 [F16 v3_f16_d192_scored, Bf16 v3_bf16_d192_scored] 128 x 64, 12, 1, 0, [SOFTCAP, PROGRAM, SINK],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
            V3 256/256 [F16 v3_f16_d256_scored, Bf16 v3_bf16_d256_scored] 128 x 64, 12, 1, 0, [SOFTCAP, PROGRAM, SINK],
                { stages: 2, q_buffers: 1, turns: false, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 24, math_registers: 240 },
                "as the plain row of short rows";
        }
    };
}
