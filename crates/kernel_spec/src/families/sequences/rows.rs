//! The rows of attention over sequences. Data, and nothing that computes.

/// Calls `$callback!` with every row of attention over sequences, laid out as those of
/// [`for_each_forward_row!`](crate::for_each_forward_row).
///
/// - of `Decode`, `kv_block` are the keys that one warp takes at a time;
/// - `Merge` and `Append` have no tiles: `q_block` are the rows of a thread block of `Append`.
#[macro_export]
macro_rules! for_each_sequences_row {
    ($callback:ident) => {
        $callback! {
            // Decode: few query rows, those of a group's heads together. Each warp streams keys of its own.
            Decode 32/32 [F16 decode_f16_d32, Bf16 decode_bf16_d32] 16 x 16, 4, 3, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 6 }, "as d128";
            Decode 64/64 [F16 decode_f16_d64, Bf16 decode_bf16_d64] 16 x 16, 4, 3, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 6 }, "as many bytes on the way as d128";
            Decode 96/96 [F16 decode_f16_d96, Bf16 decode_bf16_d96] 16 x 16, 4, 3, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 4 }, "as d128";
            Decode 128/128 [F16 decode_f16_d128, Bf16 decode_bf16_d128] 16 x 32, 4, 3, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2 }, "32 keys at a time: half the waits of 16; three thread blocks of a multiprocessor have 96 KiB on the way";
            Decode 192/192 [F16 decode_f16_d192, Bf16 decode_bf16_d192] 16 x 16, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 3 }, "as d256";
            Decode 256/256 [F16 decode_f16_d256, Bf16 decode_bf16_d256] 16 x 16, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2 }, "72 KiB: fits the 99 KiB of sm_86 and sm_89";
            Decode 32/32 [F32 decode_f32_d32] 16 x 16, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 4 }, "as d128";
            Decode 64/64 [F32 decode_f32_d64] 16 x 16, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 4 }, "as d128";
            Decode 96/96 [F32 decode_f32_d96] 16 x 16, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 3 }, "as d128";
            Decode 128/128 [F32 decode_f32_d128] 16 x 16, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2 }, "72 KiB";
            Decode 192/192 [F32 decode_f32_d192] 16 x 16, 2, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 3 }, "84 KiB";
            Decode 256/256 [F32 decode_f32_d256] 16 x 8, 4, 1, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2 }, "80 KiB: fits the 99 KiB of sm_86 and sm_89";
            // Decode in clusters: fewer, larger thread blocks, one a multiprocessor.
            ClusterDecode 64/64 [F16 decode_cluster_f16_d64, Bf16 decode_cluster_bf16_d64] 16 x 16, 8, 1, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 6 }, "32 keys at a time are no faster here";
            ClusterDecode 96/96 [F16 decode_cluster_f16_d96, Bf16 decode_cluster_bf16_d96] 16 x 16, 4, 1, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 6 }, "as d128; 12 pairs of columns are shared out among 4 warps";
            ClusterDecode 128/128 [F16 decode_cluster_f16_d128, Bf16 decode_cluster_bf16_d128] 16 x 32, 8, 1, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 3 }, "32 keys at a time: half the waits of 16; 128 KiB on the way";
            ClusterDecode 192/192 [F16 decode_cluster_f16_d192, Bf16 decode_cluster_bf16_d192] 16 x 16, 8, 1, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 4 }, "as d128";
            ClusterDecode 256/256 [F16 decode_cluster_f16_d256, Bf16 decode_cluster_bf16_d256] 16 x 16, 8, 1, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 3 }, "128 KiB on the way";
            // Prefill: v2's tiles over sequences.
            Prefill 32/32 [F16 prefill_f16_d32, Bf16 prefill_bf16_d32] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2, early_values: true }, "as d128";
            Prefill 64/64 [F16 prefill_f16_d64, Bf16 prefill_bf16_d64] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2, early_values: true }, "as d128";
            Prefill 96/96 [F16 prefill_f16_d96, Bf16 prefill_bf16_d96] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 4, early_values: true }, "as d128";
            Prefill 128/128 [F16 prefill_f16_d128, Bf16 prefill_bf16_d128] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 4, early_values: true }, "16 rows a warp: addresses of pages find room in the registers";
            Prefill 192/192 [F16 prefill_f16_d192, Bf16 prefill_bf16_d192] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2, early_values: true }, "as d256";
            Prefill 256/256 [F16 prefill_f16_d256, Bf16 prefill_bf16_d256] 64 x 64, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2, early_values: true }, "96 KiB fits sm_86 and sm_89";
            Prefill 32/32 [F32 prefill_f32_d32] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2, early_values: true }, "as d128";
            Prefill 64/64 [F32 prefill_f32_d64] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2, early_values: true }, "as d128";
            Prefill 96/96 [F32 prefill_f32_d96] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2, early_values: true }, "as d128";
            Prefill 128/128 [F32 prefill_f32_d128] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2, early_values: false }, "64 KiB";
            Prefill 192/192 [F32 prefill_f32_d192] 64 x 32, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2, early_values: true }, "96 KiB fits sm_86 and sm_89";
            Prefill 256/256 [F32 prefill_f32_d256] 64 x 16, 4, 2, 0, [SOFTCAP, PROGRAM, PAGED, SINK], { slots: 2, early_values: false }, "96 KiB fits sm_86 and sm_89";
            // v3 over packed sequences. The load warp finds its tiles in a list, which takes more registers than a schedule; at 256 dims the
            // warpgroups that multiply spill with what is left.
            PackedV3 64/64 [F16 v3_packed_f16_d64, Bf16 v3_packed_bf16_d64] 128 x 128, 12, 1, 0, [],
                { stages: 3, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: true, load_registers: 40, math_registers: 232 },
                "as v3's for short rows";
            PackedV3 96/96 [F16 v3_packed_f16_d96, Bf16 v3_packed_bf16_d96] 128 x 128, 12, 1, 0, [],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 40, math_registers: 232 },
                "as v3's for short rows";
            PackedV3 128/128 [F16 v3_packed_f16_d128, Bf16 v3_packed_bf16_d128] 128 x 128, 12, 1, 0, [],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 40, math_registers: 232 },
                "as v3's for short rows";
            PackedV3 64/64 [F16 v3_packed_f16_d64_long, Bf16 v3_packed_bf16_d64_long] 192 x 128, 16, 1, 1152, [],
                { stages: 2, q_buffers: 2, turns: true, lazy: true, skips: true, lse_last: true, remembers: false, load_registers: 32, math_registers: 160 },
                "as v3's for long rows";
            PackedV3 128/128 [F16 v3_packed_f16_d128_long, Bf16 v3_packed_bf16_d128_long] 192 x 80, 16, 1, 2304, [],
                { stages: 3, q_buffers: 2, turns: true, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 32, math_registers: 160 },
                "as v3's for long rows";
            PackedV3 192/192 [F16 v3_packed_f16_d192, Bf16 v3_packed_bf16_d192] 128 x 64, 12, 1, 0, [],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: true, lse_last: false, remembers: false, load_registers: 40, math_registers: 232 },
                "as v3's for short rows";
            // Few rows: they wait for their keys, so that two thread blocks of a multiprocessor have as many bytes on the way as fit.
            PackedV3 64/64 [F16 v3_packed_f16_d64_few, Bf16 v3_packed_bf16_d64_few] 64 x 128, 8, 2, 0, [],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 40, math_registers: 216 },
                "few rows wait for their keys: two thread blocks of a multiprocessor have 192 KiB on the way";
            PackedV3 128/128 [F16 v3_packed_f16_d128_few, Bf16 v3_packed_bf16_d128_few] 64 x 64, 8, 2, 0, [],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 40, math_registers: 216 },
                "few rows, as d64";
            // v3 over a split of the keys, in pages or not: the sums leave as they are. The load warp looks up pages, with what registers the
            // others leave.
            SplitV3 64/64 [F16 v3_split_f16_d64, Bf16 v3_split_bf16_d64] 128 x 128, 12, 1, 0, [],
                { stages: 3, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 56, math_registers: 224 },
                "as v3's for short rows";
            SplitV3 96/96 [F16 v3_split_f16_d96, Bf16 v3_split_bf16_d96] 128 x 128, 12, 1, 0, [],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 56, math_registers: 224 },
                "as v3's for short rows";
            SplitV3 128/128 [F16 v3_split_f16_d128, Bf16 v3_split_bf16_d128] 128 x 128, 12, 1, 0, [],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 56, math_registers: 224 },
                "as v3's for short rows";
            SplitV3 192/192 [F16 v3_split_f16_d192, Bf16 v3_split_bf16_d192] 128 x 64, 12, 1, 0, [],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 56, math_registers: 224 },
                "as v3's for short rows";
            SplitV3 256/256 [F16 v3_split_f16_d256, Bf16 v3_split_bf16_d256] 128 x 64, 12, 1, 0, [],
                { stages: 2, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 40, math_registers: 232 },
                "as v3's, with few registers for the load warp";
            SplitV3 64/64 [F16 v3_split_f16_d64_few, Bf16 v3_split_bf16_d64_few] 64 x 128, 8, 2, 0, [],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 56, math_registers: 200 },
                "few rows wait for their keys: two thread blocks of a multiprocessor have 192 KiB on the way";
            SplitV3 128/128 [F16 v3_split_f16_d128_few, Bf16 v3_split_bf16_d128_few] 64 x 64, 8, 2, 0, [],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 56, math_registers: 200 },
                "few rows, as d64";
            SplitV3 64/64 [F16 v3_split_f16_d64_scored, Bf16 v3_split_bf16_d64_scored] 128 x 128, 12, 1, 0, [SOFTCAP, PROGRAM],
                { stages: 3, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 56, math_registers: 224 },
                "with features";
            SplitV3 96/96 [F16 v3_split_f16_d96_scored, Bf16 v3_split_bf16_d96_scored] 128 x 128, 12, 1, 0, [SOFTCAP, PROGRAM],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 56, math_registers: 224 },
                "with features";
            SplitV3 128/128 [F16 v3_split_f16_d128_scored, Bf16 v3_split_bf16_d128_scored] 128 x 128, 12, 1, 0, [SOFTCAP, PROGRAM],
                { stages: 2, q_buffers: 2, turns: true, lazy: false, skips: false, lse_last: false, remembers: false, load_registers: 56, math_registers: 224 },
                "with features";
            SplitV3 192/192 [F16 v3_split_f16_d192_scored, Bf16 v3_split_bf16_d192_scored] 128 x 64, 12, 1, 0, [SOFTCAP, PROGRAM],
                { stages: 3, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 56, math_registers: 224 },
                "with features";
            SplitV3 256/256 [F16 v3_split_f16_d256_scored, Bf16 v3_split_bf16_d256_scored] 128 x 64, 12, 1, 0, [SOFTCAP, PROGRAM],
                { stages: 2, q_buffers: 1, turns: false, lazy: true, skips: false, lse_last: false, remembers: false, load_registers: 40, math_registers: 232 },
                "with features";
            Tiles 0/0 [F32 packed_tiles] 0 x 0, 8, 1, 0, [], {}, "one thread block: a few thousand tiles are sorted by length";
            // Merge of the splits.
            Merge 0/0 [F16 merge_f16, Bf16 merge_bf16, F32 merge_f32] 0 x 0, 4, 4, 0, [SOFTCAP, PROGRAM, PAGED, SINK], {}, "a warp a row: bound by reading the splits";
            // Append.
            Append 0/0 [F16 append_f16, Bf16 append_bf16, F32 append_f32] 4 x 0, 4, 4, 0, [PAGED], {}, "a warp a row of a head: bound by moving it";
        }
    };
}
