//! Programs on scores whose tensors are slices of cudarc, against a driver that is a test fixture.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use fake::{count, log, with_driver};
use ferroflash::score::ScoreProgram;
use ferroflash::{Attention, Kernel, Layout, Operand, ProgramError, Shape, Tensor, Unsupported, bf16, f16};
use ferroflash_cudarc::{
    BackwardInputs, CacheRows, Error, Gradients, NewRows, Numbers, Options, PackedRows, Program, ProgramTensor, View,
    ViewMut, backward, backward_packed, device, forward, forward_appending, forward_cached, forward_packed, plan,
};
use std::sync::Arc;

#[path = "../../../cust/tests/support/mod.rs"]
mod fake;

const SHAPE: Shape = Shape::new(1, 9, 4, 64);
const ELEMENTS: usize = 9 * 4 * 64;

/// The slices of any call, whose tensors are of one shape.
struct Slices {
    read: [CudaSlice<f16>; 5],
    written: [CudaSlice<f16>; 3],
    lse: CudaSlice<f32>,
    starts: CudaSlice<i32>,
}

/// One of the functions, with these options and these slices.
type Call = fn(Options<'_>, &mut Slices, &CudaStream) -> Result<(), Error>;

fn view(slice: &CudaSlice<f16>) -> View<'_, f16> {
    View::contiguous(slice, SHAPE, Layout::Bshd).unwrap()
}

impl Slices {
    fn new(stream: &Arc<CudaStream>) -> Slices {
        Slices {
            read: [0; 5].map(|_| stream.alloc_zeros(ELEMENTS).unwrap()),
            written: [0; 3].map(|_| stream.alloc_zeros(ELEMENTS).unwrap()),
            lse: stream.alloc_zeros(4 * 9).unwrap(),
            starts: stream.alloc_zeros(3).unwrap(),
        }
    }

    fn forward(options: Options<'_>, slices: &mut Slices, stream: &CudaStream) -> Result<(), Error> {
        let Slices { read: [q, k, v, ..], written: [out, ..], lse, .. } = slices;
        let mut out = ViewMut::contiguous(out, SHAPE, Layout::Bshd).unwrap();
        forward(options, stream, view(q), view(k), view(v), &mut out, Some(lse))
    }

    fn forward_packed(options: Options<'_>, slices: &mut Slices, stream: &CudaStream) -> Result<(), Error> {
        let Slices { read: [q, k, v, ..], written: [out, ..], lse, starts } = slices;
        let rows = PackedRows::new(Numbers::new(starts));
        let mut out = ViewMut::contiguous(out, SHAPE, Layout::Bshd).unwrap();
        forward_packed(options, stream, view(q), view(k), view(v), rows, rows, &mut out, Some(lse))
    }

    fn forward_cached(options: Options<'_>, slices: &mut Slices, stream: &CudaStream) -> Result<(), Error> {
        let Slices { read: [q, k, v, ..], written: [out, ..], lse, starts } = slices;
        let lengths = starts.slice(..1);
        let rows = CacheRows { lengths: Some(Numbers::new(&lengths)), ..CacheRows::default() };
        let mut out = ViewMut::contiguous(out, SHAPE, Layout::Bshd).unwrap();
        forward_cached(options, stream, view(q), None, view(k), view(v), rows, &mut out, Some(lse))
    }

    fn forward_appending(options: Options<'_>, slices: &mut Slices, stream: &CudaStream) -> Result<(), Error> {
        let Slices { read: [q, new_k, new_v, ..], written: [out, k, v], lse, starts } = slices;
        let lengths = starts.slice(..1);
        let rows = CacheRows { lengths: Some(Numbers::new(&lengths)), ..CacheRows::default() };
        let new = |slice| View::contiguous(slice, Shape { rows: 1, ..SHAPE }, Layout::Bshd).unwrap();
        let new = NewRows { k: new(new_k), v: new(new_v), starts: None, rotary: None };
        let [mut out, mut k, mut v] = [out, k, v].map(|slice| ViewMut::contiguous(slice, SHAPE, Layout::Bshd).unwrap());
        forward_appending(options, stream, view(q), None, &mut k, &mut v, rows, new, &mut out, Some(lse))
    }

