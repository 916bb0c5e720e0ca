//! Graphs: launches that are captured once and replayed with one call.

use super::{Device, Stream};
use crate::backend::Replay;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;

/// Launches that were captured on a GPU: see [`Device::capture`].
pub struct Graph {
    device: Device,
    replay: Box<dyn Replay>,
}

impl Device {
    /// Captures what `body` launches on the stream that it is given, as a graph that one call replays. Nothing of it runs yet.
    ///
    /// The stream is made for the capture, so that other threads and libraries can go on using theirs, the default stream too. What can
    /// be captured is [`Attention::forward_into`](crate::Attention::forward_into) and [`forward_raw`](crate::Attention::forward_raw), with
    /// their workspaces, [`Tensor::copy_from`](crate::Tensor::copy_from), and events that join other streams to the captured one and back.
    /// What waits for the device, and kernels that have to be loaded first, cannot: call [`Device::prepare`] before.
    ///
    /// A stream that another framework captures itself works as well: give it to [`Stream::from_raw`] and launch on it.
    ///
    /// ```no_run
    /// # fn example(device: &ferroflash::Device, q: ferroflash::TensorView<'_>, out: &mut ferroflash::Tensor) -> ferroflash::Result<()> {
    /// use ferroflash::Attention;
    ///
    /// let attention = Attention::new().causal();
    /// device.prepare(&attention.plan_for(&q, &q, &q, None)?)?;
    /// let graph = device.capture(|stream| attention.forward_into(stream, &q, &q, &q, &mut out.view_mut(), None))?;
    /// for _step in 0..100 {
    ///     // SAFETY: q and out live on, and nobody else works on them.
    ///     unsafe { graph.launch(&device.default_stream()) }?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The error of `body`, among them [`Error::KernelNotLoaded`] for a kernel that was not prepared; [`Error::CaptureUnsupported`] on the
    /// emulator, and for a workspace on a GPU without memory pools; [`Error::Cuda`] where the driver refuses to capture a call.
    pub fn capture(&self, body: impl FnOnce(&Stream) -> Result<()>) -> Result<Graph> {
        let mut body = Some(body);
        let replay = self.backend().capture(&mut |raw| {
            let stream = Stream { device: self.clone(), raw, owned: false };
            body.take().map_or(Ok(()), |body| body(&stream))
        })?;
        Ok(Graph { device: self.clone(), replay })
    }
}

impl Graph {
    /// Queues everything that was captured on `stream`, any stream of the device, in whose order it runs. May return before it is done.
    ///
    /// # Safety
    /// All memory that the captured calls were given, inputs and outputs, is still allocated, and stays so until the work is done; until
    /// then nobody writes the inputs or touches the outputs, except by work that is ordered with `stream`.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] for a stream of another device, or [`Error::Cuda`].
    pub unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        self.device.check_stream(stream)?;
        // SAFETY: the caller vouches for the memory.
        unsafe { self.replay.launch(stream.raw) }
    }

    /// Number of nodes: launches, and allocations and releases of workspaces.
    pub fn node_count(&self) -> usize {
        self.replay.nodes()
    }

    /// The device that it was captured on.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("device", &self.device.info().id()).field("nodes", &self.node_count()).finish()
    }
}
