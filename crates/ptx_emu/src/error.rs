//! Errors of loading and of running a module.

use std::fmt;

/// Why a PTX text was refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}, column {column}: {kind}")]
pub struct ParseError {
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// Column of the PTX text in bytes, from 1.
    pub column: u32,
    /// What was wrong.
    pub kind: ParseErrorKind,
}

/// What was wrong with a PTX text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseErrorKind {
    /// The text does not follow the grammar.
    #[error("{0}")]
    Syntax(String),
    /// The opcode is not one that the emulator knows.
    #[error("unknown opcode `{0}`")]
    UnknownOpcode(String),
    /// The opcode is known, but not with this type or modifier.
    #[error("`{opcode}`: {what}")]
    UnsupportedForm {
        /// The instruction with all its modifiers.
        opcode: String,
        /// What about it is not accepted.
        what: String,
    },
    /// A register, variable, label or function that nobody declared.
    #[error("`{0}` is not declared")]
    Undeclared(String),
    /// The module uses a construct that the emulator does not run.
    #[error("not supported: {0}")]
    Unsupported(String),
}

/// A position in the source that the PTX was compiled from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLocation {
    /// File as the `.file` directive names it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, 0 when unknown.
    pub column: u32,
}

/// What a kernel did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// A global access that touches a byte of no allocation.
    GlobalOutOfBounds,
    /// A global access to memory that was freed.
    GlobalUseAfterFree,
    /// A shared access outside of the CTA's allocation.
    SharedOutOfBounds,
    /// A local, parameter or constant access outside of its variable space.
    LocalOutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// A write to memory that can only be read.
    ReadOnlyWrite,
    /// A read of global memory that nobody wrote.
    UninitializedGlobal,
    /// A read of shared memory that nobody wrote.
    UninitializedShared,
    /// A use of a register (or of local memory read into it) that nobody wrote.
    UninitializedRegister,
    /// Two threads touch the same shared memory with no barrier between them, at least one writing.
    SharedRace,
    /// Two threads touch the same global memory with no ordering between them, at least one writing.
    GlobalRace,
    /// Memory read or overwritten while an asynchronous copy into it has not been waited for.
    AsyncCopyNotWaited,
    /// Memory overwritten while an asynchronous operation may still read it.
    AsyncReadOverwritten,
    /// Generic-proxy writes read through the async proxy without `fence.proxy.async`.
    MissingProxyFence,
    /// A register of an asynchronous `wgmma` touched before its group was waited for.
    WgmmaRegisterInFlight,
    /// `wgmma.mma_async` whose registers were touched with no `wgmma.fence` after.
    MissingWgmmaFence,
    /// An instruction that needs converged threads was executed by some of them.
    DivergentCollective,
    /// Threads that take part in one barrier disagree about its thread count or kind.
    BarrierMismatch,
    /// A use of an mbarrier that its protocol does not allow.
    MbarrierMisuse,
    /// A use of a cluster that its protocol does not allow: of the cluster barrier, or of the shared memory of a CTA that has ended or
    /// may not have begun.
    ClusterMisuse,
    /// No thread of the CTA can make progress.
    Deadlock,
    /// The CTA ended while asynchronous copies were in flight.
    CopiesInFlightAtExit,
    /// An operand value that the instruction does not accept.
    InvalidOperand,
    /// The kernel executed `trap`.
    Trap,
    /// An `assert` of the kernel did not hold.
    AssertionFailed,
    /// The launch's instruction limit was reached.
    InstructionLimit,
    /// The launch's time limit was reached.
    TimeLimit,
    /// The module's target has not the instruction, or the call cannot be made.
    Unsupported,
}

