//! `poll_oneoff`: sleeping, and asking streams whether they are ready.

use std::time::{Duration, Instant};

use super::clock::{Clock, Clocks, RESOLUTION_NS};
use super::descriptors::{Object, Stream};
use super::errno::Errno;
use super::memory::Memory;
use super::{Answer, Failure, Stop, Wasi};
use crate::sandbox::input::Readiness;

/// Most subscriptions in one call.
pub(super) const SUBSCRIPTIONS_MAX: u32 = 1024;

/// Bytes that a ready output stream says it takes; it takes more, but some guests want a number.
const WRITE_READY_BYTES: u64 = 64 * 1024;

const EVENT_BYTES: u32 = 32;

const EVENT_CLOCK: u8 = 0;
const EVENT_FD_READ: u8 = 1;
const EVENT_FD_WRITE: u8 = 2;

/// `subclockflags`: the timeout is a time on the clock, not a duration.
const CLOCK_ABSOLUTE: u16 = 1;

/// `eventrwflags`: there is no more to come.
const FD_HANGUP: u16 = 1;

/// Where the fields of a `subscription` are. Preview 1 dropped a field of the clock's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubscriptionLayout {
    /// `wasi_unstable`: 56 bytes.
    Preview0,
    /// `wasi_snapshot_preview1`: 48 bytes.
    Preview1,
}

struct Subscription {
    userdata: u64,
    kind: u8,
    wanted: Wanted,
}

enum Wanted {
    /// A time; `None` is later than any deadline.
    Time(Option<Instant>),
    /// A stream that is ready: the event's `nbytes` and `flags`.
    Ready(u64, u16),
    /// Standard input, of which nothing is there yet.
    Input,
    /// Something that can't be waited for; the event tells the guest.
    Failed(Errno),
}

impl SubscriptionLayout {
    fn bytes(self) -> u32 {
        match self {
            SubscriptionLayout::Preview0 => 56,
            SubscriptionLayout::Preview1 => 48,
        }
    }

    /// Offset of the clock's id; timeout, precision and flags follow 8, 16 and 24 bytes later.
    fn clock_at(self) -> u32 {
        match self {
            SubscriptionLayout::Preview0 => 24,
            SubscriptionLayout::Preview1 => 16,
        }
    }
}

