//! What becomes of a score between the product and the softmax: the one place for everything that a call does to scores beyond scale
//! and mask.
//!
//! Which of it a call does is known when the kernel is loaded, see `kernel_spec::Features`: the tests here are on constants, and what
//! they guard is gone from the machine code of a call without it. They stand around whole tiles, so that the text has one branch a step.

use cuda_std::{math, thread};
use kernel_spec::ForwardFeatures;
use kernel_spec::families::forward::features::{PROGRAM, SOFTCAP};
use kernel_spec::layout::{fragment_col, fragment_row};

use crate::parts::fragments::Fragments;

/// Which score it is.
#[derive(Clone, Copy)]
pub struct Place {
    /// Query row of its head.
    pub row: u32,
    /// Key.
    pub key: u32,
}

/// A function of scores.
pub trait ScoreMod {
    /// What takes the place of score `s`, a product without scale.
    fn apply(&self, s: f32, at: Place) -> f32;
}

/// Changes scores as the features of the call say, those of keys from `key` on; `row` tells the query row of its head, given the row of
/// the tile. Before any score is hidden: a function may turn minus infinity into a number.
#[inline(always)]
pub fn modify<F: Fragments>(scores: &mut F, features: &ForwardFeatures, key: u32, row: impl Fn(u32) -> u32) {
    if features.has(SOFTCAP) {
        let factor = f32::from_bits(features.value(SOFTCAP) as u32);
        each(scores, key, &row, &Softcap { factor });
    }
    if features.has(PROGRAM) {
        each(scores, key, &row, &Program { value: features.value(PROGRAM) });
    }
}

/// [`modify`] of one score in f64. What a function makes of it, it makes in f32.
#[inline(always)]
pub fn modify_one(score: f64, features: &ForwardFeatures, row: u32, key: u32) -> f64 {
    let (mut s, at) = (score, Place { row, key });
    if features.has(SOFTCAP) {
        let factor = f32::from_bits(features.value(SOFTCAP) as u32);
        // The product in f64, where it does not overflow.
        s = tanh((s * factor as f64) as f32) as f64;
    }
    if features.has(PROGRAM) {
        s = Program { value: features.value(PROGRAM) }.apply(s as f32, at) as f64;
    }
    s
}

#[inline(always)]
fn each<F: Fragments>(scores: &mut F, key: u32, row: &impl Fn(u32) -> u32, score_mod: &impl ScoreMod) {
    let lane = thread::lane();
    for m in 0..F::M {
        for n in 0..F::N {
            for i in 0..4 {
                let at = Place {
                    row: row(16 * m as u32 + fragment_row(lane, i)),
                    key: key + 8 * n as u32 + fragment_col(lane, i),
                };
                let s = &mut scores.at_mut(m, n)[i as usize];
                *s = score_mod.apply(*s, at);
            }
        }
    }
}

/// `tanh(s * factor)`; the scale that follows holds the cap.
///
/// Not by the instruction `tanh.approx`: its error of 2^-11 is three times what the log-sum-exp of 16-bit inputs may have (H200).
struct Softcap {
    factor: f32,
}

impl ScoreMod for Softcap {
    #[inline(always)]
    fn apply(&self, s: f32, _: Place) -> f32 {
        tanh(s * self.factor)
    }
}

/// Whatever takes the place of the hook when the entry is loaded, see `kernel_spec::specialise`; without it, a score stays what it is.
struct Program {
    value: u64,
}

impl ScoreMod for Program {
    #[inline(always)]
    fn apply(&self, s: f32, at: Place) -> f32 {
        math::score_hook(s, at.row, at.key, self.value)
    }
}

/// `tanh(x)` with an absolute error below `1e-7`.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    // Near 0, where the difference below cancels: the Taylor series up to x^9, whose next term is below 2^-28 there.
    const SMALL: f32 = 0.25;
    let square = x * x;
    let mut series = math::fma(square, 62.0 / 2835.0, -17.0 / 315.0);
    series = math::fma(series, square, 2.0 / 15.0);
    series = math::fma(series, square, -1.0 / 3.0);
    let small = math::fma(series * square, x, x);
    // (1 - t) / (1 + t) with t = e^(-2 |x|), which never overflows.
    let magnitude = f32::from_bits(x.to_bits() & 0x7fff_ffff);
    let t = math::exp2(magnitude * (-2.0 * core::f32::consts::LOG2_E));
    let large = (1.0 - t) * math::reciprocal(1.0 + t);
    let large = f32::from_bits(large.to_bits() | (x.to_bits() & 0x8000_0000));
    if magnitude < SMALL { small } else { large }
}
