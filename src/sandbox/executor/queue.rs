//! A queue that is fair between shares: pure bookkeeping, under the executor's lock.

use std::collections::{HashMap, VecDeque};

use super::ShareKey;

/// Jobs that wait, and counts of those that run. A job is ready if its share runs fewer than it ever
/// may; and its turn comes when it also runs fewer than twice as many as there is room for still. So
/// one share can't fill the room, nor can a few, and a newcomer always finds some. (Whether a thread is
/// free is the executor's concern.)
#[derive(Debug)]
pub(super) struct Queue<J> {
    running_max: usize,
    per_share_max: usize,
    waiting_max: usize,
    shares: HashMap<ShareKey, Share<J>>,
    /// Shares with ready jobs, in turn, each once.
    turn: VecDeque<ShareKey>,
    ready: usize,
    waiting: usize,
    running: usize,
}

#[derive(Debug)]
struct Share<J> {
    jobs: VecDeque<J>,
    running: usize,
}

impl<J> Share<J> {
    fn ready(&self, per_share_max: usize) -> usize {
        self.jobs
            .len()
            .min(per_share_max.saturating_sub(self.running))
    }
}

impl<J> Queue<J> {
    /// A queue of at most `waiting_max` jobs beyond those for which there is room to run.
    pub(super) fn new(running_max: usize, per_share_max: usize, waiting_max: usize) -> Queue<J> {
        Queue {
            running_max,
            per_share_max,
            waiting_max,
            shares: HashMap::new(),
            turn: VecDeque::new(),
            ready: 0,
            waiting: 0,
            running: 0,
        }
    }

    /// Jobs that could run now.
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Adds a job at the end of its share. When the queue is full, the newest job of the longest
    /// share makes room and is handed back, if that share is longer than this one would be; else
    /// the job itself is, as the error.
    pub(super) fn push(&mut self, key: ShareKey, job: J) -> Result<Option<J>, J> {
        let free = self.running_max.saturating_sub(self.running);
        let mut evicted = None;
        if self.waiting >= free.saturating_add(self.waiting_max) {
            let own = self.shares.get(&key).map_or(0, |share| share.jobs.len());
            let longest = self
                .shares
                .iter()
                .map(|(key, share)| (share.jobs.len(), *key))
                .max_by_key(|(length, _)| *length);
            match longest {
                Some((length, longest)) if length > own + 1 => {
                    evicted = self.change(longest, |share| share.jobs.pop_back());
                }
                Some(_) | None => return Err(job),
            }
        }
        self.change(key, |share| share.jobs.push_back(job));
        Ok(evicted)
    }

    /// The next job of the first share whose turn it is; it counts as running until [`Queue::ended`].
    pub(super) fn pop(&mut self) -> Option<J> {
        let room = self.running_max.saturating_sub(self.running);
        let running_max = room.saturating_mul(2).max(1);
        let at = self.turn.iter().position(|key| {
            let share = self.shares.get(key);
            share.is_some_and(|share| share.running < running_max)
        })?;
        let key = self.turn.remove(at)?;
        let job = self.change(key, |share| {
            let job = share.jobs.pop_front();
            share.running += usize::from(job.is_some());
            job
        });
        self.running += usize::from(job.is_some());
        // Its next turn comes after the others'.
        if self
            .shares
            .get(&key)
            .is_some_and(|share| share.ready(self.per_share_max) > 0)
        {
            self.turn.push_back(key);
        }
        job
    }

    /// A job of this share has ended; true if others wait for the room.
    pub(super) fn ended(&mut self, key: ShareKey) -> bool {
        self.change(key, |share| share.running = share.running.saturating_sub(1));
        self.running = self.running.saturating_sub(1);
        self.waiting > 0
    }

    /// Takes out the first job of a share that fits.
    pub(super) fn remove(&mut self, key: ShareKey, fits: impl Fn(&J) -> bool) -> Option<J> {
        if !self.shares.contains_key(&key) {
            return None;
        }
        self.change(key, |share| {
            let at = share.jobs.iter().position(fits)?;
            share.jobs.remove(at)
        })
    }

    /// Takes out all that wait.
    pub(super) fn clear(&mut self) -> Vec<J> {
        let keys: Vec<ShareKey> = self.shares.keys().copied().collect();
        let cleared = keys
            .into_iter()
            .flat_map(|key| self.change(key, |share| std::mem::take(&mut share.jobs)));
        cleared.collect()
    }

