//! `ferroflash attend`: attention on the tensors of a file.

mod findings;
mod formats;
mod way;
mod window;

use crate::names::{Named, with_element};
use crate::output::{status, warning};
use crate::usage::OrUnusable;
use crate::{files, format};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use ferroflash::{Attention, DType, Device, Element, Error, Layout, Mask, Plan, Shape, Sizes, Tensor, reference};
use findings::Census;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;
use way::Way;
use window::MaskArgs;

/// Computes attention on the tensors q, k and v of a safetensors file.
#[derive(Args, Debug)]
#[command(after_help = "\
The input holds tensors named q, k and v of four axes, all f32, all f16 or all bf16; k and v may have fewer heads than q. The
output holds `out`, shaped and typed like q, and `lse`, the natural log-sum-exp, f32 [batch, head, row]. `-` is standard input
or output; what is to be known besides is said on standard error. The output is written in one step, after everything else:
when anything is wrong, no file is made or changed. What cannot be replaced (a pipe, a device, a mounted file, a file in a
folder that takes no other) is written in place, and is not whole when that fails.

Examples:
  ferroflash attend --input qkv.safetensors --output out.safetensors --causal
  ferroflash attend --input qkv.safetensors --output out.safetensors --layout bhsd --kernel v1
  ferroflash attend --input qkv.safetensors --output exact.safetensors --kernel reference
  ferroflash attend --input qkv.safetensors --output out.safetensors --causal --window-left 1023
  ferroflash attend --input - --output - < qkv.safetensors > out.safetensors")]
pub(crate) struct AttendArgs {
    /// File with q, k and v; - is standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// File to write out and lse to; - is standard output
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Which kernel computes it
    #[arg(long, value_enum, ignore_case = true, default_value_t = Named(Way::Auto))]
    kernel: Named<Way>,
    /// Order of the axes in the file
    #[arg(long, value_enum, ignore_case = true, default_value_t = LayoutArg::Bshd)]
    layout: LayoutArg,
    #[command(flatten)]
    mask: MaskArgs,
    /// Factor on the scores [default: 1 / sqrt(head_dim)]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Device: best, cuda, cuda:N or emulator
    #[arg(long, value_name = "DEVICE", default_value = "best", value_parser = crate::usage::device_name)]
    device: String,
}

/// Order of axes on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LayoutArg {
    /// [batch, row, head, dim]
    Bshd,
    /// [batch, head, row, dim], as PyTorch's scaled_dot_product_attention
    Bhsd,
}

impl From<LayoutArg> for Layout {
    fn from(layout: LayoutArg) -> Layout {
        match layout {
            LayoutArg::Bshd => Layout::Bshd,
            LayoutArg::Bhsd => Layout::Bhsd,
        }
    }
}

impl AttendArgs {
    fn attention(&self, mask: Mask) -> Attention<'static> {
        let mut attention = Attention::new().with_mask(mask).with_lse(true);
        attention.scale = self.scale;
        match self.kernel.0 {
            Way::Auto | Way::Reference => attention,
            Way::Kernel(kernel) => attention.with_kernel(kernel),
        }
    }
}

pub(crate) fn run(args: &AttendArgs) -> Result<()> {
    let attention = args.attention(args.check().or_unusable()?);
    let bytes = files::read(INPUT, &args.input)?;
    let name = files::read_name(&args.input);
    let file = formats::parse(&bytes).with_context(|| name.clone())?;
    let inputs = Inputs::find(&file, args.layout.into()).with_context(|| name.clone())?;
    let file_warnings = [findings::unused(&file.names()), findings::swapped(&inputs.problem, inputs.layout)];
    file_warnings.iter().flatten().for_each(|text| warning!("{name}: {text}"));
    let result = with_element!(inputs.problem.dtype, T => attend::<T>(args, &attention, &inputs));
    // The scale is an option, whatever the file.
    let result = match result {
        Err(error) if matches!(error.downcast_ref(), Some(Error::Scale { .. })) => Err(error).or_unusable(),
        result => result,
    }?;
    result.warnings.iter().for_each(|text| warning!("{text}"));
    write(args, &attention, &inputs, &result)?;
    status!("{}", result.how);
    status!("out and lse written to {}", files::written_name(&args.output));
    Ok(())
}

const INPUT: &str = "--input";
const OUTPUT: &str = "--output";

impl AttendArgs {
    /// What can be known to be wrong before the input is read; gives the mask.
    fn check(&self) -> Result<Mask> {
        files::check_file(OUTPUT, &self.output)?;
        if !files::is_dash(&self.input) {
            files::check_distinct(&[(INPUT, &self.input), (OUTPUT, &self.output)])?;
        }
        ensure!(
            !(files::is_stdout(&self.output) && std::io::stdout().is_terminal()),
            "{OUTPUT} {} is a terminal, and the output is no text; send it to a file or a pipe",
            self.output.display()
        );
        self.mask.mask()
    }
}

