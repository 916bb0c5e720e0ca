//! The operations.

use super::parts::*;
use super::value::*;
use crate::float::Round;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Alu {
        f: Alu,
        ty: Ty,
        m: Mods,
        d: Slot,
        s: [Slot; 4],
    },
    /// The same, of operations that `alu::is_rare` names.
    Rare {
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
    Host(Box<Host>),
    Prefetch,
    /// 128 bytes of global memory are unwritten again.
    Discard {
        space: MemSpace,
        addr: Addr,
    },
    Atom {
        space: MemSpace,
        op: AtomOp,
        ty: Ty,
        order: Order,
        scope: Scope,
        d: Slot,
        addr: Addr,
        /// Elements, one after the other in memory; several have no result.
        count: u8,
        b: [Slot; 4],
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
    WmmaLoad(Box<WmmaAccess>),
    WmmaStore(Box<WmmaAccess>),
    WmmaMma(Box<WmmaMma>),
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
    /// A branch to a block that only ends the thread: its lanes end here, and nobody waits to meet them there.
    BraExit,
    Exit,
    Trap,
    /// Something that is only an error when it runs.
    Unsupported(String),
}
