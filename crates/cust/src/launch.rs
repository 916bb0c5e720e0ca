//! Launches.

use crate::error::{Error, Result, call};
use crate::function::Function;
use crate::stream::Stream;
use crate::sys::{CUlaunchAttribute, CUlaunchAttributeID, CUlaunchConfig};
use bytemuck::Pod;
use std::ffi::c_void;
use std::ptr;

/// Extents of a grid, a block or a cluster.
pub trait Extents {
    /// Along x, y and z.
    fn extents(self) -> [u32; 3];
}

impl Extents for u32 {
    fn extents(self) -> [u32; 3] {
        [self, 1, 1]
    }
}

impl Extents for (u32, u32) {
    fn extents(self) -> [u32; 3] {
        [self.0, self.1, 1]
    }
}

impl Extents for (u32, u32, u32) {
    fn extents(self) -> [u32; 3] {
        [self.0, self.1, self.2]
    }
}

impl Extents for [u32; 3] {
    fn extents(self) -> [u32; 3] {
        self
    }
}

/// The parameters of a kernel: a tuple of up to 8 plain values, in the kernel's order. Buffers go as their
/// [`as_device_ptr`](crate::DeviceBuffer::as_device_ptr).
pub trait Params {
    /// Calls `launch` with the address of each value.
    fn with_pointers<T>(&self, launch: impl FnOnce(&mut [*mut c_void]) -> T) -> T;
}

macro_rules! params {
    ($($name:ident)*) => {
        impl<$($name: Pod),*> Params for ($($name,)*) {
            #[allow(non_snake_case, reason = "values are named like their types")]
            fn with_pointers<Result>(&self, launch: impl FnOnce(&mut [*mut c_void]) -> Result) -> Result {
                let ($($name,)*) = self;
                // The driver only reads them, in spite of the pointers' type.
                launch(&mut [$(ptr::from_ref($name).cast_mut().cast()),*])
            }
        }
    };
}

params! {}
params! { A }
params! { A B }
params! { A B C }
params! { A B C D }
params! { A B C D E }
params! { A B C D E F }
params! { A B C D E F G }
params! { A B C D E F G H }

/// One launch of one kernel, put together step by step; [`run`](Launch::run) queues it.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    function: &'a Function,
    stream: &'a Stream,
    grid: [u32; 3],
    block: [u32; 3],
    cluster: [u32; 3],
    shared_bytes: u32,
    programmatic: bool,
    cooperative: bool,
}

