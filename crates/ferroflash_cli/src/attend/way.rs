//! Who computes a call.

use crate::names::{Named, Vocabulary};
use kernel_spec::Kernel;

/// Who computes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The kernel that the library chooses.
    Auto,
    /// This kernel.
    Kernel(Kernel),
    /// Plain loops in f64 on the CPU, rounded at the end.
    Reference,
}

impl Vocabulary for Way {
    const VALUES: &'static [Named<Way>] = &{
        let mut values = [Named(Way::Auto); Kernel::ALL.len() + 2];
        let mut i = 0;
        while i < Kernel::ALL.len() {
            values[i + 1] = Named(Way::Kernel(Kernel::ALL[i]));
            i += 1;
        }
        values[i + 1] = Named(Way::Reference);
        values
    };

    fn name(self) -> &'static str {
        match self {
            Way::Auto => "auto",
            Way::Kernel(kernel) => kernel.name(),
            Way::Reference => "reference",
        }
    }

    fn help(self) -> &'static str {
        match self {
            Way::Auto => "The library chooses",
            Way::Kernel(kernel) => kernel.help(),
            Way::Reference => "Plain loops in f64 on the CPU, rounded at the end",
        }
    }
}
