//! How lines of the log leave: gathered in memory, written by a thread of their own.
//!
//! Handing each line to another thread as it comes costs a wake-up and a system call per request, more
//! than making the line does. So a line is only put to the others. The first wakes the thread, which
//! writes it at once, and then lets the next ones gather for a few milliseconds.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::metrics::metrics;

/// How long lines gather.
const GATHER: Duration = Duration::from_millis(5);
/// What may wait for a slow reader of the log; lines beyond it are dropped, and counted.
const BYTES_MAX: usize = 16 << 20;

/// Takes lines from any thread and never waits for their reader.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

/// Writes until it is dropped, and then what is left.
pub struct Writing {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    woken: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// The thread comes by itself soon, and need not be woken.
    is_gathering: bool,
    is_over: bool,
}

/// Starts the thread that writes to `out`.
///
/// # Errors
/// The system has no thread to give.
pub fn start(out: impl Write + Send + 'static) -> io::Result<(Lines, Writing)> {
    let shared = Arc::new(Shared::default());
    let own = Arc::clone(&shared);
    let thread = std::thread::Builder::new()
        .name("log".into())
        .spawn(move || own.write(out))?;
    let writing = Writing {
        shared: Arc::clone(&shared),
        thread: Some(thread),
    };
    Ok((Lines(shared), writing))
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        let mut waiting = self.waiting();
        loop {
            let woken = self
                .woken
                .wait_while(waiting, |w| w.bytes.is_empty() && !w.is_over);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut waiting.bytes, &mut lines);
            let is_over = waiting.is_over;
            waiting.is_gathering = true;
            drop(waiting);
            // There is nobody to tell that the log can't be written.
            let _ = out.write_all(&lines).and_then(|()| out.flush());
            lines.clear();
            // What a burst took is not kept for ever.
            lines.shrink_to(1 << 20);
            if is_over {
                return;
            }
            let gathered = self
                .woken
                .wait_timeout_while(self.waiting(), GATHER, |w| !w.is_over);
            waiting = gathered.unwrap_or_else(PoisonError::into_inner).0;
            waiting.is_gathering = false;
        }
    }
}

impl Lines {
    /// Takes one line, or several whole ones.
    pub fn put(&self, lines: &[u8]) {
        let mut waiting = self.0.waiting();
        if waiting.bytes.len() + lines.len() > BYTES_MAX {
            drop(waiting);
            metrics().log_lines_dropped.inc();
            return;
        }
        let wakes = waiting.bytes.is_empty() && !waiting.is_gathering;
        waiting.bytes.extend_from_slice(lines);
        drop(waiting);
        if wakes {
            self.0.woken.notify_one();
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = Lines;

    fn make_writer(&'w self) -> Lines {
        self.clone()
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.shared.waiting().is_over = true;
        self.shared.woken.notify_one();
        if let Some(thread) = self.thread.take() {
            // Its panic has been reported.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows what was written, and takes nothing while it is held.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_whole_and_in_order() {
        let page = Page::default();
        let (lines, writing) = start(page.clone()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let mut lines = lines.clone();
                scope.spawn(move || {
                    for i in 0..1000 {
                        lines
                            .write_all(format!("{thread} {i}\n").as_bytes())
                            .unwrap();
                    }
                });
            }
        });
        drop(writing);
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        for thread in 0..4 {
            let prefix = format!("{thread} ");
            let numbers = text.lines().filter_map(|line| line.strip_prefix(&prefix));
            let numbers: Vec<usize> = numbers.map(|n| n.parse().unwrap()).collect();
            assert!(numbers.into_iter().eq(0..1000));
        }
    }

    #[test]
    fn lines_appear_without_waiting_for_more() {
        let page = Page::default();
        let (mut lines, _writing) = start(page.clone()).unwrap();
        for expected in ["one\n", "one\ntwo\n"] {
            lines
                .write_all(&expected.as_bytes()[expected.len() - 4..])
                .unwrap();
            let deadline = std::time::Instant::now() + Duration::from_secs(60);
            while page.0.lock().unwrap().as_slice() != expected.as_bytes() {
                assert!(std::time::Instant::now() < deadline);
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_not_memory() {
        let page = Page::default();
        let held = page.0.lock().unwrap();
        let (mut lines, writing) = start(page.clone()).unwrap();
        let line = vec![b'x'; 1 << 20];
        for _ in 0..100 {
            lines.write_all(&line).unwrap();
        }
        assert!(lines.0.waiting().bytes.len() <= BYTES_MAX);
        drop(held);
        drop(writing);
        // What the thread had taken already, and what waited.
        let written = page.0.lock().unwrap().len();
        assert!((BYTES_MAX..=2 * BYTES_MAX).contains(&written), "{written}");
    }
}