impl<'a> Launch<'a> {
    /// A launch of one thread, without dynamic shared memory.
    pub fn new(function: &'a Function, stream: &'a Stream) -> Launch<'a> {
        Launch {
            function,
            stream,
            grid: [1; 3],
            block: [1; 3],
            cluster: [1; 3],
            shared_bytes: 0,
            programmatic: false,
            cooperative: false,
        }
    }

    /// Sets the blocks.
    pub fn grid(mut self, blocks: impl Extents) -> Self {
        self.grid = blocks.extents();
        self
    }

    /// Sets the threads of a block.
    pub fn block(mut self, threads: impl Extents) -> Self {
        self.block = threads.extents();
        self
    }

    /// Sets the bytes of dynamic shared memory of a block. For more than 48 KiB the kernel has to be told:
    /// [`Function::set_max_dynamic_shared_bytes`].
    pub fn shared_bytes(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// Launches blocks in clusters (compute capability 9.0 and later, drivers for CUDA 11.8 and later). The grid is a multiple of it.
    pub fn cluster(mut self, blocks: impl Extents) -> Self {
        self.cluster = blocks.extents();
        self
    }

    /// Programmatic dependent launch: the kernel may start before the one ahead of it in the stream is done, and waits for it itself
    /// with `griddepcontrol.wait` (compute capability 9.0 and later, drivers for CUDA 11.8 and later).
    pub fn programmatic_dependent(mut self, programmatic: bool) -> Self {
        self.programmatic = programmatic;
        self
    }

    /// Cooperative launch: all blocks run at the same time, so that they may wait for each other. A grid that the GPU does not hold at once is
    /// an error (drivers for CUDA 11.8 and later).
    pub fn cooperative(mut self, cooperative: bool) -> Self {
        self.cooperative = cooperative;
        self
    }

    /// Queues the launch with these parameters.
    ///
    /// # Safety
    /// The kernel takes parameters of exactly these types, and does nothing with them, with the extents and with the shared memory that
    /// is not sound: addresses are valid for as long as it runs and nobody else writes there meanwhile.
    ///
    /// # Errors
    /// [`Error::EmptyLaunch`], [`Error::OtherContext`], [`Error::MissingSymbols`] where clusters, programmatic or cooperative launches
    /// are asked for and the driver has no `cuLaunchKernelEx`, or [`Error::Call`].
    pub unsafe fn run(self, params: impl Params) -> Result<()> {
        // SAFETY: the pointers are valid for the call; the caller vouches for the rest.
        params.with_pointers(|pointers| unsafe { self.run_pointers(pointers) })
    }

    /// Queues the launch with parameters that are given by their addresses. The driver copies them before this returns.
    ///
    /// # Safety
    /// As for [`run`](Launch::run); each pointer is valid for reads of the size of its parameter, and there is one for each.
    ///
    /// # Errors
    /// As for [`run`](Launch::run).
    pub unsafe fn run_pointers(self, params: &mut [*mut c_void]) -> Result<()> {
        let Launch { function, stream, grid, block, cluster, shared_bytes, .. } = self;
        if [grid, block, cluster].as_flattened().contains(&0) {
            return Err(Error::EmptyLaunch { grid, block, cluster });
        }
        function.context().check_stream(stream)?;
        let cuda = function.context().enter()?;
        let (raw, params) = (function.as_raw(), params.as_mut_ptr());
        let mut attributes = self.attributes();
        if attributes.is_empty() {
            let [[gx, gy, gz], [bx, by, bz]] = [grid, block];
            // SAFETY: kernel and stream are live and of the current context; the caller vouches for the parameters.
            return unsafe {
                call!(cuda.cuLaunchKernel(
                    raw,
                    gx,
                    gy,
                    gz,
                    bx,
                    by,
                    bz,
                    shared_bytes,
                    stream.as_raw(),
                    params,
                    ptr::null_mut(),
                ))
            };
        }
        let launch_ex =
            cuda.cuLaunchKernelEx.ok_or_else(|| Error::MissingSymbols { symbols: vec!["cuLaunchKernelEx"] })?;
        let config = CUlaunchConfig {
            grid,
            block,
            shared_bytes,
            stream: stream.as_raw(),
            attribute_count: attributes.len() as u32,
            attributes: attributes.as_mut_ptr(),
        };
        // SAFETY: as above; the configuration is valid for the call.
        crate::error::check("cuLaunchKernelEx", unsafe { launch_ex(&config, raw, params, ptr::null_mut()) })
    }

    /// Most clusters of this launch that the GPU holds at a time.
    ///
    /// # Errors
    /// [`Error::EmptyLaunch`], [`Error::OtherContext`], [`Error::MissingSymbols`] for a driver before CUDA 11.8, or [`Error::Call`].
    pub fn max_active_clusters(self) -> Result<u32> {
        let Launch { function, stream, grid, block, cluster, shared_bytes, .. } = self;
        if [grid, block, cluster].as_flattened().contains(&0) {
            return Err(Error::EmptyLaunch { grid, block, cluster });
        }
        function.context().check_stream(stream)?;
        let cuda = function.context().enter()?;
        let symbol = "cuOccupancyMaxActiveClusters";
        let ask = cuda.cuOccupancyMaxActiveClusters.ok_or_else(|| Error::MissingSymbols { symbols: vec![symbol] })?;
        let mut attributes = self.attributes();
        let config = CUlaunchConfig {
            grid,
            block,
            shared_bytes,
            stream: stream.as_raw(),
            attribute_count: attributes.len() as u32,
            attributes: attributes.as_mut_ptr(),
        };
        let mut clusters = 0;
        // SAFETY: the kernel is loaded, pointer and configuration are valid for the call.
        crate::error::check(symbol, unsafe { ask(&mut clusters, function.as_raw(), &config) })?;
        Ok(clusters.unsigned_abs())
    }

    /// What the launch is told beyond its extents.
    fn attributes(self) -> Vec<CUlaunchAttribute> {
        let Launch { cluster: [x, y, z], programmatic, cooperative, .. } = self;
        [
            (cooperative, CUlaunchAttributeID::COOPERATIVE, [1, 0, 0, 0]),
            ([x, y, z] != [1; 3], CUlaunchAttributeID::CLUSTER_DIMENSION, [x, y, z, 0]),
            (programmatic, CUlaunchAttributeID::PROGRAMMATIC_STREAM_SERIALIZATION, [1, 0, 0, 0]),
        ]
        .into_iter()
        .filter(|(wanted, ..)| *wanted)
        .map(|(_, id, words)| attribute(id, words))
        .collect()
    }
}

/// An attribute. Values are unions of 64 bytes, of which each attribute uses the first words.
fn attribute(id: CUlaunchAttributeID, words: [u32; 4]) -> CUlaunchAttribute {
    let mut value = [0; 8];
    value[..2].copy_from_slice(bytemuck::cast_slice(&words));
    CUlaunchAttribute { id, pad: [0; 4], value }
}

/// Launches a kernel: `launch!(function<<<grid, block, shared_bytes, stream>>>(a, b, ..))`, with a [`Function`], extents ([`Extents`]), a
/// [`Stream`] and plain values ([`Params`]). An unsafe operation: see [`Launch::run`].
///
/// ```no_run
/// # fn example(double: &cust::Function, stream: &cust::Stream, data: &cust::DeviceBuffer<f32>) -> cust::Result<()> {
/// // SAFETY: `double` takes a pointer and a length, and multiplies as many values.
/// unsafe { cust::launch!(double<<<data.len().div_ceil(128) as u32, 128, 0, stream>>>(data.as_device_ptr(), data.len() as u32)) }
/// # }
/// ```
#[macro_export]
macro_rules! launch {
    ($function:ident<<<$grid:expr, $block:expr, $shared:expr, $stream:ident>>>($($argument:expr),* $(,)?)) => {
        $crate::Launch::new(&$function, &$stream)
            .grid($grid)
            .block($block)
            .shared_bytes($shared)
            .run(($($argument,)*))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_holds_its_words() {
        let cluster = attribute(CUlaunchAttributeID::CLUSTER_DIMENSION, [4, 2, 1, 0]);
        // Little-endian words, as on every platform that has a driver.
        assert_eq!((cluster.id.0, &cluster.value[..3]), (4, &[2 << 32 | 4, 1, 0][..]));
    }

    /// Each pointer of the list leads to its value.
    #[test]
    fn parameters_are_passed_by_address() {
        let values = (7u64, 2.5f32, -3i32);
        // SAFETY: the values are of these types.
        let read = values
            .with_pointers(|p| unsafe { (p.len(), *p[0].cast::<u64>(), *p[1].cast::<f32>(), *p[2].cast::<i32>()) });
        assert_eq!(read, (3, 7, 2.5, -3));
    }
}
