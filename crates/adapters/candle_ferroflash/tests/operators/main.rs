//! Operators on CPU tensors in the emulator, with their gradients by candle's `backward`, against the f64 references, by their tolerance rule.
#![cfg(feature = "emulator")]

mod adamw;
mod cross_entropy;
mod dense;
mod embedding;
mod linear_cross_entropy;
mod norms;
mod refused;
mod rotary;
mod softmax;
mod support;
