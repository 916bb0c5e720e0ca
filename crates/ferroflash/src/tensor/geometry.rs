//! Everything about a view but where it lies: arithmetic on shapes and strides of any rank.

use super::dims::Dims;
use super::element::Element;
use super::shape::{self, Layout};
use crate::error::{AxesError, Error, Result};
use kernel_spec::DType;
use std::ops::Range;

/// Names of axes in errors.
const AXES: [&str; super::dims::MAX_RANK] =
    ["axis 0", "axis 1", "axis 2", "axis 3", "axis 4", "axis 5", "axis 6", "axis 7"];

/// Shape, strides and element type. Shape and strides have the same rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) shape: Dims,
    pub(crate) strides: Dims,
    pub(crate) dtype: DType,
}

impl Geometry {
    pub(crate) fn new(shape: Dims, strides: Dims, dtype: DType) -> Result<Geometry> {
        if shape.len() != strides.len() {
            let (shape, strides) = (shape.to_vec(), strides.to_vec());
            return Err(AxesError::Strides { shape, strides }.into());
        }
        Ok(Geometry { shape, strides, dtype })
    }

    pub(crate) fn contiguous(shape: Dims, layout: Layout, dtype: DType) -> Result<Geometry> {
        Ok(Geometry { shape, strides: shape::contiguous(&shape, layout)?, dtype })
    }

    /// Axes as `(extent, stride)`, in logical order.
    pub(crate) fn axes(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + Clone + '_ {
        self.shape.iter().copied().zip(self.strides.iter().copied())
    }

    /// Number of elements, or `None` when it does not fit into `usize`.
    pub(crate) fn elements(&self) -> Option<usize> {
        shape::elements(&self.shape)
    }

    fn too_large(&self) -> Error {
        Error::TooLarge { shape: self.shape.to_vec(), strides: self.strides.to_vec() }
    }

    /// Elements from the first to one past the last element; 0 when there is none.
    pub(crate) fn span(&self) -> Result<usize> {
        if self.shape.contains(&0) {
            return Ok(0);
        }
        let last = self.axes().try_fold(0usize, |last, (extent, stride)| {
            (extent - 1).checked_mul(stride).and_then(|distance| last.checked_add(distance))
        });
        // The span in bytes has to fit too, and no device has more than 2^63 bytes.
        last.and_then(|last| last.checked_add(1))
            .filter(|span| span.checked_mul(self.dtype.bytes()).is_some_and(|bytes| bytes <= isize::MAX as usize))
            .ok_or_else(|| self.too_large())
    }

    /// Fails when the elements do not fit into `available` elements of storage from `offset` on.
    pub(crate) fn check_storage(&self, offset: usize, available: usize) -> Result<()> {
        let needed = offset.checked_add(self.span()?).ok_or_else(|| self.too_large())?;
        if needed > available {
            return Err(Error::StorageTooSmall {
                shape: self.shape.to_vec(),
                strides: self.strides.to_vec(),
                needed: needed as u64,
                available: available as u64,
            });
        }
        Ok(())
    }

    pub(crate) fn check_element<T: Element>(&self) -> Result<()> {
        if self.dtype == T::DTYPE { Ok(()) } else { Err(Error::ElementType { found: self.dtype, requested: T::DTYPE }) }
    }

    /// Elements of the shape, checked against the length of a slice.
    pub(crate) fn check_len(&self, found: usize) -> Result<()> {
        let expected = self.elements().ok_or_else(|| self.too_large())?;
        if expected == found { Ok(()) } else { Err(Error::DataLength { shape: self.shape.to_vec(), expected, found }) }
    }

    pub(crate) fn check_address(&self, address: u64) -> Result<()> {
        let (dtype, bytes) = (self.dtype, self.dtype.bytes());
        if address.is_multiple_of(bytes as u64) {
            Ok(())
        } else {
            Err(Error::MisalignedAddress { address, bytes, dtype })
        }
    }

    /// Extent and stride of the last axis: a run of elements. A tensor of no axes is one element.
    pub(crate) fn run(&self) -> (usize, usize) {
        self.axes().next_back().unwrap_or((1, 1))
    }

    /// Calls `visit` with the offset of every run along the last axis, in logical order.
    pub(crate) fn for_each_run(&self, mut visit: impl FnMut(usize)) {
        let outer: Vec<_> = self.axes().take(self.shape.len().saturating_sub(1)).collect();
        if outer.iter().any(|&(extent, _)| extent == 0) {
            return;
        }
        let mut index = vec![0; outer.len()];
        let mut offset = 0;
        loop {
            visit(offset);
            // The next index, the last axis first; where an axis is through, its part of the offset goes.
            let Some(axis) = (0..outer.len()).rev().find(|&axis| {
                let (extent, stride) = outer[axis];
                index[axis] += 1;
                offset += stride;
                if index[axis] < extent {
                    return true;
                }
                offset -= extent * stride;
                index[axis] = 0;
                false
            }) else {
                return;
            };
            debug_assert!(index[axis] > 0);
        }
    }

