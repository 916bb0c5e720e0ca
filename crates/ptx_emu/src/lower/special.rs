//! Special registers by their names.

use crate::ir::{Cmp2, Special};

/// Whether `%name` is a special register: one that the emulator has, or one that it refuses where it is read.
pub(crate) fn is_special(name: &str) -> bool {
    let refused = ["envreg", "pm", "reserved_smem_offset_", "current_graph_exec"];
    special(name).is_some() || is_clock(name) || refused.iter().any(|p| name.starts_with(p))
}

pub(super) fn is_clock(name: &str) -> bool {
    matches!(name, "clock" | "clock_hi" | "clock64" | "globaltimer" | "globaltimer_lo" | "globaltimer_hi")
}

pub(super) fn special(name: &str) -> Option<Special> {
    let axis = |s: &str| match s {
        "x" => Some(0u8),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((base, ax)) = name.split_once('.') {
        let ax = axis(ax)?;
        return Some(match base {
            "tid" => Special::Tid(ax),
            "ntid" => Special::Ntid(ax),
            "ctaid" => Special::Ctaid(ax),
            "nctaid" => Special::Nctaid(ax),
            "clusterid" => Special::ClusterId(ax),
            "nclusterid" => Special::NClusterId(ax),
            "cluster_ctaid" => Special::ClusterCtaid(ax),
            "cluster_nctaid" => Special::ClusterNctaid(ax),
            _ => return None,
        });
    }
    Some(match name {
        "laneid" => Special::LaneId,
        "warpid" => Special::WarpId,
        "nwarpid" => Special::NWarpId,
        "lanemask_eq" => Special::LaneMask(Cmp2::Eq),
        "lanemask_le" => Special::LaneMask(Cmp2::Le),
        "lanemask_lt" => Special::LaneMask(Cmp2::Lt),
        "lanemask_ge" => Special::LaneMask(Cmp2::Ge),
        "lanemask_gt" => Special::LaneMask(Cmp2::Gt),
        "dynamic_smem_size" => Special::DynamicSharedSize,
        "total_smem_size" | "aggr_smem_size" => Special::TotalSharedSize,
        "gridid" => Special::GridId,
        "smid" => Special::SmId,
        "nsmid" => Special::NSmId,
        "cluster_ctarank" => Special::ClusterCtaRank,
        "cluster_nctarank" => Special::ClusterNctaRank,
        "is_explicit_cluster" => Special::IsExplicitCluster,
        _ => return None,
    })
}
