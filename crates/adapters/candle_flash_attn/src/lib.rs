#![doc = include_str!("../README.md")]

pub use candle_ferroflash::*;