/// q, k and v of a file.
struct Inputs<'a> {
    q: TensorView<'a>,
    k: TensorView<'a>,
    v: TensorView<'a>,
    q_shape: Shape,
    kv_shape: Shape,
    layout: Layout,
    problem: Sizes,
}

impl<'a> Inputs<'a> {
    fn find(file: &SafeTensors<'a>, layout: Layout) -> Result<Inputs<'a>> {
        let [q, k, v] = ["q", "k", "v"].map(|name| {
            let view = file.tensor(name).map_err(|_| missing(file, name))?;
            let shape = Shape::from_dims(view.shape(), layout).with_context(|| format!("tensor {name}"))?;
            anyhow::Ok((view.clone(), shape, element_type(name, view.dtype())?))
        });
        let ((q, q_shape, dtype), (k, kv_shape, k_dtype), (v, v_shape, v_dtype)) = (q?, k?, v?);
        for (name, found) in [("k", k_dtype), ("v", v_dtype)] {
            ensure!(found == dtype, "tensor {name} holds {found}, q holds {dtype}; they must be equal");
        }
        ensure!(v_shape == kv_shape, "v has shape {v_shape}, k has {kv_shape}; they must be equal");
        ensure!(
            kv_shape.batch == q_shape.batch,
            "k has batch {}, q has {}; they must be equal",
            kv_shape.batch,
            q_shape.batch
        );
        ensure!(
            kv_shape.head_dim == q_shape.head_dim,
            "k has head_dim {}, q has {}; they must be equal",
            kv_shape.head_dim,
            q_shape.head_dim
        );
        let problem = Sizes {
            batch: q_shape.batch,
            q_rows: q_shape.rows,
            kv_rows: kv_shape.rows,
            q_heads: q_shape.heads,
            kv_heads: kv_shape.heads,
            head_dim: q_shape.head_dim,
            dtype,
        };
        if let Err(error) = problem.validate() {
            let fits_swapped = findings::in_other_layout(&problem).validate().is_ok();
            return if fits_swapped { Err(error).context(findings::try_other(layout)) } else { Err(error.into()) };
        }
        Ok(Inputs { q, k, v, q_shape, kv_shape, layout, problem })
    }
}

fn missing(file: &SafeTensors<'_>, name: &str) -> anyhow::Error {
    let mut present = file.names();
    present.sort_unstable();
    let present = if present.is_empty() { "no tensor".to_owned() } else { present.join(", ") };
    anyhow::anyhow!("there is no tensor named {name}; q, k and v are needed, the file holds {present}")
}

fn element_type(name: &str, dtype: Dtype) -> Result<DType> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::Bf16),
        other => bail!("tensor {name} holds {other:?}; accepted are F32, F16 and BF16"),
    }
}

/// The result, in the layout and element type of the file.
struct Attended {
    /// Bytes of out, little-endian.
    out: Vec<u8>,
    lse: Vec<f32>,
    /// What computed it, for the file's metadata.
    kernel: String,
    scale: f32,
    /// A line for people.
    how: String,
    /// What is odd about it.
    warnings: Vec<String>,
}

fn attend<T: Element>(args: &AttendArgs, attention: &Attention, inputs: &Inputs<'_>) -> Result<Attended> {
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|view| decode::<T>(view.data()));
    if args.kernel.0 == Way::Reference {
        return attend_reference(attention, inputs, [&q, &k, &v]);
    }
    let device = Device::open(&args.device)?;
    let census = [&q, &k, &v].map(|data| Census::of(data));
    let start = Instant::now();
    let (layout, q_shape, kv_shape) = (inputs.layout, inputs.q_shape, inputs.kv_shape);
    let q = Tensor::from_slice(&device, &q, q_shape, layout)?;
    let k = Tensor::from_slice(&device, &k, kv_shape, layout)?;
    let v = Tensor::from_slice(&device, &v, kv_shape, layout)?;
    let output = attention.forward(&q.view(), &k.view(), &v.view())?;
    let out = output.out.to_vec::<T>()?;
    let lse: Vec<f32> = output.lse.context("the log-sum-exp was asked for")?.to_vec()?;
    let Plan { kernel, scale, reason, .. } = &output.plan;
    let name = &device.info().name;
    let took = format::milliseconds(start.elapsed().as_secs_f64() * 1e3);
    Ok(Attended {
        warnings: findings::of_result(census, Census::of(&out), &lse),
        out: encode(&to_layout(&out, q_shape, layout)),
        lse,
        kernel: kernel.to_string(),
        scale: *scale,
        how: format!("{kernel} ({reason}) on {name}, {took} with copies: {}", inputs.problem),
    })
}

