//! Questions to the database that are under way: one per key, however many requests wait for it.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::AuthError;
use super::cache::{Hash, Loaded};

/// Questions at the same time. One more is not asked: a flood of guesses must not fill the
/// database's queue.
const LOADS_MAX: usize = 256;

type Ask = BoxFuture<'static, Result<Loaded, AuthError>>;

/// A question under way. Only those who wait hold it: when the last one goes, it ends.
pub(super) type Load = Shared<Ask>;

#[derive(Clone, Default)]
pub(super) struct Loads {
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    loads: HashMap<Hash, (u64, WeakShared<Ask>)>,
    next_id: u64,
}

/// Takes a load off the table when it ends or is dropped.
struct Ended {
    loads: Loads,
    hash: Hash,
    id: u64,
}

impl Loads {
    /// The load of this key that is under way, or else a new one. `None` when there are too many.
    pub(super) fn join<F>(&self, hash: Hash, ask: impl FnOnce() -> F) -> Option<Load>
    where
        F: Future<Output = Result<Loaded, AuthError>> + Send + 'static,
    {
        let mut running = self.lock();
        if let Some(load) = running
            .loads
            .get(&hash)
            .and_then(|(_, load)| load.upgrade())
        {
            return Some(load);
        }
        if running.loads.len() >= LOADS_MAX {
            return None;
        }
        let id = running.next_id;
        running.next_id += 1;
        let ended = Ended {
            loads: self.clone(),
            hash,
            id,
        };
        // A panic would leave the others waiting for ever; they are told that nobody knows instead.
        let asked = AssertUnwindSafe(ask()).catch_unwind();
        let load = async move {
            let _ended = ended;
            asked.await.unwrap_or(Err(AuthError::Unavailable))
        }
        .boxed()
        .shared();
        if let Some(weak) = load.downgrade() {
            running.loads.insert(hash, (id, weak));
        }
        Some(load)
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut running = self.loads.lock();
        // Another load of the same key may have started since the last one who waited went.
        if running
            .loads
            .get(&self.hash)
            .is_some_and(|(id, _)| *id == self.id)
        {
            running.loads.remove(&self.hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_for_one_key_share_one_load() {
        let loads = Loads::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let join = || {
            let (asked, go) = (Arc::clone(&asked), Arc::clone(&go));
            loads.join([1; 32], move || async move {
                asked.fetch_add(1, Ordering::Relaxed);
                go.notified().await;
                Ok(Loaded::Refused)
            })
        };
        let waiting: Vec<Load> = (0..100).map(|_| join().unwrap()).collect();
        go.notify_one();
        for load in waiting {
            assert!(matches!(load.await, Ok(Loaded::Refused)));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(loads.lock().loads.is_empty());
    }

    #[tokio::test]
    async fn a_load_nobody_waits_for_ends_and_the_next_starts_anew() {
        let loads = Loads::default();
        let first = loads.join([1; 32], std::future::pending).unwrap();
        assert!(first.clone().now_or_never().is_none());
        drop(first);
        assert!(loads.lock().loads.is_empty());
        let second = loads
            .join([1; 32], || async { Ok(Loaded::Refused) })
            .unwrap();
        assert!(second.await.is_ok());
    }

    #[test]
    fn loads_are_bounded() {
        let loads = Loads::default();
        let held: Vec<_> = (0..LOADS_MAX)
            .map(|at| {
                let mut hash = [0; 32];
                hash[..8].copy_from_slice(&at.to_be_bytes());
                loads.join(hash, std::future::pending).unwrap()
            })
            .collect();
        assert!(loads.join([9; 32], std::future::pending).is_none());
        assert!(
            loads.join([0; 32], std::future::pending).is_some(),
            "joining is not bounded"
        );
        drop(held);
        assert!(loads.join([9; 32], std::future::pending).is_some());
    }
}