    /// The bytes that the elements lie in, counted from the first element, as ranges with gaps between them.
    pub(crate) fn byte_ranges(&self) -> Vec<Range<usize>> {
        let bytes = self.dtype.bytes();
        let (extent, stride) = self.run();
        let mut ranges = Vec::new();
        self.for_each_run(|start| match stride {
            1 => ranges.push(start * bytes..(start + extent) * bytes),
            _ => ranges.extend((0..extent).map(|i| {
                let element = start + i * stride;
                element * bytes..(element + 1) * bytes
            })),
        });
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<usize>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }

    /// Whether memory order is logical order without gaps.
    pub(crate) fn is_logical_order(&self) -> bool {
        let mut expected = 1usize;
        self.axes().rev().all(|(extent, stride)| {
            // Nothing is stepped over along an axis of extent 1.
            let fits = extent <= 1 || stride == expected;
            expected = expected.wrapping_mul(extent);
            fits
        })
    }

    fn check_axis(&self, axis: usize) -> Result<()> {
        let rank = self.shape.len();
        if axis < rank { Ok(()) } else { Err(AxesError::NoSuch { found: axis, rank }.into()) }
    }

    /// These indices of one axis, and the elements from the old first one to the new. `name` is that of the axis in errors.
    pub(crate) fn narrow(
        &self,
        axis: usize,
        range: Range<usize>,
        name: Option<&'static str>,
    ) -> Result<(Geometry, usize)> {
        self.check_axis(axis)?;
        let Range { start, end } = range;
        let len = self.shape[axis];
        if start > end || end > len {
            return Err(Error::Range { axis: name.unwrap_or(AXES[axis]), start, end, len });
        }
        let mut narrowed = *self;
        narrowed.shape[axis] = end - start;
        // A view without elements stays where it is, since it has no storage to point at.
        let offset = if narrowed.shape.contains(&0) { 0 } else { start * self.strides[axis] };
        Ok((narrowed, offset))
    }

    /// Axis `i` of the result is axis `order[i]`.
    pub(crate) fn permute(&self, order: &[usize]) -> Result<Geometry> {
        let rank = self.shape.len();
        // As many as there are axes, and every axis is among them.
        if order.len() != rank || !(0..rank).all(|axis| order.contains(&axis)) {
            return Err(AxesError::Order { found: order.to_vec(), rank }.into());
        }
        let mut permuted = *self;
        for (to, &from) in order.iter().enumerate() {
            permuted.shape[to] = self.shape[from];
            permuted.strides[to] = self.strides[from];
        }
        Ok(permuted)
    }

