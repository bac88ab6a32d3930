//! The certificates of a listener, chosen by the name the client asks for (SNI, RFC 6066 section 3) and
//! by the signatures it understands.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::source::{Supplied, Tls, TlsError, Version};
use crate::telemetry::metrics::metrics;

/// Finds the certificate for a name; the first one configured is the default. Swapped as a whole,
/// so that a connection sees either the old set or the new one.
pub(super) struct Certificates {
    pub set: ArcSwap<Set>,
}

/// Certificates that can be used.
pub(super) struct Set {
    /// Where they come from, and which they are of those that came from there.
    pub from: Arc<Tls>,
    pub version: Version,
    exact: HashMap<String, Keys>,
    /// `*.example.com`, kept as `example.com`.
    wildcard: HashMap<String, Keys>,
    default: Keys,
    /// When each ends, in seconds since the Unix epoch.
    ends: Vec<(String, i64)>,
}

/// Certificates for the same name, with keys of different kinds, in the order of the configuration.
type Keys = Vec<Arc<CertifiedKey>>;

impl Certificates {
    fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let set = self.set.load();
        let keys = name.map_or(&set.default, |name| set.keys(name));
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        // Where none fits, the handshake says so to the client.
        keys.iter().find(fits).or_else(|| keys.first()).cloned()
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name(), hello.signature_schemes())
    }
}

impl Set {
    /// Takes what the source supplies.
    pub fn load(from: Arc<Tls>) -> Result<Set, TlsError> {
        // Before it is read: what changes meanwhile is read again.
        let version = from.version();
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        let mut ends = Vec::new();
        let mut first: Option<(Arc<CertifiedKey>, Option<String>)> = None;
        for Supplied { key, facts, origin } in from.source.supply()? {
            ends.push((origin, facts.not_after));
            first.get_or_insert_with(|| (Arc::clone(&key), facts.names.first().cloned()));
            for name in facts.names {
                let keys: &mut Keys = match name.strip_prefix("*.") {
                    Some(parent) => wildcard.entry(parent.to_owned()).or_default(),
                    None => exact.entry(name).or_default(),
                };
                keys.push(Arc::clone(&key));
            }
        }
        let (first, name) = first.ok_or(TlsError::None)?;
        let mut set = Set {
            from,
            version,
            exact,
            wildcard,
            default: vec![Arc::clone(&first)],
            ends,
        };
        // The default too may have keys of several kinds.
        let same = name.map(|name| set.keys(&name.replacen('*', "any", 1)).clone());
        if let Some(same) = same
            && same.first().is_some_and(|key| Arc::ptr_eq(key, &first))
        {
            set.default = same;
        }
        Ok(set)
    }

    fn keys(&self, name: &str) -> &Keys {
        let name = name.to_ascii_lowercase();
        let found = self.exact.get(&name).or_else(|| {
            // A wildcard stands for exactly one label (RFC 9525 section 6.3).
            name.split_once('.')
                .and_then(|(_, parent)| self.wildcard.get(parent))
        });
        found.unwrap_or(&self.default)
    }

    /// Shows when each certificate ends, in place of those of the set before.
    pub fn show(&self, listener: &str, before: Option<&Set>) {
        for (origin, _) in before.iter().flat_map(|set| &set.ends) {
            if !self.ends.iter().any(|(other, _)| other == origin) {
                metrics().forget_certificate(listener, origin);
            }
        }
        for (origin, end) in &self.ends {
            metrics().certificate_ends(listener, origin, *end);
        }
    }
}

#[cfg(test)]
mod tests;
