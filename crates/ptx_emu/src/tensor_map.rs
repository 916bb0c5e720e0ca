//! Tensor maps: the emulator's own 128-byte descriptor of a tiled tensor in global memory.

use crate::error::EmuError;

/// Element type of a tensor map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
#[repr(u8)]
pub enum TensorDataType {
    Uint8 = 0,
    Uint16 = 1,
    Uint32 = 2,
    Int32 = 3,
    Uint64 = 4,
    Int64 = 5,
    Float16 = 6,
    Float32 = 7,
    Float64 = 8,
    Bfloat16 = 9,
}

impl TensorDataType {
    const ALL: [Self; 10] = [
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Int32,
        Self::Uint64,
        Self::Int64,
        Self::Float16,
        Self::Float32,
        Self::Float64,
        Self::Bfloat16,
    ];

    /// Bytes of one element.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Uint8 => 1,
            Self::Uint16 | Self::Float16 | Self::Bfloat16 => 2,
            Self::Uint32 | Self::Int32 | Self::Float32 => 4,
            Self::Uint64 | Self::Int64 | Self::Float64 => 8,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::Float16 | Self::Float32 | Self::Float64 | Self::Bfloat16)
    }
}

/// Permutation of 16-byte pieces in shared memory that keeps columns free of bank conflicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Swizzle {
    /// Rows as they are.
    #[default]
    None = 0,
    /// Within 32 bytes.
    Bytes32 = 1,
    /// Within 64 bytes.
    Bytes64 = 2,
    /// Within 128 bytes.
    Bytes128 = 3,
}

impl Swizzle {
    /// Bytes that a row of the box may have.
    fn span(self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Bytes32 => Some(32),
            Self::Bytes64 => Some(64),
            Self::Bytes128 => Some(128),
        }
    }

    /// Where the byte of an unswizzled shared address lies.
    #[inline]
    pub(crate) fn apply(self, addr: u32) -> u32 {
        match self {
            Self::None => addr,
            Self::Bytes32 => addr ^ ((addr >> 3) & 0x10),
            Self::Bytes64 => addr ^ ((addr >> 3) & 0x30),
            Self::Bytes128 => addr ^ ((addr >> 3) & 0x70),
        }
    }
}

/// What a load writes for elements outside of the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum TensorFill {
    /// Zeros.
    #[default]
    Zero = 0,
    /// NaN, for floating-point types.
    Nan = 1,
}

/// Description of a tiled tensor, with the fields of `cuTensorMapEncodeTiled`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMapSpec {
    /// Element type.
    pub data_type: TensorDataType,
    /// Device address of the first element, a multiple of 16.
    pub address: u64,
    /// Elements of each dimension, innermost first; one to five dimensions.
    pub dims: Vec<u64>,
    /// Bytes from one index to the next of each dimension but the innermost; multiples of 16.
    pub strides: Vec<u64>,
    /// Elements of the box that one copy moves, 1 to 256 each.
    pub box_dims: Vec<u32>,
    /// Permutation in shared memory.
    pub swizzle: Swizzle,
    /// Fill for elements outside of the tensor.
    pub fill: TensorFill,
}

/// An encoded descriptor. Kernels read it as 128 bytes, aligned to 64, from global memory or a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap([u8; 128]);

/// Marks the emulator's descriptors, so that anything else given as a tensor map is found.
const MAGIC: u64 = 0x7074_785f_7469_6c65;