    /// The same elements in the same logical order under another shape, where that takes no copy.
    pub(crate) fn reshape(&self, shape: Dims) -> Result<Geometry> {
        let refused =
            || AxesError::Reshape { from: self.shape.to_vec(), strides: self.strides.to_vec(), to: shape.to_vec() };
        let elements = self.elements().ok_or_else(|| self.too_large())?;
        if shape::elements(&shape) != Some(elements) {
            return Err(refused().into());
        }
        if elements == 0 {
            return Geometry::contiguous(shape, Layout::RowMajor, self.dtype);
        }
        // Runs of equally spaced elements, as (elements, stride): neighbouring axes of which the outer steps over the whole inner one.
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (extent, stride) in self.axes().filter(|&(extent, _)| extent > 1) {
            match runs.last_mut() {
                Some(run) if run.1 == extent * stride => *run = (run.0 * extent, stride),
                _ => runs.push((extent, stride)),
            }
        }
        // Each new axis, the last first, takes its part of one run.
        let mut strides = shape;
        let mut taken = 1;
        for axis in (0..shape.len()).rev() {
            let (run, stride) = runs.last().copied().unwrap_or((1, 1));
            strides[axis] = taken * stride;
            taken *= shape[axis];
            if !run.is_multiple_of(taken) {
                return Err(refused().into());
            }
            if taken == run && run > 1 {
                runs.pop();
                taken = 1;
            }
        }
        Ok(Geometry { shape, strides, dtype: self.dtype })
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::{Shape, Strides};
    use super::*;

    fn geometry(shape: impl Into<Dims>, strides: impl Into<Dims>) -> Geometry {
        Geometry::new(shape.into(), strides.into(), DType::F16).unwrap()
    }

    /// Offsets of all elements in logical order.
    fn offsets(g: &Geometry) -> Vec<usize> {
        let (extent, stride) = g.run();
        let mut all = Vec::new();
        g.for_each_run(|start| all.extend((0..extent).map(|i| start + i * stride)));
        all
    }

    #[test]
    fn byte_ranges_merge_neighbours_and_leave_gaps_out() {
        let ranges = |shape: Shape, strides: Strides| geometry(shape, strides).byte_ranges();
        let shape = Shape::new(2, 3, 2, 8);
        for layout in [Layout::Bshd, Layout::Bhsd] {
            assert_eq!(ranges(shape, shape.contiguous(layout).unwrap()), [Range { start: 0, end: 192 }]);
        }
        // Two heads of one row side by side, rows 20 elements apart.
        assert_eq!(ranges(Shape::new(1, 3, 2, 8), Strides::new(0, 20, 8)), [0..32, 40..72, 80..112]);
        assert_eq!(ranges(Shape::new(5, 2, 1, 8), Strides::new(0, 8, 0)), [Range { start: 0, end: 32 }]);
        assert_eq!(ranges(Shape::new(1, 1, 1, 3), Strides { dim: 4, ..Strides::new(0, 0, 0) }), [0..2, 8..10, 16..18]);
    }

    #[test]
    fn runs_are_visited_in_logical_order_in_every_rank() {
        assert_eq!(offsets(&geometry([], [])), [0]);
        assert_eq!(offsets(&geometry([3], [5])), [0, 5, 10]);
        assert_eq!(offsets(&geometry([2, 0], [5, 1])), [0; 0]);
        assert_eq!(offsets(&geometry([0, 2], [5, 1])), [0; 0]);
        assert_eq!(offsets(&geometry([2, 1, 3], [100, 7, 10])), [0, 10, 20, 100, 110, 120]);
        let wide = geometry([1, 2, 1, 2, 1, 2, 1, 2], [0, 1, 0, 2, 0, 4, 0, 8]);
        let expected: Vec<_> =
            (0..16usize).map(|i| i >> 3 | (i >> 2 & 1) << 1 | (i >> 1 & 1) << 2 | (i & 1) << 3).collect();
        assert_eq!(offsets(&wide), expected);
        assert!(!wide.is_logical_order() && geometry([2, 1, 3], [3, 99, 1]).is_logical_order());
    }

    /// Where a reshape is given it lists the elements in the same order; where it is refused, no strides would do that.
    #[test]
    fn reshapes_keep_the_order_or_are_refused() {
        let (mut given, mut refused) = (0, 0);
        let shapes: Vec<Dims> =
            vec![[12].into(), [3, 4].into(), [2, 6].into(), [2, 3, 2].into(), [1, 12, 1].into(), [2, 2, 3].into()];
        for from in &shapes {
            for code in 0..6usize.pow(from.len() as u32) {
                let mut strides = *from;
                let mut rest = code;
                for stride in strides.iter_mut() {
                    *stride = [0, 1, 2, 3, 4, 6][rest % 6];
                    rest /= 6;
                }
                let old = geometry(*from, strides);
                for to in &shapes {
                    let listed = offsets(&old);
                    // The strides that the new shape must have, if any: read off the offsets of the first neighbours along each axis.
                    let neighbour = |axis: usize| to[axis + 1..].iter().product::<usize>();
                    let mut wanted = *to;
                    for axis in 0..to.len() {
                        wanted[axis] = if to[axis] > 1 { listed[neighbour(axis)].wrapping_sub(listed[0]) } else { 0 };
                    }
                    let possible = offsets_wrapping(to, &wanted) == listed;
                    match old.reshape(*to) {
                        Ok(new) => {
                            assert_eq!(offsets(&new), listed, "{old:?} to {to}");
                            given += 1;
                        }
                        Err(error) => {
                            assert!(
                                matches!(error, Error::Axes(AxesError::Reshape { .. })) && !possible,
                                "{old:?} to {to}"
                            );
                            refused += 1;
                        }
                    }
                }
            }
        }
        assert!(given > 200 && refused > 200, "{given} {refused}");
    }

    fn offsets_wrapping(shape: &Dims, strides: &Dims) -> Vec<usize> {
        let mut all = vec![0usize];
        for (&extent, &stride) in shape.iter().zip(strides.iter()) {
            all = all.iter().flat_map(|&o| (0..extent).map(move |i| o.wrapping_add(i.wrapping_mul(stride)))).collect();
        }
        all
    }

    #[test]
    fn axes_that_are_not_there() {
        let g = geometry([2, 3], [3, 1]);
        assert!(matches!(g.narrow(2, 0..1, None), Err(Error::Axes(AxesError::NoSuch { found: 2, rank: 2 }))));
        assert!(matches!(g.narrow(1, 2..4, None), Err(Error::Range { axis: "axis 1", start: 2, end: 4, len: 3 })));
        for order in [&[0][..], &[0, 0], &[0, 2], &[0, 1, 2]] {
            assert!(matches!(g.permute(order), Err(Error::Axes(AxesError::Order { rank: 2, .. }))));
        }
        assert_eq!(g.permute(&[1, 0]).unwrap(), geometry([3, 2], [1, 3]));
        assert_eq!(g.narrow(1, 1..3, None).unwrap(), (geometry([2, 2], [3, 1]), 1));
        assert_eq!(g.narrow(1, 2..2, None).unwrap(), (geometry([2, 0], [3, 1]), 0));
        assert!(matches!(
            Geometry::new([2].into(), [1, 1].into(), DType::F32),
            Err(Error::Axes(AxesError::Strides { .. }))
        ));
        assert!(matches!(Dims::new(&[1; 9]), Err(Error::Axes(AxesError::TooMany { found: 9, limit: 8 }))));
    }
}
