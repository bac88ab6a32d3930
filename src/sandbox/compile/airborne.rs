//! A flight while a compile thread works on it.

use std::sync::Arc;

use super::Shared;
use super::flight::{Flight, Phase};
use super::queue::Lane;

/// A flight that a compile thread has. However that ends, the thread is free again, and the flight
/// either waits for another or is over, with nobody left waiting.
pub(super) struct Airborne<'a> {
    pub shared: &'a Arc<Shared>,
    pub lane: Lane,
    pub flight: &'a Arc<Flight>,
    /// Where it waits next.
    pub next: Option<Lane>,
}

impl Drop for Airborne<'_> {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.done(self.lane, self.flight.share);
        if let Some(lane) = self.next {
            // Somebody may have joined a flight of the background by now.
            let lane = match lane {
                Lane::Background if !self.flight.is_background() => Lane::Slow,
                Lane::Quick | Lane::Slow | Lane::Background => lane,
            };
            self.flight.phase.send_replace(Phase::Waiting);
            queue.push(lane, Arc::clone(self.flight));
            // This thread takes another; whether that is enough, the next will see.
            let _ = self.shared.staff(&mut queue);
            return;
        }
        let key = self.flight.key();
        if queue
            .flights
            .get(&key)
            .is_some_and(|flight| Arc::ptr_eq(flight, self.flight))
        {
            queue.flights.remove(&key);
        }
        drop(queue);
        self.flight.fail();
    }
}
