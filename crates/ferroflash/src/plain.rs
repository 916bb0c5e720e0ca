//! Parameter structs as the bytes that a launch takes.

use kernel_spec::{Divisor, Features};

/// The bytes of a kernel parameter struct.
pub(crate) fn bytes_of<T: Plain>(params: &T) -> Vec<u8> {
    // SAFETY: implementors promise that every byte of `T` is initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(params).cast::<u8>(), size_of::<T>()) }.to_vec()
}

/// # Safety
/// The type is `repr(C)` or `repr(transparent)` without padding, and so are its fields.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: an array has no padding of its own.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
// SAFETY: `repr(C)`, all fields of 8 bytes; their number is checked below.
unsafe impl<const SLOTS: usize> Plain for Features<SLOTS> {}
const _: () = assert!(size_of::<Features<3>>() == 8 * (1 + 3), "a set and a value for each slot");

// SAFETY: `repr(C)`, three numbers of 4 bytes by the assertion below; its fields are its own.
unsafe impl Plain for Divisor {}
const _: () = assert!(size_of::<Divisor>() == 3 * 4 && align_of::<Divisor>() == 4, "a number, a factor and a shift");

/// Implements [`Plain`] for `repr(C)` structs: all fields are named, each is plain, and the struct is as large as they are together. A
/// field that is left out, or padding between two of them, does not compile.
macro_rules! plain {
    ($($name:ident { $($field:tt),* })*) => {$(
        const _: () = {
            const fn bytes<T, F: $crate::plain::Plain>(_field: fn(&T) -> &F) -> usize {
                size_of::<F>()
            }
            let _every_field_is_named = |whole: &$name| {
                let $name { $($field: _),* } = whole;
            };
            let sum = 0 $(+ bytes(|whole: &$name| &whole.$field))*;
            assert!(size_of::<$name>() == sum, "padding");
        };
        // SAFETY: without padding by the assertion above.
        unsafe impl $crate::plain::Plain for $name {}
    )*};
}
pub(crate) use plain;
