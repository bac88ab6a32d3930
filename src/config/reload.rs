//! What of a new configuration a running gateway can take over.

use serde::Serialize as _;
use serde_yaml::Value;
use sha2::{Digest, Sha256};

use super::tree::Kind;
use super::{Loaded, file};
use crate::limits::Tiers;
use crate::sandbox;

/// Keys that a reload takes over, each with everything below it. What is not named here needs a
/// restart, and so does a new key until somebody has thought about it.
pub const RELOADABLE: &[&str] = &[
    "auth.tokens",
    "compression",
    "headers",
    "logging.access",
    "logging.access_sample",
    "logging.access_slow",
    "metrics.public",
    "routes",
    "sandbox.execution_timeout",
    "sandbox.memory_max",
    "sandbox.stderr_max",
    "sandbox.stdout_max",
    "server.acme_webroot",
    "server.admin.allow",
    "server.admin.deny",
    "server.bounds.body_rate_min",
    "server.bounds.body_size_max",
    "server.bounds.h2_resets_per_second_max",
    "server.bounds.headers_max",
    "server.bounds.uri_size_max",
    "server.client_address_header",
    "server.client_certificate_header",
    "server.http[].allow",
    "server.http[].deny",
    "server.https[].allow",
    "server.https[].certificates",
    "server.https[].client_certificates",
    "server.https[].deny",
    "server.reload_on_change",
    "server.requests_max",
    "server.requests_per_address_max",
    "server.timeouts.request_body",
    "server.timeouts.write",
    "server.trusted_proxies",
    "tiers",
];

impl Loaded {
    /// What the audit tells of this configuration: what the tiers give, and a digest of the whole that
    /// changes with any key. Secrets are hidden in both.
    pub fn facts(&self) -> serde_json::Value {
        let text = serde_yaml::to_string(&plain(&self.effective)).unwrap_or_default();
        let digest: [u8; 32] = Sha256::digest(text).into();
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let tiers = serde_json::to_value(&self.effective.tiers).unwrap_or_default();
        serde_json::json!({ "sha256": digest, "tiers": tiers })
    }

    /// The keys that differ in `new` and can't be taken over while the gateway runs, as
    /// `server.https[0].address`.
    pub fn needs_restart(&self, new: &Loaded) -> Vec<String> {
        let mut keys = Vec::new();
        let (old_file, new_file) = (plain(&self.effective), plain(&new.effective));
        collect(&old_file, &new_file, &Place::default(), &mut keys);
        // Secrets are hidden in what was compared.
        let (old, new) = (&self.config, &new.config);
        for (key, is_other) in [
            ("auth.salt", old.auth.salt != new.auth.salt),
            ("database.url", old.store != new.store),
            ("limits.redis.url", old.limits.shared != new.limits.shared),
            (
                "sandbox.artifacts.key",
                old.sandbox.artifacts != new.sandbox.artifacts,
            ),
        ] {
            let (part, _) = key.rsplit_once('.').unwrap_or_default();
            if is_other && !keys.iter().any(|known| known.starts_with(part)) {
                keys.push(key.to_owned());
            }
        }
        keys.extend(over_ceilings(&old.sandbox, &new.limits.tiers));
        keys
    }

    /// Whether the file says nothing at all, which is more often a file that is being written than one
    /// that is meant.
    pub fn is_blank(&self) -> bool {
        match &self.source.root {
            None => true,
            Some(root) => match &root.kind {
                Kind::Null => true,
                Kind::Mapping(entries) => entries.is_empty(),
                Kind::Bool(_)
                | Kind::Unsigned(_)
                | Kind::Signed(_)
                | Kind::Float(_)
                | Kind::Text(_)
                | Kind::Sequence(_) => false,
            },
        }
    }
}

/// The keys of tiers that give guests more than a sandbox of these settings was made for. Until it is made
/// anew, they get no more than that.
fn over_ceilings(sandbox: &sandbox::Settings, tiers: &Tiers) -> Vec<String> {
    let rows = [
        ("free", &tiers.free),
        ("basic", &tiers.basic),
        ("pro", &tiers.pro),
        ("enterprise", &tiers.enterprise),
    ];
    let mut keys = Vec::new();
    for (name, tier) in rows {
        if tier.stack_bytes_max > Some(sandbox.stack_bytes_max) {
            keys.push(format!("tiers.{name}.stack_size"));
        }
        if tier.table_elements_max > Some(sandbox.table_elements_max) {
            keys.push(format!("tiers.{name}.table_elements_max"));
        }
    }
    keys
}

fn plain(file: &file::File) -> Value {
    // What can't be written down can't be loaded either; the difference to anything else is seen.
    serde_yaml::with::singleton_map_recursive::serialize(file, serde_yaml::value::Serializer)
        .and_then(|value| value.serialize(serde_yaml::value::Serializer))
        .unwrap_or(Value::Null)
}

/// A key: as it is shown, and as [`RELOADABLE`] has it.
#[derive(Default, Clone)]
struct Place {
    shown: String,
    pattern: String,
}

impl Place {
    fn key(&self, key: &str) -> Place {
        let dot = if self.shown.is_empty() { "" } else { "." };
        Place {
            shown: format!("{}{dot}{key}", self.shown),
            pattern: format!("{}{dot}{key}", self.pattern),
        }
    }

    fn index(&self, index: usize) -> Place {
        Place {
            shown: format!("{}[{index}]", self.shown),
            pattern: format!("{}[]", self.pattern),
        }
    }

    fn is_reloadable(&self) -> bool {
        RELOADABLE.contains(&self.pattern.as_str())
    }
}

/// Collects the keys that differ, as deep as both sides have the same shape.
fn collect(old: &Value, new: &Value, at: &Place, keys: &mut Vec<String>) {
    if old == new || at.is_reloadable() {
        return;
    }
    match (old, new) {
        (Value::Mapping(old), Value::Mapping(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let name = key.as_str().unwrap_or_default();
                let missing = Value::Null;
                let (old, new) = (old.get(key), new.get(key));
                collect(
                    old.unwrap_or(&missing),
                    new.unwrap_or(&missing),
                    &at.key(name),
                    keys,
                );
            }
        }
        (Value::Sequence(old), Value::Sequence(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                collect(old, new, &at.index(index), keys);
            }
        }
        _ => keys.push(at.shown.clone()),
    }
}
