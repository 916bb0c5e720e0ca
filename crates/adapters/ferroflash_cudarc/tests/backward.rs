//! The backward pass on slices and streams of cudarc, against a driver that is a test fixture.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use fake::{count, log, with_driver};
use ferroflash::{Attention, Layout, Operand, Shape, f16};
use ferroflash_cudarc::{BackwardInputs, Error, Gradients, View, ViewMut, backward};
use std::sync::Arc;

#[path = "../../../cust/tests/support/mod.rs"]
mod fake;

const SHAPE: Shape = Shape::new(2, 5, 4, 64);
const ELEMENTS: usize = 2 * 5 * 4 * 64;

/// The slices of one call.
struct Slices {
    /// q, k, v, out and dout.
    read: [CudaSlice<f16>; 5],
    /// The log-sum-exp and its gradient.
    rows: [CudaSlice<f32>; 2],
    /// dq, dk and dv.
    written: [CudaSlice<f16>; 3],
}

impl Slices {
    fn new(stream: &Arc<CudaStream>) -> Slices {
        Slices {
            read: [0; 5].map(|_| stream.alloc_zeros(ELEMENTS).unwrap()),
            rows: [0; 2].map(|_| stream.alloc_zeros(2 * 4 * 5).unwrap()),
            written: [0; 3].map(|_| stream.alloc_zeros(ELEMENTS).unwrap()),
        }
    }

    fn backward(&mut self, stream: &CudaStream) -> Result<(), Error> {
        let [q, k, v, out, dout] =
            self.read.each_ref().map(|slice| View::contiguous(slice, SHAPE, Layout::Bshd).unwrap());
        let [lse, dlse] = &self.rows;
        let inputs = BackwardInputs { q, k, v, out, lse, dout, dlse: Some(dlse) };
        let [dq, dk, dv] =
            self.written.each_mut().map(|slice| ViewMut::contiguous(slice, SHAPE, Layout::Bshd).unwrap());
        backward(&Attention::new().causal(), stream, inputs, Gradients { dq, dk, dv, dsink: None })
    }
}

/// The stream waits for the writers of the inputs, and for readers and writers of the gradients, before the first launch; behind the last the
/// use is recorded in every slice.
#[test]
fn guards_are_held_over_the_launches() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let mut slices = Slices::new(&stream);
        slices.backward(&stream).unwrap();
        let start = log().len();
        slices.backward(&stream).unwrap();
        let lines: Vec<String> = log().into_iter().skip(start).collect();
        let launches = |line: &String| line.starts_with("launch");
        let (first, last) = (lines.iter().position(launches).unwrap(), lines.iter().rposition(launches).unwrap());
        let waits = lines[..first].iter().filter(|line| line.starts_with("stream 5 waits for event")).count();
        assert_eq!(waits, 5 + 2 + 2 * 3, "{lines:?}");
        let records = lines[last..].iter().filter(|line| line.starts_with("record event")).count();
        assert_eq!(records, 5 + 2 + 3, "{lines:?}");
        assert!(lines.iter().filter(|line| launches(line)).all(|line| line.contains("stream 5 ")), "{lines:?}");
    });
}

#[test]
fn slices_that_are_too_short() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let too_small = |slices: &mut Slices, expected: u64, found: u64| match slices.backward(&stream) {
            Err(Error::Ferroflash(ferroflash::Error::StorageTooSmall { needed, available, .. })) => {
                assert_eq!((needed, available), (expected, found));
            }
            other => panic!("{other:?}"),
        };
        for i in 0..5 {
            let mut slices = Slices::new(&stream);
            slices.read[i] = stream.alloc_zeros(ELEMENTS - 1).unwrap();
            too_small(&mut slices, ELEMENTS as u64, ELEMENTS as u64 - 1);
        }
        for i in 0..2 {
            let mut slices = Slices::new(&stream);
            slices.rows[i] = stream.alloc_zeros(39).unwrap();
            too_small(&mut slices, 40, 39);
        }
        for i in 0..3 {
            let mut slices = Slices::new(&stream);
            slices.written[i] = stream.alloc_zeros(ELEMENTS - 1).unwrap();
            too_small(&mut slices, ELEMENTS as u64, ELEMENTS as u64 - 1);
        }
        assert_eq!(count("launch"), 0);
    });
}

/// Memory of another context is refused, whichever tensor it is, by its name.
#[test]
fn contexts() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let other = CudaContext::new(1).unwrap().default_stream();
        let mismatch = |exchange: &dyn Fn(&mut Slices, &mut Slices)| {
            let (mut here, mut there) = (Slices::new(&stream), Slices::new(&other));
            exchange(&mut here, &mut there);
            match here.backward(&stream) {
                Err(Error::ContextMismatch { operand, found: 1, expected: 0 }) => operand,
                other => panic!("{other:?}"),
            }
        };
        for (i, operand) in [Operand::Q, Operand::K, Operand::V, Operand::Out, Operand::Dout].into_iter().enumerate() {
            assert_eq!(mismatch(&|here, there| std::mem::swap(&mut here.read[i], &mut there.read[i])), operand);
        }
        for (i, operand) in [Operand::Lse, Operand::Dlse].into_iter().enumerate() {
            assert_eq!(mismatch(&|here, there| std::mem::swap(&mut here.rows[i], &mut there.rows[i])), operand);
        }
        for (i, operand) in [Operand::Dq, Operand::Dk, Operand::Dv].into_iter().enumerate() {
            assert_eq!(mismatch(&|here, there| std::mem::swap(&mut here.written[i], &mut there.written[i])), operand);
        }
        assert_eq!(count("launch"), 0);
    });
}