    fn inputs(&mut self) -> (BackwardInputs<'_, f16>, Gradients<'_, f16>, &CudaSlice<i32>) {
        let Slices { read, written, lse, starts } = self;
        let [q, k, v, out, dout] = read.each_ref().map(view);
        let [dq, dk, dv] = written.each_mut().map(|slice| ViewMut::contiguous(slice, SHAPE, Layout::Bshd).unwrap());
        (BackwardInputs { q, k, v, out, lse, dout, dlse: None }, Gradients { dq, dk, dv, dsink: None }, starts)
    }

    fn backward(options: Options<'_>, slices: &mut Slices, stream: &CudaStream) -> Result<(), Error> {
        let (inputs, gradients, _) = slices.inputs();
        backward(options, stream, inputs, gradients)
    }

    fn backward_packed(options: Options<'_>, slices: &mut Slices, stream: &CudaStream) -> Result<(), Error> {
        let (inputs, gradients, starts) = slices.inputs();
        let rows = PackedRows::new(Numbers::new(starts));
        backward_packed(options, stream, inputs, rows, rows, gradients)
    }
}

const FORWARD: [Call; 4] = [Slices::forward, Slices::forward_packed, Slices::forward_cached, Slices::forward_appending];
const BACKWARD: [Call; 2] = [Slices::backward, Slices::backward_packed];

/// It reads a tensor of every kind.
fn program() -> ScoreProgram {
    let program = ScoreProgram::new("biased", |p| {
        let bias = p.floats("bias").at([p.head(), p.key()]);
        let same = p.ints("document").at([p.row()]).eq(p.ints("document").at([p.key()]));
        same.select(p.score() + bias * p.floats("slopes").at([p.head()]), p.hidden())
    });
    program.unwrap()
}

/// The waits before the first launch of the second call, and what is recorded behind its last; the first call loads kernels.
fn waits_and_records(call: Call, options: Options<'_>, slices: &mut Slices, stream: &CudaStream) -> [usize; 2] {
    call(options, slices, stream).unwrap();
    let start = log().len();
    call(options, slices, stream).unwrap();
    let lines: Vec<String> = log().into_iter().skip(start).collect();
    let is_launch = |line: &String| line.starts_with("launch");
    let (first, last) = (lines.iter().position(is_launch).unwrap(), lines.iter().rposition(is_launch).unwrap());
    let count = |lines: &[String], start| lines.iter().filter(|line| line.starts_with(start)).count();
    [count(&lines[..first], "stream 5 waits for event"), count(&lines[last..], "record event")]
}

/// Each slice of the program is waited for and noted like any other that is read.
#[test]
fn guards_of_programs_are_held_over_the_launches() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let mut slices = Slices::new(&stream);
        let bias = stream.alloc_zeros::<bf16>(4 * 9).unwrap();
        let (document, slopes) = (stream.alloc_zeros::<i32>(9).unwrap(), stream.alloc_zeros::<f32>(4).unwrap());
        let program = Program::new(program())
            .with("bias", ProgramTensor::with_strides(&bias, [4, 9], [1, 4]))
            .with("document", ProgramTensor::ints(&document, [9]))
            .with("slopes", ProgramTensor::floats(&slopes, [4]));
        let attention = Attention::new().causal();
        for call in FORWARD.into_iter().chain(BACKWARD) {
            let plain = waits_and_records(call, Options::new(&attention), &mut slices, &stream);
            let options = Options::new(&attention).with_program(&program);
            let found = waits_and_records(call, options, &mut slices, &stream);
            assert_eq!(found, plain.map(|events| events + 3));
        }
    });
}

/// The plan names the program; a reference to the options alone is enough without one.
#[test]
fn plans() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let mut slices = Slices::new(&stream);
        let Slices { read: [q, k, v, ..], written: [out, ..], .. } = &mut slices;
        let slopes = stream.alloc_zeros::<f32>(4).unwrap();
        let alibi = Program::new(ScoreProgram::alibi()).with("slopes", ProgramTensor::floats(&slopes, [1, 4]));
        let attention = Attention::new().with_kernel(Kernel::V2);
        let mut out = ViewMut::contiguous(out, SHAPE, Layout::Bshd).unwrap();
        let options = Options::new(&attention).with_program(&alibi);
        let of_program = plan(options, &stream, view(q), view(k), view(v), &mut out).unwrap();
        assert_eq!(of_program.program.as_deref(), Some("alibi"));
        assert_eq!(plan(&attention, &stream, view(q), view(k), view(v), &mut out).unwrap().program, None);
        assert_eq!(count("launch"), 0);
    });
}

