//! Numbers, tensors that lie in several ways, and the tolerance rule.

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor, Var};
use ferroflash::reference::{max_abs_difference, tolerance};

/// The element types, as candle and as ferroflash name them.
pub(crate) const DTYPES: [(DType, ferroflash::DType); 3] = [
    (DType::F32, ferroflash::DType::F32),
    (DType::F16, ferroflash::DType::F16),
    (DType::BF16, ferroflash::DType::Bf16),
];

/// Numbers from -2 to 2 of a fixed pattern, which repeats nowhere in these shapes: the fractional parts of multiples of an irrational number.
pub(crate) fn values(shape: &[usize], seed: usize, dtype: DType) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| ((i + 7919 * seed) as f64 * 0.618_033_988_749_894_9).fract() as f32 * 4.0 - 2.0;
    let numbers: Vec<f32> = (0..count).map(value).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// The elements in the order of the shape.
pub(crate) fn f64s(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lie {
    /// Without gaps.
    Whole,
    /// So many other columns before and behind its own.
    Gaps(usize, usize),
    /// Its first two axes are the other way round in memory.
    Turned,
}

/// A variable, and the view of it that is used.
pub(crate) struct Laid {
    var: Var,
    lie: Lie,
}

impl Laid {
    /// A variable whose view has these elements.
    pub(crate) fn new(tensor: &Tensor, lie: Lie) -> Laid {
        let held = match lie {
            Lie::Whole => tensor.clone(),
            Lie::Gaps(before, behind) => {
                // Read by mistake, these would be seen.
                let gap = |columns: usize| {
                    let mut shape = tensor.dims().to_vec();
                    *shape.last_mut().unwrap() = columns;
                    Tensor::full(f32::NAN, shape, &Device::Cpu).unwrap().to_dtype(tensor.dtype()).unwrap()
                };
                Tensor::cat(&[&gap(before), tensor, &gap(behind)], D::Minus1).unwrap()
            }
            Lie::Turned => tensor.transpose(0, 1).unwrap().contiguous().unwrap(),
        };
        Laid { var: Var::from_tensor(&held).unwrap(), lie }
    }

    fn of(&self, held: &Tensor) -> Tensor {
        match self.lie {
            Lie::Whole => held.clone(),
            Lie::Gaps(before, behind) => {
                let columns = held.dim(D::Minus1).unwrap() - before - behind;
                held.narrow(D::Minus1, before, columns).unwrap()
            }
            Lie::Turned => held.transpose(0, 1).unwrap(),
        }
    }

    pub(crate) fn view(&self) -> Tensor {
        self.of(self.var.as_tensor())
    }

    /// The gradient of the view, in the order of its shape.
    pub(crate) fn gradient(&self, gradients: &GradStore) -> Vec<f64> {
        let gradient = gradients.get(self.var.as_tensor()).expect("a gradient");
        assert_eq!((gradient.dims(), gradient.dtype()), (self.var.dims(), self.var.dtype()));
        f64s(&self.of(gradient))
    }
}

/// The number that is derived: its gradient with respect to `out` is `dout`.
pub(crate) fn weighted(out: &Tensor, dout: &Tensor) -> Tensor {
    assert_eq!((out.dims(), out.dtype()), (dout.dims(), dout.dtype()));
    (out * dout).unwrap().sum_all().unwrap()
}

/// By the rule of the reference, in units of what a result is likely to be.
pub(crate) fn check(name: &str, found: &[f64], exact: &[f64], rounded: &[f64], unit: f64) {
    let error = max_abs_difference(found, exact) / unit;
    let bound = tolerance(max_abs_difference(rounded, exact) / unit);
    // A bound that is no number accepts nothing.
    assert!(error <= bound && bound.is_finite(), "{name} is off by {error:e} times {unit:e}, {bound:e} is accepted");
}
