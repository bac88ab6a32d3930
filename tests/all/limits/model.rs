//! What the shared store does, in whole numbers: the script in Redis must agree with it, and the
//! simulation runs on it.

use std::collections::{BTreeMap, HashMap};

use wasm_wizard::limits::Subject;
use wasm_wizard::limits::store::leases::{Answer, Call, LEASE};

#[derive(Default)]
pub struct Store {
    subjects: HashMap<Subject, State>,
}

struct State {
    debts: [u128; 2],
    at: u64,
    leases: BTreeMap<String, Lease>,
    /// Who has last asked for a place in vain, and until when the others care.
    wanted: Option<(String, u64)>,
}

#[derive(Clone, Copy)]
struct Lease {
    held: u32,
    expires: u64,
    sequence: u64,
    idle: u32,
}

/// So long the others care.
const WANTED_FOR_US: u64 = 1_000_000;

impl Store {
    /// `None` where a newer question of this gateway was answered before.
    pub fn call(&mut self, gateway: &str, call: &Call, now: u64) -> Option<Answer> {
        let lease_us = LEASE.as_micros() as u64;
        let state = self.subjects.entry(call.subject).or_insert_with(|| State {
            debts: call.seed,
            at: now,
            leases: BTreeMap::new(),
            wanted: None,
        });
        let is_borrowed = matches!(call.windows()[0], (0.., 1));
        let is_wanted = state
            .wanted
            .as_ref()
            .is_some_and(|(who, until)| who != gateway && *until > now);
        if call.restores {
            state.debts[1] = state.debts[1].max(call.seed[1]);
        }
        let mut ended: Vec<(String, Lease)> = Vec::new();
        for (name, lease) in &state.leases {
            if lease.expires <= now {
                ended.push((name.clone(), *lease));
            }
        }
        ended.sort_by_key(|(_, lease)| lease.expires);
        for (name, lease) in ended {
            state.settle(call, lease.expires);
            state.leases.remove(&name);
        }
        state.settle(call, now);

        let own = state.leases.get(gateway).copied();
        let (mut held, mut back) = (call.held, 0);
        if let Some(own) = own {
            if call.sequence <= own.sequence {
                return None;
            }
            if !is_borrowed {
                held = held.min(own.held);
            }
            back = call.back.min(own.held.saturating_sub(held));
            state.leases.remove(gateway);
        }
        // What it holds itself was taken out above.
        let idle_elsewhere = state.leases.values().map(|lease| lease.idle).sum();
        let outstanding = i128::from(state.outstanding()) + i128::from(held);
        let (mut free, mut room) = (i128::MAX, i128::MAX);
        for (debt, (limit, window)) in state.debts.iter_mut().zip(call.windows()) {
            if limit < 0 {
                continue;
            }
            let (limit, unit) = (i128::from(limit), u128::from(window));
            let floor = outstanding.min(limit) as u128 * unit;
            let cap = u128::from(call.owes_limits()) * limit as u128 * unit;
            let given_back = debt.saturating_sub(u128::from(back) * unit);
            *debt = cap.min(floor.max(given_back) + u128::from(call.owed) * unit / 1_000);
            free = free.min((limit * unit as i128 - *debt as i128).div_euclid(unit as i128));
            let refill = match window {
                1 => 0,
                _ => (limit * i128::from(lease_us.min(window)) + unit as i128 - 1) / unit as i128,
            };
            room = room.min((limit - refill).max(1) - outstanding);
        }
        let mut granted = i128::from(call.need).min(free).min(room).max(0);
        let more = i128::from(call.ahead).min((free - granted).div_euclid(4));
        granted += more.min(room - granted).max(0);
        let granted = granted as u32;
        for (debt, (limit, window)) in state.debts.iter_mut().zip(call.windows()) {
            if limit >= 0 {
                *debt += u128::from(granted) * u128::from(window);
            }
        }
        if held + granted > 0 {
            let lease = Lease {
                held: held + granted,
                expires: now + lease_us,
                sequence: call.sequence,
                idle: call.idle,
            };
            state.leases.insert(gateway.to_owned(), lease);
        }
        let limit = call.windows()[0].0;
        let excess = match is_borrowed {
            true => (outstanding - i128::from(limit)).max(0) as u32,
            false => 0,
        };
        if is_borrowed && granted < call.need {
            state.wanted = Some((gateway.to_owned(), now + WANTED_FOR_US));
        }
        Some(Answer {
            granted,
            debts: state.debts,
            idle_elsewhere,
            is_wanted,
            excess,
        })
    }
}

impl State {
    fn outstanding(&self) -> u32 {
        self.leases.values().map(|lease| lease.held).sum()
    }

    fn settle(&mut self, call: &Call, moment: u64) {
        let elapsed = u128::from(moment.saturating_sub(self.at));
        let outstanding = u128::from(self.outstanding());
        for (debt, (limit, window)) in self.debts.iter_mut().zip(call.windows()) {
            let Ok(limit) = u128::try_from(limit) else {
                *debt = 0;
                continue;
            };
            let floor = outstanding.min(limit) * u128::from(window);
            let cap = u128::from(call.owes_limits()) * limit * u128::from(window);
            *debt = floor.max((*debt).min(cap).saturating_sub(elapsed * limit));
        }
        self.at = self.at.max(moment);
    }
}
