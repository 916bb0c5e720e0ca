//! What kernels are built of: tiles, products, rings of buffers. No file here knows what is computed with it.

#[cfg(target_feature = "sm_90a")]
pub mod boxes;
pub mod element;
pub mod fragments;
pub mod products;
#[cfg(target_feature = "sm_90a")]
pub mod ring;
pub mod rows;
pub mod shared_tile;
#[cfg(target_feature = "sm_90a")]
pub mod turn;
#[cfg(target_feature = "sm_90a")]
pub mod warpgroup;
