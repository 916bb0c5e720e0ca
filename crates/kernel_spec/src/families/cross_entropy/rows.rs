//! The rows of cross-entropy. Data, and nothing that computes.

/// Calls `$callback!` with every row:
/// `Pass sharing threads x vectors ahead tiles [type symbol, ..] threads_of_a_thread_block, thread blocks of a multiprocessor, "why";`.
///
/// Nothing is written but a number a row, so no register holds a row: `threads` let tiles of `vectors` times 16 bytes each pass by, and keep the maximum and
/// the sum of what they have seen; so many `tiles` are on their way into shared memory meanwhile. `sharing`:
///
/// - `Alone`: a row is one tile;
/// - `Cluster`: the thread blocks of a cluster share a row, each with tiles of its own;
/// - `Again`: a row is any number of tiles. Backward, which waits for nobody, has a thread block for each of them.
#[macro_export]
macro_rules! for_each_cross_entropy_row {
    ($callback:ident) => {
        $callback! {
            Forward Alone 4 x 4 ahead 2 [F16 cross_entropy_f16_4x4, Bf16 cross_entropy_bf16_4x4, F32 cross_entropy_f32_4x4] 128, 8,
                "128 classes: eight rows a warp; 128 KiB on their way to a multiprocessor";
            Forward Alone 8 x 4 ahead 2 [F16 cross_entropy_f16_8x4, Bf16 cross_entropy_bf16_8x4, F32 cross_entropy_f32_8x4] 128, 8,
                "as 4 x 4, four rows a warp";
            Forward Alone 16 x 4 ahead 2 [F16 cross_entropy_f16_16x4, Bf16 cross_entropy_bf16_16x4, F32 cross_entropy_f32_16x4] 128, 8,
                "as 4 x 4, two rows a warp";
            Forward Alone 32 x 4 ahead 2 [F16 cross_entropy_f16_32x4, Bf16 cross_entropy_bf16_32x4, F32 cross_entropy_f32_32x4] 128, 8,
                "a warp a row waits for no other; 128 KiB on their way to a multiprocessor";
            Forward Alone 64 x 4 ahead 2 [F16 cross_entropy_f16_64x4, Bf16 cross_entropy_bf16_64x4, F32 cross_entropy_f32_64x4] 128, 8,
                "two rows a thread block, which wait apart";
            Forward Alone 128 x 4 ahead 2 [F16 cross_entropy_f16_128x4, Bf16 cross_entropy_bf16_128x4, F32 cross_entropy_f32_128x4] 128, 8,
                "as many bytes on their way, in eight rows that wait apart";
            Forward Alone 256 x 4 ahead 2 [F16 cross_entropy_f16_256x4, Bf16 cross_entropy_bf16_256x4, F32 cross_entropy_f32_256x4] 256, 4,
                "as 128 x 4, in four rows";
            Forward Again 256 x 4 ahead 2 [F16 cross_entropy_f16, Bf16 cross_entropy_bf16, F32 cross_entropy_f32] 256, 4,
                "as 256 x 4; tiles of the next row are on their way before a row ends";
            Forward Cluster 256 x 4 ahead 2 [F16 cross_entropy_cluster_f16, Bf16 cross_entropy_cluster_bf16, F32 cross_entropy_cluster_f32] 256, 3,
                "as one thread block a row; rows are too few for these to take all multiprocessors";
            Backward Alone 4 x 4 ahead 0 [F16 cross_entropy_backward_f16_4x4, Bf16 cross_entropy_backward_bf16_4x4, F32 cross_entropy_backward_f32_4x4] 128, 8,
                "as forward";
            Backward Alone 8 x 4 ahead 0 [F16 cross_entropy_backward_f16_8x4, Bf16 cross_entropy_backward_bf16_8x4, F32 cross_entropy_backward_f32_8x4] 128, 8,
                "as forward";
            Backward Alone 16 x 4 ahead 0 [F16 cross_entropy_backward_f16_16x4, Bf16 cross_entropy_backward_bf16_16x4, F32 cross_entropy_backward_f32_16x4] 128, 8,
                "as forward";
            Backward Alone 32 x 4 ahead 0
                [F16 cross_entropy_backward_f16_32x4, Bf16 cross_entropy_backward_bf16_32x4, F32 cross_entropy_backward_f32_32x4] 128, 8,
                "as forward";
            Backward Alone 64 x 4 ahead 0 [F16 cross_entropy_backward_f16_64x4, Bf16 cross_entropy_backward_bf16_64x4, F32 cross_entropy_backward_f32_64x4] 128, 8,
                "as forward";
            Backward Again 128 x 4 ahead 0 [F16 cross_entropy_backward_f16, Bf16 cross_entropy_backward_bf16, F32 cross_entropy_backward_f32] 128, 8,
                "a tile a thread block: 64 KiB on their way to a multiprocessor, in eight that wait apart";
            Parts Again 32 x 1 ahead 0 [F32 linear_cross_entropy_parts] 128, 8,
                "a warp a row, whose lanes share out the parts: it waits for no other";
        }
    };
}
