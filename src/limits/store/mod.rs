//! Where the buckets live.
//!
//! A store answers from this process's memory and never waits. One that shares its buckets with
//! other gateways takes blocks of tokens ahead in the background and answers from those. Every store
//! passes the same contract test.

pub mod memory;

use std::time::Instant;

use super::{Decision, Rate, Subject};

/// Holds the buckets of many subjects.
pub trait LimitStore: Send + Sync + 'static {
    /// Takes a token from the subject's minute and day together, or from neither. Must not wait: no
    /// network, no disk, no lock held for longer than a few buckets' arithmetic.
    fn take(&self, subject: &Subject, rate: Rate, now: Instant) -> Decision;

    /// What [`LimitStore::take`] would decide, with what is left before it. Takes nothing and
    /// remembers nothing.
    fn peek(&self, subject: &Subject, rate: Rate, now: Instant) -> Decision;

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

#[cfg(test)]
pub(crate) mod contract;
