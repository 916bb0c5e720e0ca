//! Float instructions that plain Rust does not reach: fused, approximate, packed.

/// `a * b + c` in one rounding.
///
/// PTX `fma.rn.f32`, least SM 2.0, any thread.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("fma.rn.f32 {}, {}, {}, {};",
            out(reg32) result, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
    }
    result
}

/// The larger of two floats; a NaN loses against a number.
///
/// PTX `max.f32`, any SM, any thread.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("max.f32 {}, {}, {};", out(reg32) result, in(reg32) a, in(reg32) b, options(pure, nomem, nostack));
    }
    result
}

/// `2^x` with a relative error of at most `2^-22.5`; subnormal inputs and results are zero.
///
/// PTX `ex2.approx.ftz.f32`, any SM, any thread.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("ex2.approx.ftz.f32 {}, {};", out(reg32) result, in(reg32) x, options(pure, nomem, nostack));
    }
    result
}

/// `log2(x)` with an absolute error of at most `2^-22` for `x` in `0.5..2` and a relative one of `2^-22` elsewhere.
///
/// PTX `lg2.approx.f32`, any SM, any thread.
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("lg2.approx.f32 {}, {};", out(reg32) result, in(reg32) x, options(pure, nomem, nostack));
    }
    result
}

/// `1 / x`, rounded to nearest.
///
/// PTX `rcp.rn.f32`, least SM 2.0, any thread.
#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("rcp.rn.f32 {}, {};", out(reg32) result, in(reg32) x, options(pure, nomem, nostack));
    }
    result
}

/// `sqrt(x)`, rounded to nearest.
///
/// PTX `sqrt.rn.f32`, least SM 2.0, any thread.
#[inline(always)]
pub fn sqrt(x: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("sqrt.rn.f32 {}, {};", out(reg32) result, in(reg32) x, options(pure, nomem, nostack));
    }
    result
}

/// `1 / x` to a unit in the last place; subnormal inputs and results are zero.
///
/// PTX `rcp.approx.ftz.f32`, any SM, any thread: one instruction, where [`reciprocal`] is eight and a branch, and one with subnormal numbers six.
#[inline(always)]
pub fn reciprocal_approx(x: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("rcp.approx.ftz.f32 {}, {};", out(reg32) result, in(reg32) x, options(pure, nomem, nostack));
    }
    result
}

/// `x` if `index < bound`, else 0, and never a branch.
///
/// PTX `setp.lt.u32` and `selp.f32`, any SM, any thread.
#[inline(always)]
pub fn within(x: f32, index: u32, bound: u32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("{{ .reg .pred p; setp.lt.u32 p, {2}, {3}; selp.f32 {0}, {1}, 0f00000000, p; }}",
            out(reg32) result, in(reg32) x, in(reg32) index, in(reg32) bound, options(pure, nomem, nostack));
    }
    result
}

/// `x` if `index < bound`, else `other`, and never a branch.
///
/// PTX `setp.lt.u32` and `selp.f32`, any SM, any thread.
#[inline(always)]
pub fn within_or(x: f32, index: u32, bound: u32, other: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("{{ .reg .pred p; setp.lt.u32 p, {2}, {3}; selp.f32 {0}, {1}, {4}, p; }}",
            out(reg32) result, in(reg32) x, in(reg32) index, in(reg32) bound, in(reg32) other, options(pure, nomem, nostack));
    }
    result
}

/// `|x|`.
///
/// `and.b32`, any SM, any thread: core has it only with std's math library. [`max_abs`] and [`if_abs_less`] need no instruction for it.
#[inline(always)]
pub fn abs(x: f32) -> f32 {
    f32::from_bits(x.to_bits() & 0x7fff_ffff)
}

/// The larger of `|a|` and `|b|`; of a NaN and a number, the number.
///
/// PTX `abs.f32` and `max.f32`, any SM, any thread: one instruction, whose operands take their absolute value.
#[inline(always)]
pub fn max_abs(a: f32, b: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("{{ .reg .f32 a, b; abs.f32 a, {1}; abs.f32 b, {2}; max.f32 {0}, a, b; }}",
            out(reg32) result, in(reg32) a, in(reg32) b, options(pure, nomem, nostack));
    }
    result
}

