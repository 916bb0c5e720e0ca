//! How the rows of a problem lie in memory.

/// Where the rows of a problem are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rows {
    /// Of each sequence in a batch entry of its own, as many in each.
    Equal,
    /// Keys in a cache, an entry for each sequence, of which all rows are in use.
    Cache,
    /// Keys in pages of so many rows, in a drawn order.
    Pages(usize),
    /// One sequence behind the other, q and k alike; the problem has one batch entry, with the rows of all.
    Packed(Lengths),
}

/// Rows of packed sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lengths {
    /// What records call them, such as `64x1024`.
    pub(crate) name: &'static str,
    /// Of each sequence.
    pub(crate) rows: &'static [usize],
}

impl Lengths {
    /// Rows of all sequences.
    pub(crate) fn tokens(&self) -> usize {
        self.rows.iter().sum()
    }

    /// Rows of the longest.
    pub(crate) fn longest(&self) -> usize {
        self.rows.iter().copied().max().unwrap_or(0)
    }

    /// First row of each sequence, and the end of the last.
    pub(crate) fn starts(&self) -> Vec<usize> {
        let ends = self.rows.iter().scan(0, |end, rows| {
            *end += rows;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }
}

impl Rows {
    /// What the record says; `None` of equal sequences in tensors of their own.
    pub(crate) fn name(self) -> Option<String> {
        match self {
            Rows::Equal => None,
            Rows::Cache => Some("cache".to_owned()),
            Rows::Pages(rows) => Some(format!("pages of {rows}")),
            Rows::Packed(lengths) => Some(format!("packed {}", lengths.name)),
        }
    }

    /// Whether keys come from a cache: calls of microseconds, which read all of it.
    pub(crate) fn cached(self) -> bool {
        matches!(self, Rows::Cache | Rows::Pages(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_sequences_follow_each_other() {
        let lengths = Lengths { name: "three", rows: &[3, 7, 5] };
        assert_eq!(lengths.starts(), [0, 3, 10, 15]);
        assert_eq!((lengths.tokens(), lengths.longest()), (15, 7));
        let names = [Rows::Equal, Rows::Cache, Rows::Pages(16), Rows::Packed(lengths)].map(Rows::name);
        assert_eq!(
            names.each_ref().map(Option::as_deref),
            [None, Some("cache"), Some("pages of 16"), Some("packed three")]
        );
    }
}