impl Wasi {
    /// Waits until a subscription has something to tell, and no longer than the guest's deadline.
    /// Output always has (it waits in the write if it must), and so have files, and input unless
    /// more of it is on its way.
    pub(super) fn poll_oneoff(
        &mut self,
        memory: &mut Memory<'_>,
        layout: SubscriptionLayout,
        subscriptions_at: u32,
        events_at: u32,
        count: u32,
        events_len_out: u32,
    ) -> Answer {
        if count == 0 || count > SUBSCRIPTIONS_MAX {
            return Err(Errno::Inval.into());
        }
        memory.check(subscriptions_at, count * layout.bytes())?;
        memory.check(events_at, count * EVENT_BYTES)?;
        memory.check(events_len_out, 4)?;
        self.spend(count / 16)?;
        let now = Instant::now();
        let mut subscriptions = (0..count)
            .map(|index| {
                self.subscription(
                    memory,
                    layout,
                    subscriptions_at + index * layout.bytes(),
                    now,
                )
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        let now = match wait_for(&subscriptions) {
            Some(wait) => self.wait(wait)?,
            None => now,
        };
        for subscription in &mut subscriptions {
            if let Wanted::Input = subscription.wanted {
                subscription.wanted = self.input_wanted()?;
            }
        }
        let mut events = 0_u32;
        for subscription in &subscriptions {
            if let Some(event) = event_of(subscription, now) {
                memory.write(events_at + events * EVENT_BYTES, &event)?;
                events += 1;
            }
        }
        memory.write_u32(events_len_out, events)?;
        Ok(())
    }

    /// Waits, at most until the deadline. Returns a time at which the wait was over.
    fn wait(&mut self, wait: Wait) -> Result<Instant, Stop> {
        let (until, in_time) = match wait.until {
            Some(due) if due <= self.deadline => (due, true),
            Some(_) | None => (self.deadline, false),
        };
        if !self.may_block && until > Instant::now() {
            return Err(Stop::WouldBlock);
        }
        if wait.for_input {
            match self.sleep_until_input(until)? {
                Readiness::Bytes(_) | Readiness::Ended => return Ok(Instant::now()),
                Readiness::Nothing => {}
            }
        } else if self.stop.sleep_until(until) {
            return Err(Stop::Cancelled);
        }
        if !in_time {
            return Err(Stop::TimeLimit);
        }
        Ok(Instant::now().max(until))
    }

    fn subscription(
        &mut self,
        memory: &Memory<'_>,
        layout: SubscriptionLayout,
        at: u32,
        now: Instant,
    ) -> Result<Subscription, Failure> {
        let [kind] = memory.read_array(at + 8)?;
        let wanted = match kind {
            EVENT_CLOCK => clock_wanted(&self.clocks, memory, at + layout.clock_at(), now)?,
            EVENT_FD_READ | EVENT_FD_WRITE => {
                let fd = u32::from_le_bytes(memory.read_array(at + 16)?);
                match self.stream_wanted(kind, fd) {
                    Ok(wanted) => wanted,
                    Err(Failure::Errno(errno)) => Wanted::Failed(errno),
                    Err(Failure::Stop(stop)) => return Err(stop.into()),
                }
            }
            _ => return Err(Errno::Inval.into()),
        };
        Ok(Subscription {
            userdata: u64::from_le_bytes(memory.read_array(at)?),
            kind,
            wanted,
        })
    }

    fn stream_wanted(&mut self, kind: u8, fd: u32) -> Result<Wanted, Failure> {
        let object = self.descriptors.get(fd)?.object;
        match (object, kind) {
            (Object::Stream(Stream::Stdin), EVENT_FD_READ) => Ok(self.input_wanted()?),
            (Object::Stream(Stream::Stdout | Stream::Stderr), EVENT_FD_WRITE) => {
                Ok(Wanted::Ready(WRITE_READY_BYTES, 0))
            }
            (Object::File { node, position }, EVENT_FD_READ) => {
                let left = self.files()?.node(node).size().saturating_sub(position);
                Ok(Wanted::Ready(left, if left == 0 { FD_HANGUP } else { 0 }))
            }
            (Object::Stream(_) | Object::File { .. } | Object::Directory { .. }, _) => {
                Err(Errno::Badf.into())
            }
        }
    }

    fn input_wanted(&self) -> Result<Wanted, Stop> {
        Ok(match self.input_readiness()? {
            Readiness::Bytes(left) => Wanted::Ready(left as u64, 0),
            Readiness::Ended => Wanted::Ready(0, FD_HANGUP),
            Readiness::Nothing => Wanted::Input,
        })
    }
}

/// What there is to wait for, when nothing is ready without.
#[derive(Default)]
struct Wait {
    /// `None` is later than any deadline.
    until: Option<Instant>,
    for_input: bool,
}

/// `None` when something is ready without waiting.
fn wait_for(subscriptions: &[Subscription]) -> Option<Wait> {
    let mut wait = Wait::default();
    for subscription in subscriptions {
        match subscription.wanted {
            Wanted::Ready(..) | Wanted::Failed(_) => return None,
            Wanted::Input => wait.for_input = true,
            Wanted::Time(None) => {}
            Wanted::Time(Some(due)) => {
                wait.until = Some(wait.until.map_or(due, |until| until.min(due)));
            }
        }
    }
    Some(wait)
}

/// A clock that does not exist fails alone, as its own event; unknown flags fail the call.
fn clock_wanted(
    clocks: &Clocks,
    memory: &Memory<'_>,
    at: u32,
    now: Instant,
) -> Result<Wanted, Errno> {
    let id = u32::from_le_bytes(memory.read_array(at)?);
    let timeout_ns = u64::from_le_bytes(memory.read_array(at + 8)?);
    let flags = u16::from_le_bytes(memory.read_array(at + 24)?);
    if flags & !CLOCK_ABSOLUTE != 0 {
        return Err(Errno::Inval);
    }
    let clock = match Clock::from_id(id) {
        Ok(clock) => clock,
        Err(errno) => return Ok(Wanted::Failed(errno)),
    };
    let left_ns = if flags & CLOCK_ABSOLUTE == 0 {
        Some(timeout_ns)
    } else {
        // Rounded up, so that the guest, whose clocks show whole steps, sees the time reached.
        timeout_ns
            .checked_next_multiple_of(RESOLUTION_NS)
            .map(|timeout_ns| timeout_ns.saturating_sub(clocks.now_ns(clock)))
    };
    Ok(Wanted::Time(
        left_ns.and_then(|ns| now.checked_add(Duration::from_nanos(ns))),
    ))
}

/// The event of a subscription, if there is one at this time.
fn event_of(subscription: &Subscription, now: Instant) -> Option<[u8; EVENT_BYTES as usize]> {
    let (errno, nbytes, flags) = match subscription.wanted {
        Wanted::Time(Some(due)) if due <= now => (0, 0, 0),
        Wanted::Time(_) | Wanted::Input => return None,
        Wanted::Ready(nbytes, flags) => (0, nbytes, flags),
        Wanted::Failed(errno) => (errno as u16, 0, 0),
    };
    let mut event = [0_u8; EVENT_BYTES as usize];
    event[0..8].copy_from_slice(&subscription.userdata.to_le_bytes());
    event[8..10].copy_from_slice(&errno.to_le_bytes());
    event[10] = subscription.kind;
    event[16..24].copy_from_slice(&nbytes.to_le_bytes());
    event[24..26].copy_from_slice(&flags.to_le_bytes());
    Some(event)
}