fn attend_reference<T: Element>(attention: &Attention, inputs: &Inputs<'_>, qkv: [&[T]; 3]) -> Result<Attended> {
    let start = Instant::now();
    let Inputs { q_shape, kv_shape, layout, problem, .. } = inputs;
    let shapes = [q_shape, kv_shape, kv_shape];
    let [q, k, v] = [0, 1, 2].map(|i| {
        let logical = from_layout(qkv[i], *shapes[i], *layout);
        logical.into_iter().map(T::to_f64).collect::<Vec<_>>()
    });
    let exact = reference::forward(&q, &k, &v, problem, attention)?;
    let out: Vec<T> = exact.out.iter().map(|&x| T::from_f64(x)).collect();
    let lse: Vec<f32> = exact.lse.iter().map(|&x| x as f32).collect();
    let took = format::milliseconds(start.elapsed().as_secs_f64() * 1e3);
    Ok(Attended {
        warnings: findings::of_result(qkv.map(Census::of), Census::of(&out), &lse),
        out: encode(&to_layout(&out, *q_shape, *layout)),
        lse,
        kernel: "reference".to_owned(),
        scale: attention.scale.unwrap_or((1.0 / (problem.head_dim as f64).sqrt()) as f32),
        how: format!("f64 reference on the CPU, {took}: {problem}"),
    })
}

/// Elements from the bytes of a file, little-endian; length and type were checked when the file was parsed.
fn decode<T: Element>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(T::DTYPE.bytes()).map(bytemuck::pod_read_unaligned).collect()
}

fn encode<T: Element>(data: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(data).to_vec()
}

/// From the order of the file to logical order `[batch, row, head, dim]`.
fn from_layout<T: Copy>(data: &[T], shape: Shape, layout: Layout) -> Vec<T> {
    match layout {
        Layout::Bhsd => swap_middle_axes(data, shape.heads, shape.rows, shape.head_dim),
        _ => data.to_vec(),
    }
}

/// From logical order `[batch, row, head, dim]` to the order of the file.
fn to_layout<T: Copy>(data: &[T], shape: Shape, layout: Layout) -> Vec<T> {
    match layout {
        Layout::Bhsd => swap_middle_axes(data, shape.rows, shape.heads, shape.head_dim),
        _ => data.to_vec(),
    }
}

/// `[batch, first, second, dim]` to `[batch, second, first, dim]`.
fn swap_middle_axes<T: Copy>(data: &[T], first: usize, second: usize, dim: usize) -> Vec<T> {
    let mut swapped = Vec::with_capacity(data.len());
    // No element, no entry: chunks of 0 would panic.
    for entry in data.chunks_exact((first * second * dim).max(1)) {
        for s in 0..second {
            for f in 0..first {
                swapped.extend_from_slice(&entry[(f * second + s) * dim..][..dim]);
            }
        }
    }
    swapped
}

/// Writes the output file.
fn write(args: &AttendArgs, attention: &Attention, inputs: &Inputs<'_>, result: &Attended) -> Result<()> {
    let Sizes { batch, q_rows, q_heads, .. } = inputs.problem;
    let lse = encode(&result.lse);
    let tensors = [
        ("out", TensorView::new(inputs.q.dtype(), inputs.q.shape().to_vec(), &result.out)?),
        ("lse", TensorView::new(Dtype::F32, vec![batch, q_heads, q_rows], &lse)?),
    ];
    let metadata = HashMap::from([
        ("ferroflash".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("kernel".to_owned(), result.kernel.clone()),
        ("mask".to_owned(), format!("{:?}", attention.mask)),
        ("scale".to_owned(), result.scale.to_string()),
    ]);
    files::write(&args.output, safetensors::serialize(tensors, Some(metadata))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_swap_there_and_back() {
        let shape = Shape::new(2, 3, 2, 4);
        let data: Vec<u32> = (0..48).collect();
        let logical = from_layout(&data, shape, Layout::Bhsd);
        // Row 0 of head 1 is three rows of four further on in the file.
        assert_eq!(logical[4..8], [12, 13, 14, 15]);
        assert_eq!(to_layout(&logical, shape, Layout::Bhsd), data);
        assert!(swap_middle_axes::<u32>(&[], 0, 2, 4).is_empty());
    }

    #[test]
    fn elements_survive_encoding() {
        let data = [1.5f32, -0.0, f32::INFINITY].map(half::bf16::from_f32);
        assert_eq!(decode::<half::bf16>(&encode(&data)), data);
    }
}
