//! Pure token-bucket arithmetic.
//!
//! A bucket starts full, with as many tokens as its [`Quota`] allows per window, and refills evenly:
//! over any span of `t` nanoseconds it admits at most `limit + limit × t / window` requests.
//!
//! All arithmetic is on integers and exact. What is stored is not the tokens left but the *debt*:
//! the tokens taken and not yet refilled, in units of one token divided by the window's nanoseconds.
//! One token then is `window` units and a nanosecond pays `limit` units back, so nothing is ever
//! rounded, however often a bucket is touched. The largest debt is `limit × window`, below
//! 2³² × 2⁴⁷, far inside 128 bits.
//!
//! Time is an argument: nanoseconds since any fixed origin, the same for all calls on one bucket.
//!
//! - A clock that steps back by less than one window refills nothing until it has caught up, so that
//!   requests which raced for a lock can't win tokens by it. A larger step is a clock that was set:
//!   the bucket goes on from the new time with the debt it had.
//! - What is charged after the fact may take more than is there. The quota says whether that much is
//!   owed ([`Quota::with_overdraft`]), up to one window's worth.
//! - A bucket may be asked with another limit than last time (a tier was changed). The debt is kept,
//!   capped at the new limit: what was used stays used, and a caller waits at most one window.

use std::time::Duration;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const SECONDS_PER_MINUTE: u32 = 60;
const SECONDS_PER_DAY: u32 = 86_400;

/// A limit: `limit` tokens at most (the burst), refilled evenly over a window.
///
/// A limit of 0 admits nothing, ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    limit: u32,
    window_seconds: u32,
    overdraft: bool,
}

/// One bucket's state. [`Bucket::default`] is a full bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// Tokens taken and not yet refilled, in units of a token / the window's nanoseconds.
    debt: u128,
    /// When `debt` was true, in nanoseconds since the origin.
    at_ns: u64,
}

/// What a bucket holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Whole tokens left.
    pub remaining: u32,
    /// Until the bucket is full again; the whole window for a limit of 0.
    pub reset_after: Duration,
    /// Until a token is there: zero when one is, the whole window for a limit of 0.
    pub retry_after: Duration,
}

impl Quota {
    pub const fn per_minute(limit: u32) -> Quota {
        Quota {
            limit,
            window_seconds: SECONDS_PER_MINUTE,
            overdraft: false,
        }
    }

    pub const fn per_day(limit: u32) -> Quota {
        Quota {
            limit,
            window_seconds: SECONDS_PER_DAY,
            overdraft: false,
        }
    }

    /// The same quota, whose bucket may owe one window's worth on top when it is empty.
    #[must_use]
    pub const fn with_overdraft(self) -> Quota {
        Quota {
            overdraft: true,
            ..self
        }
    }

    /// Tokens per window, which is also the burst.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    pub const fn window_seconds(&self) -> u32 {
        self.window_seconds
    }

    const fn window_ns(&self) -> u64 {
        self.window_seconds as u64 * NANOS_PER_SECOND
    }

    /// The debt of one token.
    const fn token(&self) -> u128 {
        self.window_ns() as u128
    }

    /// The debt of an empty bucket.
    const fn debt_max(&self) -> u128 {
        self.limit as u128 * self.token()
    }

    /// The largest debt.
    const fn debt_cap(&self) -> u128 {
        self.debt_max() * if self.overdraft { 2 } else { 1 }
    }

    /// Time to pay `debt` back, rounded up; `None` for a limit of 0, which pays nothing back.
    fn payback_ns(&self, debt: u128) -> Option<u64> {
        if self.limit == 0 {
            return None;
        }
        Some(u64::try_from(debt.div_ceil(u128::from(self.limit))).unwrap_or(u64::MAX))
    }
}

impl Bucket {
    /// Takes a token if one is there. A refusal takes nothing.
    pub fn take(&mut self, quota: Quota, now_ns: u64) -> bool {
        self.settle(quota, now_ns);
        let admitted = self.has_token(quota);
        if admitted {
            self.debt += quota.token();
        }
        admitted
    }

    /// Takes so many thousandths of a token whether or not they are there; more than the quota lets a
    /// bucket owe is forgiven.
    pub fn charge(&mut self, quota: Quota, thousandths: u64, now_ns: u64) {
        self.settle(quota, now_ns);
        // A window is whole seconds, so a thousandth of a token is a whole number of units.
        let charged = u128::from(thousandths) * (quota.token() / 1_000);
        self.debt = (self.debt + charged).min(quota.debt_cap());
    }

    /// A bucket that owes this much now, in units of a token / the window's nanoseconds.
    pub const fn owing(debt: u128, at_ns: u64) -> Bucket {
        Bucket { debt, at_ns }
    }

    /// A bucket without a token at `at_ns`.
    pub const fn empty(quota: Quota, at_ns: u64) -> Bucket {
        Bucket::owing(quota.debt_max(), at_ns)
    }

    /// What the bucket owes at `now_ns`, in the same units.
    pub fn debt(&self, quota: Quota, now_ns: u64) -> u128 {
        self.settled(quota, now_ns).debt
    }

    /// The same bucket with `tokens` more in it, as far as it can hold them.
    #[must_use]
    pub fn with(&self, quota: Quota, tokens: u32) -> Bucket {
        Bucket {
            debt: self.debt.saturating_sub(u128::from(tokens) * quota.token()),
            at_ns: self.at_ns,
        }
    }

    /// Brings the bucket to `now_ns`: pays back what is due, and caps the debt at what this quota
    /// allows. Takes nothing.
    pub fn settle(&mut self, quota: Quota, now_ns: u64) {
        *self = self.settled(quota, now_ns);
    }

    /// Whether a token was there when the bucket was last settled under this quota.
    pub fn has_token(&self, quota: Quota) -> bool {
        self.debt + quota.token() <= quota.debt_max()
    }

    /// What the bucket holds now. Takes nothing.
    pub fn read(&self, quota: Quota, now_ns: u64) -> Reading {
        let settled = self.settled(quota, now_ns);
        let free = quota.debt_max().saturating_sub(settled.debt);
        let remaining = u32::try_from(free / quota.token()).unwrap_or(quota.limit);
        // Nothing is paid back before the clock has caught up with what the bucket has seen.
        let behind_ns = settled.at_ns.saturating_sub(now_ns);
        let after = |debt: u128| {
            let payback_ns = match quota.payback_ns(debt) {
                Some(payback_ns) => payback_ns,
                None => quota.window_ns(),
            };
            Duration::from_nanos(behind_ns.saturating_add(payback_ns))
        };
        Reading {
            remaining,
            reset_after: if settled.debt == 0 && quota.limit > 0 {
                Duration::ZERO
            } else {
                after(settled.debt)
            },
            retry_after: if remaining > 0 {
                Duration::ZERO
            } else {
                after((settled.debt + quota.token()).saturating_sub(quota.debt_max()))
            },
        }
    }

    /// The same bucket with the debt that is left at `now_ns`, capped at what this quota allows.
    fn settled(&self, quota: Quota, now_ns: u64) -> Bucket {
        let debt = self.debt.min(quota.debt_cap());
        let Some(elapsed_ns) = now_ns.checked_sub(self.at_ns) else {
            let stepped_back = self.at_ns - now_ns > quota.window_ns();
            return Bucket {
                debt,
                at_ns: if stepped_back { now_ns } else { self.at_ns },
            };
        };
        let paid = u128::from(elapsed_ns) * u128::from(quota.limit);
        Bucket {
            debt: debt.saturating_sub(paid),
            at_ns: now_ns,
        }
    }
}

#[cfg(test)]
mod tests;
