//! Connections that wait for the next request. Each thread has its own: a connection stays where its
//! socket is polled, and nothing is locked.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::Io;
use crate::upstream::Member;

/// How often those are looked for that are closed or have idled too long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What a connection may be used for: it was made to this address under a member's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    member: u64,
    address: SocketAddr,
}

impl Key {
    pub fn new(member: &Member, address: SocketAddr) -> Key {
        Key {
            member: member.connection_key(),
            address,
        }
    }
}

/// A connection, and the room that it reads into.
pub struct Socket {
    pub io: Io,
    pub buf: BytesMut,
}

struct Idle {
    socket: Socket,
    since: Instant,
    until: Instant,
}

#[derive(Default)]
struct Pool {
    /// The one that was used last is at the back, and is used first.
    by_key: HashMap<Key, VecDeque<Idle>>,
    count: usize,
    swept: bool,
}

impl Pool {
    fn end_oldest(&mut self) {
        let fronts = self.by_key.iter_mut().filter(|(_, idle)| !idle.is_empty());
        let oldest = fronts.min_by_key(|(_, idle)| idle.front().map(|one| one.since));
        if let Some((_, idle)) = oldest {
            idle.pop_front();
            self.count -= 1;
        }
    }
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// One that is still good.
pub fn take(key: &Key, now: Instant) -> Option<Socket> {
    POOL.with_borrow_mut(|pool| {
        let idle = pool.by_key.get_mut(key)?;
        while let Some(mut last) = idle.pop_back() {
            pool.count -= 1;
            if now < last.until && last.socket.io.is_silent_now() {
                return Some(last.socket);
            }
        }
        None
    })
}

/// Keeps one for this long. Beyond `most` on this thread, the one that has waited longest goes. Must be
/// called on a thread of a runtime.
pub fn put(key: Key, socket: Socket, keep: Duration, most: usize) {
    let since = Instant::now();
    let until = since + keep;
    let sweeps = POOL.with_borrow_mut(|pool| {
        let idle = pool.by_key.entry(key).or_default();
        idle.push_back(Idle {
            socket,
            since,
            until,
        });
        pool.count += 1;
        if pool.count > most {
            pool.end_oldest();
        }
        std::mem::replace(&mut pool.swept, true)
    });
    if !sweeps {
        tokio::spawn(sweep());
    }
}

/// Ends those that are closed or have idled too long, as long as there are any.
async fn sweep() {
    /// Where the runtime ends before the thread does, the next one has to sweep.
    struct Sweeping;
    impl Drop for Sweeping {
        fn drop(&mut self) {
            let _ = POOL.try_with(|pool| pool.borrow_mut().swept = false);
        }
    }
    let sweeping = Sweeping;
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let left = POOL.with_borrow_mut(|pool| {
            let now = Instant::now();
            pool.by_key.retain(|_, idle| {
                idle.retain_mut(|one| now < one.until && one.socket.io.is_silent());
                !idle.is_empty()
            });
            pool.count = pool.by_key.values().map(VecDeque::len).sum();
            pool.count
        });
        if left == 0 {
            drop(sweeping);
            return;
        }
    }
}
