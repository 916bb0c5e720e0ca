//! Rows of tensors in memory: where they lie, and the NaN around them.

use crate::support::case::{nan, to_f64};
use ferroflash::{Device, Dims, Element, Tensor};

/// How the rows of a tensor lie.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lie {
    /// Elements before the first.
    pub(crate) offset: usize,
    /// Elements between a row and the next.
    pub(crate) gap: usize,
    /// The axes of rows in reverse order: the first is the innermost.
    pub(crate) reversed: bool,
}

/// Columns; a scalar is one.
fn columns_of(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// NaN behind the last element.
const TAIL: usize = 300;

impl Lie {
    pub(crate) fn strides(&self, shape: &[usize]) -> Vec<usize> {
        let Some((columns, outer)) = shape.split_last() else { return Vec::new() };
        let mut strides = vec![1; shape.len()];
        let mut stride = columns + self.gap;
        let order: Vec<usize> =
            if self.reversed { (0..outer.len()).collect() } else { (0..outer.len()).rev().collect() };
        for axis in order {
            strides[axis] = stride;
            stride *= outer[axis];
        }
        strides
    }

    /// Where each row starts, in logical order.
    pub(crate) fn starts(&self, shape: &[usize]) -> Vec<usize> {
        let strides = self.strides(shape);
        let axes = shape[..shape.len().saturating_sub(1)].iter().zip(&strides);
        axes.fold(vec![self.offset], |starts, (&extent, &stride)| {
            starts.iter().flat_map(|&start| (0..extent).map(move |i| start + i * stride)).collect()
        })
    }

    fn storage<T: Element>(&self, shape: &[usize]) -> Vec<T> {
        let columns = columns_of(shape);
        let end = self.starts(shape).into_iter().max().unwrap_or(self.offset) + columns;
        vec![nan(); end + TAIL]
    }

    fn tensor<T: Element>(&self, device: &Device, shape: &[usize], storage: &[T]) -> Tensor {
        let strides = Dims::new(&self.strides(shape)).unwrap();
        Tensor::from_slice_strided(device, storage, self.offset, Dims::new(shape).unwrap(), strides).unwrap()
    }

    pub(crate) fn upload<T: Element>(&self, device: &Device, shape: &[usize], data: &[T]) -> Tensor {
        let mut storage = self.storage(shape);
        for (start, row) in self.starts(shape).into_iter().zip(data.chunks(columns_of(shape).max(1))) {
            storage[start..start + row.len()].copy_from_slice(row);
        }
        self.tensor(device, shape, &storage)
    }

    /// NaN that a call is to write, and NaN around it.
    pub(crate) fn poisoned<T: Element>(&self, device: &Device, shape: &[usize]) -> Tensor {
        self.tensor(device, shape, &self.storage::<T>(shape))
    }

    /// The elements of what [`Lie::poisoned`] made, if nothing around them was written.
    pub(crate) fn read<T: Element>(&self, name: &str, shape: &[usize], tensor: &Tensor) -> Result<Vec<f64>, String> {
        let storage = tensor.storage_to_vec::<T>().unwrap();
        let columns = columns_of(shape);
        let mut own = vec![false; storage.len()];
        for start in self.starts(shape) {
            own[start..start + columns].fill(true);
        }
        let written = |x: &T| bytemuck::bytes_of(x).iter().any(|&byte| byte != 0xff);
        match storage.iter().zip(own).position(|(x, own)| !own && written(x)) {
            Some(place) => {
                Err(format!("element {place} of the storage of {name}, which is none of its own, was written"))
            }
            None => Ok(to_f64(&tensor.to_vec::<T>().unwrap())),
        }
    }
}
