//! The calls over packed sequences and caches on slices and streams of cudarc, against a driver that is a test fixture.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use fake::{count, log, with_driver};
use ferroflash::{Attention, Layout, Operand, Shape, Splits, Strides, f16};
use ferroflash_cudarc::{
    BackwardInputs, CacheRows, Error, Gradients, NewRows, Numbers, PackedRows, Pages, Rotary, View, ViewMut,
    backward_packed, forward_appending, forward_cached, forward_packed,
};
use std::sync::Arc;

#[path = "../../../cust/tests/support/mod.rs"]
mod fake;

const BATCH: usize = 2;
const HEADS: usize = 4;
const DIM: usize = 64;
/// Packed rows.
const ROWS: usize = 9;
/// Pages, and rows of each.
const PAGES: [usize; 2] = [6, 16];

/// Slices of every kind of call, each as long as it has to be.
struct Slices {
    q: CudaSlice<f16>,
    k: CudaSlice<f16>,
    v: CudaSlice<f16>,
    new: [CudaSlice<f16>; 2],
    tables: [CudaSlice<f16>; 2],
    out: CudaSlice<f16>,
    gradients: [CudaSlice<f16>; 3],
    lse: CudaSlice<f32>,
    starts: CudaSlice<i32>,
    lengths: CudaSlice<i32>,
    pages: CudaSlice<i32>,
}

fn contiguous(slice: &CudaSlice<f16>, shape: Shape) -> View<'_, f16> {
    View::contiguous(slice, shape, Layout::Bshd).unwrap()
}

