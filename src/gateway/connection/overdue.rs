//! Bodies of HTTP/2 requests that don't come: Pingora reads them without a timeout.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// When the rest of a request's body must be there.
#[derive(Default)]
pub struct Due {
    state: Mutex<State>,
    /// Told when there is a time, where there was none.
    begun: Notify,
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
}
