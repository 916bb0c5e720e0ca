//! The `#[kernel]` attribute of `cuda_std`.

mod kernel;

use proc_macro::TokenStream;

/// Makes a function an entry point of the GPU and records its launch bounds.
///
/// On `nvptx64` the function becomes `#[unsafe(no_mangle)] pub unsafe extern "ptx-kernel" fn`, so the crate needs
/// `#![feature(abi_ptx, asm_experimental_arch)]`. On every other target it stays a plain `unsafe fn`, which is type-checked.
///
/// rustc has no attribute for launch bounds. They travel as a comment in the PTX, which `cuda_builder` turns into directives.
///
/// | argument | PTX directive | meaning |
/// | --- | --- | --- |
/// | `threads = N` or `(x, y, z)` | `.reqntid` | the block has exactly this shape; other launches fail |
/// | `max_threads = N` or `(x, y, z)` | `.maxntid` | the block is at most this large |
/// | `min_ctas = N` | `.minnctapersm` | so many blocks fit on one multiprocessor, which bounds the registers of a thread |
/// | `param_align = N` | `.align` of struct parameters | at least N bytes, where rustc passes no more than 16; a tensor map needs 64 |
///
/// A value is an integer, simple arithmetic on integers (`32 * 4`), or any constant expression of type `u32`; all three may come
/// from `macro_rules!` captures. `min_ctas` needs one of the other two, and those exclude each other, as in PTX.
///
/// The function is `pub unsafe fn` with an ABI of its own: no generics, no return value, no references (the host passes device
/// addresses), every parameter a plain name.
///
/// ```
/// use cuda_std_macros::kernel;
///
/// /// # Safety
/// /// `x` points to `len` floats in device memory.
/// #[kernel(threads = 32 * 4, min_ctas = 2)]
/// pub unsafe fn scale(x: *mut f32, len: u32, factor: f32) {
///     for i in 0..len as usize {
///         // SAFETY: in bounds by the contract.
///         unsafe { *x.add(i) *= factor };
///     }
/// }
///
/// macro_rules! entry {
///     ($name:ident, $warps:literal, $shape:expr) => {
///         #[kernel(threads = $shape, min_ctas = $warps / 2)]
///         pub unsafe fn $name() {}
///     };
/// }
/// const WARPS: u32 = 4;
/// entry!(one, 4, 32 * 4);
/// entry!(two, 2, (16, 16, 1));
/// entry!(three, 8, 32 * WARPS);
/// ```
///
/// Rejected, each with an error at the place:
///
/// ```compile_fail
/// # use cuda_std_macros::kernel;
/// #[kernel(threads = 2048)] // a block holds at most 1024 threads
/// pub unsafe fn entry() {}
/// ```
/// ```compile_fail
/// # use cuda_std_macros::kernel;
/// const THREADS: u32 = 2048;
/// #[kernel(threads = THREADS)] // the same, found when the constant is evaluated
/// pub unsafe fn entry() {}
/// ```
/// ```compile_fail
/// # use cuda_std_macros::kernel;
/// #[kernel(min_ctas = 2)] // PTX wants a block shape beside it
/// pub unsafe fn entry() {}
/// ```
/// ```compile_fail
/// # use cuda_std_macros::kernel;
/// #[kernel(threads = 128, max_threads = 256)] // one or the other
/// pub unsafe fn entry() {}
/// ```
/// ```compile_fail
/// # use cuda_std_macros::kernel;
/// #[kernel(warps = 4)] // unknown argument
/// pub unsafe fn entry() {}
/// ```
/// ```compile_fail
/// # use cuda_std_macros::kernel;
/// #[kernel(threads = 128)] // generic
/// pub unsafe fn entry<T>(x: *const T) {}
/// ```
/// ```compile_fail
/// # use cuda_std_macros::kernel;
/// #[kernel(threads = 128)] // returns a value
/// pub unsafe fn entry() -> u32 { 0 }
/// ```
/// ```compile_fail
/// # use cuda_std_macros::kernel;
/// #[kernel(threads = 128)] // a host reference means nothing on the device
/// pub unsafe fn entry(x: &f32) {}
/// ```
/// ```compile_fail
/// # use cuda_std_macros::kernel;
/// #[kernel(threads = 128)] // launching a kernel is never safe
/// pub fn entry() {}
/// ```
#[proc_macro_attribute]
pub fn kernel(arguments: TokenStream, item: TokenStream) -> TokenStream {
    kernel::expand(arguments.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
