//! Parts of operations: what they do, and operands of the larger ones.

use super::value::*;
use crate::float::Round;

/// Arithmetic from up to four sources to one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alu {
    Mov,
    Add,
    Sub,
    MulLo,
    MulHi,
    MulWide,
    MadLo,
    MadHi,
    MadWide,
    Mul24,
    Mad24,
    Sad,
    Fma,
    FMul,
    Div,
    Rem,
    Min,
    Max,
    Min3,
    Max3,
    Neg,
    Abs,
    Copysign,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Shl,
    Shr,
    Popc,
    Clz,
    Brev,
    Bfind,
    BfindShift,
    Bfe,
    Bfi,
    Bmsk,
    Prmt,
    ShfL,
    ShfR,
    Lop3,
    Dp4a,
    Dp2a,
    Fns,
    Szext,
    CvtPack,
    AbsDiff4,
    Ex2,
    Lg2,
    Rcp,
    Rsqrt,
    Sqrt,
    Sin,
    Cos,
    Tanh,
}

/// Modifiers of arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mods {
    pub(crate) round: Round,
    pub(crate) ftz: bool,
    pub(crate) sat: bool,
    /// `.NaN` of min and max, `.relu` of fma, the wrap mode of shf, bmsk and szext, the signedness of dp4a's second factor and of
    /// vabsdiff4's operands, whether the elements of cvt.pack have signs.
    pub(crate) flag: bool,
    pub(crate) relu: bool,
    pub(crate) approx: bool,
    /// `.xorsign.abs` of min and max: the magnitude of the result from the magnitudes, its sign from both signs.
    pub(crate) xorsign: bool,
    /// Table of lop3, mode of prmt, half of dp2a, bits of an element of cvt.pack.
    pub(crate) imm: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BoolOp {
    And,
    Or,
    Xor,
}

/// A load or a store of one to eight elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) space: MemSpace,
    pub(crate) addr: Addr,
    pub(crate) order: Order,
    /// Of an `order` that is not weak.
    pub(crate) scope: Scope,
    /// Bytes of one element.
    pub(crate) bytes: u8,
    pub(crate) count: u8,
    pub(crate) signed: bool,
    /// The registers are 64 bits wide.
    pub(crate) wide: bool,
    pub(crate) regs: [Slot; 8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exch,
    Cas,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Idx,
    Up,
    Down,
    Bfly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    RedPopc,
    RedAnd,
    RedOr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FenceKind {
    /// membar and fence.{acq_rel, acquire, release, sc}.
    Memory(Scope),
    /// fence.proxy.async: generic accesses before, async-proxy accesses after.
    ProxyAsync,
    /// fence.mbarrier_init: copies may complete on mbarriers initialised before.
    MbarrierInit,
    /// Proxy fences of other kinds, which order nothing that the emulator can reorder.
    Other,
}

/// A function of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostFn {
    Print,
    Assert,
}

/// A call of the host: its arguments, by their offset and bytes, and its result of 4 bytes are in local memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Host {
    pub(crate) f: HostFn,
    pub(crate) args: Vec<(u32, u32)>,
    pub(crate) result: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mma {
    pub(crate) n: u32,
    pub(crate) k: u32,
    pub(crate) a_ty: Ty,
    pub(crate) b_ty: Ty,
    /// Type of C and D: F32, F16 or S32.
    pub(crate) acc: Ty,
    pub(crate) sat: bool,
    pub(crate) d: Vec<Slot>,
    pub(crate) a: Vec<Slot>,
    pub(crate) b: Vec<Slot>,
    pub(crate) c: Vec<Slot>,
}

/// A matrix of `wmma`, spread over the registers of a warp.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fragment {
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    /// F16, BF16 or F32.
    pub(crate) ty: Ty,
    pub(crate) regs: Vec<Slot>,
}

/// A fragment and its matrix in memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WmmaAccess {
    pub(crate) fragment: Fragment,
    /// Columns, not rows, are contiguous.
    pub(crate) by_columns: bool,
    pub(crate) space: MemSpace,
    pub(crate) addr: Addr,
    /// Elements from one row or column to the next; `None` where they touch.
    pub(crate) stride: Option<Slot>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WmmaMma {
    pub(crate) d: Fragment,
    pub(crate) a: Fragment,
    pub(crate) b: Fragment,
    pub(crate) c: Fragment,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum WgmmaA {
    Desc(Slot),
    Regs([Slot; 4]),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wgmma {
    pub(crate) n: u32,
    pub(crate) k: u32,
    pub(crate) a_ty: Ty,
    pub(crate) b_ty: Ty,
    pub(crate) acc: Ty,
    pub(crate) d: Vec<Slot>,
    pub(crate) a: WgmmaA,
    pub(crate) b: Slot,
    /// D is added to (true) or overwritten.
    pub(crate) scale_d: Pred,
    pub(crate) neg_a: bool,
    pub(crate) neg_b: bool,
    pub(crate) trans_a: bool,
    pub(crate) trans_b: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitOn {
    Parity(Slot),
    State(Slot),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MbarArrive {
    pub(crate) addr: Addr,
    pub(crate) space: MemSpace,
    pub(crate) state: Slot,
    pub(crate) count: Option<Slot>,
    pub(crate) expect: Option<Slot>,
    pub(crate) drop: bool,
    pub(crate) no_complete: bool,
    /// Release or relaxed, at this scope.
    pub(crate) order: Order,
    pub(crate) scope: Scope,
}

/// `st.async` and `red.async`: a store or reduction in another CTA of the cluster, whose bytes an mbarrier there counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AsyncStore {
    /// Of `dst` and `mbar`: shared or generic.
    pub(crate) space: MemSpace,
    pub(crate) dst: Addr,
    /// The mbarrier, in the CTA of `dst`.
    pub(crate) mbar: Addr,
    /// Bytes of one element.
    pub(crate) bytes: u8,
    /// Elements; the mbarrier's transaction count falls by `bytes * count`.
    pub(crate) count: u8,
    /// The registers are 64 bits wide.
    pub(crate) wide: bool,
    pub(crate) regs: [Slot; 4],
    /// `red.async`, relaxed at cluster scope; `st.async` is weak.
    pub(crate) reduce: Option<(AtomOp, Ty)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bulk {
    pub(crate) dst: Addr,
    pub(crate) src: Addr,
    /// Shared to global; else global to shared (or shared to shared).
    pub(crate) to_global: bool,
    pub(crate) from_shared: bool,
    /// The destination is `.shared::cluster`: it may be in another CTA, and then so is the mbarrier.
    pub(crate) cluster: bool,
    /// `.multicast::cluster`: a 16-bit mask of CTA ranks, to each of which the copy goes, at the offsets of `dst` and `mbar`
    /// in its own shared memory.
    pub(crate) multicast: Option<Slot>,
    /// Bytes of a plain copy.
    pub(crate) size: Slot,
    pub(crate) mbar: Option<Addr>,
    pub(crate) reduce: Option<(AtomOp, Ty)>,
    /// Coordinates of a tensor copy; the map's address is `src` of a load and `dst` of a store.
    pub(crate) coords: Vec<Slot>,
}
