//! How a thread block divides up its shared memory.

/// Divides up the dynamic shared memory of a thread block, piece after piece.
///
/// A kernel takes its addresses from the offsets, and the launch asks for the total: one computation, at compile time, for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carve {
    used: u32,
}

impl Carve {
    /// Nothing taken yet.
    pub const fn new() -> Carve {
        Carve { used: 0 }
    }

    /// Takes `bytes` bytes at a multiple of `align`, and gives their offset from the start.
    pub const fn take(&mut self, bytes: u32, align: u32) -> u32 {
        let offset = self.used.next_multiple_of(align);
        self.used = offset + bytes;
        offset
    }

    /// Bytes of all that has been taken.
    pub const fn total(&self) -> u32 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_one_another_at_their_alignment() {
        let mut carve = Carve::new();
        assert_eq!(
            [carve.take(100, 1024), carve.take(8, 16), carve.take(8, 8), carve.take(1, 1024)],
            [0, 112, 120, 1024]
        );
        assert_eq!(carve.total(), 1025);
    }
}
