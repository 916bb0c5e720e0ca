//! The rows of RMSNorm and LayerNorm. Data, and nothing that computes.

/// Calls `$callback!` with every row:
/// `Pass sharing threads x vectors ahead rows [type symbol, ..] threads_of_a_thread_block, thread blocks of a multiprocessor, "why";`.
///
/// A row of a tensor lies in the registers of `threads`, each of which has `vectors` times 16 bytes of x, so that f32 has half as many columns, while as many
/// `rows` are on their way into shared memory. `sharing`:
///
/// - `Alone`: a row is that of one thread block, or of some of its threads;
/// - `Cluster`: the thread blocks of a cluster share a row, each as above;
/// - `Again`: no register holds a row, whatever its length, and it is read anew for each sum over it.
///
/// `Columns` reads x and dout once more for the sums over rows, a column a thread; `Parts` adds what thread blocks have summed up, 16 threads a column.
#[macro_export]
macro_rules! for_each_norm_row {
    ($callback:ident) => {
        $callback! {
            Forward Alone 4 x 4 ahead 0 [F16 norm_f16_4x4, Bf16 norm_bf16_4x4, F32 norm_f32_4x4] 128, 7,
                "128 columns, a head: eight rows a warp; 64 bytes a thread on their way";
            Forward Alone 8 x 4 ahead 0 [F16 norm_f16_8x4, Bf16 norm_bf16_8x4, F32 norm_f32_8x4] 128, 7,
                "as 4 x 4, four rows a warp";
            Forward Alone 16 x 4 ahead 0 [F16 norm_f16_16x4, Bf16 norm_bf16_16x4, F32 norm_f32_16x4] 128, 7,
                "as 4 x 4, two rows a warp";
            Forward Alone 32 x 4 ahead 0 [F16 norm_f16_32x4, Bf16 norm_bf16_32x4, F32 norm_f32_32x4] 128, 8,
                "a warp a row waits for no other; 64 bytes a thread on their way";
            Forward Alone 64 x 4 ahead 0 [F16 norm_f16_64x4, Bf16 norm_bf16_64x4, F32 norm_f32_64x4] 128, 7,
                "two rows a thread block; with an eighth thread block a sum with a residual spills";
            Forward Alone 128 x 4 ahead 0 [F16 norm_f16_128x4, Bf16 norm_bf16_128x4, F32 norm_f32_128x4] 128, 7,
                "as 64 x 4, one row";
            Forward Alone 256 x 4 ahead 0 [F16 norm_f16_256x4, Bf16 norm_bf16_256x4, F32 norm_f32_256x4] 256, 4,
                "as 128 x 4, four rows a multiprocessor";
            Forward Alone 512 x 4 ahead 0 [F16 norm_f16_512x4, Bf16 norm_bf16_512x4, F32 norm_f32_512x4] 512, 2,
                "as 128 x 4, two rows a multiprocessor";
            Forward Cluster 256 x 4 ahead 0 [F16 norm_cluster_f16_256x4, Bf16 norm_cluster_bf16_256x4, F32 norm_cluster_f32_256x4] 256, 3,
                "three thread blocks a multiprocessor, of different rows: two load or store while one waits for its cluster; with a fourth they spill";
            Forward Cluster 512 x 8 ahead 1 [F16 norm_cluster_f16_512x8, Bf16 norm_cluster_bf16_512x8, F32 norm_cluster_f32_512x8] 512, 1,
                "the longest rows that eight thread blocks hold; the next row is on its way while one is worked on";
            Forward Alone 1024 x 4 ahead 0 [F16 norm_f16_1024x4, Bf16 norm_bf16_1024x4, F32 norm_f32_1024x4] 1024, 1,
                "the longest row that the registers of a multiprocessor hold";
            Forward Again 1024 x 1 ahead 0 [F16 norm_again_f16, Bf16 norm_again_bf16, F32 norm_again_f32] 1024, 1,
                "rows of any length, which caches hold from one reading to the next";
            Backward Alone 8 x 2 ahead 2 [F16 norm_backward_f16_8x2, Bf16 norm_backward_bf16_8x2, F32 norm_backward_f32_8x2] 128, 3,
                "128 columns, a head; two tensors a row and two sums a column: half the vectors of forward; 64 KiB on their way for a multiprocessor";
            Backward Alone 16 x 2 ahead 2 [F16 norm_backward_f16_16x2, Bf16 norm_backward_bf16_16x2, F32 norm_backward_f32_16x2] 128, 3,
                "as 8 x 2";
            Backward Alone 32 x 2 ahead 2 [F16 norm_backward_f16_32x2, Bf16 norm_backward_bf16_32x2, F32 norm_backward_f32_32x2] 128, 4,
                "as 8 x 2";
            Backward Alone 64 x 2 ahead 2 [F16 norm_backward_f16_64x2, Bf16 norm_backward_bf16_64x2, F32 norm_backward_f32_64x2] 128, 4,
                "as 8 x 2";
            Backward Alone 128 x 2 ahead 2 [F16 norm_backward_f16_128x2, Bf16 norm_backward_bf16_128x2, F32 norm_backward_f32_128x2] 128, 4,
                "as 8 x 2";
            Backward Alone 256 x 2 ahead 2 [F16 norm_backward_f16_256x2, Bf16 norm_backward_bf16_256x2, F32 norm_backward_f32_256x2] 256, 2,
                "as 8 x 2";
            Backward Alone 512 x 2 ahead 2 [F16 norm_backward_f16_512x2, Bf16 norm_backward_bf16_512x2, F32 norm_backward_f32_512x2] 512, 1,
                "as 8 x 2";
            Backward Cluster 128 x 2 ahead 2 [F16 norm_backward_cluster_f16_128x2, Bf16 norm_backward_cluster_bf16_128x2, F32 norm_backward_cluster_f32_128x2] 128, 4,
                "four thread blocks a multiprocessor, of different rows: three work while one waits for its cluster";
            Backward Cluster 512 x 2 ahead 2 [F16 norm_backward_cluster_f16_512x2, Bf16 norm_backward_cluster_bf16_512x2, F32 norm_backward_cluster_f32_512x2] 512, 1,
                "as 8 x 2";
            Backward Again 1024 x 1 ahead 0 [F16 norm_backward_again_f16, Bf16 norm_backward_again_bf16, F32 norm_backward_again_f32] 1024, 1,
                "as forward; the sums over rows are those of `Columns`";
            Columns Again 256 x 1 ahead 0 [F16 norm_columns_f16, Bf16 norm_columns_bf16, F32 norm_columns_f32] 256, 4,
                "neighbours read neighbouring columns, four rows at a time";
            Parts Again 16 x 1 ahead 0 [F16 norm_parts_f16, Bf16 norm_parts_bf16, F32 norm_parts_f32] 512, 2,
                "32 neighbouring columns a thread block, each of 16 threads that have eight loads on their way";
        }
    };
}