impl FaultKind {
    /// Short name, as messages carry it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GlobalOutOfBounds => "global access out of bounds",
            Self::GlobalUseAfterFree => "global access to freed memory",
            Self::SharedOutOfBounds => "shared access out of bounds",
            Self::LocalOutOfBounds => "local access out of bounds",
            Self::Misaligned => "misaligned access",
            Self::ReadOnlyWrite => "write to read-only memory",
            Self::UninitializedGlobal => "read of uninitialised global memory",
            Self::UninitializedShared => "read of uninitialised shared memory",
            Self::UninitializedRegister => "use of an uninitialised register",
            Self::SharedRace => "data race in shared memory",
            Self::GlobalRace => "data race in global memory",
            Self::AsyncCopyNotWaited => "asynchronous copy not waited for",
            Self::AsyncReadOverwritten => "overwrite of memory that an asynchronous operation may still read",
            Self::MissingProxyFence => "missing fence.proxy.async",
            Self::WgmmaRegisterInFlight => "wgmma register touched before its wait",
            Self::MissingWgmmaFence => "missing wgmma.fence",
            Self::DivergentCollective => "divergent execution of a collective instruction",
            Self::BarrierMismatch => "barrier mismatch",
            Self::MbarrierMisuse => "mbarrier misuse",
            Self::ClusterMisuse => "cluster misuse",
            Self::Deadlock => "deadlock",
            Self::CopiesInFlightAtExit => "asynchronous copies in flight at exit",
            Self::InvalidOperand => "invalid operand",
            Self::Trap => "trap",
            Self::AssertionFailed => "assertion failed",
            Self::InstructionLimit => "instruction limit reached",
            Self::TimeLimit => "time limit reached",
            Self::Unsupported => "not supported",
        }
    }
}

/// A kernel's error: what happened, and which thread of which instruction did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of error it is.
    pub kind: FaultKind,
    /// What happened, with addresses and values.
    pub detail: String,
    /// The entry that was launched.
    pub kernel: String,
    /// Line of the PTX text, from 1; 0 when no instruction is to blame.
    pub ptx_line: u32,
    /// The instruction's text.
    pub instruction: String,
    /// Source line, where the PTX carries `.loc`.
    pub source: Option<SourceLocation>,
    /// CTA in the grid.
    pub cta: [u32; 3],
    /// Warp in the CTA.
    pub warp: u32,
    /// Lane in the warp, where one lane is to blame.
    pub lane: Option<u32>,
    /// The values of the instruction's register operands in that lane.
    pub operands: String,
    /// The seed of the launch, which makes the same interleaving again.
    pub seed: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.detail)?;
        write!(f, "\n  kernel {}", self.kernel)?;
        if self.ptx_line != 0 {
            write!(f, ", PTX line {}: {}", self.ptx_line, self.instruction)?;
        }
        if let Some(s) = &self.source {
            write!(f, "\n  at {}:{}:{}", s.file, s.line, s.column)?;
        }
        write!(f, "\n  CTA ({}, {}, {}), warp {}", self.cta[0], self.cta[1], self.cta[2], self.warp)?;
        if let Some(lane) = self.lane {
            write!(f, ", lane {lane}")?;
        }
        if !self.operands.is_empty() {
            write!(f, "\n  {}", self.operands)?;
        }
        write!(f, "\n  seed {}", self.seed)
    }
}

/// Why a call of the emulator failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmuError {
    /// The allocation does not fit in the emulator's memory limit.
    #[error("{requested} bytes asked for, {in_use} of {limit} bytes in use")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes allocated before.
        in_use: u64,
        /// The limit that [`EmulatorOptions`](crate::EmulatorOptions) sets.
        limit: u64,
    },
    /// A host call named device memory that is not there.
    #[error("device address {address:#x}, {bytes} bytes: {what}")]
    InvalidDeviceAddress {
        /// First byte of the range.
        address: u64,
        /// Length of the range.
        bytes: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The module has no entry of this name.
    #[error("no entry `{name}` in the module; it has: {available}")]
    UnknownEntry {
        /// The name asked for.
        name: String,
        /// The names that the module has.
        available: String,
    },
    /// The entry has something that the emulator does not run.
    #[error("entry `{entry}`: {error}")]
    UnsupportedEntry {
        /// The entry.
        entry: String,
        /// What, and where it is in the text.
        error: ParseError,
    },
    /// The launch cannot be made with these dimensions, parameters or shared memory.
    #[error("launch of `{entry}`: {what}")]
    InvalidLaunch {
        /// The entry.
        entry: String,
        /// What was given and what is accepted.
        what: String,
    },
    /// A tensor map was described with values that the format does not accept.
    #[error("tensor map: {0}")]
    InvalidTensorMap(String),
    /// The kernel did something wrong.
    #[error("{0}")]
    Fault(Box<Fault>),
}

impl EmuError {
    /// The kernel's fault, if that is what this is.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault(f) => Some(f),
            _ => None,
        }
    }
}
