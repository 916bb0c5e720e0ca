//! Attention over sequences of different lengths, packed one behind the other or with their keys in a cache.
//!
//! Every sequence is a problem of its own: [`Sequence::of`](sequence::Sequence::of) reads its lengths on the device and moves the addresses of the call's tensors to
//! it. From there on masks, softmax, tiles and products are those of [`v2`](super::v2).
//!
//! | module | who has which keys | for |
//! | --- | --- | --- |
//! | [`decode`] | each warp keys of its own, all query rows | up to 16 query rows, those of a group's heads together |
//! | [`prefill`] | all warps the same keys, each its query rows | more |
//! | [`tiles`] | | the list of tiles of [`v3`](super::v3) over packed sequences |
//! | [`merge`] | | several splits of the keys, put together |
//! | [`append`] | | new keys and values, written to the cache, and queries turned with them |

pub mod append;
pub mod block;
pub mod decode;
pub mod mend;
pub mod merge;
pub mod place;
pub mod prefill;
pub mod rows;
pub mod sequence;
pub mod tiles;
