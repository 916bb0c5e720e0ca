//! The rows of dense layers. Data, and nothing that computes.

/// Calls `$callback!` with every row:
/// `Pass Engine rows x columns x depth [Type symbol, ..] threads, thread blocks of a multiprocessor, stages, cluster, group, cycles, "why";`.
///
/// A thread block has `rows` times `columns` numbers of the product at a time, and of the axis that is summed over `depth` in each of `stages` buffers.
/// `engine` is what multiplies:
///
/// - `Warpgroups`: Hopper's, on what the copy engine brings (wgmma, TMA); thread blocks are persistent, and `cluster` of them share what they load;
/// - `Warps`: tensor cores of every GPU since Ampere (mma.sync), and the float units for f32.
///
/// `group` is how many rows of tiles are walked over together, see `order`. `cycles` is how long one step of `depth` takes about: the plan takes the
/// tile whose steps of all rounds are the fewest cycles.
#[macro_export]
macro_rules! for_each_dense_row {
    ($callback:ident) => {
        $callback! {
            Forward Warpgroups 128 x 256 x 64 [F16 dense_hopper_f16_128x256, Bf16 dense_hopper_bf16_128x256] 384, 1, 4, 2, 16, 1100,
                "the most products for what is loaded; two thread blocks share the weights";
            Forward Warpgroups 128 x 160 x 64 [F16 dense_hopper_f16_128x160, Bf16 dense_hopper_bf16_128x160] 384, 1, 5, 2, 16, 700,
                "of 1600 columns, as GPT-2 XL has them, whole tiles, and rounds that are nearly full; not for gates";
            Forward Warpgroups 128 x 128 x 64 [F16 dense_hopper_f16_128x128, Bf16 dense_hopper_bf16_128x128] 384, 1, 6, 1, 16, 680,
                "twice the tiles, where larger ones leave multiprocessors idle";
            Forward Warps 128 x 128 x 32 [F16 dense_f16_128x128, Bf16 dense_bf16_128x128] 256, 1, 4, 1, 8, 1200,
                "32 x 64 numbers a warp: half the registers, and all that a gate opens in the lanes of the gate";
            Forward Warps 128 x 128 x 32 [F32 dense_f32_128x128] 256, 1, 3, 1, 8, 4200,
                "as 16 bits, with as many buffers as every GPU has room for";
            InputGradient Warpgroups 128 x 256 x 64 [F16 dense_dx_hopper_f16_128x256, Bf16 dense_dx_hopper_bf16_128x256] 384, 1, 4, 2, 16, 1100,
                "as forward";
            InputGradient Warpgroups 128 x 128 x 64 [F16 dense_dx_hopper_f16_128x128, Bf16 dense_dx_hopper_bf16_128x128] 384, 1, 6, 1, 16, 680,
                "as forward";
            InputGradient Warps 128 x 128 x 32 [F16 dense_dx_f16_128x128, Bf16 dense_dx_bf16_128x128] 256, 1, 4, 1, 8, 1200,
                "as forward";
            InputGradient Warps 128 x 128 x 32 [F32 dense_dx_f32_128x128] 256, 1, 3, 1, 8, 4200,
                "as forward";
            WeightGradient Warpgroups 128 x 256 x 64 [F16 dense_dw_hopper_f16_128x256, Bf16 dense_dw_hopper_bf16_128x256] 384, 1, 4, 2, 16, 1100,
                "as forward";
            WeightGradient Warpgroups 128 x 128 x 64 [F16 dense_dw_hopper_f16_128x128, Bf16 dense_dw_hopper_bf16_128x128] 384, 1, 6, 1, 16, 680,
                "as forward";
            WeightGradient Warps 128 x 128 x 32 [F16 dense_dw_f16_128x128, Bf16 dense_dw_bf16_128x128] 256, 1, 4, 1, 8, 1200,
                "as forward";
            WeightGradient Warps 128 x 128 x 32 [F32 dense_dw_f32_128x128] 256, 1, 3, 1, 8, 4200,
                "as forward";
            Losses Warpgroups 128 x 256 x 64
                [F16 linear_cross_entropy_hopper_f16_128x256, Bf16 linear_cross_entropy_hopper_bf16_128x256] 384, 1, 4, 2, 16, 1100,
                "as forward; a vocabulary has tiles enough for all multiprocessors";
            Losses Warps 128 x 128 x 32 [F16 linear_cross_entropy_f16_128x128, Bf16 linear_cross_entropy_bf16_128x128] 256, 1, 4, 1, 8, 1200,
                "as forward";
            Losses Warps 128 x 128 x 32 [F32 linear_cross_entropy_f32_128x128] 256, 1, 3, 1, 8, 4200,
                "as forward";
            LogitGradient Warpgroups 128 x 256 x 64
                [F16 linear_cross_entropy_dlogits_hopper_f16_128x256, Bf16 linear_cross_entropy_dlogits_hopper_bf16_128x256] 384, 1, 4, 2, 16, 1100,
                "as the losses";
            LogitGradient Warps 128 x 128 x 32 [F16 linear_cross_entropy_dlogits_f16_128x128, Bf16 linear_cross_entropy_dlogits_bf16_128x128] 256, 1, 4, 1, 8, 1200,
                "as forward";
            LogitGradient Warps 128 x 128 x 32 [F32 linear_cross_entropy_dlogits_f32_128x128] 256, 1, 3, 1, 8, 4200,
                "as forward";
        }
    };
}
