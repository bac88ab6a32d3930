//! A bounded byte pipe from a guest's thread to the task that answers its request.

use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

/// The guest's end. Writing blocks the thread while the pipe is full.
pub struct PipeWriter {
    shared: Arc<Shared>,
}

/// The task's end.
pub struct PipeReader {
    shared: Arc<Shared>,
}

/// Closes the pipe from outside, as if the reader had gone: how a cancelled guest is woken.
pub(super) struct PipeCloser {
    shared: Arc<Shared>,
}

/// Why a write did not go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipeError {
    /// The reader is gone.
    Closed,
    /// The deadline passed while the pipe was full.
    DeadlinePassed,
}

struct Shared {
    bytes_max: usize,
    state: Mutex<State>,
    /// Signalled when there is room again, or nobody to write for.
    room: Condvar,
}

#[derive(Default)]
struct State {
    buffer: BytesMut,
    closed: bool,
    writer_gone: bool,
    reader: Option<Waker>,
}

/// A pipe that holds at most `bytes_max` bytes (at least one, else nothing could ever pass).
pub fn pipe(bytes_max: usize) -> (PipeWriter, PipeReader) {
    let shared = Arc::new(Shared {
        bytes_max: bytes_max.max(1),
        state: Mutex::default(),
        room: Condvar::new(),
    });
    (
        PipeWriter {
            shared: Arc::clone(&shared),
        },
        PipeReader { shared },
    )
}

impl PipeWriter {
    /// Writes all of `bytes`, waiting for room until `deadline`. On an error, some of the bytes
    /// may have gone through.
    pub fn write(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), PipeError> {
        let mut rest = bytes;
        let mut state = self.shared.lock();
        while !rest.is_empty() {
            if state.closed {
                return Err(PipeError::Closed);
            }
            let room = self.shared.bytes_max.saturating_sub(state.buffer.len());
            if room == 0 {
                state = self.shared.wait_for_room(state, deadline)?;
                continue;
            }
            let (now, later) = rest.split_at(room.min(rest.len()));
            state.buffer.extend_from_slice(now);
            rest = later;
            if let Some(reader) = state.reader.take() {
                reader.wake();
            }
        }
        Ok(())
    }

    /// Puts bytes in without waiting, whatever the pipe may hold: for output that is all there and
    /// bounded already. Where the reader is gone they are dropped.
    pub(super) fn write_now(&mut self, bytes: &[u8]) {
        let mut state = self.shared.lock();
        if state.closed || bytes.is_empty() {
            return;
        }
        state.buffer.extend_from_slice(bytes);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    pub(super) fn closer(&self) -> PipeCloser {
        PipeCloser {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl PipeReader {
    /// The next bytes; `None` once the writer is gone and all is read. Cancel safe.
    pub async fn read(&mut self) -> Option<Bytes> {
        poll_fn(|context| {
            let mut state = self.shared.lock();
            if !state.buffer.is_empty() {
                let bytes = state.buffer.split().freeze();
                self.shared.room.notify_one();
                return Poll::Ready(Some(bytes));
            }
            if state.writer_gone {
                return Poll::Ready(None);
            }
            state.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl PipeCloser {
    pub(super) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.room.notify_one();
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.buffer = BytesMut::new();
        state.reader = None;
        self.shared.room.notify_one();
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.writer_gone = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_room<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, State>, PipeError> {
        let left = deadline
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
            .ok_or(PipeError::DeadlinePassed)?;
        let (state, _) = self
            .room
            .wait_timeout(state, left)
            .unwrap_or_else(PoisonError::into_inner);
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::{PipeError, pipe};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(300)
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_and_the_end_is_seen() {
        let (mut writer, mut reader) = pipe(7);
        let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let copy = sent.clone();
        let thread = thread::spawn(move || {
            for chunk in copy.chunks(13) {
                writer.write(chunk, soon()).unwrap();
            }
        });
        let mut received = Vec::new();
        while let Some(bytes) = reader.read().await {
            assert!(
                bytes.len() <= 7,
                "the pipe holds 7 bytes, not {}",
                bytes.len()
            );
            received.extend_from_slice(&bytes);
        }
        assert_eq!(received, sent);
        assert_eq!(reader.read().await, None);
        thread.join().unwrap();
    }

    #[test]
    fn a_full_pipe_gives_up_at_the_deadline() {
        let (mut writer, _reader) = pipe(4);
        let start = Instant::now();
        let deadline = start + Duration::from_millis(30);
        assert_eq!(
            writer.write(b"12345", deadline),
            Err(PipeError::DeadlinePassed)
        );
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert_eq!(writer.write(b"", deadline), Ok(()));
    }

    #[test]
    fn a_writer_that_waits_wakes_when_the_reader_goes() {
        let (mut writer, reader) = pipe(1);
        let thread = thread::spawn(move || writer.write(b"ab", soon()));
        drop(reader);
        assert_eq!(thread.join().unwrap(), Err(PipeError::Closed));
    }

    #[tokio::test]
    async fn closing_wakes_the_writer_and_keeps_what_was_written() {
        let (mut writer, mut reader) = pipe(3);
        let closer = writer.closer();
        // More than the pipe holds twice over, so that the writer still waits after one read.
        let thread = thread::spawn(move || writer.write(b"abcdefghij", soon()));
        let first = reader.read().await.unwrap();
        assert!(b"abcdefghij".starts_with(&first));
        closer.close();
        assert_eq!(thread.join().unwrap(), Err(PipeError::Closed));
        while reader.read().await.is_some() {}
    }

    #[tokio::test]
    async fn an_abandoned_read_loses_nothing() {
        let (mut writer, mut reader) = pipe(16);
        let waiting = tokio::time::timeout(Duration::from_millis(1), reader.read()).await;
        assert!(waiting.is_err());
        writer.write(b"kept", soon()).unwrap();
        drop(writer);
        assert_eq!(reader.read().await.as_deref(), Some(&b"kept"[..]));
        assert_eq!(reader.read().await, None);
    }

    #[tokio::test]
    async fn output_that_is_all_there_does_not_wait_for_room() {
        let (mut writer, mut reader) = pipe(2);
        writer.write_now(b"more than two");
        let deadline = Instant::now() + Duration::from_millis(1);
        assert_eq!(writer.write(b"x", deadline), Err(PipeError::DeadlinePassed));
        drop(writer);
        assert_eq!(reader.read().await.as_deref(), Some(&b"more than two"[..]));
        assert_eq!(reader.read().await, None);

        let (mut writer, reader) = pipe(2);
        drop(reader);
        writer.write_now(b"nobody reads this");
        assert_eq!(writer.write(b"x", soon()), Err(PipeError::Closed));
    }

    #[test]
    fn a_pipe_of_no_bytes_still_passes_one() {
        let (mut writer, _reader) = pipe(0);
        assert_eq!(writer.write(b"x", soon()), Ok(()));
    }
}
