//! The executable form of an entry: calls inlined, registers numbered into dense slots, branches resolved.

use crate::float::Round;

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
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::F16x2 | Ty::BF16x2 | Ty::TF32 => 32,
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
    /// `.NaN` of min and max, `.relu` of fma, the wrap mode of shf, the signedness of dp4a's second factor.
    pub(crate) flag: bool,
    pub(crate) relu: bool,
    pub(crate) approx: bool,
    /// Table of lop3, mode of prmt, half of dp2a.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntRound {
    NearestEven,
    Zero,
    Down,
    Up,
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

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Alu {
        f: Alu,
        ty: Ty,
        m: Mods,
        d: Slot,
        s: [Slot; 4],
    },
    /// add/sub/mad with carry: `f` is Add, Sub, MadLo or MadHi.
    Carry {
        f: Alu,
        ty: Ty,
        carry_in: bool,
        carry_out: bool,
        d: Slot,
        s: [Slot; 3],
    },
    Cvt {
        to: Ty,
        from: Ty,
        round: Round,
        int_round: Option<IntRound>,
        ftz: bool,
        sat: bool,
        relu: bool,
        d: Slot,
        wide_d: bool,
        s: [Slot; 2],
    },
    Pack {
        d: Slot,
        wide: bool,
        bits: u32,
        s: [Slot; 4],
        n: u8,
    },
    Unpack {
        a: Slot,
        wide: bool,
        bits: u32,
        d: [Slot; 4],
        n: u8,
    },
    Setp {
        cmp: Cmp,
        ty: Ty,
        ftz: bool,
        combine: Option<(BoolOp, Pred)>,
        p: u32,
        q: u32,
        a: Slot,
        b: Slot,
    },
    /// Compare to a mask (integer or 1.0) in a register.
    Set {
        cmp: Cmp,
        ty: Ty,
        to: Ty,
        ftz: bool,
        combine: Option<(BoolOp, Pred)>,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Testp {
        kind: u8,
        ty: Ty,
        p: u32,
        a: Slot,
    },
    Selp {
        wide: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        p: Pred,
    },
    Slct {
        wide: bool,
        float: bool,
        ftz: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    PredLogic {
        f: BoolOp,
        p: u32,
        a: Pred,
        b: Pred,
    },
    Isspacep {
        space: MemSpace,
        p: u32,
        a: Slot,
    },
    Ld(Access),
    St(Access),
    /// Copies call parameters within the local space.
    LocalCopy {
        dst: u32,
        src: u32,
        bytes: u32,
    },
    Prefetch,
    Atom {
        space: MemSpace,
        op: AtomOp,
        ty: Ty,
        order: Order,
        scope: Scope,
        d: Slot,
        addr: Addr,
        b: Slot,
        c: Slot,
    },
    Shfl {
        mode: ShflMode,
        d: Slot,
        p: u32,
        a: Slot,
        b: Slot,
        c: Slot,
        mask: Slot,
    },
    Vote {
        mode: VoteMode,
        d: Slot,
        p: u32,
        a: Pred,
        mask: Slot,
    },
    Match {
        all: bool,
        wide: bool,
        d: Slot,
        p: u32,
        a: Slot,
        mask: Slot,
    },
    Redux {
        op: AtomOp,
        ty: Ty,
        d: Slot,
        a: Slot,
        mask: Slot,
    },
    Elect {
        d: Slot,
        p: u32,
        mask: Slot,
    },
    Activemask {
        d: Slot,
    },
    WarpSync {
        mask: Slot,
    },
    Bar {
        kind: BarKind,
        aligned: bool,
        id: Slot,
        count: Slot,
        has_count: bool,
        d: Slot,
        p: u32,
        a: Pred,
    },
    Fence(FenceKind),
    CpAsync {
        dst: Addr,
        src: Addr,
        bytes: u8,
        src_size: Option<Slot>,
        ignore: Option<Pred>,
    },
    CpAsyncCommit,
    /// Wait until at most this many groups are pending; `None` waits for all copies, committed or not.
    CpAsyncWait(Option<u32>),
    CpAsyncMbarArrive {
        addr: Addr,
        no_inc: bool,
    },
    MbarInit {
        addr: Addr,
        space: MemSpace,
        count: Slot,
    },
    MbarInval {
        addr: Addr,
        space: MemSpace,
    },
    MbarArrive(MbarArrive),
    MbarTx {
        addr: Addr,
        space: MemSpace,
        tx: Slot,
        complete: bool,
    },
    MbarWait {
        addr: Addr,
        space: MemSpace,
        p: u32,
        on: WaitOn,
        blocking: bool,
        /// Acquire or relaxed, at this scope.
        order: Order,
        scope: Scope,
    },
    MbarPending {
        d: Slot,
        state: Slot,
    },
    Bulk(Box<Bulk>),
    BulkTensor(Box<Bulk>),
    BulkCommit,
    BulkWait {
        pending: u32,
    },
    Mma(Box<Mma>),
    LdMatrix {
        d: [Slot; 4],
        n: u8,
        trans: bool,
        space: MemSpace,
        addr: Addr,
    },
    StMatrix {
        s: [Slot; 4],
        n: u8,
        trans: bool,
        space: MemSpace,
        addr: Addr,
    },
    MoveMatrix {
        d: Slot,
        a: Slot,
    },
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait(u32),
    SetMaxNReg {
        count: u32,
        inc: bool,
    },
    /// `griddepcontrol.wait` (true) or `.launch_dependents`.
    GridDep {
        wait: bool,
    },
    /// `barrier.cluster.arrive`, releasing or relaxed.
    ClusterArrive {
        release: bool,
        aligned: bool,
    },
    /// `barrier.cluster.wait`, which acquires.
    ClusterWait {
        aligned: bool,
    },
    /// The address of `a` in the CTA of this rank: a shared one of the cluster, or a generic one.
    Mapa {
        d: Slot,
        wide: bool,
        space: MemSpace,
        a: Slot,
        rank: Slot,
    },
    /// The rank of the CTA that a shared address of the cluster, or a generic one, lies in.
    GetCtaRank {
        d: Slot,
        wide: bool,
        space: MemSpace,
        a: Slot,
    },
    AsyncStore(Box<AsyncStore>),
    Nanosleep,
    Clock {
        d: Slot,
        wide: bool,
        global: bool,
    },
    Bra {
        target: u32,
        reconverge: u32,
    },
    Exit,
    Trap,
    /// Something that is only an error when it runs.
    Unsupported(String),
}

/// What an instruction counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    Integer,
    Float,
    Half,
    Double,
    Special,
    Convert,
    Move,
    Predicate,
    Control,
    GlobalMemory,
    SharedMemory,
    LocalMemory,
    Atomic,
    Warp,
    Barrier,
    Async,
    Tensor,
}

