//! Every server that is in use, so that what is known of one outlives a change of the configuration.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pingora_core::upstreams::peer::{HttpPeer, Peer};

use super::member::State;
use super::{Ejection, HealthCheck, Server, Settings, health};
use crate::telemetry::metrics::UpstreamMetrics;

/// Finds what is known of a server. One per process; each new plan of routes is made with it while
/// the old one is still in use, so that unchanged servers keep their health, ejections and counts.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    states: HashMap<Key, Weak<State>>,
    /// Servers that are checked by several rules still have one row in the metrics.
    metrics: HashMap<Server, Weak<UpstreamMetrics>>,
}

/// Servers with equal keys share what is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    server: Server,
    ejection: Option<Ejection>,
    health_check: Option<HealthCheck>,
    /// How it is connected to, as far as health checks depend on it: protocol, TLS, names.
    peer: u64,
}

impl Registry {
    /// What is known of this server under these rules; starts its health checks where it is new.
    pub(super) fn state(
        &self,
        server: &Server,
        settings: &Settings,
        peer: &HttpPeer,
    ) -> Arc<State> {
        let key = Key {
            server: server.clone(),
            ejection: settings.ejection.clone(),
            health_check: settings.health_check.clone(),
            peer: peer.reuse_hash(),
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = known.states.get(&key).and_then(Weak::upgrade) {
            return state;
        }
        known.states.retain(|_, state| state.strong_count() > 0);
        known
            .metrics
            .retain(|_, metrics| metrics.strong_count() > 0);
        let metrics = known.metrics.get(server).and_then(Weak::upgrade);
        let metrics =
            metrics.unwrap_or_else(|| Arc::new(UpstreamMetrics::new(&server.to_string())));
        known
            .metrics
            .insert(server.clone(), Arc::downgrade(&metrics));
        let state = Arc::new(State::new(
            server.clone(),
            settings.ejection.clone(),
            metrics,
        ));
        if let Some(check) = &settings.health_check {
            health::start(&state, check.clone(), peer.clone());
        }
        known.states.insert(key, Arc::downgrade(&state));
        state
    }
}
