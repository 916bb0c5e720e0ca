//! In which order the tiles of a product come.
//!
//! ```text
//!             columns ->                     a group of rows of tiles is walked over column by column:
//!  group 0    0  3  6  9                     what thread blocks work on at a time is nearly a square, whose operands the cache holds
//!             1  4  7 10
//!             2  5  8 11
//!  group 1   12 14 16 18                     the last group has the rows that are left
//!            13 15 17 19
//! ```

use crate::divisor::Divisor;

/// The tiles of a product, in their order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileOrder {
    /// Tiles, below 2^31.
    pub tiles: u32,
    /// Index of the last group.
    pub last_group: u32,
    /// Tiles of a group.
    pub group_tiles: Divisor,
    /// Rows of tiles in a group.
    pub group_rows: Divisor,
    /// Rows of tiles in the last group.
    pub last_rows: Divisor,
}

impl TileOrder {
    /// The order of so many rows and columns of tiles, at least one of each and fewer than 2^31 tiles, in groups of `group` rows.
    pub const fn new(rows: u32, columns: u32, group: u32) -> TileOrder {
        let group = if group < rows { group } else { rows };
        let last_group = (rows - 1) / group;
        TileOrder {
            tiles: rows * columns,
            last_group,
            group_tiles: Divisor::new(group * columns),
            group_rows: Divisor::new(group),
            last_rows: Divisor::new(rows - last_group * group),
        }
    }

    /// Row and column of tile `index`.
    #[inline(always)]
    pub const fn place(&self, index: u32) -> [u32; 2] {
        let (group, within) = self.group_tiles.split(index);
        let (column, row) =
            if group == self.last_group { self.last_rows.split(within) } else { self.group_rows.split(within) };
        [group * self.group_rows.value + row, column]
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_tile_comes_once() {
        for rows in [1, 2, 3, 7, 8, 9, 31] {
            for columns in [1, 2, 5, 64] {
                for group in [1, 3, 8, 16] {
                    let order = TileOrder::new(rows, columns, group);
                    let seen: HashSet<_> = (0..order.tiles).map(|index| order.place(index)).collect();
                    assert_eq!(seen.len() as u32, rows * columns);
                    assert!(seen.iter().all(|&[row, column]| row < rows && column < columns), "{order:?}");
                }
            }
        }
    }

    /// The picture.
    #[test]
    fn a_group_is_walked_over_column_by_column() {
        let order = TileOrder::new(5, 4, 3);
        for (index, place) in
            [(0, [0, 0]), (1, [1, 0]), (3, [0, 1]), (11, [2, 3]), (12, [3, 0]), (13, [4, 0]), (19, [4, 3])]
        {
            assert_eq!(order.place(index), place);
        }
    }
}
