//! What of a training step is measured, and by which of ours.

use super::Case;
use clap::ValueEnum;
use kernel_spec::Kernel;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The part of a training step that a launch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pass {
    /// Output and log-sum-exp
    #[default]
    Forward,
    /// Gradients of q, k and v, from what a forward pass left
    Backward,
    /// A training step: a forward pass that keeps the log-sum-exp, and then the backward pass
    Both,
}

impl Pass {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
            Pass::Both => "both",
        }
    }

    /// What is computed, in a title.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Pass::Forward => "forward attention",
            Pass::Backward => "the backward pass of attention",
            Pass::Both => "a training step of attention",
        }
    }

    /// The heading of a column of times.
    pub(crate) fn time(self) -> &'static str {
        match self {
            Pass::Forward => "time",
            Pass::Backward => "time of backward",
            Pass::Both => "time of both",
        }
    }

    pub(crate) fn has_forward(self) -> bool {
        matches!(self, Pass::Forward | Pass::Both)
    }

    pub(crate) fn has_backward(self) -> bool {
        matches!(self, Pass::Backward | Pass::Both)
    }

    /// Operations over those of a forward pass: backward has five matrix products where forward has two, by the convention of the
    /// FlashAttention papers, however many a kernel computes.
    pub(crate) fn flop_factor(self) -> f64 {
        match self {
            Pass::Forward => 1.0,
            Pass::Backward => 2.5,
            Pass::Both => 3.5,
        }
    }

    /// Floating-point operations of one launch.
    pub(crate) fn flops(self, case: &Case) -> f64 {
        self.flop_factor() * case.flops()
    }

    /// Bytes of the tensors of a problem: q, k, v and out, and as many of their gradients.
    pub(crate) fn tensor_bytes(self, case: &Case) -> u64 {
        case.tensor_bytes().saturating_mul(if self.has_backward() { 2 } else { 1 })
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ours {
    /// This kernel, in every pass that is asked for.
    Kernel(Kernel),
    /// What the library chooses, in every pass that is asked for.
    Chosen,
    /// What it chooses where equal inputs have to give equal bits.
    Deterministic,
}

impl Ours {
    /// What the record calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Ours::Kernel(kernel) => kernel.name(),
            Ours::Chosen => "ferroflash",
            Ours::Deterministic => "deterministic",
        }
    }
}

impl fmt::Display for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::tests::case;
    use super::*;
    use kernel_spec::Mask;

    #[test]
    fn backward_has_five_products_for_two() {
        let case = case(2, 512, 3, Mask::Full);
        let forward = Pass::Forward.flops(&case);
        assert_eq!(forward, case.flops());
        assert_eq!(Pass::Backward.flops(&case), 10.0 * 2.0 * 3.0 * 512.0 * 512.0 * 64.0);
        assert_eq!(Pass::Both.flops(&case), forward + Pass::Backward.flops(&case));
    }

    #[test]
    fn words_of_the_record_are_those_of_the_command_line() {
        for pass in Pass::value_variants() {
            assert_eq!(pass.to_possible_value().unwrap().get_name(), pass.name());
            assert_eq!(serde_json::to_value(pass).unwrap(), pass.name());
        }
    }
}