    /// Changes a share and keeps the counts and the turns true. A share whose ready jobs are gone is
    /// taken out of the turns, one that has some again gets the last.
    fn change<R>(&mut self, key: ShareKey, change: impl FnOnce(&mut Share<J>) -> R) -> R {
        let share = self.shares.entry(key).or_insert_with(|| Share {
            jobs: VecDeque::new(),
            running: 0,
        });
        let (ready, waiting) = (share.ready(self.per_share_max), share.jobs.len());
        let result = change(share);
        let ready_now = share.ready(self.per_share_max);
        self.ready = self.ready - ready + ready_now;
        self.waiting = self.waiting - waiting + share.jobs.len();
        if share.jobs.is_empty() && share.running == 0 {
            self.shares.remove(&key);
        }
        match (ready, ready_now) {
            (0, 1..) => self.turn.push_back(key),
            (1.., 0) => self.turn.retain(|other| *other != key),
            (0, 0) | (1.., 1..) => {}
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::{Queue, ShareKey};

    fn key(name: &str) -> ShareKey {
        ShareKey::of(name)
    }

    fn filled(bounds: [usize; 3], jobs: &[(&str, u32)]) -> Queue<u32> {
        let [running_max, per_share_max, waiting_max] = bounds;
        let mut queue = Queue::new(running_max, per_share_max, waiting_max);
        for (share, job) in jobs {
            assert_eq!(queue.push(key(share), *job), Ok(None));
        }
        queue
    }

    #[test]
    fn shares_take_turns() {
        let jobs = [
            ("a", 1),
            ("a", 2),
            ("a", 3),
            ("b", 10),
            ("c", 20),
            ("b", 11),
        ];
        let mut queue = filled([9, 9, 9], &jobs);
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [1, 10, 20, 2, 11, 3]);
        assert_eq!((queue.waiting(), queue.ready(), queue.running()), (0, 0, 6));
    }

    #[test]
    fn a_share_runs_no_more_than_it_may() {
        let mut queue = filled([9, 2, 9], &[("a", 1), ("a", 2), ("a", 3), ("b", 10)]);
        assert_eq!(queue.ready(), 3);
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [1, 10, 2]);
        assert_eq!((queue.waiting(), queue.ready()), (1, 0));
        assert!(queue.ended(key("b")));
        assert_eq!(queue.pop(), None);
        assert!(queue.ended(key("a")));
        assert_eq!(queue.pop(), Some(3));
        for share in ["a", "a"] {
            queue.ended(key(share));
        }
        assert_eq!((queue.running(), queue.waiting()), (0, 0));
        assert!(queue.shares.is_empty() && queue.turn.is_empty());
    }

    #[test]
    fn when_it_is_full_the_longest_share_gives_way() {
        // Two may run and two may wait.
        let mut queue = filled([2, 9, 2], &[("a", 1), ("a", 2), ("a", 3), ("b", 10)]);
        assert_eq!(queue.push(key("a"), 4), Err(4));
        assert_eq!(queue.push(key("b"), 11), Ok(Some(3)));
        // Both have two, so neither gains by the other's loss.
        assert_eq!(queue.push(key("b"), 12), Err(12));
        assert!(matches!(queue.push(key("c"), 20), Ok(Some(2 | 11))));
        assert_eq!(queue.push(key("c"), 21), Err(21));
        assert_eq!(queue.waiting(), 4);
    }

    #[test]
    fn there_is_room_for_a_newcomer() {
        let mut queue = Queue::new(16, 16, 100);
        let count = |queue: &mut Queue<u32>, name: &str| {
            for job in 0..20 {
                queue.push(key(name), job).unwrap();
            }
            std::iter::from_fn(|| queue.pop()).count()
        };
        // Each takes part of what the others left, and nobody takes all.
        assert_eq!(count(&mut queue, "a"), 11);
        assert_eq!(count(&mut queue, "b"), 4);
        assert_eq!(count(&mut queue, "c"), 1);
        assert_eq!(queue.running(), 16);
        // What is free again goes to those who have less.
        assert!(queue.ended(key("a")));
        assert!(queue.pop().is_some());
        assert_eq!(queue.pop(), None);
        // Two places are for two, even if they are one caller's.
        let mut queue = Queue::new(2, 2, 100);
        assert_eq!(count(&mut queue, "a"), 2);
    }

    #[test]
    fn what_is_taken_out_is_gone() {
        let mut queue = filled([9, 1, 9], &[("a", 1), ("a", 2), ("b", 10)]);
        assert_eq!(queue.remove(key("a"), |job| *job == 2), Some(2));
        assert_eq!(queue.remove(key("a"), |job| *job == 2), None);
        assert_eq!(queue.remove(key("nobody"), |_| true), None);
        assert_eq!(queue.remove(key("b"), |_| true), Some(10));
        assert_eq!((queue.waiting(), queue.ready()), (1, 1));
        assert_eq!(queue.clear(), [1]);
        assert_eq!((queue.pop(), queue.waiting(), queue.ready()), (None, 0, 0));
        assert!(queue.turn.is_empty() && queue.shares.is_empty());
    }
}