pub(crate) const CLASSES: usize = 17;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: Pred,
    pub(crate) class: Class,
    /// Operations on f32, f64 or half numbers per lane.
    pub(crate) flops: u8,
    pub(crate) line: u32,
    pub(crate) loc: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMask(Cmp2),
    DynamicSharedSize,
    TotalSharedSize,
    GridId,
    SmId,
    NSmId,
    /// Position of the cluster in the grid, in clusters.
    ClusterId(u8),
    /// Clusters of the grid.
    NClusterId(u8),
    /// Position of the CTA in its cluster.
    ClusterCtaid(u8),
    /// CTAs of a cluster.
    ClusterNctaid(u8),
    ClusterCtaRank,
    ClusterNctaRank,
    /// 1 where the launch or the entry asked for clusters, else 0.
    IsExplicitCluster,
}

/// Which lanes a lane mask covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cmp2 {
    Eq,
    Le,
    Lt,
    Ge,
    Gt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Const {
    Bits(u64),
    Special(Special),
    /// Address of a variable in global memory, with addend.
    GlobalVar(u32, i64),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParamLayout {
    pub(crate) name: String,
    pub(crate) offset: u32,
    pub(crate) size: u32,
    pub(crate) align: u32,
}

/// The cluster directives of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ClusterShape {
    /// `.reqnctapercluster`: CTAs of a cluster along x, y, z.
    pub(crate) required: Option<[u32; 3]>,
    /// `.maxclusterrank`: most CTAs of a cluster.
    pub(crate) max_rank: Option<u32>,
    /// `.explicitcluster`: every launch has to say how large the clusters are.
    pub(crate) explicit: bool,
}

/// One entry, ready to run.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) code: Vec<Inst>,
    /// Slots read and written by each instruction, for messages and for the checks of asynchronous registers:
    /// `(first, reads, writes)` into `operand_slots`.
    pub(crate) operand_ranges: Vec<(u32, u16, u16)>,
    pub(crate) operand_slots: Vec<Slot>,
    pub(crate) slots: u32,
    /// Which slots start a 64-bit register.
    pub(crate) wide: Vec<bool>,
    pub(crate) preds: u32,
    pub(crate) consts: Vec<(Slot, bool, Const)>,
    pub(crate) params: Vec<ParamLayout>,
    pub(crate) param_bytes: u32,
    pub(crate) static_shared: u32,
    /// Offset of the dynamic shared array from [`SHARED_BASE`].
    pub(crate) dynamic_shared_offset: u32,
    pub(crate) local_bytes: u32,
    pub(crate) reqntid: Option<[u32; 3]>,
    pub(crate) maxntid: Option<[u32; 3]>,
    /// What the entry says about clusters.
    pub(crate) cluster: ClusterShape,
    pub(crate) uses_wgmma: bool,
    pub(crate) uses_bulk: bool,
    pub(crate) uses_mbarrier: bool,
}
