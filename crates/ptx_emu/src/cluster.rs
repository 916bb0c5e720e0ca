//! Execution of what belongs to clusters: barriers, addresses of other CTAs, stores and copies into them.

use crate::error::FaultKind;
use crate::ir::Op;
use crate::machine::{Cta, Exec};

impl Cta<'_> {
    /// Cluster barriers, `mapa`, `getctarank`, `st.async`, `red.async` and multicast copies.
    pub(crate) fn cluster_op(&mut self, w: usize, pc: u32, active: u32, op: &Op) -> Exec<()> {
        let what = match op {
            Op::ClusterArrive { .. } | Op::ClusterWait { .. } => "cluster barriers",
            Op::Mapa { .. } | Op::GetCtaRank { .. } => "addresses of other CTAs",
            Op::AsyncStore(_) => "stores that an mbarrier counts",
            _ => "multicast copies",
        };
        let lane = active.trailing_zeros();
        Err(self.fault(w, Some(lane), pc, FaultKind::Unsupported, format!("{what} are not executed yet")))
    }
}
