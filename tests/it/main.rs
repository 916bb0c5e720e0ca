//! Tests of what the kernels compute, on the device that `FERROFLASH_TEST_DEVICE` names (`best` when it is not set).
//!
//! The binary needs neither the source tree nor Rust: it runs alone on a GPU machine, beside the `ferroflash` binary.
//! - `FERROFLASH_TEST_DEVICE`: `cuda`, `cuda:N`, `emulator` or `best`. A device that is named and absent is a failure.
//! - `FERROFLASH_TEST_CASES`: random cases of each property; by default few on the emulator, many on a GPU.
//! - `PROPTEST_RNG_SEED`: the seed that these follow from, together with the names of tests; by default any. A failure says which it was.
//! - `FERROFLASH_TEST_SEEDS`: interleavings of the emulator that each kernel of `mutants` runs under; by default 12.
//! - `FERROFLASH_UPDATE_COUNTERS`: `counters` writes docs/benchmarks/counters.json and docs/io.md instead of comparing with them.
//! - `FERROFLASH_BIN`: the `ferroflash` binary of the tests in `cli` and `cli_*`; by default the one beside this
//!   binary, or under cargo a fresh build.

mod adamw;
mod adamw_errors;
mod api_errors;
mod backward;
mod backward_errors;
mod backward_fused;
mod backward_mutants;
mod backward_naive;
mod blocks;
mod cli;
mod cli_bench;
mod cli_files;
mod cli_messages;
mod cli_passes;
mod cli_pipe;
mod cli_programs;
mod cli_report;
mod cli_sequences;
mod conformance;
mod counters;
mod cross_entropy;
mod cross_entropy_errors;
mod dense;
mod dense_backward;
mod dense_errors;
mod dense_mutants;
mod dropout;
mod embedding;
mod embedding_errors;
mod embedding_mutants;
mod gradient_norm;
mod invariants;
mod io;
mod linear_cross_entropy;
mod linear_cross_entropy_errors;
mod merge;
mod merge_errors;
mod mutants;
mod norms;
mod norms_dropout;
mod norms_errors;
mod norms_mutants;
mod norms_numbers;
mod numbers;
mod properties;
mod readme;
mod regressions;
mod rotary;
mod rotary_errors;
mod score_programs;
mod sequences;
mod sequences_backward;
mod sequences_backward_errors;
mod sequences_backward_mutants;
mod sequences_errors;
mod sequences_invariants;
mod sequences_mutants;
mod sequences_numbers;
mod sequences_refusals;
mod sequences_v3;
mod sinks;
mod softmax;
mod softmax_errors;
mod softmax_mutants;
mod streams;
mod support;
