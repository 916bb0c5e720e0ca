//! Where a thread stands in its block and in the grid.

pub use crate::warp::warp_index;

macro_rules! special_register {
    ($(#[$doc:meta])* $name:ident, $register:literal) => {
        $(#[$doc])*
        ///
        #[doc = concat!("PTX `mov.u32 d, ", $register, "`, any SM, any thread.")]
        #[inline(always)]
        pub fn $name() -> u32 {
            let value: u32;
            // SAFETY: reads a special register that does not change while the thread runs.
            unsafe {
                ptx!(concat!("mov.u32 {}, ", $register, ";"), out(reg32) value, options(pure, nomem, nostack));
            }
            value
        }
    };
}

special_register!(
    /// Index of the thread in its block, `0..threads per block`.
    index, "%tid.x");
special_register!(
    /// Index of the block in the grid.
    block_index, "%ctaid.x");
special_register!(
    /// Threads of a block.
    block_size, "%ntid.x");
special_register!(
    /// Blocks of the grid.
    grid_size, "%nctaid.x");
special_register!(
    /// Index of the thread in its warp, `0..32`.
    lane, "%laneid");

/// Ends the program with an error that the host sees as a launch failure.
///
/// PTX `trap`, any SM, any thread.
#[inline(always)]
pub fn trap() -> ! {
    // SAFETY: `trap` does not return.
    unsafe {
        ptx!("trap;", options(noreturn, nostack));
    }
}
