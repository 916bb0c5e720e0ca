//! GPU architectures and PTX versions that the pinned rustc can target.

use std::fmt;

macro_rules! architectures {
    ($($variant:ident $name:literal $least_ptx:literal $doc:literal;)*) => {
        /// A GPU architecture: what rustc calls the target CPU.
        ///
        /// PTX for a plain architecture (`sm_80`) runs on every later GPU, whose driver compiles it. The `a` architectures have
        /// instructions of one generation (wgmma, tcgen05) and run on that one only.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Arch {
            $(#[doc = $doc] $variant,)*
        }

        impl Arch {
            /// Every architecture, oldest first.
            pub const ALL: &[Arch] = &[$(Arch::$variant),*];

            /// Name as rustc and ptxas write it, such as `sm_90a`.
            pub const fn name(self) -> &'static str {
                match self { $(Arch::$variant => $name,)* }
            }

            /// PTX version of the output when none is asked for: the least that knows the architecture (LLVM's choice).
            pub const fn least_ptx(self) -> PtxVersion {
                match self { $(Arch::$variant => PtxVersion($least_ptx),)* }
            }
        }
    };
}

architectures! {
    Sm80 "sm_80" 70 "Compute capability 8.0: A100.";
    Sm86 "sm_86" 71 "Compute capability 8.6: A10, A40, RTX 30.";
    Sm87 "sm_87" 74 "Compute capability 8.7: Orin.";
    Sm89 "sm_89" 78 "Compute capability 8.9: L4, L40, RTX 40.";
    Sm90 "sm_90" 78 "Compute capability 9.0, what later GPUs have too.";
    Sm90a "sm_90a" 80 "Compute capability 9.0 with wgmma and setmaxnreg: H100, H200.";
    Sm100 "sm_100" 86 "Compute capability 10.0, what later GPUs have too.";
    Sm100a "sm_100a" 86 "Compute capability 10.0 with tcgen05: B200.";
    Sm120 "sm_120" 87 "Compute capability 12.0, what later GPUs have too.";
    Sm120a "sm_120a" 87 "Compute capability 12.0 with its block-scaled mma: RTX 50.";
}

impl Arch {
    /// Whether PTX for this architecture runs on one generation only.
    pub fn is_specific(self) -> bool {
        self.name().ends_with('a')
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A PTX ISA version; the tens are the major number, so 83 is PTX 8.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PtxVersion(pub(crate) u32);

impl PtxVersion {
    /// The text of a module with this version in the place of its own. rustc has target features for it and warns of
    /// them; all that they change is this line, for what younger versions add is written in `asm!`.
    pub(crate) fn set_in(self, ptx: &str) -> String {
        match ptx.split_once(".version ") {
            Some((before, after)) => {
                format!("{before}.version {self}{}", &after[after.find('\n').unwrap_or(after.len())..])
            }
            None => ptx.to_owned(),
        }
    }
}

impl fmt::Display for PtxVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 10, self.0 % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for &arch in Arch::ALL {
            assert_eq!(arch.name().parse::<Arch>().unwrap(), arch);
        }
        let message = "sm_75".parse::<Arch>().unwrap_err().to_string();
        assert!(message.contains("sm_75") && message.contains("sm_90a"), "{message}");
    }

    #[test]
    fn ptx_versions_rustc_lacks_are_refused() {
        assert_eq!(PtxVersion::new(8, 3).unwrap().to_string(), "8.3");
        for (major, minor) in [(7, 9), (6, 5), (8, 13), (12, 0), (u32::MAX, 9)] {
            assert!(PtxVersion::new(major, minor).is_err(), "{major}.{minor}");
        }
    }
}
