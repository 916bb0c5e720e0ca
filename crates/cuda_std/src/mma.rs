//! Tensor-core products of a warp: moving fragments from and to shared memory (ldmatrix, stmatrix) and multiplying them (mma.sync).
//!
//! Fragments follow the PTX ISA's figures for `mma.m16n8k16`: an accumulator register `i` of lane `l` holds row
//! `l / 4 + 8 * (i / 2)` and column `2 * (l % 4) + i % 2`.

/// Loads four 8x8 matrices of 16-bit elements. Lanes `8 i .. 8 i + 8` give the addresses of the rows of matrix `i`; register `i`
/// of lane `l` receives elements `2 (l % 4)` and `2 (l % 4) + 1` of row `l / 4`.
///
/// PTX `ldmatrix.sync.aligned.m8n8.x4.shared.b16`, least SM 7.5, all threads of the warp.
///
/// # Safety
/// Converged warp; every address is a multiple of 16 with 16 readable bytes; a barrier lies between this and the writes.
#[inline(always)]
pub unsafe fn load_matrix_x4(shared: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller guarantees convergence, addresses and order.
    unsafe {
        ptx!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) shared, options(nostack, readonly));
    }
    [a, b, c, d]
}

/// [`load_matrix_x4`] with every matrix transposed: lane `l` receives elements of column `l / 4`.
///
/// PTX `ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16`, least SM 7.5, all threads of the warp.
///
/// # Safety
/// As for [`load_matrix_x4`].
#[inline(always)]
pub unsafe fn load_matrix_x4_transposed(shared: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller guarantees convergence, addresses and order.
    unsafe {
        ptx!("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) shared, options(nostack, readonly));
    }
    [a, b, c, d]
}

/// Stores four 8x8 matrices of 16-bit elements: lanes `8 i .. 8 i + 8` give the addresses of the rows of matrix `i`, whose elements `2 (l % 4)` and
/// `2 (l % 4) + 1` of row `l / 4` are register `i` of lane `l`.
///
/// PTX `stmatrix.sync.aligned.m8n8.x4.shared.b16`, least SM 9.0, all threads of the warp.
///
/// # Safety
/// Converged warp; every address is a multiple of 16 with 16 writable bytes that no other thread touches.
#[inline(always)]
pub unsafe fn store_matrix_x4(shared: u32, [a, b, c, d]: [u32; 4]) {
    // SAFETY: the caller guarantees convergence and addresses.
    unsafe {
        ptx!("stmatrix.sync.aligned.m8n8.x4.shared.b16 [{}], {{{}, {}, {}, {}}};",
            in(reg32) shared, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d, options(nostack));
    }
}

/// Stores four 8x8 matrices of 16-bit elements, each transposed: lanes `8 i .. 8 i + 8` give the addresses of the columns of matrix `i`,
/// whose elements `2 (l % 4)` and `2 (l % 4) + 1` of row `l / 4` are register `i` of lane `l`.
///
/// PTX `stmatrix.sync.aligned.m8n8.x4.trans.shared.b16`, least SM 9.0, all threads of the warp.
///
/// # Safety
/// Converged warp; every address is a multiple of 16 with 16 writable bytes that no other thread touches.
#[inline(always)]
pub unsafe fn store_matrix_x4_transposed(shared: u32, [a, b, c, d]: [u32; 4]) {
    // SAFETY: the caller guarantees convergence and addresses.
    unsafe {
        ptx!("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [{}], {{{}, {}, {}, {}}};",
            in(reg32) shared, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d, options(nostack));
    }
}

macro_rules! mma_m16n8k16 {
    ($name:ident, $type:literal) => {
        #[doc = concat!("`d += a b` for a 16x16 fragment `a` and a 16x8 fragment `b` of ", $type, ", accumulated in `f32`.")]
        ///
        #[doc = concat!("PTX `mma.sync.aligned.m16n8k16.row.col.f32.", $type, ".", $type, ".f32`, least SM 8.0, all threads of the warp.")]
        ///
        /// # Safety
        /// Converged warp.
        #[inline(always)]
        pub unsafe fn $name(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
            // No `pure`: LLVM must not sink a collective into a branch that only some lanes take.
            // SAFETY: the caller guarantees convergence.
            unsafe {
                ptx!(concat!("mma.sync.aligned.m16n8k16.row.col.f32.", $type, ".", $type,
                        ".f32 {{{0}, {1}, {2}, {3}}}, {{{4}, {5}, {6}, {7}}}, {{{8}, {9}}}, {{{0}, {1}, {2}, {3}}};"),
                    inout(reg32) d[0], inout(reg32) d[1], inout(reg32) d[2], inout(reg32) d[3],
                    in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3],
                    in(reg32) b[0], in(reg32) b[1], options(nomem, nostack));
            }
        }
    };
}

mma_m16n8k16!(m16n8k16_f16, "f16");
mma_m16n8k16!(m16n8k16_bf16, "bf16");
