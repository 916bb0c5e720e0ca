//! Element types of the host.

use kernel_spec::DType;

/// Element types of the host: `f32`, [`half::f16`] and [`half::bf16`].
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed + 'static {
    /// The same type on the device.
    const DTYPE: DType;
    /// The exact value.
    fn to_f64(self) -> f64;
    /// The nearest value of this type, ties to even.
    fn from_f64(value: f64) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for f32 {}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl sealed::Sealed for half::f16 {}
impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
    fn to_f64(self) -> f64 {
        self.to_f64()
    }
    fn from_f64(value: f64) -> Self {
        half::f16::from_f64(value)
    }
}

impl sealed::Sealed for half::bf16 {}
impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
    fn to_f64(self) -> f64 {
        self.to_f64()
    }
    fn from_f64(value: f64) -> Self {
        half::bf16::from_f64(value)
    }
}
