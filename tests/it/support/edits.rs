//! Broken copies of a PTX text: every statement that waits, arrives, fences or announces is taken out, or weakened, one at a time.

/// One broken copy.
pub(crate) struct Mutant {
    /// What was done to which kind of statement.
    pub(crate) edit: Edit,
    /// Line of the statement, from 1.
    pub(crate) line: usize,
    /// The statement as it was.
    pub(crate) statement: String,
    /// The whole text with it changed.
    pub(crate) ptx: String,
}

/// What a mutant does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Edit {
    /// A wait for an mbarrier is taken out.
    NoMbarrierWait,
    /// A wait for an mbarrier waits for the other phase.
    WrongPhase,
    /// An arrival at an mbarrier is taken out.
    NoArrival,
    /// An arrival announces no bytes.
    NoExpectTx,
    /// The initialisation of an mbarrier is taken out.
    NoInit,
    /// A barrier of the block or a named one is taken out, or the wait at that of a cluster.
    NoBarrier,
    /// The arrival at a named barrier, or at that of a cluster, is taken out.
    NoBarrierArrival,
    /// A barrier of the lanes of a warp is taken out.
    NoWarpSync,
    /// The wait for a group of cp.async is taken out.
    NoCopyWait,
    /// The wait for a group of cp.async allows one more group in flight.
    LateCopyWait,
    /// A group of cp.async is not closed.
    NoCopyCommit,
    /// The wait for a group of the copy engine's stores is taken out.
    NoStoreWait,
    /// It allows one more group that is still read.
    LateStoreWait,
    /// A group of the copy engine's stores is not closed.
    NoStoreCommit,
    /// The wait for a counter in global memory is taken out.
    NoTurn,
    /// A counter in global memory is not counted up.
    NoCount,
    /// The fence between generic writes and the async proxy is taken out.
    NoProxyFence,
    /// The fence after the initialisation of the mbarriers is taken out.
    NoInitFence,
    /// `wgmma.fence` is taken out.
    NoWgmmaFence,
    /// A group of wgmma is not closed.
    NoWgmmaCommit,
    /// The wait for a group of wgmma is taken out.
    NoWgmmaWait,
    /// The wait for a group of wgmma allows one more group in flight.
    LateWgmmaWait,
}

/// All broken copies of `ptx`.
pub(crate) fn mutants(ptx: &str) -> Vec<Mutant> {
    let lines: Vec<&str> = ptx.lines().collect();
    let mut out = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        for (edit, changed) in edits(line) {
            let before: usize = lines[..i].iter().map(|l| l.len() + 1).sum();
            let after = (before + line.len()).min(ptx.len());
            out.push(Mutant {
                edit,
                line: i + 1,
                statement: line.trim().to_owned(),
                ptx: format!("{}{changed}{}", &ptx[..before], &ptx[after..]),
            });
        }
    }
    out
}

/// What may be done to one line. A statement of the kernels' own, with its loop or its predicate, is one line.
fn edits(line: &str) -> Vec<(Edit, String)> {
    let none = String::new;
    let has = |text: &str| line.contains(text);
    if has("mbarrier.try_wait") {
        let mut out = vec![(Edit::NoMbarrierWait, none())];
        // `.. p, [address], parity; ..`
        if let Some((head, rest)) = line.split_once("], ")
            && let Some((parity, tail)) = rest.split_once(';')
            && let Some(declared) = head.find('{').map(|at| at + 1)
        {
            let (open, wait) = head.split_at(declared);
            let flip = format!(" .reg .b32 other; xor.b32 other, {parity}, 1;");
            out.push((Edit::WrongPhase, format!("{open}{flip}{wait}], other;{tail}")));
        }
        return out;
    }
    if let Some((head, tail)) = line.split_once("mbarrier.arrive.expect_tx") {
        // `.. _, [address], bytes; ..` becomes an arrival without bytes.
        let announced = tail.split_once("], ").and_then(|(address, rest)| {
            let (_, rest) = rest.split_once(';')?;
            Some(format!("{head}mbarrier.arrive{address}];{rest}"))
        });
        return [(Edit::NoArrival, Some(none())), (Edit::NoExpectTx, announced)]
            .into_iter()
            .filter_map(|(edit, text)| Some((edit, text?)))
            .collect();
    }
    let late = |wait: &str| {
        let (head, pending) = line.trim_end().trim_end_matches(';').rsplit_once(char::is_whitespace)?;
        let pending: u32 = pending.parse().ok()?;
        assert!(head.contains(wait));
        Some(format!("{head} {};", pending + 1))
    };
    let with_late = |gone: Edit, later: Edit, wait: &str| {
        let mut out = vec![(gone, none())];
        out.extend(late(wait).map(|text| (later, text)));
        out
    };
    let gone = |edit| vec![(edit, none())];
    if has("ld.acquire.gpu") {
        return gone(Edit::NoTurn);
    }
    if has("red.release.gpu") {
        return gone(Edit::NoCount);
    }
    // The longer names first: some are the beginning of others.
    if has("cp.async.wait_group") {
        with_late(Edit::NoCopyWait, Edit::LateCopyWait, "cp.async.wait_group")
    } else if has("cp.async.commit_group") {
        gone(Edit::NoCopyCommit)
    } else if has("cp.async.bulk.wait_group") {
        with_late(Edit::NoStoreWait, Edit::LateStoreWait, "cp.async.bulk.wait_group")
    } else if has("cp.async.bulk.commit_group") {
        gone(Edit::NoStoreCommit)
    } else if has("wgmma.wait_group") {
        with_late(Edit::NoWgmmaWait, Edit::LateWgmmaWait, "wgmma.wait_group")
    } else if has("wgmma.commit_group") {
        gone(Edit::NoWgmmaCommit)
    } else if has("wgmma.fence") {
        gone(Edit::NoWgmmaFence)
    } else if has("fence.mbarrier_init") {
        gone(Edit::NoInitFence)
    } else if has("fence.proxy.async") {
        gone(Edit::NoProxyFence)
    } else if has("mbarrier.init") {
        gone(Edit::NoInit)
    } else if has("mbarrier.arrive") {
        gone(Edit::NoArrival)
    } else if has("bar.arrive") || has("barrier.cta.arrive") {
        gone(Edit::NoBarrierArrival)
    } else if has("bar.warp.sync") {
        gone(Edit::NoWarpSync)
    } else if has("barrier.cluster.arrive") {
        gone(Edit::NoBarrierArrival)
    } else if has("bar.sync") || has("barrier.cta.sync") || has("barrier.cluster.wait") {
        gone(Edit::NoBarrier)
    } else {
        Vec::new()
    }
}