fn address<T>(slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

impl Slices {
    fn new(stream: &Arc<CudaStream>) -> Slices {
        let halves = |elements| stream.alloc_zeros::<f16>(elements).unwrap();
        let numbers = |count| stream.alloc_zeros::<i32>(count).unwrap();
        let (packed, cache) = (ROWS * HEADS * DIM, PAGES[0] * PAGES[1] * HEADS * DIM);
        Slices {
            q: halves(packed),
            k: halves(cache),
            v: halves(cache),
            new: [0; 2].map(|_| halves(packed)),
            tables: [0; 2].map(|_| halves(48 * DIM / 2)),
            out: halves(packed),
            gradients: [0; 3].map(|_| halves(packed)),
            lse: stream.alloc_zeros(HEADS * ROWS).unwrap(),
            starts: numbers(BATCH + 1),
            lengths: numbers(BATCH),
            pages: numbers(BATCH * 3),
        }
    }

    fn packed() -> Shape {
        Shape::new(1, ROWS, HEADS, DIM)
    }

    fn cache() -> Shape {
        Shape::new(PAGES[0], PAGES[1], HEADS, DIM)
    }

    fn forward_packed(&mut self, stream: &CudaStream) -> Result<(), Error> {
        let starts = PackedRows { longest: Some(6), ..PackedRows::new(Numbers::new(&self.starts)) };
        let q = contiguous(&self.q, Self::packed());
        let [k, v] = self.new.each_ref().map(|slice| contiguous(slice, Self::packed()));
        let mut out = ViewMut::contiguous(&mut self.out, Self::packed(), Layout::Bshd).unwrap();
        let attention = Attention::new().causal();
        forward_packed(&attention, stream, q, k, v, starts, starts, &mut out, Some(&mut self.lse))
    }

    fn backward_packed(&mut self, stream: &CudaStream) -> Result<(), Error> {
        let q_rows = PackedRows { longest: Some(6), ..PackedRows::new(Numbers::new(&self.starts)) };
        let kv_rows = PackedRows { used: Some(Numbers::new(&self.lengths)), ..q_rows };
        let [k, v] = self.new.each_ref().map(|slice| contiguous(slice, Self::packed()));
        let [q, out] = [&self.q, &self.out].map(|slice| contiguous(slice, Self::packed()));
        let inputs = BackwardInputs { q, k, v, out, lse: &self.lse, dout: q, dlse: Some(&self.lse) };
        let [dq, dk, dv] =
            self.gradients.each_mut().map(|slice| ViewMut::contiguous(slice, Self::packed(), Layout::Bshd).unwrap());
        let gradients = Gradients { dq, dk, dv, dsink: None };
        backward_packed(&Attention::new().causal(), stream, inputs, q_rows, kv_rows, gradients)
    }

    fn forward_cached(&mut self, stream: &CudaStream) -> Result<(), Error> {
        let q_rows = Some(PackedRows::new(Numbers::new(&self.starts)));
        let q = contiguous(&self.q, Self::packed());
        let [k, v] = [&self.k, &self.v].map(|slice| contiguous(slice, Self::cache()));
        let pages = Pages { table: Numbers::new(&self.pages), width: 3, stride: 3 };
        let rows = CacheRows { lengths: Some(Numbers::new(&self.lengths)), pages: Some(pages), ..CacheRows::default() };
        let mut out = ViewMut::contiguous(&mut self.out, Self::packed(), Layout::Bshd).unwrap();
        forward_cached(&Attention::new(), stream, q, q_rows, k, v, rows, &mut out, Some(&mut self.lse))
    }

    fn forward_appending(&mut self, stream: &CudaStream) -> Result<(), Error> {
        let [q, cos, sin] = [&self.q, &self.tables[0], &self.tables[1]];
        let starts = Numbers::new(&self.starts);
        let [new_k, new_v] = self.new.each_ref().map(|slice| contiguous(slice, Self::packed()));
        let rotary = Rotary {
            cos,
            sin,
            rows: 48,
            turned_dims: DIM,
            interleaved: true,
            positions: Some(Numbers::new(&self.lengths)),
        };
        let new = NewRows { k: new_k, v: new_v, starts: Some(starts), rotary: Some(rotary) };
        let pages = Pages { table: Numbers::new(&self.pages), width: 3, stride: 3 };
        let rows = CacheRows { lengths: Some(Numbers::new(&self.lengths)), pages: Some(pages), ..CacheRows::default() };
        let mut k = ViewMut::contiguous(&mut self.k, Self::cache(), Layout::Bshd).unwrap();
        let mut v = ViewMut::contiguous(&mut self.v, Self::cache(), Layout::Bshd).unwrap();
        let mut out = ViewMut::contiguous(&mut self.out, Self::packed(), Layout::Bshd).unwrap();
        let (q, q_rows) = (contiguous(q, Self::packed()), Some(PackedRows::new(starts)));
        let attention = Attention::new().causal().with_splits(Splits::Count(2));
        forward_appending(&attention, stream, q, q_rows, &mut k, &mut v, rows, new, &mut out, Some(&mut self.lse))
    }
}

/// What happened between the first launch of a call and its last, before, and behind.
fn around(lines: &[String]) -> [&[String]; 3] {
    let is_launch = |line: &String| line.starts_with("launch");
    let (first, last) = (lines.iter().position(is_launch).unwrap(), lines.iter().rposition(is_launch).unwrap());
    [&lines[..first], &lines[first..=last], &lines[last + 1..]]
}

/// The stream waits for the writers of what is read, numbers too, and for readers and writers of what is written, before the first launch;
/// behind the last the use is recorded in every slice. A cache that is appended to is written.
#[test]
fn guards_are_held_over_the_launches() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let mut slices = Slices::new(&stream);
        type Forward = fn(&mut Slices, &CudaStream) -> Result<(), Error>;
        // Slices that are read and written, as often as they are given; kernels that are launched.
        for (call, read, written, kernels) in [
            (Slices::forward_packed as Forward, 3 + 2, 2, &["decode_f16"][..]),
            (Slices::forward_cached, 3 + 3, 2, &["decode_f16"]),
            (Slices::forward_appending, 1 + 2 + 2 + 5, 2 + 2, &["append_f16", "decode_f16", "merge_f16"]),
            (
                Slices::backward_packed,
                5 + 2 + 3,
                3,
                &["backward_packed_delta_f16", "backward_packed_keys_f16", "backward_packed_queries_f16"],
            ),
        ] {
            // Kernels are loaded by the first.
            call(&mut slices, &stream).unwrap();
            let start = log().len();
            call(&mut slices, &stream).unwrap();
            let lines: Vec<String> = log().into_iter().skip(start).collect();
            let [before, launches, behind] = around(&lines);
            let launches: Vec<_> = launches.iter().filter(|line| line.starts_with("launch")).collect();
            assert!(launches.iter().all(|line| line.contains(" stream 5 ")), "{launches:?}");
            let symbols: Vec<_> = launches.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
            assert_eq!(symbols.len(), kernels.len(), "{symbols:?}");
            assert!(symbols.iter().zip(kernels).all(|(symbol, start)| symbol.starts_with(start)), "{symbols:?}");
            let waits = before.iter().filter(|line| line.starts_with("stream 5 waits for event")).count();
            assert_eq!(waits, read + 2 * written, "{lines:?}");
            let recorded = behind.iter().filter(|line| line.starts_with("record event")).count();
            assert_eq!(recorded, read + written, "{lines:?}");
        }
    });
}

/// Kernels are told where the numbers are: nothing reads them before.
#[test]
fn addresses() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let mut slices = Slices::new(&stream);
        slices.forward_appending(&stream).unwrap();
        slices.backward_packed(&stream).unwrap();
        // What kernels of sequences are told first is where the starts of q are.
        let launches: Vec<String> = log().into_iter().filter(|line| line.starts_with("launch")).collect();
        let first = format!("param {:#x}", address(&slices.starts));
        assert!(launches.len() == 6 && launches.iter().all(|launch| launch.ends_with(&first)), "{launches:?}: {first}");
    });
}

