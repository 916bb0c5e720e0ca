//! What the tests share: the device, cases and how they are run, the `ferroflash` program.

pub(crate) mod case;
pub(crate) mod device;
pub(crate) mod draws;
pub(crate) mod edits;
pub(crate) mod gradients;
pub(crate) mod json;
pub(crate) mod lie;
pub(crate) mod packed;
pub(crate) mod packed_gradients;
pub(crate) mod planned;
pub(crate) mod program;
pub(crate) mod programs;
pub(crate) mod rule;
pub(crate) mod sequences;
pub(crate) mod stub_driver;

/// The element types of the test macros, as types.
pub(crate) use ferroflash::{bf16, f16};

/// Makes one test for each kernel and element type: `$check::<element type>(kernel)`.
///
/// Where the device does not run a kernel on a type, the test is that a call says so.
#[macro_export]
macro_rules! for_each_kernel_and_dtype {
    ($check:ident) => {
        $crate::for_each_kernel_and_dtype! { @tests $check
            naive_f32 Naive f32, naive_f16 Naive f16, naive_bf16 Naive bf16,
            v1_f32 V1 f32, v1_f16 V1 f16, v1_bf16 V1 bf16,
            v2_f32 V2 f32, v2_f16 V2 f16, v2_bf16 V2 bf16,
            v3_f32 V3 f32, v3_f16 V3 f16, v3_bf16 V3 bf16,
        }
    };
    (@tests $check:ident $($name:ident $kernel:ident $element:ident,)*) => {
        mod $check {
            #[allow(unused_imports, reason = "f32 is a builtin")]
            use $crate::support::{bf16, f16};
            $(#[test]
            fn $name() {
                let kernel = ferroflash::Kernel::$kernel;
                let runs = $crate::support::case::runs::<$element>(&$crate::support::device::shared().device, kernel);
                if runs {
                    super::$check::<$element>(kernel);
                }
            })*
        }
    };
}
