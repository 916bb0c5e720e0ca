//! Which peers there are, and what they are for.

use clap::ValueEnum;
use std::fmt;

/// A peer on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerName {
    /// cuDNN, through PyTorch
    Cudnn,
    /// FlashAttention-2, through PyTorch
    Flash,
    /// The memory-efficient kernels of xFormers, through PyTorch
    Efficient,
    /// PyTorch's own formula, one operation after the other
    Math,
    /// PyTorch's flex_attention, compiled to Triton
    Triton,
    /// FlashAttention-3: the package flash_attn_3, or vLLM's build of it
    Fa3,
    /// FlashAttention-4: the package flash-attn-4
    Fa4,
    /// FlashMLA, which decodes with multi-head latent attention: not to be measured yet
    Flashmla,
    /// PyTorch's own operators on rows, for --operator
    Eager,
    /// The same through torch.compile, for --operator
    Compile,
    /// quack: norms, for --operator
    Quack,
}

/// What a peer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    ForwardAttention,
    /// One or few queries on a compressed cache.
    MlaDecode,
    /// Norms, softmax and cross-entropy.
    RowOperators,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::ForwardAttention => "forward attention",
            Operation::MlaDecode => "decode with multi-head latent attention",
            Operation::RowOperators => "norms, softmax and cross-entropy",
        })
    }
}

impl PeerName {
    /// All that compute this, in the order in which they are shown.
    pub(crate) fn of(operation: Operation) -> Vec<PeerName> {
        let all = PeerName::value_variants().iter().copied();
        all.filter(|peer| peer.operation() == operation).collect()
    }

    /// What the record calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            PeerName::Cudnn => "torch cudnn",
            PeerName::Flash => "torch flash",
            PeerName::Efficient => "torch efficient",
            PeerName::Math => "torch math",
            PeerName::Triton => "triton flex",
            PeerName::Fa3 => "FlashAttention-3",
            PeerName::Fa4 => "FlashAttention-4",
            PeerName::Flashmla => "FlashMLA",
            PeerName::Eager => "torch eager",
            PeerName::Compile => "torch compile",
            PeerName::Quack => "quack",
        }
    }

    /// What the protocol and the command line call it.
    pub(super) fn key(self) -> &'static str {
        match self {
            PeerName::Cudnn => "cudnn",
            PeerName::Flash => "flash",
            PeerName::Efficient => "efficient",
            PeerName::Math => "math",
            PeerName::Triton => "triton",
            PeerName::Fa3 => "fa3",
            PeerName::Fa4 => "fa4",
            PeerName::Flashmla => "flashmla",
            PeerName::Eager => "eager",
            PeerName::Compile => "compile",
            PeerName::Quack => "quack",
        }
    }

    /// What it can be measured beside.
    pub(crate) fn operation(self) -> Operation {
        match self {
            PeerName::Cudnn
            | PeerName::Flash
            | PeerName::Efficient
            | PeerName::Math
            | PeerName::Triton
            | PeerName::Fa3
            | PeerName::Fa4 => Operation::ForwardAttention,
            PeerName::Flashmla => Operation::MlaDecode,
            PeerName::Eager | PeerName::Compile | PeerName::Quack => Operation::RowOperators,
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn keys_are_the_words_of_the_command_line() {
        for peer in PeerName::value_variants() {
            assert_eq!(peer.to_possible_value().unwrap().get_name(), peer.key());
        }
    }

    #[test]
    fn each_operation_has_its_peers() {
        use PeerName::{Compile, Cudnn, Eager, Efficient, Fa3, Fa4, Flash, Flashmla, Math, Quack, Triton};
        let forward = [Cudnn, Flash, Efficient, Math, Triton, Fa3, Fa4];
        assert_eq!(PeerName::of(Operation::ForwardAttention), forward);
        assert_eq!(PeerName::of(Operation::MlaDecode), [Flashmla]);
        assert_eq!(PeerName::of(Operation::RowOperators), [Eager, Compile, Quack]);
    }

    /// docs/benchmarking.md has a table of them, with the names of records, which older records hold.
    #[test]
    fn names_are_those_of_the_documentation() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarking.md");
        let text = std::fs::read_to_string(path).unwrap();
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        for peer in PeerName::value_variants() {
            let key = format!("`{peer}`");
            let row = rows.iter().find(|row| row.len() > 2 && row[1].split(", ").any(|word| word == key)).unwrap();
            match row[2] {
                "torch cudnn, .." => assert_eq!(peer.name(), format!("torch {peer}")),
                // Not to be measured, so that no record names them.
                "" => assert_ne!(peer.operation(), Operation::ForwardAttention),
                name => assert_eq!(peer.name(), name),
            }
        }
    }
}
