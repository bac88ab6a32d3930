//! Where the buckets live.
//!
//! In this process's memory ([`memory`]), or in a Redis that gateways share ([`redis`]): of that, each
//! gateway takes blocks of tokens ahead in the background, and spends those ([`leases`]). Neither waits
//! for anything while a request does. A store that answers at once passes the contract test.

pub mod leases;
pub mod memory;
pub mod redis;
mod shards;

use std::time::{Duration, Instant};

use super::{Decision, Rate, Subject};

/// Holds the buckets of many subjects.
pub trait LimitStore: Send + Sync + 'static {
    /// Takes a token from the subject's minute and day together, or from neither. Must not wait: no
    /// network, no disk, no lock held for longer than a few buckets' arithmetic.
    fn take(&self, subject: &Subject, rate: Rate, now: Instant) -> Decision;

    /// What [`LimitStore::take`] would decide, with what is left before it. Takes nothing and
    /// remembers nothing.
    fn peek(&self, subject: &Subject, rate: Rate, now: Instant) -> Decision;

    /// Takes so many thousandths of a token whether or not they are there, after the fact.
    fn charge(&self, subject: &Subject, rate: Rate, thousandths: u64, now: Instant);

    fn stats(&self) -> Stats;
}

/// How full a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Subjects remembered now.
    pub subjects: usize,
    /// Subjects forgotten before their buckets were full again, since the start. A rising number
    /// says that `subjects_max` is too small for the traffic, or that addresses are being used up
    /// on purpose.
    pub forgotten_early: u64,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod contract;
