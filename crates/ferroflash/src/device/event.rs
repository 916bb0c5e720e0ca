//! Streams with options, and events: points in the work of a stream.

use super::{Device, Stream};
use crate::backend::Mark;
use crate::error::{Error, Result};
use std::time::Duration;

/// How a stream behaves: ordered with the default stream and of ordinary priority, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    non_blocking: bool,
    priority: Option<i32>,
}

impl StreamOptions {
    /// The options of [`Device::stream`].
    pub fn new() -> StreamOptions {
        StreamOptions::default()
    }

    /// Sets the priority: lower numbers go first, 0 is what a stream has without one. A GPU knows a few; the error for another number
    /// names them. The emulator runs everything at once and takes any.
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Makes a stream that is ordered with nothing but what events order it with ([`Stream::record`], [`Stream::wait`]): work on the
    /// default stream, of whichever library, and work on this one do not wait for each other.
    ///
    /// # Safety
    /// Tensors of this crate are allocated, freed, written and read in the order of the default stream. So the caller lets this stream
    /// wait for an event of the default stream before it works on a tensor that was created, or on memory that was used, since the
    /// stream waited last; and waits for it before a tensor that it works on is written, read or dropped.
    pub unsafe fn non_blocking(mut self) -> Self {
        self.non_blocking = true;
        self
    }
}

impl Device {
    /// Creates a stream with these options.
    ///
    /// # Errors
    /// [`Error::StreamPriority`], or [`Error::Cuda`].
    pub fn stream_with(&self, options: &StreamOptions) -> Result<Stream> {
        Ok(Stream {
            device: self.clone(),
            raw: self.backend().create_stream(options.non_blocking, options.priority)?,
            owned: true,
        })
    }
}

/// A point in the work of a stream, that others can wait for and times can be taken at.
#[derive(Debug)]
pub struct Event {
    device: Device,
    mark: Mark,
}

impl Stream {
    /// An event that stands for all that is queued on this stream so far.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn record(&self) -> Result<Event> {
        Ok(Event { device: self.device.clone(), mark: self.device.backend().record(self.raw)? })
    }

    /// Lets what is queued on this stream from now on wait until `event` is done. The event may be one of another device.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.device.backend().wait(self.raw, &event.mark)
    }
}

impl Event {
    /// Waits until what it stands for is done, and reports what failed meanwhile.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn synchronize(&self) -> Result<()> {
        self.mark.synchronize()
    }

    /// Whether what it stands for is done.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn is_done(&self) -> Result<bool> {
        self.mark.is_done()
    }

    /// Waits for this event and gives the time from `earlier` to it: on CUDA as the GPU took it, on the emulator by the clock of the
    /// host, which is no statement about a GPU.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] for an event of another device, [`Error::EventOrder`] when `earlier` is the later one, or
    /// [`Error::Cuda`].
    pub fn elapsed_since(&self, earlier: &Event) -> Result<Duration> {
        if self.device != earlier.device {
            return Err(Error::DeviceMismatch {
                what: "the earlier event".to_owned(),
                found: earlier.device.info().id(),
                expected: self.device.info().id(),
            });
        }
        self.synchronize()?;
        self.mark.elapsed_since(&earlier.mark)
    }

    /// The device of this event.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
