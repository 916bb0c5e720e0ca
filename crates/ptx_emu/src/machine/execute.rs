//! Every instruction that neither ends nor blocks the part of a warp that runs it, by the place that knows it.

use super::{Cta, Exec, lanes};
use crate::alu;
use crate::ir::*;

impl Cta<'_> {
    /// Executes an instruction that neither ends nor blocks the part of the warp that runs it.
    pub(super) fn execute(&mut self, w: usize, pc: u32, active: u32, op: &Op) -> Exec<()> {
        match op {
            Op::Rare { f, ty, m, d, s } => {
                let wide = &self.ctx.prog.wide;
                let regs = &mut self.warps[w].regs;
                if *d != SINK {
                    let known = s.iter().fold(!0, |k, &s| k & regs.init(s));
                    if known & active == active {
                        regs.set_init(*d, active, !0);
                    } else {
                        alu::define(regs, wide, *f, *ty, *m, *d, s, active);
                    }
                }
                alu::execute_rare(regs, *f, *ty, *m, *d, s, active);
                let inst = &self.ctx.prog.code[pc as usize];
                self.count_arithmetic(inst, *ty, active);
            }
            Op::Carry { f, ty, carry_in, carry_out, d, s } => {
                self.carry(w, active, *f, *ty, *carry_in, *carry_out, *d, *s)
            }
            Op::Cvt { to, from, round, int_round, ftz, sat, relu, d, wide_d, s } => {
                self.cvt(w, active, *to, *from, *round, *int_round, *ftz, *sat, *relu, *d, *wide_d, *s)
            }
            Op::Pack { d, wide, bits, s, n } => self.pack(w, active, *d, *wide, *bits, *s, *n),
            Op::Unpack { a, wide, bits, d, n } => self.unpack(w, active, *a, *wide, *bits, *d, *n),
            Op::Set { cmp, ty, to, ftz, combine, d, a, b } => {
                self.set(w, active, *cmp, *ty, *to, *ftz, *combine, *d, *a, *b)
            }
            Op::Testp { kind, ty, p, a } => self.testp(w, active, *kind, *ty, *p, *a),
            Op::Selp { wide, d, a, b, p } => self.selp(w, active, *wide, *d, *a, *b, *p),
            Op::Slct { wide, float, ftz, d, a, b, c } => self.slct(w, active, *wide, *float, *ftz, *d, *a, *b, *c),
            Op::PredLogic { f, p, a, b } => self.pred_logic(w, active, *f, *p, *a, *b),
            Op::Isspacep { space, p, a } => self.isspacep(w, active, *space, *p, *a),
            Op::Ld(a) => self.load(w, pc, active, a)?,
            Op::St(a) => self.store(w, pc, active, a)?,
            Op::LocalCopy { dst, src, bytes } => self.local_copy(w, active, *dst, *src, *bytes),
            Op::Host(call) => self.host(w, pc, active, call)?,
            Op::Prefetch => {}
            Op::Discard { space, addr } => self.discard(w, pc, active, *space, *addr)?,
            Op::SetMaxNReg { .. } => self.aligned(w, pc, active)?,
            // Launches run to their end one after the other: what came before is done, and what comes after has not begun.
            Op::GridDep { .. } => {}
            Op::Atom { space, op, ty, order, scope, d, addr, count, b, c } => {
                self.atomic(w, pc, active, *space, *op, *ty, (*order, *scope), *d, *addr, &b[..*count as usize], *c)?;
            }
            Op::Shfl { mode, d, p, a, b, c, mask } => self.shfl(w, pc, active, *mode, *d, *p, *a, *b, *c, *mask)?,
            Op::Vote { mode, d, p, a, mask } => self.vote(w, pc, active, *mode, *d, *p, *a, *mask)?,
            Op::Match { all, wide, d, p, a, mask } => self.match_sync(w, pc, active, *all, *wide, *d, *p, *a, *mask)?,
            Op::Redux { op, ty, d, a, mask } => self.redux(w, pc, active, *op, *ty, *d, *a, *mask)?,
            Op::Elect { d, p, mask } => self.elect(w, pc, active, *d, *p, *mask)?,
            Op::Activemask { d } => self.activemask(w, active, *d),
            Op::Fence(kind) => match kind {
                FenceKind::Memory(scope) => self.fence(w, active, *scope),
                FenceKind::ProxyAsync => {
                    self.mbar_fence(w, active);
                    self.proxy_fence(w, active);
                }
                FenceKind::MbarrierInit => {
                    self.mbar_fence(w, active);
                    // It releases the initialisation to the cluster.
                    self.fence(w, active, Scope::Cluster);
                }
                FenceKind::Other => {}
            },
            Op::CpAsync { dst, src, bytes, src_size, ignore } => {
                self.cp_async(w, pc, active, *dst, *src, *bytes, *src_size, *ignore)?;
            }
            Op::CpAsyncCommit => {
                for lane in lanes(active) {
                    self.warps[w].group[lane] += 1;
                }
            }
            Op::CpAsyncWait(n) => self.cp_async_wait(w, active, *n),
            Op::CpAsyncMbarArrive { addr, no_inc } => self.cp_async_arrive(w, pc, active, *addr, *no_inc)?,
            Op::MbarInit { addr, space, count } => self.mbar_init(w, pc, active, *addr, *space, *count)?,
            Op::MbarInval { addr, space } => self.mbar_inval(w, pc, active, *addr, *space)?,
            Op::MbarArrive(a) => self.mbar_arrive(w, pc, active, a)?,
            Op::MbarTx { addr, space, tx, complete } => self.mbar_tx(w, pc, active, *addr, *space, *tx, *complete)?,
            Op::MbarPending { d, state } => self.mbar_pending(w, active, *d, *state),
            Op::ClusterArrive { release, aligned } => self.cluster_arrive(w, pc, active, *release, *aligned)?,
            Op::Mapa { d, wide, space, a, rank } => self.mapa(w, pc, active, *d, *wide, *space, *a, *rank)?,
            Op::GetCtaRank { d, wide, space, a } => self.get_cta_rank(w, pc, active, *d, *wide, *space, *a)?,
            Op::AsyncStore(s) => self.async_store(w, pc, active, s)?,
            Op::Bulk(b) => self.bulk_copy(w, pc, active, b)?,
            Op::BulkTensor(b) => self.bulk_tensor(w, pc, active, b)?,
            Op::BulkCommit => self.bulk_commit(w, active),
            Op::BulkWait { pending } => self.bulk_wait(w, active, *pending)?,
            Op::Mma(m) => {
                self.aligned(w, pc, active)?;
                if self.ctx.checks.uninitialized {
                    self.known_operands(w, pc, active)?;
                }
                self.mma(w, m);
                self.counters.tensor_flops += 2 * 16 * m.n as u64 * m.k as u64;
            }
            Op::WmmaLoad(a) => self.wmma_load(w, pc, active, a)?,
            Op::WmmaStore(a) => self.wmma_store(w, pc, active, a)?,
            Op::WmmaMma(m) => self.wmma_mma(w, pc, active, m)?,
            Op::LdMatrix { d, n, trans, space, addr } => self.ldmatrix(w, pc, active, d, *n, *trans, *space, *addr)?,
            Op::StMatrix { s, n, trans, space, addr } => self.stmatrix(w, pc, active, s, *n, *trans, *space, *addr)?,
            Op::MoveMatrix { d, a } => self.move_matrix(w, pc, active, *d, *a)?,
            Op::Wgmma(g) => self.wgmma(w, pc, active, g)?,
            Op::WgmmaFence => {
                self.aligned(w, pc, active)?;
                self.wgmma_fence(w);
            }
            Op::WgmmaCommit => {
                self.aligned(w, pc, active)?;
                self.wgmma_commit(w);
            }
            Op::Clock { d, wide, global } => self.clock(w, active, *d, *wide, *global),
            Op::Alu { .. }
            | Op::Setp { .. }
            | Op::Bra { .. }
            | Op::BraExit
            | Op::Exit
            | Op::Trap
            | Op::Unsupported(_)
            | Op::WarpSync { .. }
            | Op::Bar { .. }
            | Op::MbarWait { .. }
            | Op::ClusterWait { .. }
            | Op::WgmmaWait(_)
            | Op::Nanosleep => unreachable!("executed by the instruction loop"),
        }
        Ok(())
    }
}
