//! Reports: where a fault happened, and who waits for what in a deadlock.

use super::{Block, Cta};
use crate::error::{Fault, FaultKind, SourceLocation};
use crate::ir::*;

impl Cta<'_> {
    pub(super) fn deadlock(&self) -> Box<Fault> {
        let mut lines = Vec::new();
        let mut first = None;
        for (w, warp) in self.warps.iter().enumerate() {
            for s in &warp.splits {
                let pc = match s.block {
                    Some(Block::Mbarrier(_) | Block::Wgmma) => s.pc,
                    _ => s.pc.saturating_sub(1),
                };
                first.get_or_insert((w, s.pc));
                let line = self.ctx.prog.code[pc as usize].line;
                let what = match s.block {
                    Some(Block::Barrier(id)) => {
                        let b = &self.bars[id as usize];
                        let want = b.expected.map_or("all threads".to_owned(), |e| format!("{e} threads"));
                        format!("barrier {id} ({} threads arrived of {want})", b.arrived)
                    }
                    Some(Block::WarpSync(m)) => format!("bar.warp.sync with mask {m:#x}"),
                    Some(Block::Mbarrier(a)) => match self.mbars.get(&a) {
                        Some(m) => format!(
                            "mbarrier at {:#x} (phase {}, {} of {} arrivals pending, {} bytes expected)",
                            a + SHARED_BASE,
                            m.phase,
                            m.pending,
                            m.expected,
                            m.tx
                        ),
                        None => format!("mbarrier at {:#x}, which is not initialised", a + SHARED_BASE),
                    },
                    Some(Block::Wgmma) => "wgmma that the other warps of its group have not issued".to_owned(),
                    None => continue,
                };
                lines.push(format!("warp {w} lanes {:#x} at PTX line {line} waits for {what}", s.mask));
            }
            for n in warp.nodes.iter().filter(|n| n.used && n.arrived != 0) {
                lines.push(format!("warp {w} lanes {:#x} wait to meet lanes {:#x}", n.arrived, n.expect & !n.arrived));
            }
        }
        let (w, pc) = first.unwrap_or((0, NO_PC));
        let mut f = self.fault(w, None, pc, FaultKind::Deadlock, lines.join("; "));
        if let Some(s) = self.warps[w].splits.first()
            && !matches!(s.block, Some(Block::Mbarrier(_) | Block::Wgmma))
        {
            f = self.fault(w, None, s.pc.saturating_sub(1), FaultKind::Deadlock, f.detail);
        }
        f
    }

    pub(crate) fn fault(&self, w: usize, lane: Option<u32>, pc: u32, kind: FaultKind, detail: String) -> Box<Fault> {
        let ctx = self.ctx;
        let inst = ctx.prog.code.get(pc as usize);
        let line = inst.map_or(0, |i| i.line);
        let instruction = if line == 0 {
            String::new()
        } else {
            let start = ctx.line_starts.get(line as usize - 1).copied().unwrap_or(0);
            let end = ctx.line_starts.get(line as usize).copied().unwrap_or(ctx.source.len());
            ctx.source[start..end].trim().chars().take(200).collect()
        };
        let source = inst.and_then(|i| ctx.locs.get(i.loc as usize)).map(|&(f, l, c)| SourceLocation {
            file: ctx.files.get(&f).cloned().unwrap_or_else(|| format!("file {f}")),
            line: l,
            column: c,
        });
        let mut operands = String::new();
        if let (Some(_), Some(lane)) = (inst, lane) {
            let (first, reads, _) = ctx.prog.operand_ranges[pc as usize];
            let slots = &ctx.prog.operand_slots[first as usize..first as usize + reads as usize];
            let regs = &self.warps[w].regs;
            let values: Vec<String> = slots
                .iter()
                .take(8)
                .map(|&s| {
                    let wide = s != ZERO && self.is_wide(s);
                    if regs.init(s) >> lane & 1 == 1 {
                        format!("{:#x}", regs.lane(s, wide, lane as usize))
                    } else {
                        "unwritten".to_owned()
                    }
                })
                .collect();
            if !values.is_empty() {
                operands = format!("source operands: {}", values.join(", "));
            }
        }
        Box::new(Fault {
            kind,
            detail,
            kernel: ctx.prog.name.clone(),
            ptx_line: line,
            instruction,
            source,
            cta: self.ctaid,
            warp: w as u32,
            lane,
            operands,
            seed: ctx.seed,
        })
    }

    pub(super) fn is_wide(&self, slot: Slot) -> bool {
        self.ctx.prog.wide[slot as usize]
    }
}
