//! The naive kernel of the backward pass, whose probabilities and gradients of scores lie in device memory: what it is given, and its rows.

use super::BackwardParams;

/// Parameters of the passes of the naive kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NaiveBackwardParams {
    /// Device address of the probabilities `p`, `[batch, q_heads, q_rows, score_stride]` in the element type of q. The gradients of scores
    /// take their place.
    pub probs: u64,
    /// Device address of what `dp - delta` is multiplied with for the gradients of scores, `f32 [batch, q_heads, q_rows, score_stride]`: the
    /// probabilities before they were rounded, times `1 - t^2` with a softcap.
    pub factors: u64,
    /// Elements from one row of either to the next: `kv_rows` rounded up to a multiple of 8, for 16-byte pieces.
    pub score_stride: u64,
    /// Which of two products a pass computes that the list has once. 1, those with dout: `ds` of `dout v^T`, and `dv = p^T dout`; 0, those
    /// with q: `p` of `q k^T`, and `dk = scale ds^T q`. In 64 bits, as what follows it starts at a multiple of 8 bytes.
    pub with_dout: u64,
    /// The problem.
    pub backward: BackwardParams,
}

/// Calls `$callback!` with every row of the naive kernel, in the form of [`for_each_backward_row`](crate::for_each_backward_row).
#[macro_export]
macro_rules! for_each_naive_backward_row {
    ($callback:ident) => {
        $callback! {
            // p of q k^T, and ds = p (dout v^T - delta): one tile a thread block, the tiles of forward's naive scores.
            NaiveScores 32 [F16 backward_naive_scores_f16_d32, Bf16 backward_naive_scores_bf16_d32] 128 x 64, 4, 2, [SOFTCAP, PROGRAM], {}, "as d128";
            NaiveScores 64 [F16 backward_naive_scores_f16_d64, Bf16 backward_naive_scores_bf16_d64] 128 x 64, 4, 2, [SOFTCAP, PROGRAM], {}, "as d128";
            NaiveScores 96 [F16 backward_naive_scores_f16_d96, Bf16 backward_naive_scores_bf16_d96] 128 x 64, 4, 2, [SOFTCAP, PROGRAM], {}, "as d128";
            NaiveScores 128 [F16 backward_naive_scores_f16_d128, Bf16 backward_naive_scores_bf16_d128] 128 x 64, 4, 2, [SOFTCAP, PROGRAM], {}, "two 16-row fragments a warp reuse each key fragment";
            NaiveScores 192 [F16 backward_naive_scores_f16_d192, Bf16 backward_naive_scores_bf16_d192] 64 x 64, 4, 2, [SOFTCAP, PROGRAM], {}, "as d256";
            NaiveScores 256 [F16 backward_naive_scores_f16_d256, Bf16 backward_naive_scores_bf16_d256] 64 x 64, 4, 2, [SOFTCAP, PROGRAM], {}, "64 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            NaiveScores 32 [F32 backward_naive_scores_f32_d32] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], {}, "as d128";
            NaiveScores 64 [F32 backward_naive_scores_f32_d64] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], {}, "as d128";
            NaiveScores 96 [F32 backward_naive_scores_f32_d96] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], {}, "as d128";
            NaiveScores 128 [F32 backward_naive_scores_f32_d128] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], {}, "48 KiB of tiles";
            NaiveScores 192 [F32 backward_naive_scores_f32_d192] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], {}, "as d256";
            NaiveScores 256 [F32 backward_naive_scores_f32_d256] 64 x 32, 4, 2, [SOFTCAP, PROGRAM], {}, "96 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            // With dropout: rows of their own, whose text has it.
            NaiveScores 32 [F16 backward_naive_scores_f16_d32_dropout, Bf16 backward_naive_scores_bf16_d32_dropout] 128 x 64, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 64 [F16 backward_naive_scores_f16_d64_dropout, Bf16 backward_naive_scores_bf16_d64_dropout] 128 x 64, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 96 [F16 backward_naive_scores_f16_d96_dropout, Bf16 backward_naive_scores_bf16_d96_dropout] 128 x 64, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 128 [F16 backward_naive_scores_f16_d128_dropout, Bf16 backward_naive_scores_bf16_d128_dropout] 128 x 64, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 192 [F16 backward_naive_scores_f16_d192_dropout, Bf16 backward_naive_scores_bf16_d192_dropout] 64 x 64, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 256 [F16 backward_naive_scores_f16_d256_dropout, Bf16 backward_naive_scores_bf16_d256_dropout] 64 x 64, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 32 [F32 backward_naive_scores_f32_d32_dropout] 64 x 32, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 64 [F32 backward_naive_scores_f32_d64_dropout] 64 x 32, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 96 [F32 backward_naive_scores_f32_d96_dropout] 64 x 32, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 128 [F32 backward_naive_scores_f32_d128_dropout] 64 x 32, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 192 [F32 backward_naive_scores_f32_d192_dropout] 64 x 32, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            NaiveScores 256 [F32 backward_naive_scores_f32_d256_dropout] 64 x 32, 4, 2, [SOFTCAP, PROGRAM, DROPOUT], {}, "as the row without dropout";
            // dq = scale ds k.
            NaiveQueries 32 [F16 backward_naive_queries_f16_d32, Bf16 backward_naive_queries_bf16_d32] 64 x 64, 4, 2, [], { slots: 2 }, "as d128";
            NaiveQueries 64 [F16 backward_naive_queries_f16_d64, Bf16 backward_naive_queries_bf16_d64] 64 x 64, 4, 2, [], { slots: 2 }, "as d128";
            NaiveQueries 96 [F16 backward_naive_queries_f16_d96, Bf16 backward_naive_queries_bf16_d96] 64 x 64, 4, 2, [], { slots: 2 }, "as d128";
            NaiveQueries 128 [F16 backward_naive_queries_f16_d128, Bf16 backward_naive_queries_bf16_d128] 64 x 64, 4, 2, [], { slots: 2 }, "one block is loaded while the last is multiplied";
            NaiveQueries 192 [F16 backward_naive_queries_f16_d192, Bf16 backward_naive_queries_bf16_d192] 64 x 64, 4, 2, [], { slots: 2 }, "as d128";
            NaiveQueries 256 [F16 backward_naive_queries_f16_d256, Bf16 backward_naive_queries_bf16_d256] 64 x 64, 4, 2, [], { slots: 2 }, "80 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            NaiveQueries 32 [F32 backward_naive_queries_f32_d32] 64 x 32, 4, 2, [], { slots: 2 }, "as d128";
            NaiveQueries 64 [F32 backward_naive_queries_f32_d64] 64 x 32, 4, 2, [], { slots: 2 }, "as d128";
            NaiveQueries 96 [F32 backward_naive_queries_f32_d96] 64 x 32, 4, 2, [], { slots: 2 }, "as d128";
            NaiveQueries 128 [F32 backward_naive_queries_f32_d128] 64 x 32, 4, 2, [], { slots: 2 }, "48 KiB of tiles";
            NaiveQueries 192 [F32 backward_naive_queries_f32_d192] 64 x 32, 4, 2, [], { slots: 2 }, "as d256";
            NaiveQueries 256 [F32 backward_naive_queries_f32_d256] 64 x 32, 4, 2, [], { slots: 2 }, "80 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            // dv = p^T dout, and dk = scale ds^T q.
            NaiveKeys 32 [F16 backward_naive_keys_f16_d32, Bf16 backward_naive_keys_bf16_d32] 64 x 64, 4, 2, [], { slots: 2 }, "as the gradients of queries";
            NaiveKeys 64 [F16 backward_naive_keys_f16_d64, Bf16 backward_naive_keys_bf16_d64] 64 x 64, 4, 2, [], { slots: 2 }, "as the gradients of queries";
            NaiveKeys 96 [F16 backward_naive_keys_f16_d96, Bf16 backward_naive_keys_bf16_d96] 64 x 64, 4, 2, [], { slots: 2 }, "as the gradients of queries";
            NaiveKeys 128 [F16 backward_naive_keys_f16_d128, Bf16 backward_naive_keys_bf16_d128] 64 x 64, 4, 2, [], { slots: 2 }, "as the gradients of queries";
            NaiveKeys 192 [F16 backward_naive_keys_f16_d192, Bf16 backward_naive_keys_bf16_d192] 64 x 64, 4, 2, [], { slots: 2 }, "as the gradients of queries";
            NaiveKeys 256 [F16 backward_naive_keys_f16_d256, Bf16 backward_naive_keys_bf16_d256] 64 x 64, 4, 2, [], { slots: 2 }, "as the gradients of queries";
            NaiveKeys 32 [F32 backward_naive_keys_f32_d32] 32 x 32, 2, 2, [], { slots: 2 }, "as d256";
            NaiveKeys 64 [F32 backward_naive_keys_f32_d64] 32 x 32, 2, 2, [], { slots: 2 }, "as d256";
            NaiveKeys 96 [F32 backward_naive_keys_f32_d96] 32 x 32, 2, 2, [], { slots: 2 }, "as d256";
            NaiveKeys 128 [F32 backward_naive_keys_f32_d128] 32 x 32, 2, 2, [], { slots: 2 }, "as d256";
            NaiveKeys 192 [F32 backward_naive_keys_f32_d192] 32 x 32, 2, 2, [], { slots: 2 }, "as d256";
            NaiveKeys 256 [F32 backward_naive_keys_f32_d256] 32 x 32, 2, 2, [], { slots: 2 }, "a row of 32 weights is the most that one panel holds; 72 KiB of tiles";
        }
    };
}
