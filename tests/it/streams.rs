//! Streams other than the default one, events that order them, and graphs.

use crate::support::case::{Case, runs};
use crate::support::device;
use ferroflash::{DType, Device, Error, Kernel, Layout, Mask, Sizes, Stream, StreamOptions, Tensor, f16};

/// Several tiles of queries and of keys, none of them whole.
fn case(kernel: Kernel, kv_rows: usize) -> Case {
    let sizes = Sizes { batch: 2, q_rows: 130, kv_rows, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::F16 };
    Case::new(kernel, sizes, Mask::Causal)
}

/// A stream that is ordered with nothing.
fn unordered(device: &Device) -> Stream {
    // SAFETY: these tests order it by events with whatever made its tensors, and wait for it before they read them.
    let options = unsafe { StreamOptions::new().non_blocking() };
    device.stream_with(&options).unwrap()
}

/// Two streams that know of each other by events alone: one computes what the other goes on with.
#[test]
fn events_order_streams() {
    let shared = device::shared();
    let device = &shared.device;
    for kernel in Kernel::ALL.into_iter().filter(|&kernel| runs::<f16>(device, kernel)) {
        let case = case(kernel, 130);
        let inputs = case.inputs::<f16>();
        let upload = |data: &[f16]| Tensor::from_slice(device, data, case.q_shape(), Layout::Bshd).unwrap();
        let zeros = || Tensor::zeros(device, DType::F16, case.q_shape(), Layout::Bshd).unwrap();
        let (q, k, v) = (upload(&inputs.q), upload(&inputs.k), upload(&inputs.v));
        let (mut between, mut out) = (zeros(), zeros());
        let (first, second) = (unordered(device), unordered(device));
        let ready = device.default_stream().record().unwrap();
        first.wait(&ready).unwrap();
        second.wait(&ready).unwrap();

        let start = first.record().unwrap();
        let (k, v) = (k.view(), v.view());
        case.attention.forward_into(&first, &q.view(), &k, &v, &mut between.view_mut(), None).unwrap();
        let computed = first.record().unwrap();
        second.wait(&computed).unwrap();
        case.attention.forward_into(&second, &between.view(), &k, &v, &mut out.view_mut(), None).unwrap();
        let end = second.record().unwrap();
        end.synchronize().unwrap();
        assert!(computed.is_done().unwrap() && end.is_done().unwrap());
        let (half, whole) = (computed.elapsed_since(&start).unwrap(), end.elapsed_since(&start).unwrap());
        assert!(half <= whole, "{kernel}: {half:?} of {whole:?}");

        let once = case.run(device, &inputs).out;
        let twice = case.run(device, &crate::support::case::Inputs { q: once, ..inputs }).out;
        assert!(out.to_vec::<f16>().unwrap() == twice, "{kernel}");
    }
}

/// A graph gives the bits of the call that it was captured from, as often as it is launched. The emulator says that it has none.
#[test]
fn graphs_replay_what_was_captured() {
    let shared = device::shared();
    let device = &shared.device;
    for kernel in Kernel::ALL.into_iter().filter(|&kernel| runs::<f16>(device, kernel)) {
        let case = case(kernel, 147);
        let inputs = case.inputs::<f16>();
        let upload = |data: &[f16], shape| Tensor::from_slice(device, data, shape, Layout::Bshd).unwrap();
        let (q, k, v) =
            (upload(&inputs.q, case.q_shape()), upload(&inputs.k, case.kv_shape()), upload(&inputs.v, case.kv_shape()));
        let (q, k, v) = (q.view(), k.view(), v.view());
        let mut out = Tensor::uninit(device, DType::F16, case.q_shape(), Layout::Bshd).unwrap();
        let plan = case.attention.plan_for(&q, &k, &v, Some(&out.view())).unwrap();
        device.prepare(&plan).unwrap();
        let captured =
            device.capture(|stream| case.attention.forward_into(stream, &q, &k, &v, &mut out.view_mut(), None));
        if !device::is_gpu() {
            assert!(matches!(captured, Err(Error::CaptureUnsupported { .. })), "{captured:?}");
            continue;
        }
        let graph = captured.unwrap();
        assert!(graph.node_count() >= plan.steps.len(), "{graph:?}");
        let expected = case.run(device, &inputs).out;
        for stream in [device.default_stream(), device.stream().unwrap(), unordered(device)] {
            out.fill_bytes(0xff).unwrap();
            // SAFETY: the tensors are there, and nobody else works on them; the fill is done.
            unsafe { graph.launch(&stream) }.unwrap();
            stream.synchronize().unwrap();
            assert!(out.to_vec::<f16>().unwrap() == expected, "{kernel}");
        }
    }
}
