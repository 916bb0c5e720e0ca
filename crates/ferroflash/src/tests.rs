//! What is decided before a launch: checks, plans, parameters, memory. On a device that records instead of computing.

use crate::backend::recording::{self, Launched};
use crate::*;

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?, $message:expr) => {{
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
        assert_eq!(error.to_string(), $message);
    }};
}

mod checks;
mod memory;
mod params;
mod plans;
#[cfg(feature = "emulator")]
mod programs;
mod raw;

const SHAPE: Shape = Shape::new(2, 5, 4, 16);
const KV_SHAPE: Shape = Shape::new(2, 7, 2, 16);

struct Case {
    device: Device,
    launched: Launched,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
}

impl Case {
    fn new() -> Case {
        let (device, launched) = recording::device();
        let zeros = |shape| Tensor::zeros(&device, DType::F16, shape, Layout::Bshd).unwrap();
        let (q, k, v, out) = (zeros(SHAPE), zeros(KV_SHAPE), zeros(KV_SHAPE), zeros(SHAPE));
        Case { device, launched, q, k, v, out }
    }

    fn zeros(&self, shape: Shape) -> Tensor {
        Tensor::zeros(&self.device, DType::F16, shape, Layout::Bshd).unwrap()
    }

    /// The error of a call with these tensors, which must come before any launch.
    fn error(&self, q: &TensorView<'_>, k: &TensorView<'_>, v: &TensorView<'_>) -> Error {
        let error = Attention::new().forward(q, k, v).unwrap_err();
        assert!(self.launched.lock().unwrap().is_empty(), "{error}: launched all the same");
        error
    }

    fn error_into(&mut self, out: impl FnOnce(&mut Tensor) -> TensorViewMut<'_>) -> Error {
        let stream = self.device.default_stream();
        let (q, k, v) = (self.q.view(), self.k.view(), self.v.view());
        let error = Attention::new().forward_into(&stream, &q, &k, &v, &mut out(&mut self.out), None).unwrap_err();
        assert!(self.launched.lock().unwrap().is_empty(), "{error}: launched all the same");
        error
    }
}

/// The row of the variant list that a step launches.
fn row(step: &Step) -> &'static Variant {
    VARIANTS.iter().find(|variant| variant.entry == *step.kernel.entry).expect("a row of the list")
}
