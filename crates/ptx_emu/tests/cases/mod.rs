//! One small kernel for each instruction: inputs, how to compare, and where possible an independent definition.
//!
//! Every kernel has the signature `(in, out)`: thread `i` reads three 64-bit words at `in + 24 i` and writes four 32-bit
//! words at `out + 16 i`. The same kernels and inputs run on the emulator and on a GPU. `map` is the address of a tensor map,
//! where a case has one; the output buffer holds zeros before the launch.

mod families;
mod inputs;
mod written;

use std::borrow::Cow;

use ptx_emu::{Swizzle, TensorDataType, TensorFill, TensorMapSpec};

/// Threads that run each case: eight blocks of 128.
pub(crate) const THREADS: usize = 1024;

/// Threads of a block.
pub(crate) const BLOCK: usize = 128;

/// What the input words hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Integers: corners of the ranges, and random bits.
    Bits,
    /// f32 in the low half: zeros, subnormals, infinities, NaN, random bits and numbers around one.
    F32,
    /// f64, likewise.
    F64,
    /// f16 in the low 16 bits of both halves of the low 32 bits, likewise.
    F16,
    /// bf16, likewise.
    Bf16,
    /// Two small integers as f16.
    SmallF16,
    /// Two small integers as bf16.
    SmallBf16,
    /// One small integer as f32.
    SmallF32,
    /// Four small integers as e4m3.
    SmallE4m3,
    /// Four small integers as e5m2.
    SmallE5m2,
    /// Four bytes that are few bits wide as e4m3 and as e5m2.
    SmallFp8,
    /// f16 between -4 and 4, in the low 16 bits of both halves of the low 32 bits.
    ModerateF16,
    /// bf16, likewise.
    ModerateBf16,
    /// f32 in the domain where the approximate functions have their documented bounds.
    Moderate,
}

/// Where the result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// `%d0`.
    B32,
    /// `%ld`.
    B64,
    /// `%hd`.
    B16,
    /// `%q`.
    Pred,
    /// `%d0` to `%d3`.
    Quad,
    /// The case writes its block's 2048 bytes of the output itself.
    Own,
}

/// A tensor over one of the buffers, with the fields of `cuTensorMapEncodeTiled`.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    /// Over the output rather than the input.
    pub(crate) of_output: bool,
    pub(crate) data_type: TensorDataType,
    pub(crate) dims: Vec<u64>,
    pub(crate) strides: Vec<u64>,
    pub(crate) box_dims: Vec<u32>,
    pub(crate) swizzle: Swizzle,
    pub(crate) fill: TensorFill,
}

/// When two results agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Compare {
    /// Same bits.
    Bits,
    /// f32 of the same class, at most this many units in the last place apart.
    Ulps(u32),
    /// f32 at most this far apart.
    Absolute(f32),
    /// Both halves are f16 or bf16 of the same class, at most this many units in the last place apart.
    HalfUlps { units: u32, bf16: bool },
    /// No result: the kernel is refused where it runs.
    Refused,
    /// Both within the error that the PTX manual allows `lg2.approx.f32` from the logarithm of the first input: 2^-22
    /// absolute in (0.5, 2), 2^-22 relative elsewhere.
    Lg2,
}

/// The four result words of a thread, from the input words of all.
pub(crate) type Definition = fn(&[[u64; 3]], usize) -> [u32; 4];

/// A case.
pub(crate) struct Case {
    /// Family, as the table of `VALIDATION.md` lists it.
    pub(crate) family: &'static str,
    /// The instruction with its operands.
    pub(crate) body: Cow<'static, str>,
    pub(crate) input: Input,
    pub(crate) output: Output,
    pub(crate) compare: Compare,
    /// Least target.
    pub(crate) sm: &'static str,
    /// The result by another road, from the three input words.
    pub(crate) reference: Option<fn(u64, u64, u64) -> u64>,
    /// The same where it depends on other threads.
    pub(crate) definition: Option<Definition>,
    /// What the tensor map at `%map` describes.
    pub(crate) tensor: Option<Tensor>,
    /// CTAs of a cluster; 0 where the kernel does not ask for clusters.
    pub(crate) cluster: u32,
}

impl Tensor {
    /// The description for these buffers.
    pub(crate) fn spec(&self, input: u64, output: u64) -> TensorMapSpec {
        TensorMapSpec {
            data_type: self.data_type,
            address: if self.of_output { output } else { input },
            dims: self.dims.clone(),
            strides: self.strides.clone(),
            box_dims: self.box_dims.clone(),
            swizzle: self.swizzle,
            fill: self.fill,
        }
    }
}

impl Case {
    /// Name of the entry.
    pub(crate) fn entry(index: usize) -> String {
        format!("case_{index:03}")
    }

