//! What is done when somebody changes something in the database: another gateway, the command line, or this one.

use std::time::{Duration, Instant};

use crate::auth::Authenticator;
use crate::modules::Registry;
use crate::store::changes::{Changed, Changes};

/// How often the database is asked which tokens other gateways revoked.
const REVOCATIONS_EVERY: Duration = Duration::from_millis(500);
/// How often tokens that ended are deleted.
const PURGE_EVERY: Duration = Duration::from_secs(600);
/// How often that is done which a request left to be looked up.
const RECHECK_EVERY: Duration = Duration::from_millis(250);

/// Takes in changes as they are heard of, for ever.
pub(super) async fn follow(mut changes: Changes, registry: Registry, auth: Authenticator) {
    loop {
        let changed = changes.next().await;
        auth.changed(changed).await;
        let of_modules = matches!(changed, Changed::Module(_) | Changed::Everything);
        if of_modules && let Err(error) = registry.changed().await {
            tracing::warn!(%error, "which modules are stopped can't be read now");
            // Nobody may miss a stop: the connection is made again, and everything read.
            changes = changes.again();
        }
    }
}

/// Looks up keys for whom something runs, and modules of which something does, where it is not sure that they
/// may still be used; for ever.
pub(super) async fn recheck(registry: Registry, auth: Authenticator) {
    loop {
        tokio::time::sleep(RECHECK_EVERY).await;
        auth.recheck().await;
        registry.recheck().await;
    }
}

/// Hears of the families of tokens that other gateways revoked, and deletes those that ended long ago.
/// Apart from other work, so that nothing slow delays it.
pub(super) async fn tend_tokens(auth: Authenticator) {
    let mut purged: Option<Instant> = None;
    let mut was_told = false;
    loop {
        let learned = auth.learn_revocations(chrono::Utc::now()).await;
        match &learned {
            Err(error) if !was_told => {
                tracing::warn!(%error, "revoked access tokens can't be looked up; those of other gateways work until they expire");
            }
            Err(_) | Ok(()) => {}
        }
        was_told = learned.is_err();
        if learned.is_ok() && purged.is_none_or(|at| at.elapsed() >= PURGE_EVERY) {
            purged = Some(Instant::now());
            if let Err(error) = auth.purge_tokens(chrono::Utc::now()).await {
                tracing::warn!(%error, "tokens that ended could not be deleted yet");
            }
        }
        tokio::time::sleep(REVOCATIONS_EVERY).await;
    }
}
