//! Which views share memory.

use super::dims::{Dims, MAX_RANK};
use super::geometry::Geometry;
use crate::error::{Error, Operand, Result};

/// Whether two elements of one view may lie at the same place.
///
/// The axes are taken from the smallest stride on; each has to step over everything that the smaller ones span. It is the
/// rule of nested loops: exact for every slice of a contiguous tensor in any order of axes, and on the safe side for strides that
/// interleave without colliding. A view without elements has none at one place.
pub(crate) fn overlaps_itself(geometry: &Geometry) -> bool {
    if geometry.axes().any(|(extent, _)| extent == 0) {
        return false;
    }
    let mut axes = [(0, 0); MAX_RANK];
    let axes = &mut axes[..geometry.shape.len()];
    axes.iter_mut().zip(geometry.axes()).for_each(|(place, axis)| *place = axis);
    axes.sort_unstable_by_key(|&(_, stride)| stride);
    let mut span = 1u128;
    for &(extent, stride) in axes.iter().filter(|&&(extent, _)| extent > 1) {
        if (stride as u128) < span {
            return true;
        }
        span += (extent as u128 - 1) * stride as u128;
    }
    false
}

/// The bytes of a view. Held without an allocation, because every call looks at those of all its tensors.
#[derive(Clone, Debug)]
pub(crate) struct Footprint {
    /// Of the first byte, and of the byte behind the last: the same where there is none.
    start: u128,
    end: u128,
    shape: Dims,
    /// In elements.
    strides: Dims,
    /// Of an element.
    bytes: u128,
}

impl Footprint {
    pub(crate) fn of(geometry: &Geometry, address: u64) -> Footprint {
        Footprint::new(address, geometry.shape, geometry.strides, geometry.dtype.bytes() as u128)
    }

    /// Of elements of one byte.
    pub(crate) fn of_bytes(shape: Dims, strides: Dims, address: u64) -> Footprint {
        Footprint::new(address, shape, strides, 1)
    }

    pub(crate) fn contiguous(address: u64, bytes: u128) -> Footprint {
        Footprint::new(address, Dims::from([]), Dims::from([]), bytes)
    }

    fn new(address: u64, shape: Dims, strides: Dims, bytes: u128) -> Footprint {
        let start = address.into();
        let mut footprint = Footprint { start, end: start, shape, strides, bytes };
        if footprint.axes().all(|(extent, _)| extent > 0) {
            footprint.end += footprint.axes().map(|(extent, stride)| (extent - 1) * stride).sum::<u128>() + 1;
        }
        footprint
    }

    /// Axes as `(extent, stride in bytes)`, that of the bytes of an element last.
    fn axes(&self) -> impl Iterator<Item = (u128, u128)> {
        let axes = self.shape.iter().zip(self.strides.iter());
        axes.map(|(&extent, &stride)| (extent as u128, stride as u128 * self.bytes)).chain([(self.bytes, 1)])
    }

    /// Bytes spanned within one period: by the axes whose stride is no multiple of it.
    fn span_within(&self, period: u128) -> u128 {
        let within = self.axes().filter(|(_, stride)| !stride.is_multiple_of(period));
        within.map(|(extent, stride)| (extent - 1) * stride).sum::<u128>() + 1
    }

    /// Whether the two may share a byte.
    ///
    /// Apart are views whose address ranges are apart, and views that repeat with a common period (such as the row of a packed
    /// q-k-v projection) and keep to different parts of it.
    pub(crate) fn overlaps(&self, other: &Footprint) -> bool {
        if self.start == self.end || other.start == other.end {
            return false;
        }
        if self.end <= other.start || other.end <= self.start {
            return false;
        }
        for (_, period) in self.axes().chain(other.axes()).filter(|&(extent, stride)| extent > 1 && stride > 1) {
            let (mine, theirs) = (self.span_within(period), other.span_within(period));
            // Where the other starts, counted from this one's start, modulo the period.
            let start = (other.start % period + period - self.start % period) % period;
            if start >= mine && start + theirs <= period {
                return false;
            }
        }
        true
    }
}

