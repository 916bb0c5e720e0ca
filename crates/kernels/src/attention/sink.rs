//! Sinks: a logit of every query head, which takes part in the sum of a row's weights and has no value.
//!
//! ```text
//! m' = max(m, sink)      l' = e^(m - m') l + e^(sink - m')      out = e^(m - m') o / l'      lse = m' + ln(l')
//! ```
//!
//! It comes in once, where a row ends: the loops over the keys know nothing of it. No exponent is above 0, so nothing overflows, however far
//! the sink is above the scores or below; a sink of minus infinity leaves every bit as it is.

use cuda_std::{copy, math};
use kernel_spec::ForwardFeatures;
use kernel_spec::families::forward::features::SINK;

use crate::attention::exponent::Exponent;

/// A row with its sink.
#[derive(Clone, Copy)]
pub struct WithSink {
    /// What its weights are measured against: the larger of maximum and sink, scaled.
    pub max: f32,
    /// Sum of the weights, with that of the sink.
    pub sum: f32,
    /// The factor on what has been summed up relative to the maximum of the scores.
    pub rescale: f32,
}

impl WithSink {
    /// A row with this scaled maximum and sum of weights, and a sink that is a natural logarithm.
    #[inline(always)]
    pub fn of<T: Exponent>(max: f32, sum: f32, sink: f32) -> WithSink {
        let sink = T::exponent(sink);
        let largest = math::max(max, sink);
        // As of the online softmax: minus infinity less itself is no number.
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let rescale = T::power(max - base);
        WithSink { max: largest, sum: sum * rescale + T::power(sink - base), rescale }
    }
}

/// The sink of a query head, if the call has sinks.
#[inline(always)]
pub fn of_head(features: &ForwardFeatures, head: u32) -> Option<f32> {
    // SAFETY: there is one for every query head.
    features.has(SINK).then(|| unsafe { copy::load_f32(features.value(SINK) + head as u64 * 4) })
}

/// The natural log-sum-exp of a row with this scaled maximum and sum of weights, and its sink.
#[inline(always)]
pub fn lse<T: Exponent>(max: f32, sum: f32, sink: Option<f32>) -> f32 {
    match sink {
        None => T::lse(max, sum),
        Some(sink) => {
            let row = WithSink::of::<T>(max, sum, sink);
            T::lse(row.max, row.sum)
        }
    }
}
