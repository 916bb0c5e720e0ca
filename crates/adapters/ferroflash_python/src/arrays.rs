//! Arrays of other packages: the memory, shape and strides of objects that speak DLPack or `__cuda_array_interface__`.

use crate::call::{Memory, Place};
use crate::errors;
use crate::sequences::Int32;
use dlpark::ffi::{DLDataType, DLDataTypeCode, DLDevice, DLDeviceType};
use dlpark::python::consumer::stream;
use dlpark::python::{DlpackStream, ImportRequest, ImportedDlpack, StreamArg};
use dlpark::{DlpackFlags, tensor::TensorRef};
use ferroflash::{DType, Device, Dims, Stream};
use pyo3::exceptions::{PyKeyError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// An array of Python, held for as long as its memory is used.
pub(crate) struct Array<E = DType> {
    pub(crate) tensor: Memory<E>,
    _owner: Option<ImportedDlpack>,
}

/// What the elements of an array may be.
pub(crate) trait ElementType: Sized {
    /// The type, as DLPack says it.
    fn of_dlpack(py: Python<'_>, name: &str, found: DLDataType) -> PyResult<Self>;

    /// The type, as `__cuda_array_interface__` says it.
    fn of_interface(py: Python<'_>, name: &str, found: &str) -> PyResult<Self>;

    /// Bytes of an element.
    fn size(&self) -> usize;
}

/// The stream on which an imported array has to be ready.
struct Consumer(usize);

// SAFETY: the caller of Python hands over a live stream of the GPU, as for the launch; the number is encoded as DLPack wants it.
unsafe impl DlpackStream for Consumer {
    fn as_python_arg(&self, _: Python<'_>, _: DLDevice) -> PyResult<StreamArg> {
        Ok(stream::cuda(std::ptr::with_exposed_provenance_mut(self.0)))
    }
}

impl<E: ElementType> Array<E> {
    /// Reads what the object says of itself. `stream` waits for whoever wrote it, if the object can say so; `gpu` is where an array is that
    /// does not say on which GPU it is.
    pub(crate) fn import(
        name: &str,
        object: &Bound<'_, PyAny>,
        stream: usize,
        gpu: Option<usize>,
        for_writing: bool,
    ) -> PyResult<Array<E>> {
        if object.hasattr("__dlpack__")? {
            return by_dlpack(name, object, stream, for_writing);
        }
        if let Some(interface) = object.getattr_opt("__cuda_array_interface__")? {
            return by_interface(name, &interface.cast_into()?, stream, gpu, for_writing);
        }
        let found = object.get_type().fully_qualified_name()?;
        let message = format!(
            "{name} is a {found}; objects that speak DLPack (`__dlpack__`) or `__cuda_array_interface__` are accepted"
        );
        Err(errors::of_type(object.py(), message))
    }
}

fn by_dlpack<E: ElementType>(
    name: &str,
    object: &Bound<'_, PyAny>,
    stream: usize,
    for_writing: bool,
) -> PyResult<Array<E>> {
    let py = object.py();
    let request = ImportRequest::new(object.as_borrowed())?;
    let place = place(py, name, request.device()?)?;
    let consumer = Consumer(stream);
    let stream: Option<&dyn DlpackStream> = match place {
        Place::Cpu => None,
        Place::Cuda(_) => Some(&consumer),
    };
    let imported = match request.import(stream, Some(false)) {
        // Producers from before DLPack 1.0 do not know `max_version` and `copy`, and never copy.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => import_unversioned(object, place, consumer.0)?,
        imported => imported?,
    };
    if for_writing && imported.flags().contains(DlpackFlags::READ_ONLY) {
        return Err(errors::of_input(py, format!("{name} is read-only; it is written to")));
    }
    let tensor = {
        let described = imported.validate().map_err(|error| errors::of_input(py, format!("{name}: {error}")))?;
        described_tensor(py, name, place, &described)?
    };
    Ok(Array { tensor, _owner: Some(imported) })
}

/// Imports from a producer whose `__dlpack__` takes a stream and nothing else.
fn import_unversioned(object: &Bound<'_, PyAny>, place: Place, stream: usize) -> PyResult<ImportedDlpack> {
    let arguments = PyDict::new(object.py());
    if let Place::Cuda(_) = place {
        // DLPack's number for the default stream.
        arguments.set_item("stream", stream.max(1))?;
    }
    let capsule = object.call_method("__dlpack__", (), Some(&arguments))?;
    ImportRequest::new(capsule.as_borrowed())?.import(None, None)
}

fn place(py: Python<'_>, name: &str, device: DLDevice) -> PyResult<Place> {
    match device.device_type {
        DLDeviceType::CPU => Ok(Place::Cpu),
        DLDeviceType::CUDA | DLDeviceType::CUDAMANAGED => Ok(Place::Cuda(device.device_id.unsigned_abs() as usize)),
        DLDeviceType(other) => {
            let message =
                format!("{name} is on a device of DLPack's type {other}; CUDA GPUs (2) and the CPU (1) are accepted");
            Err(errors::of_input(py, message))
        }
    }
}

fn described_tensor<E: ElementType>(
    py: Python<'_>,
    name: &str,
    place: Place,
    described: &TensorRef<'_>,
) -> PyResult<Memory<E>> {
    let failed = |error| errors::of_input(py, format!("{name}: {error}"));
    let dtype = E::of_dlpack(py, name, described.dtype())?;
    let strides = described.strides_or_compact().map_err(failed)?;
    let address = (described.data_ptr().expose_provenance() as u64).wrapping_add(described.byte_offset());
    let (shape, strides) = (described.shape(), of_empty(described.shape(), strides.into_owned()));
    let (shape, strides) = (dims(py, name, shape)?, dims(py, name, &strides)?);
    Ok(Memory { place, dtype, address, shape, strides })
}

/// A type of DLPack, in words.
pub(crate) fn words(DLDataType { code, bits, lanes }: DLDataType) -> String {
    let kind = match code {
        DLDataTypeCode::INT => "integers".to_owned(),
        DLDataTypeCode::UINT => "unsigned integers".to_owned(),
        DLDataTypeCode::FLOAT => "floating-point numbers".to_owned(),
        DLDataTypeCode::COMPLEX => "complex numbers".to_owned(),
        DLDataTypeCode::BOOL => "booleans".to_owned(),
        DLDataTypeCode(code) => format!("elements of DLPack's type {code}"),
    };
    let many = if lanes == 1 { String::new() } else { format!(", {lanes} at a time") };
    format!("{kind} of {bits} bits{many}")
}

/// The type of numbers with a point that a type of DLPack is, if it is one that kernels take.
pub(crate) fn float_of_dlpack(found: DLDataType) -> Option<DType> {
    match (found.code, found.bits, found.lanes) {
        (DLDataTypeCode::FLOAT, 16, 1) => Some(DType::F16),
        (DLDataTypeCode::BFLOAT, 16, 1) => Some(DType::Bf16),
        (DLDataTypeCode::FLOAT, 32, 1) => Some(DType::F32),
        _ => None,
    }
}

/// [`float_of_dlpack`] of a type of `__cuda_array_interface__`.
pub(crate) fn float_of_interface(found: &str) -> Option<DType> {
    match found {
        "<f2" | "=f2" => Some(DType::F16),
        "<f4" | "=f4" => Some(DType::F32),
        _ => None,
    }
}

impl ElementType for DType {
    fn of_dlpack(py: Python<'_>, name: &str, found: DLDataType) -> PyResult<DType> {
        float_of_dlpack(found).ok_or_else(|| {
            let message = format!("{name} holds {}; float16, bfloat16 and float32 are accepted", words(found));
            errors::of_type(py, message)
        })
    }

    fn of_interface(py: Python<'_>, name: &str, found: &str) -> PyResult<DType> {
        float_of_interface(found).ok_or_else(|| {
            let message = format!("{name} holds `{found}`; `<f2` and `<f4` are accepted, and bfloat16 through DLPack");
            errors::of_type(py, message)
        })
    }

    fn size(&self) -> usize {
        self.bytes()
    }
}

impl ElementType for Int32 {
    fn of_dlpack(py: Python<'_>, name: &str, found: DLDataType) -> PyResult<Int32> {
        match (found.code, found.bits, found.lanes) {
            (DLDataTypeCode::INT, 32, 1) => Ok(Int32),
            _ => Err(errors::of_type(py, format!("{name} holds {}; int32 is accepted", words(found)))),
        }
    }

    fn of_interface(py: Python<'_>, name: &str, found: &str) -> PyResult<Int32> {
        match found {
            "<i4" | "=i4" => Ok(Int32),
            _ => Err(errors::of_type(py, format!("{name} holds `{found}`; `<i4` is accepted"))),
        }
    }

    fn size(&self) -> usize {
        size_of::<i32>()
    }
}

/// Extents or strides, none of which may be negative.
fn dims(py: Python<'_>, name: &str, numbers: &[i64]) -> PyResult<Dims> {
    let unsigned: Result<Vec<usize>, _> = numbers.iter().map(|&number| usize::try_from(number)).collect();
    let Ok(unsigned) = unsigned else {
        let message = format!("{name} has strides {numbers:?}; those below 0 are not accepted");
        return Err(errors::of_input(py, message));
    };
    Dims::new(&unsigned).map_err(|error| errors::raise(py, error))
}

/// Strides without gaps, the last axis fastest.
fn contiguous(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

/// The strides of an array that may be empty: those of one without elements say nothing, and NumPy's are 0.
fn of_empty(shape: &[i64], strides: Vec<i64>) -> Vec<i64> {
    if shape.contains(&0) { contiguous(shape) } else { strides }
}

/// The array that a `__cuda_array_interface__` of version 2 or 3 describes.
fn by_interface<E: ElementType>(
    name: &str,
    interface: &Bound<'_, PyDict>,
    stream: usize,
    gpu: Option<usize>,
    for_writing: bool,
) -> PyResult<Array<E>> {
    let py = interface.py();
    let get = |key: &str| interface.get_item(key);
    let needed = |key: &'static str| {
        get(key)?.ok_or_else(|| PyKeyError::new_err(format!("{name}: __cuda_array_interface__ has no `{key}`")))
    };
    let typestr: String = needed("typestr")?.extract()?;
    let dtype = E::of_interface(py, name, &typestr)?;
    if get("mask")?.is_some_and(|mask| !mask.is_none()) {
        return Err(errors::of_input(py, format!("{name} has a mask; arrays without one are accepted")));
    }
    let (address, read_only): (u64, bool) = needed("data")?.extract()?;
    if for_writing && read_only {
        return Err(errors::of_input(py, format!("{name} is read-only; it is written to")));
    }
    let shape: Vec<i64> = needed("shape")?.cast_into::<PyTuple>()?.extract()?;
    let bytes = dtype.size() as i64;
    let strides = match get("strides")?.filter(|strides| !strides.is_none()) {
        Some(strides) => {
            let in_bytes: Vec<i64> = strides.extract()?;
            if in_bytes.iter().any(|stride| stride % bytes != 0) {
                let message = format!(
                    "{name} has strides of {in_bytes:?} bytes; multiples of its {bytes}-byte elements are accepted"
                );
                return Err(errors::of_input(py, message));
            }
            in_bytes.iter().map(|stride| stride / bytes).collect()
        }
        None => contiguous(&shape),
    };
    let ordinal = match gpu {
        Some(ordinal) => ordinal,
        None => only_gpu(py, name)?,
    };
    // Who wrote it says on which stream it is ready; 1 and 2 are the default streams, as in the driver.
    if let Some(writer) = get("stream")?.filter(|writer| !writer.is_none()) {
        let writer: usize = writer.extract()?;
        wait_for(ordinal, writer, stream).map_err(|error| errors::raise(py, error))?;
    }
    let strides = of_empty(&shape, strides);
    let (shape, strides) = (dims(py, name, &shape)?, dims(py, name, &strides)?);
    let tensor = Memory { place: Place::Cuda(ordinal), dtype, address, shape, strides };
    Ok(Array { tensor, _owner: None })
}

/// Where an array is that does not say so, if there is only one place.
fn only_gpu(py: Python<'_>, name: &str) -> PyResult<usize> {
    let gpus = Device::list().into_iter().filter(|info| info.id().starts_with("cuda")).count();
    if gpus <= 1 {
        return Ok(0);
    }
    let message = format!(
        "{name} does not say on which of {gpus} GPUs it is, because `__cuda_array_interface__` has no place for that; `device` is needed"
    );
    Err(errors::of_input(py, message))
}

/// Lets `stream` wait for what is queued on `writer`.
fn wait_for(ordinal: usize, writer: usize, stream: usize) -> ferroflash::Result<()> {
    if writer == stream {
        return Ok(());
    }
    let device = Device::cuda(ordinal)?;
    // SAFETY: both are live streams of the GPU's primary context by the word of those that handed them over.
    let [writer, stream] = [writer, stream]
        .map(|stream| unsafe { Stream::from_raw(&device, std::ptr::with_exposed_provenance_mut(stream)) });
    stream.wait(&writer.record()?)
}