impl TensorMap {
    /// Encodes a description.
    ///
    /// # Errors
    /// [`EmuError::InvalidTensorMap`] for what `cuTensorMapEncodeTiled` refuses: ranks, alignments, box and swizzle
    /// sizes outside of the limits.
    pub fn encode(spec: &TensorMapSpec) -> Result<TensorMap, EmuError> {
        let bad = |what: String| Err(EmuError::InvalidTensorMap(what));
        let rank = spec.dims.len();
        if !(1..=5).contains(&rank) {
            return bad(format!("{rank} dimensions; 1 to 5 are accepted"));
        }
        if spec.box_dims.len() != rank || spec.strides.len() != rank - 1 {
            return bad(format!(
                "{} box sizes and {} strides for {rank} dimensions; {rank} and {} are accepted",
                spec.box_dims.len(),
                spec.strides.len(),
                rank - 1
            ));
        }
        if !spec.address.is_multiple_of(16) {
            return bad(format!("address {:#x}; multiples of 16 are accepted", spec.address));
        }
        if let Some(d) = spec.dims.iter().find(|&&d| d == 0 || d > 1 << 32) {
            return bad(format!("a dimension of {d} elements; 1 to 2^32 are accepted"));
        }
        if let Some(s) = spec.strides.iter().find(|&&s| s % 16 != 0 || s >= 1 << 40) {
            return bad(format!("a stride of {s} bytes; multiples of 16 below 2^40 are accepted"));
        }
        if let Some(b) = spec.box_dims.iter().find(|&&b| b == 0 || b > 256) {
            return bad(format!("a box size of {b} elements; 1 to 256 are accepted"));
        }
        let row = spec.box_dims[0] * spec.data_type.bytes();
        if !row.is_multiple_of(16) {
            return bad(format!("a box row of {row} bytes; multiples of 16 are accepted"));
        }
        if let Some(span) = spec.swizzle.span()
            && row > span
        {
            return bad(format!("a box row of {row} bytes with a swizzle of {span}; at most {span} are accepted"));
        }
        if spec.fill == TensorFill::Nan && !spec.data_type.is_float() {
            return bad("NaN fill for an integer type".to_owned());
        }
        let mut b = Vec::with_capacity(128);
        b.extend(MAGIC.to_le_bytes());
        b.extend([spec.data_type as u8, rank as u8, spec.swizzle as u8, spec.fill as u8, 0, 0, 0, 0]);
        b.extend(spec.address.to_le_bytes());
        for i in 0..5 {
            b.extend(((spec.dims.get(i).copied().unwrap_or(1) - 1) as u32).to_le_bytes());
        }
        for i in 0..4 {
            b.extend(spec.strides.get(i).copied().unwrap_or(0).to_le_bytes());
        }
        for i in 0..5 {
            b.extend((spec.box_dims.get(i).copied().unwrap_or(1) as u16).to_le_bytes());
        }
        b.resize(128, 0);
        Ok(TensorMap(b.try_into().expect("resized to 128")))
    }

    /// The descriptor's bytes.
    pub fn as_bytes(&self) -> &[u8; 128] {
        &self.0
    }

    /// Reads a descriptor back; `None` when the bytes are not one.
    pub fn decode(bytes: &[u8; 128]) -> Option<TensorMapSpec> {
        let u64_at = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().expect("eight bytes"));
        let u32_at = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().expect("four bytes"));
        if u64_at(0) != MAGIC {
            return None;
        }
        let data_type = *TensorDataType::ALL.get(bytes[8] as usize)?;
        let rank = bytes[9] as usize;
        let swizzle =
            *[Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128].get(bytes[10] as usize)?;
        let fill = *[TensorFill::Zero, TensorFill::Nan].get(bytes[11] as usize)?;
        if !(1..=5).contains(&rank) {
            return None;
        }
        let spec = TensorMapSpec {
            data_type,
            address: u64_at(16),
            dims: (0..rank).map(|i| u32_at(24 + 4 * i) as u64 + 1).collect(),
            strides: (0..rank - 1).map(|i| u64_at(44 + 8 * i)).collect(),
            box_dims: (0..rank).map(|i| u16::from_le_bytes([bytes[76 + 2 * i], bytes[77 + 2 * i]]) as u32).collect(),
            swizzle,
            fill,
        };
        // Bytes that only look like a descriptor must not get past the limits either.
        TensorMap::encode(&spec).ok().map(|_| spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TensorMapSpec {
        TensorMapSpec {
            data_type: TensorDataType::Bfloat16,
            address: 0x1000,
            dims: vec![128, 4096],
            strides: vec![256],
            box_dims: vec![64, 128],
            swizzle: Swizzle::Bytes128,
            fill: TensorFill::Nan,
        }
    }

    #[test]
    fn a_descriptor_decodes_to_its_description() {
        let s = spec();
        let m = TensorMap::encode(&s).unwrap();
        assert_eq!(TensorMap::decode(m.as_bytes()), Some(s));
        assert_eq!(TensorMap::decode(&[0; 128]), None);
    }

    #[test]
    fn what_the_format_does_not_hold_is_refused() {
        let cases: [fn(&mut TensorMapSpec); 7] = [
            |s| s.address = 8,
            |s| s.dims = vec![],
            |s| s.strides = vec![8],
            |s| s.box_dims = vec![128, 128],
            |s| s.box_dims = vec![64, 257],
            |s| s.box_dims = vec![3, 3],
            |s| s.data_type = TensorDataType::Uint16,
        ];
        for f in cases {
            let mut s = spec();
            f(&mut s);
            assert!(TensorMap::encode(&s).is_err(), "{s:?}");
        }
    }

    #[test]
    fn swizzles_permute_sixteen_byte_pieces() {
        for s in [Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128] {
            let mut seen = [false; 2048];
            for a in 0..2048u32 {
                let b = s.apply(a);
                assert_eq!(a % 16, b % 16);
                assert_eq!(s.apply(b), a);
                seen[b as usize] = true;
            }
            assert!(seen.iter().all(|x| *x));
        }
        assert_eq!(Swizzle::Bytes128.apply(0x80), 0x90);
        assert_eq!(Swizzle::Bytes128.apply(0x3f0), 0x380);
    }
}
