//! What goes wrong when the steps of a plan are given addresses.

/// Addresses that a step of a plan cannot be launched with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A step of a plan was given no address for something that its parameters hold.
    #[error("{symbol} takes the address of {what}, which was not given")]
    Unbound {
        /// Entry point.
        symbol: &'static str,
        /// The operand or buffer.
        what: String,
    },
    /// A plan was made for addresses that are multiples of more bytes than this one.
    #[error("the plan of {symbol} takes {what} at a multiple of {needed} bytes; address {address:#x} is none")]
    Alignment {
        /// Entry point.
        symbol: &'static str,
        /// The operand or buffer.
        what: String,
        /// The address given.
        address: u64,
        /// What it has to be a multiple of.
        needed: u64,
    },
}
