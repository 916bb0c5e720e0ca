//! What dropout cannot be asked for.

/// What is dropped, or by which numbers, that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DropoutError {
    /// What is no probability to drop with.
    #[error("dropout of {found} is not accepted; probabilities from 0 to below 1 are")]
    Probability {
        /// The probability given.
        found: f32,
    },
    /// Seed and offset on the device, where no kernel can read them.
    #[error("seed and offset of dropout are at address {address:#x}; multiples of 8 bytes above 0 are accepted")]
    State {
        /// The address given.
        address: u64,
    },
}
