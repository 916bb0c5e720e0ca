//! A number for each axis of a tensor.

use crate::error::{AxesError, Result};

/// Most axes of a tensor.
pub const MAX_RANK: usize = 8;

/// A number for each axis of a tensor, held inline: extents, or strides in elements. Made from an array, from a
/// [`Shape`](crate::Shape) or from [`Strides`](crate::Strides); reads as a slice.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dims {
    rank: usize,
    /// 0 from `rank` on, so that equal ones are equal.
    values: [usize; MAX_RANK],
}

impl Dims {
    /// The numbers of a list.
    ///
    /// # Errors
    /// [`Error::Axes`](crate::Error::Axes) for more than [`MAX_RANK`].
    pub fn new(values: &[usize]) -> Result<Dims> {
        let mut inline = [0; MAX_RANK];
        let held = inline.get_mut(..values.len());
        held.ok_or(AxesError::TooMany { found: values.len(), limit: MAX_RANK })?.copy_from_slice(values);
        Ok(Dims { rank: values.len(), values: inline })
    }
}

impl<const N: usize> From<[usize; N]> for Dims {
    /// More than [`MAX_RANK`] numbers are a compile error.
    fn from(values: [usize; N]) -> Dims {
        const { assert!(N <= MAX_RANK, "a tensor has at most 8 axes") }
        let mut inline = [0; MAX_RANK];
        inline[..N].copy_from_slice(&values);
        Dims { rank: N, values: inline }
    }
}

impl std::ops::Deref for Dims {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.values[..self.rank]
    }
}

impl std::ops::DerefMut for Dims {
    fn deref_mut(&mut self) -> &mut [usize] {
        &mut self.values[..self.rank]
    }
}

impl std::fmt::Debug for Dims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&**self, f)
    }
}

impl std::fmt::Display for Dims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&**self, f)
    }
}
