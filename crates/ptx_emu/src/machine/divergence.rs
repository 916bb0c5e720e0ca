//! Divergence: parts of a warp that go their own ways, and meet again at the immediate post-dominator.

use super::warp::{NO_NODE, Node, Split};
use super::{BARRIERS, Block, Cta, Exec};

impl Cta<'_> {
    pub(super) fn node(&mut self, w: usize, n: Node) -> u32 {
        let nodes = &mut self.warps[w].nodes;
        match nodes.iter().position(|n| !n.used) {
            Some(i) => {
                nodes[i] = n;
                i as u32
            }
            None => {
                nodes.push(n);
                nodes.len() as u32 - 1
            }
        }
    }

    /// The split reached its meeting point: it waits there, or goes on with all others.
    pub(super) fn meet(&mut self, w: usize, sp: Split) -> Option<Split> {
        let node = &mut self.warps[w].nodes[sp.node as usize];
        node.arrived |= sp.mask;
        if node.arrived == node.expect {
            node.used = false;
            return Some(Split { pc: node.pc, mask: node.expect, node: node.parent, block: None, gave_up: false });
        }
        None
    }

    /// Lanes ended: no meeting point waits for them any more.
    pub(super) fn exit_lanes(&mut self, w: usize, mask: u32, node: u32) -> Exec<()> {
        let warp = &mut self.warps[w];
        warp.live &= !mask;
        let mut n = node;
        while n != NO_NODE {
            let nd = &mut warp.nodes[n as usize];
            nd.expect &= !mask;
            let parent = nd.parent;
            if nd.used && nd.expect == nd.arrived {
                nd.used = false;
                if nd.expect != 0 {
                    let s = Split { pc: nd.pc, mask: nd.expect, node: parent, block: None, gave_up: false };
                    warp.splits.push(s);
                }
            }
            n = parent;
        }
        self.wake_warp_sync(w);
        self.try_meet_cluster();
        if self.warps[w].live == 0 {
            for id in 0..BARRIERS as u32 {
                self.try_release(id)?;
            }
        }
        Ok(())
    }

    pub(super) fn wake_warp_sync(&mut self, w: usize) {
        let live = self.warps[w].live;
        // Groups of blocked parts that name the same mask and together are all of it.
        let masks: Vec<u32> = self.warps[w]
            .splits
            .iter()
            .filter_map(|s| if let Some(Block::WarpSync(m)) = s.block { Some(m) } else { None })
            .collect();
        for m in masks {
            let have =
                self.warps[w].splits.iter().filter(|s| s.block == Some(Block::WarpSync(m))).fold(0, |a, s| a | s.mask);
            if have == m & live {
                let here: Vec<Split>;
                let warp = &mut self.warps[w];
                (here, warp.splits) = warp.splits.iter().partition(|s| s.block == Some(Block::WarpSync(m)));
                for s in here {
                    // Who waited at one instruction goes on together.
                    let at = |o: &&mut Split| (o.pc, o.node, o.block) == (s.pc, s.node, None);
                    let woken = warp.splits.iter_mut().rev().find(at).filter(|o| have & o.mask == o.mask);
                    match woken {
                        Some(o) => o.mask |= s.mask,
                        None => warp.splits.push(Split { block: None, ..s }),
                    }
                }
                self.warp_sync(w, have);
            }
        }
    }
}
