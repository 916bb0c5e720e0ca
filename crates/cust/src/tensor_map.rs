//! Tensor maps: what Hopper's copy engine has to know of a tensor.

use crate::context::Context;
use crate::error::{Error, Result, check};
use crate::sys::{
    CUdeviceptr, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};
use std::ffi::c_uint;
use std::ptr;

/// A tensor, and the boxes that it is copied in. All lists start with the innermost axis.
///
/// What the driver asks of addresses, strides and boxes is in the manual of `cuTensorMapEncodeTiled`.
#[derive(Clone, Copy, Debug)]
pub struct TensorMapSpec<'a> {
    /// Type of the elements.
    pub data_type: CUtensorMapDataType,
    /// Address of the first element.
    pub address: CUdeviceptr,
    /// Elements along each axis: 1 to 5 axes.
    pub extents: &'a [u64],
    /// Bytes from one element to the next along all axes but the first.
    pub byte_strides: &'a [u64],
    /// Elements of a box along each axis.
    pub box_extents: &'a [u32],
    /// Every how many elements one is copied, along each axis.
    pub element_strides: &'a [u32],
    /// How channels lie between each other.
    pub interleave: CUtensorMapInterleave,
    /// The order within rows of a box in shared memory.
    pub swizzle: CUtensorMapSwizzle,
    /// What a miss brings into the level-two cache.
    pub l2_promotion: CUtensorMapL2promotion,
    /// What a box holds outside of the tensor.
    pub fill: CUtensorMapFloatOOBfill,
}

impl TensorMapSpec<'_> {
    /// Encodes the map, which kernels take by value. The address is kept, not read.
    ///
    /// # Errors
    /// [`Error::TensorMapRank`], [`Error::MissingSymbols`] for a driver before CUDA 12.0, or [`Error::Call`].
    pub fn encode(&self, context: &Context) -> Result<CUtensorMap> {
        let rank = self.extents.len();
        for (what, found, expected) in [
            ("strides", self.byte_strides.len(), rank.saturating_sub(1)),
            ("box extents", self.box_extents.len(), rank),
            ("element strides", self.element_strides.len(), rank),
        ] {
            if found != expected {
                return Err(Error::TensorMapRank { rank, what, expected, found });
            }
        }
        let cuda = context.enter()?;
        let symbol = "cuTensorMapEncodeTiled";
        let encode = cuda.cuTensorMapEncodeTiled.ok_or_else(|| Error::MissingSymbols { symbols: vec![symbol] })?;
        let mut map = CUtensorMap([0; 16]);
        // SAFETY: the lists hold as many numbers as the rank asks for, as checked above; they and the map are valid for the call.
        let result = unsafe {
            encode(
                &mut map,
                self.data_type,
                rank as c_uint,
                ptr::with_exposed_provenance_mut(self.address as usize),
                self.extents.as_ptr(),
                self.byte_strides.as_ptr(),
                self.box_extents.as_ptr(),
                self.element_strides.as_ptr(),
                self.interleave,
                self.swizzle,
                self.l2_promotion,
                self.fill,
            )
        };
        check(symbol, result)?;
        Ok(map)
    }
}