#[test]
fn contexts() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
        let stream = first.new_stream().unwrap();
        let mismatch = |exchange: &dyn Fn(&mut Slices, &mut Slices)| {
            let (mut here, mut there) = (Slices::new(&stream), Slices::new(&second.default_stream()));
            exchange(&mut here, &mut there);
            match here.forward_appending(&stream) {
                Err(Error::ContextMismatch { operand, found: 1, expected: 0 }) => operand,
                other => panic!("{other:?}"),
            }
        };
        use std::mem::swap;
        assert_eq!(mismatch(&|a, b| swap(&mut a.q, &mut b.q)), Operand::Q);
        assert_eq!(mismatch(&|a, b| swap(&mut a.k, &mut b.k)), Operand::K);
        assert_eq!(mismatch(&|a, b| swap(&mut a.v, &mut b.v)), Operand::V);
        assert_eq!(mismatch(&|a, b| swap(&mut a.new[0], &mut b.new[0])), Operand::NewK);
        assert_eq!(mismatch(&|a, b| swap(&mut a.new[1], &mut b.new[1])), Operand::NewV);
        assert_eq!(mismatch(&|a, b| swap(&mut a.tables[0], &mut b.tables[0])), Operand::Cos);
        assert_eq!(mismatch(&|a, b| swap(&mut a.tables[1], &mut b.tables[1])), Operand::Sin);
        assert_eq!(mismatch(&|a, b| swap(&mut a.out, &mut b.out)), Operand::Out);
        assert_eq!(mismatch(&|a, b| swap(&mut a.lse, &mut b.lse)), Operand::Lse);
        assert_eq!(mismatch(&|a, b| swap(&mut a.starts, &mut b.starts)), Operand::QStarts);
        assert_eq!(mismatch(&|a, b| swap(&mut a.lengths, &mut b.lengths)), Operand::KvUsed);
        assert_eq!(mismatch(&|a, b| swap(&mut a.pages, &mut b.pages)), Operand::Pages);
        assert_eq!(count("launch"), 0);
    });
}

/// What ferroflash refuses arrives as its own error, and nothing is launched.
#[test]
fn bad_input() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let says = |change: &dyn Fn(&mut Slices), expected: &str| {
            let mut slices = Slices::new(&stream);
            change(&mut slices);
            let error = slices.forward_appending(&stream).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        let numbers = |count| stream.alloc_zeros::<i32>(count).unwrap();
        says(&|slices| slices.starts = numbers(BATCH + 2), "the lengths of k and v holds 2 numbers; 3 are needed");
        says(&|slices| slices.lengths = numbers(BATCH + 1), "the lengths of k and v holds 3 numbers; 2 are needed");
        says(&|slices| slices.pages = numbers(5), "the table of pages holds 5 numbers");
        let short = |slices: &mut Slices| slices.tables[1] = stream.alloc_zeros::<f16>(48 * DIM / 2 - 1).unwrap();
        says(&short, "1536 elements");
        says(&|slices| slices.lse = stream.alloc_zeros(HEADS * ROWS - 1).unwrap(), "36 elements");

        // Two batch entries are not packed.
        let mut slices = Slices::new(&stream);
        let shape = Shape::new(2, 4, HEADS, DIM);
        let q = View::new(&slices.q, shape, Strides::new(4 * HEADS * DIM, HEADS * DIM, DIM));
        let [k, v] = [&slices.k, &slices.v].map(|slice| contiguous(slice, Slices::cache()));
        let q_rows = Some(PackedRows::new(Numbers::new(&slices.starts)));
        let mut out = ViewMut::contiguous(&mut slices.out, shape, Layout::Bshd).unwrap();
        let attention = Attention::new();
        let error = forward_cached(&attention, &stream, q, q_rows, k, v, CacheRows::default(), &mut out, None);
        let expected = "q has 4 axes; 3 are accepted where rows are packed (row, head, dim)";
        assert_eq!(error.unwrap_err().to_string(), expected);
        assert_eq!(count("launch"), 0);
    });
}

/// A row for each sequence, whose keys are in a part of a larger cache.
#[test]
fn uniform_queries_and_entries() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let mut slices = Slices::new(&stream);
        let q = View::contiguous(&slices.q, Shape::new(BATCH, 1, HEADS, DIM), Layout::Bshd).unwrap();
        let [k, v] = [&slices.k, &slices.v].map(|slice| contiguous(slice, Slices::cache()));
        let lengths = Some(Numbers::new(&slices.lengths));
        let rows = CacheRows { lengths, first: lengths, entries: lengths, pages: None };
        let mut out = ViewMut::contiguous(&mut slices.out, Shape::new(BATCH, 1, HEADS, DIM), Layout::Bshd).unwrap();
        forward_cached(&Attention::new(), &stream, q, None, k, v, rows, &mut out, None).unwrap();
        assert_eq!(count("launch decode_f16"), 1);
    });
}
