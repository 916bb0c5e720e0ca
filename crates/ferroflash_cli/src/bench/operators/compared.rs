//! What of a result is compared with the reference. Only that becomes numbers in f64: of whole tensors, these take many times as long as what is
//! measured.

use crate::names::with_element;
use anyhow::{Context, Result, ensure};
use ferroflash::reference::{max_abs_difference, tolerance};
use ferroflash::{Element, Tensor};
use kernel_spec::DType;
use rayon::prelude::*;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

/// Rows that are compared with the reference.
const COMPARED: usize = 64;

/// The rows of `rows` that are compared: at equal distances, the first and the last among them.
pub(super) fn compared(rows: usize) -> impl Iterator<Item = usize> + Clone {
    let compared = rows.min(COMPARED);
    (0..compared).map(move |i| i * (rows - 1) / (compared - 1).max(1))
}

/// Elements of a tensor, in the order in which they lie in memory or in any other.
#[derive(Clone, Debug)]
pub(super) struct Elements(Vec<Range<usize>>);

impl Elements {
    /// All of so many.
    pub(super) fn all(elements: usize) -> Elements {
        Elements::rows([0], elements)
    }

    /// So many at equal distances.
    pub(super) fn spaced(elements: usize, most: usize) -> Elements {
        Elements::rows((0..elements).step_by(elements.div_ceil(most).max(1)), 1)
    }

    /// Rows of so many columns.
    pub(super) fn rows(rows: impl IntoIterator<Item = usize>, columns: usize) -> Elements {
        Elements(rows.into_iter().map(|row| row * columns..(row + 1) * columns).collect())
    }

    /// These of what lies as the tensor does.
    pub(super) fn pick<T: Copy>(&self, data: &[T]) -> Vec<T> {
        let mut picked = Vec::with_capacity(self.0.iter().map(Range::len).sum());
        self.0.iter().for_each(|range| picked.extend_from_slice(&data[range.clone()]));
        picked
    }

    /// Their numbers.
    pub(super) fn of_tensor(&self, tensor: &Tensor) -> Result<Vec<f64>> {
        Ok(with_element!(tensor.dtype(), T => in_f64(&self.pick(&tensor.to_vec::<T>()?))))
    }

    /// Their numbers in a file with the memory of such a tensor.
    ///
    /// # Errors
    /// A file that cannot be read or has another length.
    fn of_file(&self, path: &Path, like: &Tensor) -> Result<Vec<f64>> {
        let dtype: DType = like.dtype();
        let name = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(name)?;
        let (found, expected) = (file.metadata().with_context(name)?.len(), elements(like) * dtype.bytes());
        ensure!(found == expected as u64, "{} has {found} bytes instead of {expected}", path.display());
        let mut bytes = Vec::new();
        for range in &self.0 {
            file.seek(SeekFrom::Start((range.start * dtype.bytes()) as u64)).with_context(name)?;
            let before = bytes.len();
            bytes.resize(before + range.len() * dtype.bytes(), 0);
            file.read_exact(&mut bytes[before..]).with_context(name)?;
        }
        Ok(with_element!(dtype, T => {
            let elements = bytes.par_chunks_exact(size_of::<T>());
            elements.map(|bytes| bytemuck::pod_read_unaligned::<T>(bytes).to_f64()).collect()
        }))
    }
}

fn elements(tensor: &Tensor) -> usize {
    tensor.shape().iter().product()
}

/// Numbers as they are.
pub(super) fn in_f64<T: Element>(data: &[T]) -> Vec<f64> {
    data.par_iter().map(|x| x.to_f64()).collect()
}

/// All numbers of a tensor.
pub(super) fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(with_element!(tensor.dtype(), T => in_f64(&tensor.to_vec::<T>()?)))
}

/// What of one result is compared, and with what.
pub(super) struct Expected {
    elements: Elements,
    exact: Vec<f64>,
    rounded: Vec<f64>,
    /// What errors of each element are measured in; 1 where there are none.
    units: Vec<f64>,
}

