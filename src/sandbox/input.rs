//! A bounded byte pipe from the task that receives a request's body to the guest that reads it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::Bytes;

#[cfg(test)]
mod tests;

/// All of a guest's standard input, or where it comes from.
pub enum Stdin {
    /// It is all there.
    Bytes(Bytes),
    /// It comes while the guest runs. Such a guest needs a thread that may wait for it.
    Pipe(InputReader),
}

/// The task's end. Dropped without [`InputWriter::finish`], it ends the guest: nobody may take a
/// part of a body for the whole.
pub struct InputWriter {
    shared: Arc<Shared>,
}

/// The guest's end. Reading blocks the thread while the pipe is empty.
pub struct InputReader {
    shared: Arc<Shared>,
}

/// Cuts the pipe from outside: how a cancelled guest that waits for input is woken.
pub(super) struct InputCloser {
    shared: Arc<Shared>,
}

/// What a guest would find if it read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// So many bytes, at least one.
    Bytes(usize),
    /// The end.
    Ended,
    /// It would have to wait.
    Nothing,
}

/// No more input will come, and what came was not all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut;

struct Shared {
    bytes_max: usize,
    state: Mutex<State>,
    /// Signalled when there is something for the guest: bytes, the end, or a cut.
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    buffer: VecDeque<u8>,
    source: Source,
    reader_gone: bool,
    /// Waits for room.
    writer: Option<Waker>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Source {
    #[default]
    Open,
    Finished,
    Cut,
}

/// A pipe that asks for more while it holds less than `bytes_max` bytes (at least one, else nothing
/// could ever pass). It may hold more by what is put in at once.
pub fn input(bytes_max: usize) -> (InputWriter, InputReader) {
    let shared = Arc::new(Shared {
        bytes_max: bytes_max.max(1),
        state: Mutex::default(),
        arrived: Condvar::new(),
    });
    (
        InputWriter {
            shared: Arc::clone(&shared),
        },
        InputReader { shared },
    )
}

impl From<Bytes> for Stdin {
    fn from(bytes: Bytes) -> Stdin {
        Stdin::Bytes(bytes)
    }
}

impl Stdin {
    pub(super) fn closer(&self) -> Option<InputCloser> {
        match self {
            Stdin::Bytes(_) => None,
            Stdin::Pipe(reader) => Some(InputCloser {
                shared: Arc::clone(&reader.shared),
            }),
        }
    }
}

impl InputWriter {
    /// Waits until the pipe has room, or nobody reads it any more. Cancel safe.
    pub async fn room(&mut self) {
        poll_fn(|context| {
            let mut state = self.shared.lock();
            if state.reader_gone || state.buffer.len() < self.shared.bytes_max {
                return Poll::Ready(());
            }
            state.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Puts bytes in, without waiting: [`InputWriter::room`] comes before. Where nobody reads any
    /// more they are dropped.
    pub fn put(&mut self, bytes: &[u8]) {
        let mut state = self.shared.lock();
        if state.reader_gone {
            return;
        }
        // Writing to a queue in memory does not fail.
        let _ = state.buffer.write_all(bytes);
        self.shared.arrived.notify_one();
    }

    /// That was all.
    pub fn finish(self) {
        self.shared.close(Source::Finished);
    }
}

impl Drop for InputWriter {
    fn drop(&mut self) {
        self.shared.close(Source::Cut);
    }
}

impl InputReader {
    /// What is there now.
    pub(super) fn readiness(&self) -> Result<Readiness, Cut> {
        self.shared.lock().readiness()
    }

    /// Waits until there is something to read or the time has come.
    pub(super) fn wait_until(&self, until: Instant) -> Result<Readiness, Cut> {
        let mut state = self.shared.lock();
        loop {
            match state.readiness()? {
                Readiness::Nothing => {}
                ready @ (Readiness::Bytes(_) | Readiness::Ended) => return Ok(ready),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Readiness::Nothing);
            }
            (state, _) = self
                .shared
                .arrived
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes what is there, as far as it fits; returns how many bytes that is. Does not wait.
    pub(super) fn read_now(&mut self, buffer: &mut [u8]) -> usize {
        let mut state = self.shared.lock();
        let mut taken = 0;
        // The queue is a ring: the second read takes what lies before the seam. Neither can fail.
        for _ in 0..2 {
            taken += state.buffer.read(&mut buffer[taken..]).unwrap_or(0);
        }
        // Not at the first free byte: a guest that reads byte by byte would wake the writer for each.
        if state.buffer.len() <= self.shared.bytes_max / 2
            && let Some(writer) = state.writer.take()
        {
            writer.wake();
        }
        taken
    }
}

impl Drop for InputReader {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.reader_gone = true;
        state.buffer = VecDeque::new();
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
    }
}

impl InputCloser {
    pub(super) fn close(&self) {
        self.shared.close(Source::Cut);
    }
}

impl State {
    /// What arrived before the end can still be read. What arrived before a cut can't: its guest
    /// ends.
    fn readiness(&self) -> Result<Readiness, Cut> {
        match (self.buffer.len(), self.source) {
            (_, Source::Cut) => Err(Cut),
            (0, Source::Open) => Ok(Readiness::Nothing),
            (0, Source::Finished) => Ok(Readiness::Ended),
            (bytes, Source::Open | Source::Finished) => Ok(Readiness::Bytes(bytes)),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only an open source changes: the end stays the end, and a cut a cut.
    fn close(&self, source: Source) {
        let mut state = self.lock();
        if state.source == Source::Open {
            state.source = source;
            self.arrived.notify_one();
        }
    }
}
