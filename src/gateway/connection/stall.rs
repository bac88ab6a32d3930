//! A client that takes nothing of what is sent to it: its connection ends.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How long a write has been waiting.
#[derive(Debug)]
pub struct Stall {
    timeout: Duration,
    /// Made with the first stall, and kept for the next.
    alarm: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
}

impl Stall {
    pub fn new(timeout: Duration) -> Stall {
        Stall {
            timeout,
            alarm: None,
            is_stalled: false,
        }
    }

    pub fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Something was taken.
    pub fn over(&mut self) {
        self.is_stalled = false;
    }

    /// Nothing is taken now. Ready once that has lasted too long.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let timeout = self.timeout;
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        if !self.is_stalled {
            self.is_stalled = true;
            alarm.as_mut().reset(Instant::now() + timeout);
        }
        ready!(alarm.as_mut().poll(cx));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_stall_has_its_own_time() {
        let second = Duration::from_secs(1);
        let mut stall = Stall::new(10 * second);
        let poll = async |stall: &mut Stall| {
            std::future::poll_fn(|cx| Poll::Ready(stall.poll(cx).is_ready())).await
        };
        assert!(!poll(&mut stall).await);
        tokio::time::sleep(9 * second).await;
        assert!(!poll(&mut stall).await && stall.is_stalled());
        stall.over();
        assert!(!stall.is_stalled());
        tokio::time::sleep(9 * second).await;
        assert!(!poll(&mut stall).await);
        tokio::time::sleep(9 * second).await;
        assert!(!poll(&mut stall).await);
        tokio::time::sleep(second).await;
        assert!(poll(&mut stall).await);
    }
}
