//! What is looked at in the background for the metrics: nothing of it is worth a request's time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::store::Store;
use crate::store::figures::Figures;
use crate::telemetry::metrics::metrics;

const OBSERVE_EVERY: Duration = Duration::from_secs(10);
/// Counting reads whole tables.
const COUNT_EVERY: Duration = Duration::from_secs(60);

const ROLES: [&str; 3] = ["user", "support", "admin"];
const TIERS: [&str; 4] = ["free", "basic", "pro", "enterprise"];

/// Where to look.
#[derive(Clone)]
struct Places {
    /// Directories, by their names on the page.
    directories: Vec<(&'static str, PathBuf)>,
    backup_stamp: Option<PathBuf>,
}

/// Looks for as long as the gateway runs.
pub(super) async fn observe(config: Config, store: Store) {
    let artifacts = config.sandbox.artifacts.as_ref();
    let artifacts = artifacts.map(|artifacts| ("artifacts", artifacts.directory.clone()));
    let database = store.directory().map(|path| ("database", path.to_owned()));
    let places = Places {
        directories: artifacts.into_iter().chain(database).collect(),
        backup_stamp: config.metrics.backup_stamp,
    };
    let mut counted: Option<Instant> = None;
    loop {
        let places = places.clone();
        // A disk that hangs holds up nothing but this.
        let looked = tokio::task::spawn_blocking(move || look(&places)).await;
        if let Err(error) = looked {
            tracing::error!(%error, "looking at the machine failed");
        }
        if counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
            counted = Some(Instant::now());
            match store.figures().await {
                Ok(figures) => show(&figures),
                Err(error) => tracing::debug!(%error, "users, keys and modules were not counted"),
            }
        }
        tokio::time::sleep(OBSERVE_EVERY).await;
    }
}

fn look(places: &Places) {
    let host = &metrics().host;
    host.observe();
    for (name, directory) in &places.directories {
        host.observe_disk(name, directory);
    }
    if let Some(stamp) = &places.backup_stamp {
        host.observe_backup(stamp);
    }
}

fn show(figures: &Figures) {
    let database = &metrics().database;
    for role in ROLES {
        let of = figures.users.iter().find(|(of, _)| of == role);
        database.users(role, of.map_or(0, |(_, count)| *count));
    }
    for tier in TIERS {
        let of = figures.keys.iter().find(|(of, _)| of == tier);
        database.api_keys(tier, of.map_or(0, |(_, count)| *count));
    }
    let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    database.modules.set(gauge(figures.modules));
    database.module_bytes.set(gauge(figures.module_bytes));
}
