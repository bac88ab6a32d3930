//! When keys were last used, on the way to the database.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::store::{Store, StoreError};

/// Keys noted between two flushes; a use of one more is not noted.
const KEYS_MAX: usize = 65_536;

/// Keys written in one transaction, which holds SQLite's only write lock.
const BATCH_MAX: usize = 1_000;

#[derive(Default)]
pub(super) struct Uses {
    noted: Mutex<HashMap<Uuid, DateTime<Utc>>>,
}

impl Uses {
    pub(super) fn note(&self, key_id: Uuid, at: DateTime<Utc>) {
        let mut noted = self.lock();
        let room = noted.len() < KEYS_MAX;
        match noted.get_mut(&key_id) {
            Some(last) => *last = at.max(*last),
            None if room => {
                noted.insert(key_id, at);
            }
            None => {}
        }
    }

    /// Writes what was noted. What could not be written stays noted.
    pub(super) async fn flush(&self, store: &Store) -> Result<(), StoreError> {
        let uses: Vec<(Uuid, DateTime<Utc>)> = self
            .lock()
            .iter()
            .map(|(&key_id, &at)| (key_id, at))
            .collect();
        for batch in uses.chunks(BATCH_MAX) {
            store.keys_used(batch).await?;
            let mut noted = self.lock();
            for (key_id, written) in batch {
                // A later use may have been noted while this one was written.
                if noted.get(key_id) == Some(written) {
                    noted.remove(key_id);
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, DateTime<Utc>>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_is_bounded_and_never_goes_back() {
        let uses = Uses::default();
        let at = DateTime::UNIX_EPOCH;
        let first = Uuid::from_u128(0);
        for key in 0..KEYS_MAX as u128 + 10 {
            uses.note(Uuid::from_u128(key), at);
        }
        assert_eq!(uses.lock().len(), KEYS_MAX);
        let later = at + chrono::TimeDelta::seconds(5);
        uses.note(first, later);
        uses.note(first, at);
        assert_eq!(uses.lock()[&first], later);
    }
}
