//! Reload: routes, limits, upstreams, modules and certificates of a new configuration take the place of
//! the old ones, as one unit or not at all.
//!
//! Everything that can fail, compiling included, is done before anything changes. Requests that began
//! on the old configuration end on it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;

use super::{Configured, make_development_certificates, note_configuration, parts};
use crate::api;
use crate::auth::{NoTokenKey, TokenKeyring};
use crate::config::{self, Config, Problems};
use crate::gateway::plan::{Plan, PlanError};
use crate::gateway::{Listener, Shared};
use crate::modules::Registry;
use crate::telemetry::metrics::metrics;
use crate::tls::{Prepared, Terminator, TlsError};

/// How often the file is looked at. A change is taken over once the file has been the same for two
/// looks, so that one that is still being written is left alone.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How much of a reason operators read on the health page; the log has all of it.
const REASON_CHARS_MAX: usize = 2_000;

/// Takes over new configurations, one after the other.
pub(super) struct Reloader {
    pub shared: Arc<Shared>,
    pub registry: Registry,
    pub control_plane: api::State,
    /// Those of the HTTPS listeners, in the order of the configuration.
    pub terminators: Vec<Arc<Terminator>>,
    pub running: Configured,
    /// SIGHUP.
    pub hangups: Signal,
}

/// Why a new configuration was not taken over. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error("the file is empty; write one key of them into it if the defaults are meant")]
    Blank,
    #[error("{0}")]
    Invalid(Problems),
    #[error(
        "a restart is needed to change {}; restart the gateway, or take these back and reload the rest",
        .0.join(", ")
    )]
    NeedsRestart(Vec<String>),
    #[error("certificates: {0}")]
    Certificates(#[from] TlsError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("the secret of access tokens: {0}")]
    TokenSecret(std::io::Error),
    #[error(transparent)]
    TokenKey(#[from] NoTokenKey),
}

/// What made a reload happen.
#[derive(Debug, Clone, Copy)]
enum Cause {
    Signal,
    Change,
}

impl Reloader {
    /// Waits for SIGHUP and for changes of the file, and takes over what comes; for ever.
    pub async fn run(mut self) {
        let mut watch = Watch::new(self.running.file.clone());
        // Since the file was read, modules were compiled, which may have taken a while.
        if self.running.loaded.config.server.reload_on_change && self.is_outdated() {
            self.reload(Cause::Change).await;
        }
        loop {
            let watches = self.running.loaded.config.server.reload_on_change;
            let cause = tokio::select! {
                received = self.hangups.recv() => match received {
                    Some(()) => Cause::Signal,
                    // No signal can come any more, as the process is about to end.
                    None => std::future::pending().await,
                },
                () = watch.changed(), if watches => Cause::Change,
            };
            watch.mark();
            self.reload(cause).await;
        }
    }

    /// Whether the file says something else than what is in use.
    fn is_outdated(&self) -> bool {
        let file = self.running.file.as_deref();
        match Config::load(file, &config::process_variables()) {
            Ok(loaded) => loaded.config != self.running.loaded.config,
            Err(_) => true,
        }
    }

    async fn reload(&mut self, cause: Cause) {
        let cause = match cause {
            Cause::Signal => "SIGHUP",
            Cause::Change => "the file changed",
        };
        match self.attempt().await {
            Ok(()) => {
                metrics().config_reload("ok");
                self.shared.health.config_loaded();
                let routes = self.shared.plan.load().route_count();
                tracing::info!(cause, routes, "the configuration was reloaded");
            }
            Err(error) => {
                metrics().config_reload("refused");
                let reason = error.to_string();
                self.shared
                    .health
                    .config_refused(reason.chars().take(REASON_CHARS_MAX).collect());
                tracing::error!(
                    cause,
                    reason,
                    "the configuration was not reloaded; the one in use stays"
                );
            }
        }
    }

    async fn attempt(&mut self) -> Result<(), ReloadError> {
        let file = self.running.file.as_deref();
        let loaded = Config::load(file, &config::process_variables());
        let loaded = loaded.map_err(ReloadError::Invalid)?;
        if loaded.is_blank() {
            return Err(ReloadError::Blank);
        }
        let fixed = self.running.loaded.needs_restart(&loaded);
        if !fixed.is_empty() {
            return Err(ReloadError::NeedsRestart(fixed));
        }
        let prepared = self.prepare_tls(&loaded.config)?;
        let tokens = config::tokens_at_start(&loaded.config).map_err(ReloadError::TokenSecret)?;
        let tokens = TokenKeyring::prepare(tokens)?;
        let before = self.shared.plan.load_full();
        let parts = parts(&loaded.config, &self.control_plane);
        let plan = Plan::prepare(parts, &self.registry, Some(&before)).await?;
        // Nothing fails from here on.
        let plan = Arc::new(plan);
        self.shared.plan.store(Arc::clone(&plan));
        self.shared.auth.install_tokens(tokens);
        for (terminator, prepared) in self.terminators.iter().zip(prepared) {
            terminator.install(prepared);
        }
        for warning in &loaded.warnings {
            tracing::warn!(%warning, "the configuration can be used, but");
        }
        note_configuration(&self.control_plane.store, &loaded).await;
        self.running.loaded = loaded;
        Ok(())
    }

    /// For the HTTPS listeners, in the order of the configuration, which is that of the terminators:
    /// their number and addresses can't change.
    fn prepare_tls(&self, config: &Config) -> Result<Vec<Prepared>, TlsError> {
        let mut terminators = self.terminators.iter();
        let mut prepared = Vec::new();
        for listener in &config.server.listeners {
            match listener {
                Listener::Https { files, .. } => {
                    make_development_certificates(&files.certificates)?;
                    if let Some(terminator) = terminators.next() {
                        prepared.push(terminator.prepare(files.clone())?);
                    }
                }
                Listener::HttpRedirect { .. } | Listener::Http { .. } => {}
            }
        }
        Ok(prepared)
    }
}

/// Sees when a file has changed, by what the file system says of it. It asks again and again instead of
/// being told, which works on every file system, through symbolic links, and for a file that is
/// replaced as a whole, as editors and Kubernetes do.
struct Watch {
    file: Option<PathBuf>,
    seen: Option<Stamp>,
    /// What the last look saw, if it was something new.
    new: Option<Stamp>,
}

/// Two versions of a file differ in one of these.
#[derive(PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Watch {
    fn new(file: Option<PathBuf>) -> Watch {
        let mut watch = Watch {
            file,
            seen: None,
            new: None,
        };
        watch.mark();
        watch
    }

    /// What is there now is known.
    fn mark(&mut self) {
        self.seen = self.stamp();
        self.new = None;
    }

    /// Resolves when the file is another one, and has stayed so for a moment. A file that is not there
    /// is about to be.
    async fn changed(&mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.look() {
                return;
            }
        }
    }

    fn look(&mut self) -> bool {
        match self.stamp() {
            Some(stamp) if Some(&stamp) != self.seen.as_ref() => {
                let is_settled = self.new.as_ref() == Some(&stamp);
                self.new = Some(stamp);
                is_settled
            }
            Some(_) | None => {
                self.new = None;
                false
            }
        }
    }

    /// One system call on a file that was just read: not worth a thread.
    fn stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(self.file.as_ref()?).ok()?;
        Some(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_it_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "a: 1").unwrap();
        let mut watch = Watch::new(Some(file.clone()));
        assert!(!watch.look(), "nothing has changed");
        std::fs::write(&file, "a: 12").unwrap();
        assert!(!watch.look(), "it may still be written");
        std::fs::write(&file, "a: 123").unwrap();
        assert!(!watch.look(), "it is still written");
        assert!(watch.look());
        watch.mark();
        assert!(!watch.look(), "each change counts once");
        // An editor that replaces the file leaves a moment without one.
        std::fs::remove_file(&file).unwrap();
        assert!(!watch.look());
        std::fs::write(&file, "a: 456").unwrap();
        assert!(!watch.look());
        assert!(watch.look());
    }

    #[test]
    fn without_a_file_nothing_changes() {
        let mut watch = Watch::new(None);
        assert!(!watch.look() && !watch.look());
    }
}
