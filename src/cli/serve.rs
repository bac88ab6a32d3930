//! `serve`: from the configuration to a running gateway.

use anyhow::Context;

use crate::auth;
use crate::config::{self, Config, Environment};
use crate::sandbox;
use crate::server::{Configured, Server};
use crate::store::Store;
use crate::telemetry::logging;

#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// Take over from the gateway that runs, without refusing a connection, and let it end
    #[arg(long, short)]
    pub upgrade: bool,
}

pub(super) fn run(args: Args, mut configured: Configured) -> anyhow::Result<i32> {
    sandbox::serve_promptly();
    configured.upgrade = args.upgrade;
    let config = configured.loaded.config.clone();
    let log = logging::init(&config.logging).context("starting the log")?;
    let salt = config::salt_at_start(&config).context("reading the API key salt")?;
    let tokens = config::tokens_at_start(&config).context("reading the secret of access tokens")?;
    let tokens = auth::TokenKeyring::prepare(tokens)?;
    let control = super::runtime()?;
    let result = control.block_on(async {
        let store = Store::connect(&config.store)
            .await
            .context("opening the database")?;
        bring_up_to_date(&config, &store).await?;
        let auth = auth::Authenticator::new(config.auth.settings(salt), store.clone());
        auth.install_tokens(tokens);
        let first_admin = config.environment == Environment::Development;
        let server = Server::prepare(configured, store.clone(), auth.clone()).await?;
        // Last, so that a key is only made, and shown, by a start that succeeds.
        if first_admin
            && let Some(key) = auth::first_admin(&store, &auth)
                .await
                .context("making the first user")?
        {
            announce(&key);
        }
        server.run().await
    });
    // Whatever went wrong is said before the log's writer stops.
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "the gateway could not run");
    }
    drop(log);
    control.shutdown_timeout(std::time::Duration::from_secs(1));
    result.map(|()| 0)
}

/// In development the schema is migrated at start; elsewhere that is a step of its own, so that a
/// rollout decides when it happens.
pub(super) async fn bring_up_to_date(config: &Config, store: &Store) -> anyhow::Result<()> {
    let pending = store
        .pending()
        .await
        .context("reading the database's schema version")?;
    if pending.is_empty() {
        return Ok(());
    }
    if config.environment == Environment::Development {
        store.migrate().await.context("migrating the database")?;
        return Ok(());
    }
    anyhow::bail!(
        "the database lacks {} migration(s); run `wasm-wizard migrate` first",
        pending.len()
    )
}

/// The secret goes to standard output only: never through the log.
fn announce(key: &str) {
    println!(
        "\nFirst start: an admin user was made. This is its API key, shown only now:\n\n  {key}\n"
    );
}