#[test]
fn contexts() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
        let stream = first.new_stream().unwrap();
        let (mut slices, attention) = (Slices::new(&stream), Attention::new());
        let there = second.default_stream().alloc_zeros::<f32>(4).unwrap();
        let here = stream.alloc_zeros::<f32>(4).unwrap();
        let sum = ScoreProgram::new("sum", |p| p.score() + p.floats("a").at([p.head()]) + p.floats("b").at([p.head()]));
        let program = Program::new(sum.unwrap())
            .with("a", ProgramTensor::floats(&here, [4]))
            .with("b", ProgramTensor::floats(&there, [4]));
        for call in FORWARD.into_iter().chain(BACKWARD) {
            let result = call(Options::new(&attention).with_program(&program), &mut slices, &stream);
            let operand = Operand::ProgramTensor(1);
            assert!(
                matches!(&result, Err(Error::ContextMismatch { operand: of, found: 1, expected: 0 }) if *of == operand),
                "{result:?}"
            );
        }
        assert_eq!(count("launch"), 0);
    });
}

#[test]
fn bad_input() {
    with_driver(&[], &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let mut slices = Slices::new(&stream);
        let attention = Attention::new();
        let slopes = stream.alloc_zeros::<f32>(4).unwrap();
        let numbers = stream.alloc_zeros::<i32>(4).unwrap();
        let mut error = |program: Program<'_>| {
            let errors = FORWARD.into_iter().chain(BACKWARD).map(|call| {
                match call(Options::new(&attention).with_program(&program), &mut slices, &stream) {
                    Err(Error::Ferroflash(error)) => error,
                    other => panic!("{other:?}"),
                }
            });
            let errors: Vec<_> = errors.collect();
            assert!(errors.iter().all(|error| error.to_string() == errors[0].to_string()), "{errors:?}");
            errors.into_iter().next().unwrap()
        };
        let alibi = || Program::new(ScoreProgram::alibi());
        let short = error(alibi().with("slopes", ProgramTensor::floats(&slopes, [1, 5])));
        assert!(matches!(short, ferroflash::Error::StorageTooSmall { needed: 5, available: 4, .. }), "{short:?}");
        let long = error(alibi().with("slopes", ProgramTensor::ints(&numbers, [1, 3])));
        assert!(matches!(long, ferroflash::Error::DataLength { expected: 3, found: 4, .. }), "{long:?}");
        let missing = error(alibi());
        assert!(matches!(missing, ferroflash::Error::Program(ProgramError::Missing { .. })), "{missing:?}");
        let rank = error(alibi().with("slopes", ProgramTensor::floats(&slopes, [4])));
        let expected = ProgramError::Rank { name: "slopes".to_owned(), found: 1, accepted: 2 };
        assert!(matches!(&rank, ferroflash::Error::Program(found) if *found == expected), "{rank:?}");
        assert_eq!(count("launch"), 0);
    });
}

/// Tensors of ferroflash's own come and go in an order that streams of cudarc know nothing of.
#[test]
fn programs_that_are_bound_elsewhere() {
    with_driver(&[], &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let (mut slices, device) = (Slices::new(&stream), device(&context).unwrap());
        let slopes = Tensor::from_slice(&device, &[0.5f32; 4], [1, 4], Layout::RowMajor).unwrap();
        let bound = ScoreProgram::alibi().bind(&[("slopes", slopes.view().into())]).unwrap();
        let attention = Attention::new().with_program(&bound);
        for call in FORWARD.into_iter().chain(BACKWARD) {
            let error = call(Options::new(&attention), &mut slices, &stream).unwrap_err();
            assert!(matches!(&error, Error::BoundElsewhere { program } if program == "alibi"), "{error:?}");
        }
        assert_eq!(count("launch"), 0);
        // One without tensors has nothing to wait for.
        let far = ScoreProgram::mask("far", |p| p.key().lt(p.position() - p.int_constant(2))).unwrap();
        let bound = far.bind(&[]).unwrap();
        let attention = Attention::new().with_program(&bound);
        for call in FORWARD.into_iter().chain(BACKWARD) {
            let before = count("launch");
            call(Options::new(&attention), &mut slices, &stream).unwrap();
            assert!(count("launch") > before);
        }
    });
}

