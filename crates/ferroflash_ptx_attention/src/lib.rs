#![no_std]
#![doc = include_str!("../README.md")]

// `MODULES`. In a package the file lies beside this one: `cargo xtask package` knows this line.
include!(concat!(env!("OUT_DIR"), "/modules.rs"));
