//! Which kernel and which rows of the variant list carry out a call. All that depends on the list is here and in `params.rs`.

use super::options::KernelChoice;
use super::problem::Sizes;
use super::request::{Placed, Request, Row};
use crate::device::DeviceInfo;
use crate::error::{Error, Operand, Result, Unsupported};
use crate::plan::{MAX_GRID, check_device, check_hopper};
use kernel_spec::copy_engine::{ALIGNMENT, STRIDE_LIMIT};
use kernel_spec::families::forward::features::BLOCKS;
use kernel_spec::schedule::{self, MAX_TILES};
use kernel_spec::{Entry, FeatureSet, Kernel, Mask, Pass, VARIANTS, Variant};

/// The kernel that runs a request, and why.
pub(super) fn kernel(request: &Request<'_>, device: &DeviceInfo) -> Result<(Kernel, String)> {
    let choice = request.attention.kernel;
    if let KernelChoice::Variant(asked) = choice {
        let kernel = asked.pass.kernel();
        if !kernel.passes().contains(&asked.pass) {
            let reason = Unsupported::Row { symbol: asked.entry.symbol };
            return Err(Error::KernelUnsupported { kernel, reason });
        }
        if !request.features().set().contains(asked.needs()) {
            return Err(Error::KernelUnsupported {
                kernel,
                reason: Unsupported::NoBlocks { symbol: asked.entry.symbol },
            });
        }
        row(request, asked.pass)?;
    }
    match (choice.kernel(), check_v3(request, device)) {
        (Some(Kernel::V3), Err(reason)) => Err(Error::KernelUnsupported { kernel: Kernel::V3, reason }),
        (Some(kernel), _) => Ok((kernel, "asked for".to_owned())),
        (None, Ok(())) => {
            let why =
                "the fastest of the kernels: asynchronous copies and products, softmax under the products of others";
            Ok((Kernel::V3, why.to_owned()))
        }
        (None, Err(reason)) => {
            Ok((Kernel::V2, format!("the fastest of the kernels that run this, without v3: {reason}")))
        }
    }
}

/// The rows that carry out the passes of a kernel, in launch order.
pub(super) fn rows(request: &Request<'_>, device: &DeviceInfo, kernel: Kernel) -> Result<Vec<Row>> {
    let rows = kernel.passes().iter().map(|&pass| {
        let variant = row(request, pass)?.ok_or_else(|| no_row(request, kernel))?;
        check_device(&variant.entry, device)?;
        let packed_heads = packed_heads(variant, &request.sizes);
        let ctas = grid(variant, &request.sizes, packed_heads, device.multiprocessors)?;
        Ok(Row { variant, ctas, packed_heads })
    });
    rows.collect()
}

/// Why no row of a kernel takes a request: without its features there would be one, or the head dim is none that is compiled.
fn no_row(request: &Request<'_>, kernel: Kernel) -> Error {
    match missing_feature(request) {
        Some(reason) if request.attention.kernel == KernelChoice::Auto => Error::Unsupported(reason),
        Some(reason) => Error::KernelUnsupported { kernel, reason },
        None => Error::HeadDim { found: request.sizes.head_dim },
    }
}

fn missing_feature(request: &Request<'_>) -> Option<Unsupported> {
    let Sizes { dtype, head_dim, .. } = request.sizes;
    let program = request.attention.changing_program().map(|_| "a program on scores");
    let sink = request.attention.sink.map(|_| "sinks");
    // Of several the one that fewer kernels have.
    let dropout = request.dropout.map(|_| "dropout");
    dropout.or(request.softcap.map(|_| "softcap")).or(program).or(sink).map(|feature| Unsupported::Feature {
        feature,
        dtype,
        head_dim,
    })
}

