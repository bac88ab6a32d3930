//! Requests that end from outside, whatever they wait for: bodies of HTTP/2 that don't come, which Pingora
//! reads without a timeout, and requests whose key is stopped.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// When the rest of a request's body must be there.
#[derive(Default)]
pub struct Due {
    state: Mutex<State>,
    /// Told when there is a time, where there was none.
    begun: Notify,
    pub ending: Ending,
}

/// What ends the request that is worked on now; nothing of most.
#[derive(Default)]
pub struct Ending {
    next: Mutex<Next>,
    is_set: AtomicBool,
    changed: Notify,
}

#[derive(Default)]
struct Next {
    /// Counts what was set and cleared.
    number: u64,
    cause: Option<Cause>,
}

struct Cause {
    until: Pin<Box<dyn Future<Output = ()> + Send>>,
    report: Report,
}

#[derive(Default)]
struct State {
    at: Option<Instant>,
    report: Option<Report>,
}

/// Says what became of the request, which itself can't any more.
pub type Report = Box<dyn FnOnce() + Send>;

impl Due {
    /// The body is awaited from now on.
    pub fn begin(&self, at: Instant, report: Report) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State {
            at: Some(at),
            report: Some(report),
        };
        drop(state);
        self.begun.notify_one();
    }

    /// A part has come, and the next is due then; `None` after the last.
    pub fn set(&self, at: Option<Instant>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.at.is_some() {
            state.at = at;
        }
    }

    /// Resolves when the body did not come in time, with the report of that.
    pub async fn overdue(&self) -> Option<Report> {
        loop {
            let at = self.at();
            match at {
                None => self.begun.notified().await,
                Some(at) => {
                    tokio::time::sleep_until(at.into()).await;
                    // More of it may have come meanwhile.
                    if self.at() == Some(at) {
                        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                        return state.report.take();
                    }
                }
            }
        }
    }

    fn at(&self) -> Option<Instant> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).at
    }
}

impl Ending {
    /// The request ends when `until` resolves.
    pub fn set(&self, until: impl Future<Output = ()> + Send + 'static, report: Report) {
        let until = Box::pin(until);
        self.put(Some(Cause { until, report }));
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// The request is over by itself.
    pub fn clear(&self) {
        if self.is_set.load(Ordering::Relaxed) {
            self.is_set.store(false, Ordering::Relaxed);
            self.put(None);
        }
    }

    /// Resolves when the request has to end, with the report of that.
    pub async fn ended(&self) -> Report {
        loop {
            let (number, cause) = {
                let mut next = self.next();
                (next.number, next.cause.take())
            };
            let Some(Cause { mut until, report }) = cause else {
                self.changed.notified().await;
                continue;
            };
            loop {
                tokio::select! {
                    biased;
                    // It may be the word of this one, which was found before it was heard of.
                    () = self.changed.notified() => if self.next().number != number {
                        break;
                    },
                    () = &mut until => return report,
                }
            }
        }
    }

    fn put(&self, cause: Option<Cause>) {
        let mut next = self.next();
        next.number += 1;
        next.cause = cause;
        drop(next);
        self.changed.notify_one();
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_part_gives_more_time_and_the_last_ends_it() {
        let second = Duration::from_secs(1);
        let start = tokio::time::Instant::now();
        let after = |seconds: u32| start.into_std() + seconds * second;
        let due = Arc::new(Due::default());
        let waiting = Arc::clone(&due);
        let overdue = tokio::spawn(async move {
            let report = waiting.overdue().await;
            (report.is_some(), tokio::time::Instant::now())
        });
        tokio::time::sleep(5 * second).await;
        // Nobody awaits a body yet.
        due.set(Some(after(6)));
        tokio::time::sleep(5 * second).await;
        assert!(!overdue.is_finished());
        due.begin(after(12), Box::new(|| {}));
        tokio::time::sleep(second).await;
        due.set(Some(after(20)));
        tokio::time::sleep(5 * second).await;
        due.set(None);
        tokio::time::sleep(20 * second).await;
        assert!(!overdue.is_finished());
        due.begin(after(50), Box::new(|| {}));
        let (reported, at) = overdue.await.unwrap();
        assert!(reported);
        assert_eq!((at - start).as_secs(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_over_is_not_ended_any_more_and_the_next_is() {
        let second = Duration::from_secs(1);
        let start = tokio::time::Instant::now();
        let ending = Arc::new(Ending::default());
        let waiting = Arc::clone(&ending);
        let wrong: Report = Box::new(|| panic!("the first was over"));
        // Before anybody waits, as where the request comes so far at once.
        ending.set(tokio::time::sleep(2 * second), wrong);
        let ended = tokio::spawn(async move {
            let report = waiting.ended().await;
            report();
            tokio::time::Instant::now()
        });
        tokio::time::sleep(second).await;
        ending.clear();
        ending.clear();
        tokio::time::sleep(5 * second).await;
        ending.set(tokio::time::sleep(3 * second), Box::new(|| {}));
        assert_eq!((ended.await.unwrap() - start).as_secs(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_set_before_anybody_waits_is_not_missed() {
        let (ending, second) = (Ending::default(), Duration::from_secs(1));
        ending.set(tokio::time::sleep(second), Box::new(|| {}));
        let ended = tokio::time::timeout(2 * second, ending.ended());
        assert!(ended.await.is_ok());
    }
}
