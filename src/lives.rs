//! Work that can be ended from elsewhere, named by whom it is for.
//!
//! Nothing is noted of work that ends at once. What has to wait is noted under its name until it is
//! done, and ended when somebody says so.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;

use tokio::sync::watch;

/// The work that goes on, by name.
pub struct Lives<K> {
    running: Mutex<HashMap<K, Weak<watch::Sender<bool>>>>,
}

/// Something that goes on for long, and is asked from time to time whether it may. Its name is noted as
/// long as it is held.
pub struct Life<K: Copy + Eq + Hash> {
    lives: Arc<Lives<K>>,
    name: K,
    life: Option<Arc<watch::Sender<bool>>>,
}

/// The work was ended by [`Lives::end`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ended from elsewhere")]
pub struct Ended;

impl<K: Copy + Eq + Hash> Lives<K> {
    /// Does the work, until it is ended. When it has to wait for the first time, it is noted under its
    /// name, and `noted` is called after that: what made its name a good one may have changed before.
    ///
    /// # Errors
    /// [`Ended`], with the work dropped where it was.
    pub async fn run<T>(
        &self,
        name: K,
        noted: impl FnOnce(),
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        let mut work = pin!(work);
        let at_once = std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => Poll::Ready(None),
        });
        if let Some(value) = at_once.await {
            return Ok(value);
        }
        let running = Running {
            lives: self,
            name,
            life: Some(self.life(name)),
        };
        let ended = running.life.as_ref().map(|life| life.subscribe());
        noted();
        let until_ended = async {
            match ended {
                // The sender is ours, so waiting ends only when it says so.
                Some(mut ended) => drop(ended.wait_for(|ended| *ended).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            value = work => Ok(value),
            () = until_ended => Err(Ended),
        }
    }

    /// Notes something under its name that is not a future. What made its name a good one may have
    /// changed before.
    pub fn hold(self: &Arc<Self>, name: K) -> Life<K> {
        Life {
            lives: Arc::clone(self),
            name,
            life: Some(self.life(name)),
        }
    }

    /// Ends the work of this name.
    pub fn end(&self, name: K) {
        let life = self.lock().remove(&name).and_then(|life| life.upgrade());
        if let Some(life) = life {
            life.send_replace(true);
        }
    }

    /// The names of all work that goes on.
    pub fn names(&self) -> Vec<K> {
        self.lock().keys().copied().collect()
    }

    fn life(&self, name: K) -> Arc<watch::Sender<bool>> {
        let mut running = self.lock();
        if let Some(life) = running.get(&name).and_then(Weak::upgrade) {
            return life;
        }
        let life = Arc::new(watch::Sender::new(false));
        running.insert(name, Arc::downgrade(&life));
        life
    }

    /// Takes the name off the table when nothing runs under it any more.
    fn forget(&self, name: K) {
        let mut running = self.lock();
        if running
            .get(&name)
            .is_some_and(|life| life.strong_count() == 0)
        {
            running.remove(&name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Weak<watch::Sender<bool>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the name off when the work ends, however it does.
struct Running<'a, K: Copy + Eq + Hash> {
    lives: &'a Lives<K>,
    name: K,
    life: Option<Arc<watch::Sender<bool>>>,
}

impl<K: Copy + Eq + Hash> Drop for Running<'_, K> {
    fn drop(&mut self) {
        self.life = None;
        self.lives.forget(self.name);
    }
}

impl<K: Copy + Eq + Hash> Life<K> {
    pub fn has_ended(&self) -> bool {
        self.life.as_ref().is_some_and(|life| *life.borrow())
    }

    /// Resolves once it has ended.
    pub async fn ended(&self) {
        match self.watch() {
            // The sender is held here, so waiting ends only when it says so.
            Some(mut ended) => drop(ended.wait_for(|ended| *ended).await),
            None => std::future::pending().await,
        }
    }

    /// True once it has ended.
    pub fn watch(&self) -> Option<watch::Receiver<bool>> {
        self.life.as_ref().map(|life| life.subscribe())
    }
}

impl<K: Copy + Eq + Hash> Drop for Life<K> {
    fn drop(&mut self) {
        self.life = None;
        self.lives.forget(self.name);
    }
}

impl<K> Default for Lives<K> {
    fn default() -> Lives<K> {
        Lives {
            running: Mutex::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_ends_at_once_is_not_noted() {
        let lives = Lives::default();
        let noted = || panic!("noted");
        assert_eq!(lives.run(1, noted, async { 7 }).await, Ok(7));
    }

    #[tokio::test]
    async fn what_is_held_hears_of_its_end() {
        let lives: Arc<Lives<u32>> = Arc::default();
        let (held, same, other) = (lives.hold(1), lives.hold(1), lives.hold(2));
        let mut watch = held.watch().unwrap();
        lives.end(1);
        assert!(held.has_ended() && same.has_ended() && !other.has_ended());
        assert!(*watch.wait_for(|ended| *ended).await.unwrap());
        // What is named again after the end is not ended by it.
        let again = lives.hold(1);
        assert!(!again.has_ended());
        drop((held, same));
        assert!(lives.names().contains(&1));
        drop((again, other));
        assert!(lives.names().is_empty());
    }

    #[tokio::test]
    async fn only_work_of_the_name_is_ended() {
        let lives: Arc<Lives<u32>> = Arc::default();
        let start = |name| {
            let lives = Arc::clone(&lives);
            tokio::spawn(async move { lives.run(name, || {}, std::future::pending::<()>()).await })
        };
        let (one, same, other) = (start(1), start(1), start(2));
        while lives.names().len() < 2 || lives.life(1).receiver_count() < 2 {
            tokio::task::yield_now().await;
        }
        lives.end(1);
        assert_eq!(one.await.unwrap(), Err(Ended));
        assert_eq!(same.await.unwrap(), Err(Ended));
        assert_eq!(lives.names(), [2]);
        other.abort();
        // What is named again after the end is not ended by it.
        let again = start(1);
        while !lives.names().contains(&1) {
            tokio::task::yield_now().await;
        }
        assert!(!again.is_finished());
        again.abort();
    }
}
