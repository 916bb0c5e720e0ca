//! The library's own enums on the command line and in sweep files: a value is given by the name that the library prints, and nothing here
//! lists the values a second time.

use clap::ValueEnum;
use clap::builder::PossibleValue;
use kernel_spec::{DType, Kernel};
use serde::{Deserialize, Deserializer, de};

/// `$body` with `$t` as the Rust type of elements of `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            kernel_spec::DType::F32 => {
                type $t = f32;
                $body
            }
            kernel_spec::DType::F16 => {
                type $t = half::f16;
                $body
            }
            kernel_spec::DType::Bf16 => {
                type $t = half::bf16;
                $body
            }
            other => unreachable!("{other} has no element type here"),
        }
    };
}
pub(crate) use with_element;

/// Values that users choose by name.
pub(crate) trait Vocabulary: Copy + 'static {
    /// Every value, in the order in which help lists them.
    const VALUES: &'static [Named<Self>];

    /// What it is called.
    fn name(self) -> &'static str;

    /// What help says of it.
    fn help(self) -> &'static str;
}

/// A value as an argument or a key of a file. It stands here because neither the enum nor the trait of the parser is this crate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named<T>(pub(crate) T);

impl<T: Copy> Named<T> {
    const fn each<const N: usize>(values: [T; N]) -> [Named<T>; N] {
        let mut named = [Named(values[0]); N];
        let mut i = 1;
        while i < N {
            named[i] = Named(values[i]);
            i += 1;
        }
        named
    }
}

impl Vocabulary for Kernel {
    const VALUES: &'static [Named<Kernel>] = &Named::each(Kernel::ALL);

    fn name(self) -> &'static str {
        Kernel::name(self)
    }

    fn help(self) -> &'static str {
        self.summary()
    }
}

impl Vocabulary for DType {
    const VALUES: &'static [Named<DType>] = &Named::each(DType::ALL);

    fn name(self) -> &'static str {
        DType::name(self)
    }

    fn help(self) -> &'static str {
        match self {
            DType::F32 => "IEEE binary32",
            DType::F16 => "IEEE binary16",
            DType::Bf16 => "bfloat16",
            _ => DType::name(self),
        }
    }
}

impl<T: Vocabulary> ValueEnum for Named<T> {
    fn value_variants<'a>() -> &'a [Self] {
        T::VALUES
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()).help(self.0.help()))
    }
}

impl<'de, T: Vocabulary> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        T::VALUES.iter().copied().find(|value| value.0.name() == name).ok_or_else(|| {
            let names: Vec<String> = T::VALUES.iter().map(|value| format!("`{}`", value.0.name())).collect();
            de::Error::custom(format_args!("unknown variant `{name}`, expected one of {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_given_by_the_names_of_the_library() {
        for kernel in Kernel::ALL {
            assert_eq!(Named::<Kernel>::from_str(&kernel.name().to_uppercase(), true), Ok(Named(kernel)));
            let json = format!("{:?}", kernel.name());
            assert_eq!(serde_json::from_str::<Named<Kernel>>(&json).unwrap(), Named(kernel));
        }
        for dtype in DType::ALL {
            assert_eq!(Named::<DType>::from_str(dtype.name(), false), Ok(Named(dtype)));
        }
        let error = serde_json::from_str::<Named<Kernel>>("\"v9\"").unwrap_err().to_string();
        assert!(error.starts_with("unknown variant `v9`, expected one of `naive`, `v1`, `v2`, `v3`"), "{error}");
    }
}