impl Expected {
    /// Elements, what the reference has for them, and what a straightforward program in the precision of the tensors does.
    pub(super) fn new(elements: Elements, exact: Vec<f64>, rounded: Vec<f64>) -> Expected {
        Expected { elements, exact, rounded, units: Vec::new() }
    }

    /// With the errors of each element measured in its unit.
    pub(super) fn in_units(self, units: Vec<f64>) -> Expected {
        Expected { units, ..self }
    }

    /// The largest error of a result on the device, and what is accepted of it.
    pub(super) fn verdict(&self, found: &Tensor) -> Result<(f64, f64)> {
        Ok(self.compare(&self.elements.of_tensor(found)?))
    }

    /// The same of one in a file, with the memory of such a tensor.
    pub(super) fn verdict_of_file(&self, path: &Path, like: &Tensor) -> Result<(f64, f64)> {
        Ok(self.compare(&self.elements.of_file(path, like)?))
    }

    fn compare(&self, found: &[f64]) -> (f64, f64) {
        let difference = |a: &[f64]| {
            if self.units.is_empty() {
                return max_abs_difference(a, &self.exact);
            }
            let scaled = |a: &[f64]| a.iter().zip(&self.units).map(|(a, unit)| a / unit).collect::<Vec<f64>>();
            max_abs_difference(&scaled(a), &scaled(&self.exact))
        };
        (difference(found), tolerance(difference(&self.rounded)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroflash::{Device, Layout};

    #[test]
    fn compared_rows_are_spread_from_the_first_to_the_last() {
        assert_eq!(compared(3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(compared(1).collect::<Vec<_>>(), [0]);
        let many: Vec<usize> = compared(8192).collect();
        assert_eq!((many.len(), many[0], many[63]), (COMPARED, 0, 8191));
        assert!(many.windows(2).all(|pair| (130..=131).contains(&(pair[1] - pair[0]))), "{many:?}");
    }

    /// A wrong number among those that are compared is seen in a tensor and in a file, one beside them in neither, and so is a file that was cut off.
    #[test]
    fn results_are_compared_where_they_are_said_to_be() {
        let device = Device::open("emulator").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let exact: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let elements = Elements::rows([1, 3], 10);
        let of = in_f64(&elements.pick(&exact));
        assert_eq!((of.len(), of[0], of[10]), (20, 10.0, 30.0));
        let expected = Expected::new(elements, of.clone(), of);
        let errors = |data: &[f32]| {
            let tensor = Tensor::from_slice(&device, data, [4, 10], Layout::RowMajor).unwrap();
            std::fs::write(&path, bytemuck::cast_slice(data)).unwrap();
            [expected.verdict(&tensor), expected.verdict_of_file(&path, &tensor)].map(|verdict| verdict.unwrap().0)
        };
        let with = |at: usize, wrong: f32| {
            let mut data = exact.clone();
            data[at] = wrong;
            errors(&data)
        };
        assert_eq!(with(9, f32::NAN), [0.0; 2]);
        assert_eq!(with(10, f32::NAN), [f64::INFINITY; 2]);
        assert_eq!(with(39, 40.0), [1.0; 2]);
        let tensor = Tensor::from_slice(&device, &exact, [4, 10], Layout::RowMajor).unwrap();
        std::fs::write(&path, [0; 156]).unwrap();
        let cut = expected.verdict_of_file(&path, &tensor).unwrap_err().to_string();
        assert!(cut.contains("has 156 bytes instead of 160"), "{cut}");
    }

    #[test]
    fn errors_are_measured_in_units() {
        let expected = Expected::new(Elements::all(2), Vec::from([100.0, 1.0]), Vec::from([101.0, 1.0]));
        assert_eq!(expected.compare(&[110.0, 1.5]), (10.0, tolerance(1.0)));
        let expected = expected.in_units(Vec::from([100.0, 1.0]));
        let (error, bound) = expected.compare(&[110.0, 1.5]);
        assert!(error == 0.5 && (bound - tolerance(0.01)).abs() < 1e-12, "{error} {bound}");
    }
}
