//! The rows of softmax. Data, and nothing that computes.

/// Calls `$callback!` with every row:
/// `Pass sharing threads x vectors ahead tiles [type symbol, ..] threads_of_a_thread_block, thread blocks of a multiprocessor, "why";`.
///
/// A row of a tensor lies in the registers of `threads`, each of which has `vectors` times 16 bytes of x, so that f32 has half as many columns. `sharing`:
///
/// - `Alone`: a row is that of one thread block, or of some of its threads;
/// - `Kept`: the thread blocks of a cluster share a row, which lies in their shared memory, in `ahead` tiles as above;
/// - `Again`: no register holds a row, which is read twice.
#[macro_export]
macro_rules! for_each_softmax_row {
    ($callback:ident) => {
        $callback! {
            Forward Alone 4 x 4 ahead 0 [F16 softmax_f16_4x4, Bf16 softmax_bf16_4x4, F32 softmax_f32_4x4] 128, 8,
                "128 columns, a head: eight rows a warp; 64 KiB on their way to a multiprocessor";
            Forward Alone 8 x 4 ahead 0 [F16 softmax_f16_8x4, Bf16 softmax_bf16_8x4, F32 softmax_f32_8x4] 128, 8,
                "as 4 x 4, four rows a warp";
            Forward Alone 16 x 4 ahead 0 [F16 softmax_f16_16x4, Bf16 softmax_bf16_16x4, F32 softmax_f32_16x4] 128, 8,
                "as 4 x 4, two rows a warp";
            Forward Alone 32 x 4 ahead 0 [F16 softmax_f16_32x4, Bf16 softmax_bf16_32x4, F32 softmax_f32_32x4] 128, 8,
                "a warp a row waits for no other; 64 KiB on their way to a multiprocessor";
            Forward Alone 64 x 4 ahead 0 [F16 softmax_f16_64x4, Bf16 softmax_bf16_64x4, F32 softmax_f32_64x4] 128, 8,
                "two rows a thread block, which wait apart";
            Forward Alone 128 x 4 ahead 0 [F16 softmax_f16_128x4, Bf16 softmax_bf16_128x4, F32 softmax_f32_128x4] 128, 8,
                "as many bytes on their way, in eight rows that wait apart";
            Forward Alone 256 x 4 ahead 0 [F16 softmax_f16_256x4, Bf16 softmax_bf16_256x4, F32 softmax_f32_256x4] 256, 4,
                "as 128 x 4, in four rows";
            Forward Alone 512 x 4 ahead 0 [F16 softmax_f16_512x4, Bf16 softmax_bf16_512x4, F32 softmax_f32_512x4] 512, 2,
                "as 128 x 4, in two rows";
            Forward Kept 256 x 2 ahead 4 [F16 softmax_kept_f16, Bf16 softmax_kept_bf16, F32 softmax_kept_f32] 256, 5,
                "32 KiB a thread block on their way, 160 to a multiprocessor, in five of different rows that wait apart";
            Forward Alone 1024 x 4 ahead 0 [F16 softmax_f16_1024x4, Bf16 softmax_bf16_1024x4, F32 softmax_f32_1024x4] 1024, 1,
                "the longest row that the registers of a multiprocessor hold";
            Forward Again 512 x 4 ahead 0 [F16 softmax_again_f16, Bf16 softmax_again_bf16, F32 softmax_again_f32] 512, 2,
                "rows of any length; two rows a multiprocessor, so that caches may hold them from one reading to the next";
            Backward Alone 8 x 2 ahead 0 [F16 softmax_backward_f16_8x2, Bf16 softmax_backward_bf16_8x2, F32 softmax_backward_f32_8x2] 128, 8,
                "as forward; two tensors a row: half the vectors";
            Backward Alone 16 x 2 ahead 0 [F16 softmax_backward_f16_16x2, Bf16 softmax_backward_bf16_16x2, F32 softmax_backward_f32_16x2] 128, 8,
                "as 8 x 2";
            Backward Alone 32 x 2 ahead 0 [F16 softmax_backward_f16_32x2, Bf16 softmax_backward_bf16_32x2, F32 softmax_backward_f32_32x2] 128, 8,
                "as 8 x 2";
            Backward Alone 64 x 2 ahead 0 [F16 softmax_backward_f16_64x2, Bf16 softmax_backward_bf16_64x2, F32 softmax_backward_f32_64x2] 128, 8,
                "as 8 x 2";
            Backward Alone 128 x 2 ahead 0 [F16 softmax_backward_f16_128x2, Bf16 softmax_backward_bf16_128x2, F32 softmax_backward_f32_128x2] 128, 8,
                "as 32 x 2";
            Backward Alone 256 x 2 ahead 0 [F16 softmax_backward_f16_256x2, Bf16 softmax_backward_bf16_256x2, F32 softmax_backward_f32_256x2] 256, 4,
                "as 32 x 2";
            Backward Alone 512 x 2 ahead 0 [F16 softmax_backward_f16_512x2, Bf16 softmax_backward_bf16_512x2, F32 softmax_backward_f32_512x2] 512, 2,
                "as 32 x 2";
            Backward Kept 256 x 2 ahead 4
                [F16 softmax_backward_kept_f16, Bf16 softmax_backward_kept_bf16, F32 softmax_backward_kept_f32] 256, 3,
                "64 KiB a thread block on their way, 192 to a multiprocessor";
            Backward Alone 1024 x 2 ahead 0 [F16 softmax_backward_f16_1024x2, Bf16 softmax_backward_bf16_1024x2, F32 softmax_backward_f32_1024x2] 1024, 1,
                "the longest row that the registers of a multiprocessor hold";
            Backward Again 512 x 2 ahead 0 [F16 softmax_backward_again_f16, Bf16 softmax_backward_again_bf16, F32 softmax_backward_again_f32] 512, 2,
                "as forward";
        }
    };
}