/// That no element of an output lies at the place of another.
pub(crate) fn check_itself(geometry: &Geometry) -> Result<()> {
    if overlaps_itself(geometry) {
        return Err(Error::OutputOverlapsItself { shape: geometry.shape.to_vec(), strides: geometry.strides.to_vec() });
    }
    Ok(())
}

/// That outputs overlap neither each other nor anything else.
pub(crate) fn check_apart(outputs: &[(Operand, Footprint)], others: &[(Operand, Footprint)]) -> Result<()> {
    for (i, (output, memory)) in outputs.iter().enumerate() {
        for (other, taken) in outputs[..i].iter().chain(others) {
            if memory.overlaps(taken) {
                return Err(Error::OutputOverlaps { output: *output, other: *other });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::shape::{Layout, Shape, Strides};
    use super::*;
    use kernel_spec::DType;
    use std::collections::HashSet;

    fn geometry(shape: Shape, strides: Strides) -> Geometry {
        Geometry::new(shape.into(), strides.into(), DType::F16).unwrap()
    }

    fn offsets(g: &Geometry) -> Vec<usize> {
        g.axes().fold(vec![0], |all, (extent, stride)| {
            all.iter().flat_map(|&offset| (0..extent).map(move |i| offset + i * stride)).collect()
        })
    }

    /// Never misses a collision, and finds none in permutations of contiguous tensors.
    #[test]
    fn self_overlap_agrees_with_a_scan() {
        let (mut accepted, mut rejected) = (0, 0);
        for shape in [Shape::new(2, 3, 2, 2), Shape::new(1, 4, 1, 2), Shape::new(3, 1, 2, 1), Shape::new(2, 0, 1, 2)] {
            for code in 0..8usize.pow(3) {
                let g = geometry(shape, Strides::new(code % 8 * 2, code / 8 % 8, code / 64));
                let all = offsets(&g);
                let collides = all.iter().collect::<HashSet<_>>().len() < all.len();
                if collides {
                    assert!(overlaps_itself(&g), "{g:?}");
                    rejected += 1;
                } else if !overlaps_itself(&g) {
                    accepted += 1;
                }
            }
            for layout in [Layout::Bshd, Layout::Bhsd] {
                assert!(!overlaps_itself(&geometry(shape, shape.contiguous(layout).unwrap())));
            }
        }
        assert!(accepted > 50 && rejected > 50, "{accepted} {rejected}");
    }

    #[test]
    fn overlap_of_two_agrees_with_a_scan() {
        let shape = Shape::new(1, 3, 2, 4);
        let mut proven_apart = 0;
        for (row, head) in [(24, 4), (24, 8), (8, 24), (9, 4), (4, 0), (0, 4)] {
            let a = geometry(shape, Strides::new(0, row, head));
            for (row, head) in [(24, 4), (24, 12), (8, 24), (7, 3)] {
                let b = geometry(shape, Strides::new(0, row, head));
                for shift in 0..80 {
                    let taken: HashSet<_> = offsets(&a).into_iter().collect();
                    let shares = offsets(&b).iter().any(|o| taken.contains(&(o + shift)));
                    let (x, y) = (Footprint::of(&a, 4096), Footprint::of(&b, 4096 + 2 * shift as u64));
                    assert_eq!(x.overlaps(&y), y.overlaps(&x), "{a:?} {b:?} {shift}");
                    if shares {
                        assert!(x.overlaps(&y), "{a:?} {b:?} {shift}");
                    } else if !x.overlaps(&y) {
                        proven_apart += 1;
                    }
                }
            }
        }
        assert!(proven_apart > 200, "{proven_apart}");
    }

    #[test]
    fn parts_of_a_packed_projection_are_apart() {
        let (shape, strides) = (Shape::new(2, 5, 2, 16), Strides::new(5 * 96, 96, 16));
        let part = |i: u64| Footprint::of(&geometry(shape, strides), 4096 + i * 2 * 16 * 2);
        assert!(!part(0).overlaps(&part(1)) && !part(2).overlaps(&part(0)));
        assert!(part(1).overlaps(&part(1)));
        assert!(!part(0).overlaps(&Footprint::contiguous(0, 4096)));
        assert!(part(0).overlaps(&Footprint::contiguous(0, 4097)));
    }
}
