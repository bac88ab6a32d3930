//! Executions counted in memory until they are written.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::store::modules::Executions;

/// Modules whose executions are held at the same time, at most.
const MODULES_MAX: usize = 65_536;

/// Modules written in one transaction, at most.
const CHUNK_MAX: usize = 1_000;

/// The executions not yet written, summed per module.
#[derive(Default)]
pub(super) struct Counts {
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    modules: HashMap<Uuid, (u64, DateTime<Utc>)>,
    /// Executions of modules for which there was no room.
    dropped: u64,
}

/// Executions taken out to be written. Dropping it puts back what was not.
pub(super) struct Batch<'a> {
    counts: &'a Counts,
    executions: Vec<Executions>,
    /// How many at the end are being written.
    in_chunk: usize,
}

impl Counts {
    pub(super) fn note(&self, module_id: Uuid, now: DateTime<Utc>) {
        self.pending().add(Executions {
            module_id,
            count: 1,
            last_at: now,
        });
    }

    /// Takes everything noted so far; what is noted from now on waits for the next call.
    pub(super) fn take(&self) -> Batch<'_> {
        let modules = std::mem::take(&mut self.pending().modules);
        let executions = modules
            .into_iter()
            .map(|(module_id, (count, last_at))| Executions {
                module_id,
                count,
                last_at,
            })
            .collect();
        Batch {
            counts: self,
            executions,
            in_chunk: 0,
        }
    }

    /// Executions that could not be counted since the last call.
    pub(super) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.pending().dropped)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    fn add(&mut self, executions: Executions) {
        let room = self.modules.len() < MODULES_MAX;
        match self.modules.entry(executions.module_id) {
            Entry::Occupied(mut entry) => {
                let (count, last_at) = entry.get_mut();
                *count = count.saturating_add(executions.count);
                *last_at = executions.last_at.max(*last_at);
            }
            Entry::Vacant(entry) if room => {
                entry.insert((executions.count, executions.last_at));
            }
            Entry::Vacant(_) => self.dropped = self.dropped.saturating_add(executions.count),
        }
    }
}

impl Batch<'_> {
    /// What to write next, in one transaction; `None` when all is written. Until
    /// [`Batch::chunk_written`] it is the same executions.
    pub(super) fn next_chunk(&mut self) -> Option<&[Executions]> {
        self.in_chunk = self.executions.len().min(CHUNK_MAX);
        let start = self.executions.len() - self.in_chunk;
        self.executions
            .get(start..)
            .filter(|chunk| !chunk.is_empty())
    }

    pub(super) fn chunk_written(&mut self) {
        let left = self.executions.len() - self.in_chunk;
        self.executions.truncate(left);
        self.in_chunk = 0;
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if self.executions.is_empty() {
            return;
        }
        let mut pending = self.counts.pending();
        for executions in self.executions.drain(..) {
            pending.add(executions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u128) -> Uuid {
        Uuid::from_u128(id)
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    /// Writes a whole batch and gives what was written, in the order of the modules.
    fn write_all(counts: &Counts) -> Vec<Executions> {
        let mut batch = counts.take();
        let mut written = Vec::new();
        while let Some(chunk) = batch.next_chunk() {
            assert!(chunk.len() <= CHUNK_MAX);
            written.extend_from_slice(chunk);
            batch.chunk_written();
        }
        written.sort_by_key(|executions| executions.module_id);
        written
    }

    #[test]
    fn executions_are_summed_and_written_once() {
        let counts = Counts::default();
        counts.note(id(1), at(10));
        counts.note(id(2), at(11));
        counts.note(id(1), at(12));
        // A clock that steps back does not take the latest execution back.
        counts.note(id(1), at(5));
        let first = Executions {
            module_id: id(1),
            count: 3,
            last_at: at(12),
        };
        let second = Executions {
            module_id: id(2),
            count: 1,
            last_at: at(11),
        };
        assert_eq!(write_all(&counts), [first, second]);
        assert_eq!(write_all(&counts), []);
    }

    #[test]
    fn what_is_not_written_stays_noted() {
        let counts = Counts::default();
        counts.note(id(1), at(10));
        let mut batch = counts.take();
        assert_eq!(batch.next_chunk().map(<[_]>::len), Some(1));
        // More comes in while the write is under way; then the write fails.
        counts.note(id(1), at(20));
        counts.note(id(2), at(21));
        drop(batch);
        let first = Executions {
            module_id: id(1),
            count: 2,
            last_at: at(20),
        };
        let second = Executions {
            module_id: id(2),
            count: 1,
            last_at: at(21),
        };
        assert_eq!(write_all(&counts), [first, second]);
    }

    #[test]
    fn chunks_written_before_a_failure_are_not_written_again() {
        let counts = Counts::default();
        for module in 0..2_500 {
            counts.note(id(module), at(1));
        }
        let mut batch = counts.take();
        let written = batch.next_chunk().unwrap().to_vec();
        assert_eq!(written.len(), CHUNK_MAX);
        batch.chunk_written();
        batch.next_chunk();
        drop(batch);
        let later = write_all(&counts);
        assert_eq!(later.len(), 1_500);
        assert!(
            later
                .iter()
                .all(|executions| executions.count == 1 && !written.contains(executions))
        );
    }

    #[test]
    fn modules_beyond_the_bound_are_reported_not_held() {
        let counts = Counts::default();
        for module in 0..MODULES_MAX as u128 + 10 {
            counts.note(id(module), at(1));
        }
        // Those already held are counted on.
        counts.note(id(0), at(2));
        assert_eq!(counts.take_dropped(), 10);
        assert_eq!(counts.take_dropped(), 0);
        let written = write_all(&counts);
        assert_eq!(written.len(), MODULES_MAX);
        assert_eq!(written[0].count, 2);
    }

    #[test]
    fn nothing_is_lost_between_concurrent_executions_and_writes() {
        let counts = Counts::default();
        let written = Mutex::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for execution in 0..20_000 {
                        counts.note(id(execution % 50), at(1));
                    }
                });
            }
            for writer in 0..2 {
                let (counts, written) = (&counts, &written);
                scope.spawn(move || {
                    for round in 0..200 {
                        let mut batch = counts.take();
                        // Every other write fails.
                        if (round + writer) % 2 == 0 {
                            while let Some(chunk) = batch.next_chunk() {
                                *written.lock().unwrap() +=
                                    chunk.iter().map(|e| e.count).sum::<u64>();
                                batch.chunk_written();
                            }
                        }
                    }
                });
            }
        });
        let rest: u64 = write_all(&counts)
            .iter()
            .map(|executions| executions.count)
            .sum();
        assert_eq!(written.into_inner().unwrap() + rest, 80_000);
    }
}