/// `a` if `|x| < bound`, else `b`, and never a branch: both are there already.
///
/// PTX `abs.f32`, `setp.lt.f32` and `selp.f32`, any SM, any thread.
#[inline(always)]
pub fn if_abs_less(x: f32, bound: f32, a: f32, b: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("{{ .reg .pred p; .reg .f32 x; abs.f32 x, {1}; setp.lt.f32 p, x, {2}; selp.f32 {0}, {3}, {4}, p; }}",
            out(reg32) result, in(reg32) x, in(reg32) bound, in(reg32) a, in(reg32) b, options(pure, nomem, nostack));
    }
    result
}

/// Hides a value from the optimiser: the way to keep a loop rolled whose bound is a constant.
///
/// No instruction, any SM, any thread.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    let mut value = value;
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: an empty statement.
    unsafe {
        core::arch::asm!("// {}", inout(reg32) value, options(nomem, nostack));
    }
    value
}

/// [`opaque`] of an address: what is added to it is not computed ahead and kept, but left to the instruction that takes it.
///
/// No instruction, any SM, any thread.
#[inline(always)]
pub fn opaque_address(address: u64) -> u64 {
    let mut address = address;
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: an empty statement.
    unsafe {
        core::arch::asm!("// {}", inout(reg64) address, options(nomem, nostack));
    }
    address
}

/// A place where a program on scores can be put into the text, see `kernel_spec::specialise`: `s` comes back as the program makes it of
/// `s` and of where it is, `[batch, head, row, key, q_rows, kv_rows]`, and as it is where there is no program.
///
/// The program finds its words in the kernel's parameters. No instruction, any SM, any thread.
#[inline(always)]
pub fn score_hook(s: f32, at: [u32; 6]) -> f32 {
    let mut s = s;
    let [batch, head, row, key, q_rows, kv_rows] = at;
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: an empty statement; what takes its place changes nothing but its first operand.
    unsafe {
        core::arch::asm!("// score.hook {}, {}, {}, {}, {}, {}, {};",
            inout(reg32) s, in(reg32) batch, in(reg32) head, in(reg32) row, in(reg32) key, in(reg32) q_rows, in(reg32) kv_rows,
            options(pure, nomem, nostack));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    let _ = (batch, head, row, key, q_rows, kv_rows);
    s
}

/// [`score_hook`] in a function that is called, whose text cannot name the kernel's parameters: the program's factor and words come along.
#[inline(always)]
pub fn score_hook_with(s: f32, at: [u32; 6], factor: u64, words: [u64; 8]) -> f32 {
    let mut s = s;
    let [batch, head, row, key, q_rows, kv_rows] = at;
    let [w0, w1, w2, w3, w4, w5, w6, w7] = words;
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("// score.hook {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {};",
            inout(reg32) s, in(reg32) batch, in(reg32) head, in(reg32) row, in(reg32) key, in(reg32) q_rows, in(reg32) kv_rows,
            in(reg64) factor, in(reg64) w0, in(reg64) w1, in(reg64) w2, in(reg64) w3, in(reg64) w4, in(reg64) w5, in(reg64) w6,
            in(reg64) w7, options(pure, nomem, nostack));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    let _ = (batch, head, row, key, q_rows, kv_rows, factor, w0, w1, w2, w3, w4, w5, w6, w7);
    s
}

/// [`score_hook`] of the backward pass: what the program makes of `s`, and how that grows with the scaled score; `s` and 1 where there is no
/// program.
#[inline(always)]
pub fn score_gradient_hook(s: f32, at: [u32; 6]) -> [f32; 2] {
    let (mut s, mut slope) = (s, 1.0);
    let [batch, head, row, key, q_rows, kv_rows] = at;
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: an empty statement; what takes its place changes nothing but its first two operands.
    unsafe {
        core::arch::asm!("// score.gradient {}, {}, {}, {}, {}, {}, {}, {};",
            inout(reg32) slope, inout(reg32) s, in(reg32) batch, in(reg32) head, in(reg32) row, in(reg32) key, in(reg32) q_rows,
            in(reg32) kv_rows, options(pure, nomem, nostack));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    let _ = (batch, head, row, key, q_rows, kv_rows, &mut s, &mut slope);
    [s, slope]
}
