//! Memory that somebody else allocated: packed projections, a key-value cache that is longer than its content, an output
//! buffer that is used again, and plain addresses as another framework hands them over.
//!
//! `cargo run --release --example 02_borrowed_memory [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::{Attention, DType, Device, Layout, RawTensor, Shape, Sizes, Strides, Tensor, f16};

const HEADS: usize = 2;
const HEAD_DIM: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "best".to_owned());
    let device = Device::open(&name)?;
    let stream = device.stream()?;
    let attention = Attention::new().causal();

    // 1. One projection gives q, k and v side by side: [batch, rows, 3 * heads, head_dim]. Views pick the three out of it.
    let rows = 40;
    let packed = wave(rows * 3 * HEADS * HEAD_DIM);
    let qkv = Tensor::from_slice(&device, &packed, Shape::new(1, rows, 3 * HEADS, HEAD_DIM), Layout::Bshd)?;
    let heads = qkv.view().as_heads(Layout::Bshd)?;
    let [q, k, v] = [0, 1, 2].map(|part| heads.heads(part * HEADS..(part + 1) * HEADS));
    let (q, k, v) = (q?, k?, v?);
    let mut out = Tensor::uninit(&device, DType::F16, q.shape(), Layout::Bshd)?;
    attention.forward_into(&stream, &q, &k, &v, &mut out.view_mut(), None)?;
    println!("packed qkv: row stride {} elements, {} of them for q", q.strides().row, HEADS * HEAD_DIM);

    // 2. A cache with room for 64 rows holds 40: the next token attends to those and no others. The output buffer stays the same.
    let room = Shape::new(1, 64, HEADS, HEAD_DIM);
    let mut cache = [(); 2].map(|()| Tensor::zeros(&device, DType::F16, room, Layout::Bhsd));
    for (cache, new) in cache.iter_mut().zip([k, v]) {
        let cache = cache.as_mut().map_err(|error| error.to_string())?;
        cache.view_mut().into_narrow(1, 0..rows)?.write(&new.to_vec::<f16>()?)?;
    }
    let [keys, values] = cache;
    let (keys, values) = (keys?, values?);
    let token = q.rows(rows - 1..rows)?;
    let mut next = Tensor::uninit(&device, DType::F16, token.shape(), Layout::Bshd)?;
    let [cached_keys, cached_values] = [&keys, &values].map(|cache| cache.view().narrow(1, 0..rows));
    let (cached_keys, cached_values) = (cached_keys?, cached_values?);
    attention.forward_into(&stream, &token, &cached_keys, &cached_values, &mut next.view_mut(), None)?;
    let all = out.to_vec::<f16>()?;
    let difference = largest_difference(&next.to_vec::<f16>()?, &all[(rows - 1) * HEADS * HEAD_DIM..]);
    println!("cache: the last row alone differs from the whole by {difference}");

    // 3. Addresses, strides and a stream, as PyTorch's data_ptr(), stride() and cuda_stream give them.
    let mut again = Tensor::zeros(&device, DType::F16, q.shape(), Layout::Bshd)?;
    let sizes = Sizes {
        batch: 1,
        q_rows: rows,
        kv_rows: rows,
        q_heads: HEADS,
        kv_heads: HEADS,
        head_dim: HEAD_DIM,
        dtype: DType::F16,
    };
    let target = RawTensor::from(again.view_mut().view().as_heads(Layout::Bshd)?);
    // SAFETY: the four tensors are alive until the stream is waited for, nobody else uses `again`, and the stream is ours.
    unsafe { attention.forward_raw(&device, stream.as_raw(), sizes, q.into(), k.into(), v.into(), target, None)? };
    stream.synchronize()?;
    let difference_raw = largest_difference(&again.to_vec::<f16>()?, &all);
    println!("addresses: differ from views by {difference_raw}");

    // 4. One key-value pair for every sequence of a batch: stride 0 repeats the same memory.
    let batch =
        Tensor::from_slice(&device, &wave(3 * 8 * HEADS * HEAD_DIM), Shape::new(3, 8, HEADS, HEAD_DIM), Layout::Bshd)?;
    let shared = Shape { batch: 3, ..Shape::new(1, 64, HEADS, HEAD_DIM) };
    let repeated = Strides { batch: 0, ..keys.view().as_heads(Layout::Bshd)?.strides() };
    let (k, v) = (keys.strided(0, shared, repeated)?, values.strided(0, shared, repeated)?);
    let output = Attention::new().forward(&batch.view(), &k, &v)?;
    println!("broadcast: {} from one set of keys", output.out.shape());

    if difference_raw == 0.0 && difference < 2e-3 { Ok(()) } else { Err("the results differ".into()) }
}

fn wave(elements: usize) -> Vec<f16> {
    (0..elements).map(|i| f16::from_f32((i as f32 * 0.37).sin())).collect()
}

fn largest_difference(a: &[f16], b: &[f16]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a.to_f32() - b.to_f32()).abs()).fold(0.0, f32::max)
}