/// Gradients go through a program or a softcap, not through both: that is ferroflash's error, before any launch.
#[test]
fn gradients() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let mut slices = Slices::new(&stream);
        let slopes = stream.alloc_zeros::<f32>(4).unwrap();
        let alibi = Program::new(ScoreProgram::alibi()).with("slopes", ProgramTensor::floats(&slopes, [1, 4]));
        let attention = Attention::new().causal();
        for call in BACKWARD {
            let capped = attention.with_softcap(5.0);
            let before = count("launch");
            let result = call(Options::new(&capped).with_program(&alibi), &mut slices, &stream);
            let refused = Unsupported::CappedProgram { program: "alibi".to_owned() };
            assert!(
                matches!(&result, Err(Error::Ferroflash(ferroflash::Error::Unsupported(found))) if *found == refused),
                "{result:?}"
            );
            assert_eq!(count("launch"), before);
            for options in [Options::new(&attention).with_program(&alibi), Options::new(&capped)] {
                let before = count("launch");
                call(options, &mut slices, &stream).unwrap();
                assert!(count("launch") > before);
            }
        }
    });
}

/// Sinks are waited for and noted like any other slice that is read, and their gradient like any that is written.
#[test]
fn guards_of_sinks_are_held_over_the_launches() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let mut slices = Slices::new(&stream);
        let sink = stream.alloc_zeros::<f32>(4).unwrap();
        let attention = Attention::new().causal();
        for call in FORWARD.into_iter().chain(BACKWARD) {
            let plain = waits_and_records(call, Options::new(&attention), &mut slices, &stream);
            let found = waits_and_records(call, Options::new(&attention).with_sink(&sink), &mut slices, &stream);
            assert_eq!(found, plain.map(|events| events + 1));
        }
        let mut dsink = stream.alloc_zeros::<f32>(4).unwrap();
        let options = Options::new(&attention).with_sink(&sink);
        let launches = |run: &mut dyn FnMut() -> Result<(), Error>| {
            let start = log().len();
            run().unwrap();
            log()[start..].iter().filter(|line| line.starts_with("launch")).count()
        };
        let without = launches(&mut || Slices::backward(options, &mut slices, &stream));
        let with = launches(&mut || {
            let (inputs, gradients, _) = slices.inputs();
            backward(options, &stream, inputs, Gradients { dsink: Some(&mut dsink), ..gradients })
        });
        assert_eq!(with, without + 1);
        let with = launches(&mut || {
            let (inputs, gradients, starts) = slices.inputs();
            let rows = PackedRows::new(Numbers::new(starts));
            backward_packed(options, &stream, inputs, rows, rows, Gradients { dsink: Some(&mut dsink), ..gradients })
        });
        assert_eq!(with, launches(&mut || Slices::backward_packed(options, &mut slices, &stream)) + 1);
    });
}

/// Sinks of another length are refused, and so are those that nothing is known of here.
#[test]
fn sinks_that_do_not_fit_are_refused() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let mut slices = Slices::new(&stream);
        let three = stream.alloc_zeros::<f32>(3).unwrap();
        let ours = device(stream.context()).unwrap();
        let elsewhere = Tensor::zeros(&ours, ferroflash::DType::F32, [4], Layout::RowMajor).unwrap();
        let plain = Attention::new();
        let bound = plain.with_sink(&elsewhere.view());
        for call in FORWARD.into_iter().chain(BACKWARD) {
            let error = call(Options::new(&plain).with_sink(&three), &mut slices, &stream).unwrap_err();
            assert_eq!(error.to_string(), "sink has shape [3]; [4] is accepted, a number for each query head");
            let error = call(Options::new(&bound), &mut slices, &stream).unwrap_err();
            assert!(matches!(error, Error::SinkElsewhere), "{error:?}");
        }
    });
}
