//! Control flow: which branches end their lanes, and where diverged threads meet again.

use crate::ir::{Inst, NO_PC, Op, TRUE};

/// Makes an exit of every branch to a block that only ends the thread. Compilers write `if (i >= n) return;` as a branch to the
/// common `ret`; a lane that waited there for the others would be missing from their collectives.
pub(crate) fn exits(code: &mut [Inst]) {
    for pc in 0..code.len() {
        let Op::Bra { mut target, .. } = code[pc].op else { continue };
        // Through branches to branches, of which compilers leave one or two; more may be a loop without end.
        for _ in 0..8 {
            match code.get(target as usize) {
                Some(Inst { op: Op::Bra { target: next, .. }, guard: TRUE, .. }) => target = *next,
                to => {
                    if only_ends(to) {
                        code[pc].op = Op::BraExit;
                    }
                    break;
                }
            }
        }
    }
}

/// Whether an instruction begins a block that only ends the thread.
fn only_ends(inst: Option<&Inst>) -> bool {
    matches!(inst, Some(Inst { op: Op::Exit | Op::BraExit, guard: TRUE, .. }))
}

/// Fills in `reconverge` of every branch. Nobody meets in a block that only ends the thread, not even who falls into it: a lane that
/// waited there for the others, as after a loop, would be missing from their collectives.
pub(crate) fn reconvergence(code: &mut [Inst]) {
    let n = code.len();
    let mut leader = vec![false; n + 1];
    leader[0] = true;
    for (pc, inst) in code.iter().enumerate() {
        match inst.op {
            Op::Bra { target, .. } => {
                leader[target as usize] = true;
                leader[pc + 1] = true;
            }
            Op::BraExit | Op::Exit | Op::Trap => leader[pc + 1] = true,
            _ => {}
        }
    }
    let mut block_of = vec![0usize; n];
    let mut starts = Vec::new();
    for pc in 0..n {
        if leader[pc] {
            starts.push(pc);
        }
        block_of[pc] = starts.len() - 1;
    }
    let blocks = starts.len();
    let exit = blocks;
    let mut succ: Vec<Vec<usize>> = vec![Vec::new(); blocks + 1];
    for (b, succ) in succ.iter_mut().enumerate().take(blocks) {
        let last = starts.get(b + 1).copied().unwrap_or(n) - 1;
        let fall = if last + 1 < n { b + 1 } else { exit };
        let inst = &code[last];
        let always = inst.guard == TRUE;
        match inst.op {
            Op::Bra { target, .. } => {
                let t = target as usize;
                succ.push(if t < n { block_of[t] } else { exit });
                if !always {
                    succ.push(fall);
                }
            }
            Op::BraExit | Op::Exit | Op::Trap => {
                succ.push(exit);
                if !always {
                    succ.push(fall);
                }
            }
            _ => succ.push(fall),
        }
    }
    let ipdom = post_dominators(&succ, exit);
    for pc in 0..n {
        let d = ipdom[block_of[pc]];
        let nowhere = d == usize::MAX || d == exit || only_ends(code.get(starts[d]));
        if let Op::Bra { reconverge, .. } = &mut code[pc].op {
            *reconverge = if nowhere { NO_PC } else { starts[d] as u32 };
        }
    }
}

/// Immediate post-dominators by the iteration of Cooper, Harvey and Kennedy on the reversed graph;
/// `usize::MAX` for blocks that never reach the exit.
fn post_dominators(succ: &[Vec<usize>], exit: usize) -> Vec<usize> {
    let n = succ.len();
    let mut pred: Vec<Vec<usize>> = vec![Vec::new(); n];
    for (b, ss) in succ.iter().enumerate() {
        for &s in ss {
            pred[s].push(b);
        }
    }
    // Depth-first post-order of the reversed graph from the exit.
    let mut order = Vec::with_capacity(n);
    let mut number = vec![usize::MAX; n];
    let mut seen = vec![false; n];
    let mut stack = vec![(exit, 0usize)];
    seen[exit] = true;
    while let Some((b, i)) = stack.pop() {
        if let Some(&p) = pred[b].get(i) {
            stack.push((b, i + 1));
            if !seen[p] {
                seen[p] = true;
                stack.push((p, 0));
            }
        } else {
            number[b] = order.len();
            order.push(b);
        }
    }
    let mut idom = vec![usize::MAX; n];
    idom[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &b in order.iter().rev() {
            if b == exit {
                continue;
            }
            let mut new = usize::MAX;
            for &s in &succ[b] {
                if idom[s] == usize::MAX {
                    continue;
                }
                new = if new == usize::MAX { s } else { intersect(&idom, &number, new, s) };
            }
            if new != idom[b] {
                idom[b] = new;
                changed = true;
            }
        }
    }
    idom
}

fn intersect(idom: &[usize], number: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while number[a] < number[b] {
            a = idom[a];
        }
        while number[b] < number[a] {
            b = idom[b];
        }
    }
    a
}
