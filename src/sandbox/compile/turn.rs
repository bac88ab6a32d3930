//! Compiles that are in the way of others.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::child::Brake;
use super::flight::Flight;
use super::queue::Lane;
use super::{Flown, Shared};

/// How often a compile in the background may give way before it is given up.
const YIELDS_MAX: u32 = 3;
/// How often a flight that is held looks whether anybody still wants it.
const LOOK: Duration = Duration::from_millis(20);

impl Shared {
    /// Has others have a slow flight's place, and then goes on with it. False if it can't be held.
    pub(super) fn wait_for_a_turn(self: &Arc<Shared>, flight: &Arc<Flight>, brake: &Brake) -> bool {
        let mut queue = self.lock();
        if !queue.hold(flight) {
            return false;
        }
        if self.staff(&mut queue).is_err() {
            queue.go_on_now(flight);
            return false;
        }
        brake.hold(|| {
            while flight.is_held() {
                if !flight.is_wanted() {
                    queue.go_on_now(flight);
                    break;
                }
                let (woken, _) = self
                    .next_turn
                    .wait_timeout(queue, LOOK)
                    .unwrap_or_else(PoisonError::into_inner);
                queue = woken;
            }
        });
        true
    }

    /// Whether what is compiled in the background is in the way.
    pub(super) fn must_give_way(&self) -> bool {
        self.is_shutting_down.load(Ordering::Acquire) || self.lock().presses(self.workers_max())
    }

    /// A compile was interrupted because nobody waited for it, or because it was in the way: then it tries
    /// again. In the background it does not so for ever.
    pub(super) fn give_up(&self, flight: &Arc<Flight>) -> Flown {
        if flight.is_background() {
            let is_over = flight.yields.fetch_add(1, Ordering::AcqRel) >= YIELDS_MAX
                || self.is_shutting_down.load(Ordering::Acquire);
            if !is_over {
                return Flown::Again(Lane::Background, None);
            }
            flight.background.store(false, Ordering::Release);
        }
        // Those who joined at the last moment keep it going.
        if self.abandon(flight) {
            return Flown::Gone;
        }
        flight.turns.fetch_add(1, Ordering::AcqRel);
        tracing::debug!(module = %flight.hash, "a compile gives way to others");
        Flown::Again(Lane::Slow, None)
    }
}
