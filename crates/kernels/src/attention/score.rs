//! What becomes of a score between the product and the softmax: the one place for everything that a call does to scores beyond scale
//! and mask.
//!
//! Which of it a call does is known when the kernel is loaded, see `kernel_spec::Features`: the tests here are on constants, and what
//! they guard is gone from the machine code of a call without it. They stand around whole tiles, so that the text has one branch a step.

use cuda_std::{math, thread};
use kernel_spec::families::forward::features::{FIRST_WORD, PROGRAM, SOFTCAP, WORDS};
use kernel_spec::layout::{fragment_col, fragment_row};
use kernel_spec::{DType, ForwardFeatures, Pass};

use crate::attention::Config;
use crate::attention::softcap;
use crate::parts::fragments::Fragments;

/// Which score it is.
#[derive(Clone, Copy)]
pub struct Place {
    /// Batch entry, or sequence.
    pub batch: u32,
    /// Query head.
    pub head: u32,
    /// Query row of its head.
    pub row: u32,
    /// Key.
    pub key: u32,
    /// Query rows of its batch entry.
    pub q_rows: u32,
    /// Keys of its batch entry.
    pub kv_rows: u32,
}

impl Place {
    /// In the order of a hook's operands.
    #[inline(always)]
    pub fn operands(self) -> [u32; 6] {
        let Place { batch, head, row, key, q_rows, kv_rows } = self;
        [batch, head, row, key, q_rows, kv_rows]
    }
}

/// A function of scores.
pub trait ScoreMod {
    /// What takes the place of score `s`, a product without scale.
    fn apply(&self, s: f32, at: Place) -> f32;
}

/// Changes scores as the features of the call say; `place` tells where one is, given row and column of the tile. Before any score is
/// hidden: a function may turn minus infinity into a number.
#[inline(always)]
pub fn modify<C: Config, F: Fragments>(scores: &mut F, features: &ForwardFeatures, place: impl Fn(u32, u32) -> Place) {
    cap::<C, F>(scores, features, &place);
    // Text of a feature only where the row accepts it: one without is shorter, and is ordered as it always was.
    if const { C::ROW.entry.takes(PROGRAM) } && features.has(PROGRAM) {
        each(scores, &place, &Program);
    }
}

/// The part of [`modify`] that no list of blocks makes needless: a tile whose keys are all seen passes over a program that only hides.
#[inline(always)]
pub fn cap<C: Config, F: Fragments>(scores: &mut F, features: &ForwardFeatures, place: &impl Fn(u32, u32) -> Place) {
    if const { C::ROW.entry.takes(SOFTCAP) } && features.has(SOFTCAP) {
        let factor = f32::from_bits(features.value(SOFTCAP) as u32);
        let in_turn = const { takes_turns::<C>() };
        if const { matches!(C::ROW.dtype, DType::F32) } {
            each(scores, place, &Softcap { factor, in_turn });
        } else {
            softcap::tile(scores, factor, in_turn);
        }
    }
}

/// [`modify`] of one score in f64, in a function that is called. What a function makes of it, it makes in f32.
#[inline(always)]
pub fn modify_one(score: f64, features: &ForwardFeatures, at: Place) -> f64 {
    let mut s = score;
    if features.has(SOFTCAP) {
        let factor = f32::from_bits(features.value(SOFTCAP) as u32);
        // The product in f64, where it does not overflow.
        s = softcap::tanh_with_branch((s * factor as f64) as f32) as f64;
    }
    if features.has(PROGRAM) {
        let word = |i: u32| features.value(FIRST_WORD + i);
        let words: [u64; WORDS] = [word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7)];
        s = math::score_hook_with(s as f32, at.operands(), features.value(PROGRAM), words) as f64;
    }
    s
}

/// Whether the registers of a row do not hold the softcaps of several scores at a time: with branches, they come one after the other.
const fn takes_turns<C: Config>() -> bool {
    let is_wide = C::ROW.dim_qk > 192;
    match C::ROW.dtype {
        DType::F32 => is_wide && matches!(C::ROW.pass, Pass::V1 | Pass::Prefill),
        _ => is_wide && matches!(C::ROW.pass, Pass::V3 | Pass::SplitV3),
    }
}

/// Whether what comes of the scores may hide keys, which no test of the mask tells.
#[inline(always)]
pub fn may_hide(features: &ForwardFeatures) -> bool {
    features.has(PROGRAM)
}

#[inline(always)]
fn each<F: Fragments>(scores: &mut F, place: &impl Fn(u32, u32) -> Place, score_mod: &impl ScoreMod) {
    let lane = thread::lane();
    for m in 0..F::M {
        for n in 0..F::N {
            for i in 0..4 {
                let at = place(16 * m as u32 + fragment_row(lane, i), 8 * n as u32 + fragment_col(lane, i));
                let s = &mut scores.at_mut(m, n)[i as usize];
                *s = score_mod.apply(*s, at);
            }
        }
    }
}

/// The softcap of each score of f32 inputs, see [`softcap`].
struct Softcap {
    factor: f32,
    in_turn: bool,
}

impl ScoreMod for Softcap {
    #[inline(always)]
    fn apply(&self, s: f32, _: Place) -> f32 {
        let x = s * self.factor;
        if self.in_turn { softcap::tanh_with_branch(x) } else { softcap::tanh(x) }
    }
}

/// Whatever takes the place of the hook when the entry is loaded, see `kernel_spec::specialise`; without it, a score stays what it is.
struct Program;

impl ScoreMod for Program {
    #[inline(always)]
    fn apply(&self, s: f32, at: Place) -> f32 {
        math::score_hook(s, at.operands())
    }
}
