//! Where limits are counted.

use std::path::PathBuf;

use super::server::file_path;
use crate::config::context::Context;
use crate::config::file::{self, File};
use crate::config::problem::Path;
use crate::config::values::Period;
use crate::limits::store::redis::{Settings as RedisSettings, SettingsError, check_url};
use crate::limits::{OnLoss, Settings, SharedSettings, Tiers};

const KEY_PREFIX_CHARS_MAX: usize = 64;

pub fn limits(file: &File, tiers: Tiers, cx: &mut Context) -> Option<Settings> {
    let (at, limits) = (Path::from("limits"), &file.limits);
    let subjects_max = limits.subjects_max;
    cx.count(&at.key("subjects_max"), subjects_max, 1, 10_000_000);
    let shared = shared(&limits.redis, &at.key("redis"), cx);
    Some(Settings {
        tiers,
        subjects_max: subjects_max as usize,
        shared: shared?,
    })
}

fn shared(redis: &file::Redis, at: &Path, cx: &mut Context) -> Option<Option<SharedSettings>> {
    cx.period(
        &at.key("timeout"),
        redis.timeout,
        Period::ms(10),
        Period::secs(5),
    );
    let share = redis.local_share_percent;
    cx.count(&at.key("local_share_percent"), share, 1, 100);
    key_prefix(&redis.key_prefix, &at.key("key_prefix"), cx);
    let ca = match redis.ca.as_deref() {
        Some(ca) => Some(file_path(Some(ca), &at.key("ca"), cx)?),
        None => None,
    };
    let Some(url) = &redis.url else {
        return Some(None);
    };
    let url = url.reveal();
    url_rules(url, ca.as_ref(), at, cx)?;
    Some(Some(SharedSettings {
        redis: RedisSettings {
            url: url.to_string(),
            ca,
            timeout: redis.timeout.0,
            key_prefix: redis.key_prefix.clone(),
        },
        local_share_percent: u8::try_from(share).unwrap_or(100),
        is_vital: redis.on_loss == OnLoss::Closed,
    }))
}

/// Refuses what can't be a Redis, without showing it: it may hold a password.
fn url_rules(url: &str, ca: Option<&PathBuf>, at: &Path, cx: &mut Context) -> Option<()> {
    if let Err(error) = check_url(url) {
        let hint = "use redis://host:6379, or rediss://user:password@host:6379 with TLS";
        cx.problem(&at.key("url"), error, hint);
        return None;
    }
    if ca.is_some() && !url.starts_with("rediss://") {
        cx.problem(&at.key("ca"), SettingsError::CaWithoutTls, "");
        return None;
    }
    Some(())
}

fn key_prefix(prefix: &str, path: &Path, cx: &mut Context) {
    let is_plain = prefix
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "._-:".contains(c));
    if prefix.is_empty() || prefix.len() > KEY_PREFIX_CHARS_MAX || !is_plain {
        let hint = "use 1 to 64 letters, digits, '.', '_', ':' and '-'";
        cx.problem(path, "can't begin the names of keys", hint);
    }
}
