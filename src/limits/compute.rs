//! Compute quotas: how many guests of a user run at the same time, and how much CPU time they use.
//!
//! A guest is given a [`Seat`] before it runs. Its CPU time is measured, so it is charged when it has
//! ended; a user whose quota is used up by then gets no further seat until some of it is back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Decision, Limiter, OnLoss, Rate, Subject, Tier, Unavailable};

/// What the guests of a user may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compute {
    /// CPU time in milliseconds, on all processors together.
    pub cpu_ms: Rate,
    /// Guests at the same time; `None` is without limit.
    pub guests_max: Option<u32>,
}

/// Why there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSeat {
    /// The CPU time of this window is used up.
    CpuUsedUp(Decision),
    /// So many guests run already.
    TooManyGuests(u32),
    Unavailable,
}

/// A guest's place among those of its user. Dropping it gives the place back; without
/// [`Seat::ended`] the guest is charged for all the time since, up to its deadline, because what it
/// used is not known: nobody gets it for nothing by leaving before the end.
pub struct Seat {
    limiter: Limiter,
    user: Uuid,
    tier: Tier,
    cpu_ms: Rate,
    /// Whether the place is one of those that gateways share.
    is_shared: bool,
    is_counted: bool,
    began: Instant,
    deadline: Duration,
    is_charged: bool,
}

/// Guests that run now at this gateway, by user and tier.
#[derive(Default)]
pub(super) struct Running(Mutex<HashMap<(Uuid, Tier), u32>>);

impl From<Unavailable> for NoSeat {
    fn from(_: Unavailable) -> NoSeat {
        NoSeat::Unavailable
    }
}

impl Limiter {
    /// A seat for a guest that runs for `deadline` at most.
    ///
    /// # Errors
    /// When the user's quota is used up, or nobody can say.
    pub async fn seat(
        &self,
        user: Uuid,
        tier: Tier,
        compute: Compute,
        deadline: Duration,
        on_loss: OnLoss,
    ) -> Result<Seat, NoSeat> {
        let Compute { cpu_ms, guests_max } = compute;
        let left = self.cpu_left(user, tier, cpu_ms, on_loss).await?;
        if !left.allowed {
            return Err(NoSeat::CpuUsedUp(left));
        }
        let mut seat = Seat {
            limiter: self.clone(),
            user,
            tier,
            cpu_ms,
            is_shared: false,
            is_counted: false,
            began: Instant::now(),
            deadline,
            // Nothing has run yet.
            is_charged: true,
        };
        if let Some(guests_max) = guests_max {
            self.sit(&mut seat, guests_max, on_loss).await?;
        }
        seat.began = Instant::now();
        seat.is_charged = cpu_ms == Rate::default();
        Ok(seat)
    }

    /// What is left of a user's CPU time, in milliseconds.
    ///
    /// # Errors
    /// When nobody can say, and the guest must not run then.
    async fn cpu_left(
        &self,
        user: Uuid,
        tier: Tier,
        cpu_ms: Rate,
        on_loss: OnLoss,
    ) -> Result<Decision, Unavailable> {
        let subject = Subject::Cpu(user, tier);
        match &self.shared {
            Some(shared) if cpu_ms != Rate::default() => {
                shared.look(&subject, cpu_ms, on_loss).await
            }
            Some(_) | None => Ok(self.peek(&subject, cpu_ms, Instant::now())),
        }
    }

    /// Counts the seat among those of its user.
    async fn sit(&self, seat: &mut Seat, guests_max: u32, on_loss: OnLoss) -> Result<(), NoSeat> {
        let (mut most, mut is_ungranted) = (guests_max, false);
        if let Some(shared) = &self.shared {
            let (subject, rate) = (seat.guests(), borrowed(guests_max));
            match shared.ask(&subject, rate).await {
                Some(Decision { allowed: true, .. }) => seat.is_shared = true,
                Some(Decision { allowed: false, .. }) => {
                    return Err(NoSeat::TooManyGuests(guests_max));
                }
                None => {
                    is_ungranted = true;
                    match shared.lost(on_loss) {
                        OnLoss::Local => most = shared.share(rate).per_minute.unwrap_or(guests_max),
                        OnLoss::Open => most = u32::MAX,
                        OnLoss::Closed => return Err(NoSeat::Unavailable),
                    }
                }
            }
        }
        seat.is_counted = self.running.enter((seat.user, seat.tier), most);
        if !seat.is_counted {
            return Err(NoSeat::TooManyGuests(guests_max));
        }
        if let Some(shared) = &self.shared
            && is_ungranted
        {
            // Its place is one less for all gateways when Redis is back.
            shared.occupy(&seat.guests(), borrowed(guests_max));
            seat.is_shared = true;
        }
        Ok(())
    }

    fn charge_cpu(&self, seat: &Seat, used: Duration) {
        // A thousandth of a millisecond.
        let thousandths = u64::try_from(used.as_micros()).unwrap_or(u64::MAX);
        let (subject, now) = (Subject::Cpu(seat.user, seat.tier), Instant::now());
        match &self.shared {
            Some(shared) => shared.charge(&subject, seat.cpu_ms, thousandths, now),
            None => self.charge(&subject, seat.cpu_ms, thousandths, now),
        }
    }
}

impl Seat {
    /// The guest has ended, and used so much CPU time. What is left is returned, as
    /// [`super::cpu_headers`] wants it; `None` where there is no limit.
    pub fn ended(mut self, cpu: Duration) -> Option<Decision> {
        if self.is_charged {
            return None;
        }
        self.is_charged = true;
        self.limiter.charge_cpu(&self, cpu);
        let (subject, now) = (Subject::Cpu(self.user, self.tier), Instant::now());
        match &self.limiter.shared {
            Some(shared) => shared.glance(&subject, self.cpu_ms, now),
            None => Some(self.limiter.peek(&subject, self.cpu_ms, now)),
        }
    }

    /// The guest did not run after all.
    pub fn unused(mut self) {
        self.is_charged = true;
    }

    fn guests(&self) -> Subject {
        Subject::Guests(self.user, self.tier)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.is_charged {
            let used = self.began.elapsed().min(self.deadline);
            self.limiter.charge_cpu(self, used);
        }
        if self.is_counted {
            self.limiter.running.leave((self.user, self.tier));
        }
        if self.is_shared
            && let Some(shared) = &self.limiter.shared
        {
            shared.release(&self.guests());
        }
    }
}

impl Running {
    /// Whether there is a place among `most`.
    fn enter(&self, who: (Uuid, Tier), most: u32) -> bool {
        let mut running = self.locked();
        let count = running.entry(who).or_insert(0);
        let is_free = *count < most;
        *count += u32::from(is_free);
        if *count == 0 {
            running.remove(&who);
        }
        is_free
    }

    fn leave(&self, who: (Uuid, Tier)) {
        if let Entry::Occupied(mut count) = self.locked().entry(who) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<(Uuid, Tier), u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Places, as the store counts them: tokens that come back.
fn borrowed(guests_max: u32) -> Rate {
    Rate {
        per_minute: Some(guests_max),
        per_day: None,
    }
}

#[cfg(test)]
mod tests;
