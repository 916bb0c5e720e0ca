//! An entry, ready to run.

use super::op::Op;
use super::value::{Pred, Slot};

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
    /// `.explicitcluster`: a launch has to say how large the clusters are, unless `required` does.
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