    /// A module with this case alone.
    pub(crate) fn module(&self, index: usize) -> String {
        // Relaxed operations on mbarriers came with PTX ISA 8.6, the rest of sm_90a's before 8.4.
        let relaxed = self.body.contains("mbarrier.arrive.relaxed") || self.body.contains("try_wait.parity.relaxed");
        let version = match self.sm {
            "sm_90a" if relaxed => "8.6",
            "sm_90a" => "8.4",
            _ => "7.8",
        };
        // Tiles of wgmma and of tensor copies are aligned to the period of their swizzle.
        let shared = if self.sm == "sm_90a" {
            ".shared .align 1024 .b8 buffer[40960];\n.shared .align 8 .b64 bar;\n.reg .b32 %w<128>;"
        } else {
            ".shared .align 16 .b8 buffer[2048];"
        };
        // With this directive, a launch of any kind makes clusters.
        let cluster = match self.cluster {
            0 => String::new(),
            n => format!("\n.explicitcluster\n.reqnctapercluster {n}, 1, 1"),
        };
        let epilogue = match self.output {
            Output::B32 | Output::Quad => "",
            Output::Own => "ret;",
            Output::B64 => "mov.b64 {%d0, %d1}, %ld;",
            Output::B16 => "cvt.u32.u16 %d0, %hd;",
            Output::Pred => "selp.b32 %d0, 1, 0, %q;",
        };
        format!(
            ".version {version}\n.target {}\n.address_size 64\n\
             .visible .entry {}(.param .u64 in, .param .u64 out, .param .u64 map){cluster}\n{{\n\
             .reg .pred %q, %q1;\n.reg .b16 %ha, %hb, %hc, %hd;\n.reg .b32 %a, %b, %c, %d<4>, %t<8>, %i;\n\
             .reg .b64 %la, %lb, %lc, %ld, %in, %out, %map, %off;\n{shared}\n\
             ld.param.u64 %in, [in];\nld.param.u64 %out, [out];\nld.param.u64 %map, [map];\n\
             mov.u32 %i, %tid.x;\nmov.u32 %t0, %ctaid.x;\nmad.lo.s32 %i, %t0, 128, %i;\n\
             mul.wide.u32 %off, %i, 24;\nadd.s64 %in, %in, %off;\n\
             ld.global.u64 %la, [%in];\nld.global.u64 %lb, [%in+8];\nld.global.u64 %lc, [%in+16];\n\
             cvt.u32.u64 %a, %la;\ncvt.u32.u64 %b, %lb;\ncvt.u32.u64 %c, %lc;\n\
             cvt.u16.u64 %ha, %la;\ncvt.u16.u64 %hb, %lb;\ncvt.u16.u64 %hc, %lc;\n\
             mov.b32 %d0, 0;\nmov.b32 %d1, 0;\nmov.b32 %d2, 0;\nmov.b32 %d3, 0;\n\
             mov.b64 %ld, 0;\nmov.b16 %hd, 0;\nsetp.ne.u32 %q, %i, %i;\nsetp.lt.u32 %q1, %a, %b;\n\
             {}\n{epilogue}\n\
             mul.wide.u32 %off, %i, 16;\nadd.s64 %out, %out, %off;\n\
             st.global.v4.u32 [%out], {{%d0, %d1, %d2, %d3}};\nret;\n}}\n",
            self.sm,
            Self::entry(index),
            self.body
        )
    }

    /// The input words of all threads.
    pub(crate) fn inputs(&self) -> Vec<[u64; 3]> {
        let mut state = 0x1234_5678_9abc_def1u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..THREADS).map(|_| std::array::from_fn(|_| inputs::word(self.input, next()))).collect()
    }
}

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let mut v = written::all();
    v.extend(families::all());
    v
}

/// Whether one 32-bit result agrees with another, for these input words.
pub(crate) fn agrees(compare: Compare, inputs: &[u64; 3], a: u32, b: u32) -> bool {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    match compare {
        Compare::Bits => a == b,
        Compare::Refused => false,
        _ if a == b || (x.is_nan() && y.is_nan()) => true,
        Compare::Ulps(n) => {
            let key = |b: u32| if b >> 31 == 1 { -((b & 0x7fff_ffff) as i64) } else { b as i64 };
            x.is_finite() == y.is_finite() && (key(a) - key(b)).unsigned_abs() <= n as u64
        }
        Compare::HalfUlps { units, bf16 } => (0..2).all(|half| {
            let (a, b) = ((a >> (16 * half)) as u16, (b >> (16 * half)) as u16);
            let infinity = if bf16 { 0x7f80 } else { 0x7c00 };
            let nan = |h: u16| h & 0x7fff > infinity;
            let finite = |h: u16| h & 0x7fff < infinity;
            let key = |h: u16| if h >> 15 == 1 { -((h & 0x7fff) as i32) } else { h as i32 };
            (nan(a) && nan(b)) || (finite(a) == finite(b) && (key(a) - key(b)).unsigned_abs() <= units)
        }),
        Compare::Absolute(d) => (x - y).abs() <= d,
        Compare::Lg2 => {
            let of = f(inputs[0]) as f64;
            let exact = of.log2();
            let allowed = 2f64.powi(-22) * if of > 0.5 && of < 2.0 { 1.0 } else { exact.abs() };
            [x, y].iter().all(|&v| (v as f64 - exact).abs() <= allowed)
        }
    }
}
