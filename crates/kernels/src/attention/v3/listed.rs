//! The tiles of a row with lists of key blocks, see `kernel_spec::families::blocks`: taken in the order in which thread blocks ask.
//!
//! Every thread block writes down which slot of the schedule it took behind which, the first one being its own, for who walks along them again.

use cuda_std::{copy, thread, warp};
use kernel_spec::families::blocks::{HEAD_WORDS, LIST_WORDS, TAKEN_WORD};
use kernel_spec::schedule::Tile;
use kernel_spec::{KvBlocks, V3Params};

use crate::attention::v3::config::Config;
use crate::attention::v3::note::{QueryTile, lists};
use crate::attention::v3::packed::Sequence;

/// The tiles of this thread block, one after the other.
pub struct ListedTiles {
    /// The slot of the last tile; `None` before the first.
    last: Option<u32>,
    /// The slot that [`ListedTiles::ask`] has got, in the first lane.
    answer: u32,
    /// What stands in front of the lists, see [`HEAD_WORDS`]: read once, since everything of a tile waits for it.
    head: [u32; 4],
}

impl ListedTiles {
    /// Before the first tile.
    #[inline(always)]
    pub fn new(p: &V3Params) -> ListedTiles {
        // SAFETY: the kernel before this one has written them.
        ListedTiles { last: None, answer: 0, head: unsafe { copy::load_u32x4(lists(p)) } }
    }

    /// Asks for a slot that nobody has taken, once before each [`ListedTiles::next`] but the first. The answer takes a microsecond.
    #[inline(always)]
    pub fn ask(&mut self, p: &V3Params) {
        if thread::lane() == 0 {
            // SAFETY: the kernel before this one has set the word to 0, and all thread blocks count it up.
            self.answer = thread::grid_size() + unsafe { copy::fetch_add(lists(p) + 4 * TAKEN_WORD as u64, 1) };
        }
    }

    /// The tile that was asked for, or the thread block's own first one; `None` behind the last of all.
    ///
    /// # Safety
    /// The load warp, converged.
    #[inline(always)]
    pub unsafe fn next<C: Config>(&mut self, p: &V3Params) -> Option<QueryTile> {
        loop {
            let slot = match self.last {
                None => thread::block_index(),
                // SAFETY: passed on; the words of the slots that a thread block took are its own.
                Some(last) => unsafe {
                    if thread::lane() == 0 {
                        copy::store_u32(self.follower(p, last), self.answer);
                    }
                    warp::broadcast(self.answer, 0)
                },
            };
            match self.tile_of::<C>(p, slot)? {
                Some(tile) => return Some(tile),
                None => self.ask(p),
            }
        }
    }

    /// The same tiles once more.
    ///
    /// # Safety
    /// Behind a barrier of the load warp, when it has met the end.
    #[inline(always)]
    pub unsafe fn again<C: Config>(&mut self, p: &V3Params) -> Option<QueryTile> {
        loop {
            let slot = match self.last {
                None => thread::block_index(),
                // SAFETY: the load warp has written it.
                Some(last) => unsafe { copy::load_u32(self.follower(p, last)) },
            };
            if let Some(tile) = self.tile_of::<C>(p, slot)? {
                return Some(tile);
            }
        }
    }

    /// Where the slot is written that this thread block took behind another.
    #[inline(always)]
    fn follower(&self, p: &V3Params, slot: u32) -> u64 {
        let [.., followers] = self.head;
        lists(p) + 4 * (followers + slot) as u64
    }

    /// The tile of a slot, which is the last one from now on: `None` past the end, `Some(None)` of an idle one.
    #[inline(always)]
    fn tile_of<C: Config>(&mut self, p: &V3Params, slot: u32) -> Option<Option<QueryTile>> {
        let schedule = &p.schedule;
        if slot >= schedule.rounds * thread::grid_size() {
            return None;
        }
        self.last = Some(slot);
        let Some(Tile { head, q_block }) = schedule.tile(slot) else { return Some(None) };
        let (batch, head) = schedule.sequence_heads.split(head);
        let (kv_head, _) = schedule.group.split(head);
        let (first_row, blocks) = (q_block * C::ROW.q_block, self.blocks(p, batch, head, q_block));
        Some(Some(QueryTile { batch, q_head: head, kv_head, first_row, blocks, sequence: Sequence::NONE }))
    }

    /// The blocks of a tile, counted in place of keys as words of the lists, in the order of steps.
    #[inline(always)]
    fn blocks(&self, p: &V3Params, batch: u32, q_head: u32, tile: u32) -> KvBlocks {
        let [words, head_words, batch_words, _] = self.head;
        let list = HEAD_WORDS + batch * batch_words + q_head * head_words + tile * words;
        // SAFETY: the kernel before this one has written a list for every tile.
        let [count, tested, ..] = unsafe { copy::load_u32x4(lists(p) + 4 * list as u64) };
        let first = list + LIST_WORDS;
        let end = first + count;
        KvBlocks { first, unmasked_first: first, unmasked_end: end - tested, end }
    }
}
