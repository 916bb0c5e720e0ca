//! What instructions work on: slots, predicates, addresses, types, spaces and orders.

/// A 32-lane slot of 32 bits in the register file; a 64-bit register takes two, starting at an even one.
pub(crate) type Slot = u32;
/// The slot that always holds zero; stands for operands that an instruction has not.
pub(crate) const ZERO: Slot = 0;
/// A destination that is thrown away.
pub(crate) const SINK: Slot = u32::MAX;
/// "No program counter": threads meet again only when they exit.
pub(crate) const NO_PC: u32 = u32::MAX;

/// First shared address that a CTA sees: the first KiB belongs to the system, as on sm_90, so address 0 is never valid.
pub(crate) const SHARED_BASE: u32 = 1024;
/// Bytes that cache hints and `discard` name.
pub(crate) const CACHE_LINE: u64 = 128;
/// Generic address windows of the spaces that are not global.
pub(crate) const SHARED_WINDOW: u64 = 1 << 40;
pub(crate) const LOCAL_WINDOW: u64 = 2 << 40;
pub(crate) const PARAM_WINDOW: u64 = 3 << 40;

/// A predicate as a source: 0 is the constant true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pred {
    pub(crate) index: u32,
    pub(crate) negated: bool,
}

pub(crate) const TRUE: Pred = Pred { index: 0, negated: false };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addr {
    pub(crate) base: Slot,
    /// The base is a 64-bit register.
    pub(crate) wide: bool,
    pub(crate) offset: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    U16x2,
    S16x2,
    B32,
    U32,
    S32,
    B64,
    U64,
    S64,
    F16,
    F16x2,
    BF16,
    BF16x2,
    F32,
    F32x2,
    F64,
    TF32,
    E4M3,
    E5M2,
    E4M3x2,
    E5M2x2,
    Pred,
}

impl Ty {
    pub(crate) fn bits(self) -> u32 {
        match self {
            Ty::B8 | Ty::U8 | Ty::S8 | Ty::E4M3 | Ty::E5M2 => 8,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::BF16 | Ty::E4M3x2 | Ty::E5M2x2 => 16,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::U16x2 | Ty::S16x2 | Ty::F16x2 | Ty::BF16x2 | Ty::TF32 => 32,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 | Ty::F32x2 => 64,
            Ty::Pred => 1,
        }
    }

    pub(crate) fn wide(self) -> bool {
        self.bits() == 64
    }

    pub(crate) fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(
            self,
            Ty::F16
                | Ty::F16x2
                | Ty::BF16
                | Ty::BF16x2
                | Ty::F32
                | Ty::F32x2
                | Ty::F64
                | Ty::TF32
                | Ty::E4M3
                | Ty::E5M2
        )
    }
}

/// Memory ordering of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Weak,
    Relaxed,
    Acquire,
    Release,
    AcqRel,
}

impl Order {
    pub(crate) fn releases(self) -> bool {
        matches!(self, Order::Release | Order::AcqRel)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemSpace {
    Global,
    /// The CTA's own window: `.shared` and `.shared::cta`.
    Shared,
    /// The windows of all CTAs of the cluster: `.shared::cluster`. Addresses of `Shared` are valid here, and mean the same.
    SharedCluster,
    Local,
    Param,
    Generic,
}

/// The threads that an order or a fence is for, from the narrowest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Scope {
    #[default]
    Cta,
    Cluster,
    Gpu,
    Sys,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntRound {
    NearestEven,
    Zero,
    Down,
    Up,
}