/// The row for a pass: the one that is asked for, or the one whose tile is the fastest of those that have the features.
fn row(request: &Request<'_>, pass: Pass) -> Result<Option<&'static Variant>> {
    let sizes = &request.sizes;
    let head_dim = sizes.head_dim as u32; // validated: at most MAX_HEAD_DIM
    let (features, needed) = (request.features().set(), request.needed());
    match request.attention.kernel {
        KernelChoice::Variant(variant) if variant.pass == pass => {
            if variant.holds(sizes.dtype, [head_dim; 2]) {
                return Ok(Some(variant).filter(|variant| variant.entry.accepts.contains(needed)));
            }
            let Variant { entry: Entry { symbol, .. }, dtype, .. } = *variant;
            let head_dim = variant.head_dim();
            Err(Error::VariantMismatch { symbol, dtype, head_dim, problem: sizes.to_string() })
        }
        _ => {
            let find = |features| Variant::find(pass, sizes.dtype, [head_dim; 2], request.keys_per_row, features);
            // With all that saves time, or some of it, or none.
            let for_blocks = needed.union(features.intersection(FeatureSet::of(BLOCKS)));
            Ok(find(features).or_else(|| find(for_blocks)).or_else(|| find(needed)))
        }
    }
}

/// Keys that a query row sees, on average over up to 64 rows evenly spread.
pub(super) fn keys_per_row(mask: Mask, sizes: &Sizes) -> u32 {
    const SAMPLES: i64 = 64;
    let (q_rows, kv_rows) = (sizes.q_rows as i64, sizes.kv_rows as i64);
    let band = mask.band();
    let seen = |row: i64| {
        let diagonal = row + kv_rows - q_rows;
        let first = (diagonal - i64::from(band.left)).max(0);
        let end = (diagonal + i64::from(band.right) + 1).min(kv_rows);
        (end - first).max(0)
    };
    let samples = q_rows.min(SAMPLES);
    // The middle of each of as many parts. Every call waits for this, and 64 divisions by a number that is not known take most of it.
    let total: i64 = if q_rows <= SAMPLES {
        (0..samples).map(seen).sum()
    } else {
        (0..SAMPLES).map(|i| seen((2 * i + 1) * q_rows / (2 * SAMPLES))).sum()
    };
    // At most kv_rows, which validate bounds by MAX_ROWS.
    (total / samples.max(1)) as u32
}

/// Whether v3 runs this: the one place of its conditions.
fn check_v3(request: &Request<'_>, device: &DeviceInfo) -> Result<(), Unsupported> {
    check_hopper(device)?;
    let sizes = &request.sizes;
    // validated: at most MAX_HEAD_DIM, for which every type that v3 has at all has a row.
    if !VARIANTS.iter().any(|v| v.pass == Pass::V3 && v.dtype == sizes.dtype) {
        return Err(Unsupported::DType { found: sizes.dtype });
    }
    let Ok(Some(variant)) = row(request, Pass::V3) else {
        return Err(missing_feature(request).unwrap_or(Unsupported::DType { found: sizes.dtype }));
    };
    if sizes.kv_rows == 0 {
        return Err(Unsupported::NoKeys);
    }
    let q_blocks = sizes.q_rows.div_ceil(variant.q_block as usize) as u128;
    let found = (sizes.batch as u128 * sizes.q_heads as u128).saturating_mul(q_blocks);
    if found > MAX_TILES.into() {
        return Err(Unsupported::TooManyTiles { found, limit: MAX_TILES });
    }
    let tensors = &request.tensors;
    let named =
        [(Operand::Q, tensors.q), (Operand::K, tensors.k), (Operand::V, tensors.v), (Operand::Out, tensors.out)];
    named.iter().try_for_each(|(operand, placed)| check_copies(*operand, placed))
}

/// Whether the copy engine takes the tensor's address and strides.
pub(super) fn check_copies(tensor: Operand, placed: &Placed) -> Result<(), Unsupported> {
    if let Some(address) = placed.address.filter(|address| !address.is_multiple_of(ALIGNMENT)) {
        return Err(Unsupported::Address { tensor, address });
    }
    let [batch, row, head, _] = placed.axes;
    for (axis, (extent, stride)) in [("batch", batch), ("row", row), ("head", head)] {
        // A stride in use fits: the tensor's span in bytes does.
        let bytes = (stride as u64).saturating_mul(placed.dtype.bytes() as u64);
        // Along an axis of extent 1 nothing is ever stepped over.
        if extent > 1 && (bytes == 0 || !bytes.is_multiple_of(ALIGNMENT) || bytes >= STRIDE_LIMIT) {
            return Err(Unsupported::Stride { tensor, axis, bytes });
        }
    }
    Ok(())
}

/// Query heads of a group that share a tile; 1 but for v3.
fn packed_heads(variant: &Variant, sizes: &Sizes) -> u32 {
    match variant.pass {
        // At most MAX_ROWS rows. A group beyond 32 bits exceeds the grid, which `grid` reports next.
        // Heads have lists of their own.
        Pass::V3 if variant.is_listed() => 1,
        Pass::V3 => u32::try_from(sizes.q_heads / sizes.kv_heads)
            .map_or(1, |group| schedule::packed_heads(sizes.q_rows as u32, group, variant.q_block)),
        _ => 1,
    }
}

fn grid(variant: &'static Variant, sizes: &Sizes, packed_heads: u32, multiprocessors: u32) -> Result<u32> {
    let too_large = |needed| Error::GridTooLarge { symbol: variant.entry.symbol, needed, limit: MAX_GRID };
    // A bound that cannot overflow first: each head needs at least one thread block.
    let heads = sizes.batch as u128 * sizes.q_heads as u128;
    if heads > MAX_GRID.into() {
        return Err(too_large(heads));
    }
    // At most 2^31 heads and 2^29 rows: only the tiles of the naive scores can pass 64 bits, so count their rows first.
    let (batch, heads) = (sizes.batch as u64, sizes.q_heads as u64 / u64::from(packed_heads));
    let q_rows = sizes.q_rows as u64 * u64::from(packed_heads);
    let per_row = variant.ctas(batch, heads, q_rows, variant.kv_block.max(1).into(), multiprocessors);
    if per_row > MAX_GRID {
        return Err(too_large(per_row.into()));
    }
    let ctas = variant.ctas(batch, heads, q_rows, sizes.kv_rows as u64, multiprocessors);
    u32::try_from(ctas).ok().filter(|&ctas| u64::from(ctas) <= MAX_GRID).ok_or_else(|| too_large(ctas.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_spec::DType;

    /// Beside the mean over every row, by the definition of the mask. Up to 64 rows all are asked; of more, a two hundredth is the error
    /// of the even spread at the ends of a window.
    #[test]
    fn keys_per_row_is_the_mean_over_the_rows() {
        let window = |left, right| Mask::Window { left, right };
        for q_rows in [1, 7, 63, 64, 65, 100, 500, 4096, 5000] {
            for kv_rows in [q_rows, q_rows + 300, (q_rows - 1) / 2 + 1, 4 * q_rows] {
                let masks = [
                    Mask::Full,
                    Mask::Causal,
                    window(Some(100), Some(0)),
                    window(Some(0), Some(0)),
                    window(Some(q_rows as u32 / 2), Some(q_rows as u32 / 4)),
                    window(None, Some(3)),
                ];
                for mask in masks {
                    let sizes =
                        Sizes { batch: 1, q_rows, kv_rows, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: DType::F16 };
                    let sees = |row: i64, key: i64| match mask {
                        Mask::Causal => key <= row,
                        Mask::Window { left, right } => {
                            left.is_none_or(|left| row - key <= left.into())
                                && right.is_none_or(|right| key - row <= right.into())
                        }
                        _ => true,
                    };
                    // One row in 50 of thousands, others than those that are asked: the count of keys would take seconds.
                    let step = if q_rows > 1000 { 50 } else { 1 };
                    let rows: Vec<i64> = (step / 2..q_rows).step_by(step).map(|row| row as i64).collect();
                    let shift = kv_rows as i64 - q_rows as i64;
                    let seen = |row: &i64| (0..kv_rows as i64).filter(|&key| sees(row + shift, key)).count();
                    let mean = rows.iter().map(seen).sum::<usize>() as f64 / rows.len() as f64;
                    let found = f64::from(keys_per_row(mask, &sizes));
                    let is_close =
                        if q_rows <= 64 { found == mean.floor() } else { (mean - found).abs() <= 1.0 + mean / 200.0 };
                    assert!(is_close, "{sizes} {mask:?}: {found}, the mean is {mean}");
                }
            }
        }
    }
}
