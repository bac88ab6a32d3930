//! The command line: each command parses its arguments, builds what it needs, and says how it went
//! with its exit code.

pub mod check;
pub mod exec;
pub mod explain;
mod health;
pub mod import;
pub mod keys;
pub mod modules;
mod serve;
mod table;
pub mod users;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser, Subcommand};

use crate::auth::Authenticator;
use crate::config::{self, Config};
use crate::route::{Route, Table};
use crate::sandbox::{self, Sandbox};
use crate::server::Configured;
use crate::store::audit::{Actor, ActorKind};
use crate::store::{self, Store};
use crate::tls;

const ABOUT: &str = "An HTTPS gateway that runs WebAssembly inline";

const LONG_ABOUT: &str = "\
Wasm Wizard terminates TLS, authenticates API keys, enforces limits, proxies routes to upstreams and
runs WebAssembly modules in its own sandbox, one fresh guest per request.

Without a configuration file it starts on built-in defaults: HTTPS on 8443, an SQLite file under
data/, a development certificate under certs/. The first start prints an admin's API key.";

const EXAMPLES: &str = "\
Examples:
  wasm-wizard                                     start on the defaults
  wasm-wizard serve --config wasm-wizard.yaml     start with a configuration file
  wasm-wizard check --config wasm-wizard.yaml     find every problem in it, without starting
  wasm-wizard explain GET https://localhost/a     say which route answers, and why no other
  wasm-wizard exec hello.wasm --input 'text'      run a module here, in the same sandbox
  wasm-wizard keys create --user me@example.com   make an API key

Every key and environment variable is described in docs/CONFIGURATION.md.";

#[derive(Parser)]
#[command(name = "wasm-wizard", version, about = ABOUT, long_about = LONG_ABOUT, after_help = EXAMPLES)]
struct Cli {
    /// YAML configuration file; without it the built-in defaults apply.
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The same as the command `migrate`.
    #[arg(long, hide = true)]
    migrate: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Start the gateway (the default).
    Serve(serve::Args),
    /// Validate the configuration, its certificates and its modules, without binding ports.
    Check(check::Args),
    /// Say which route a request would take, and why no other.
    Explain(explain::Args),
    /// Ask a running gateway how it is; for health checks of containers.
    Health(health::Args),
    /// Bring the database's schema to the newest version.
    Migrate(MigrateArgs),
    /// Run a module in the sandbox, without a server.
    Exec(exec::Args),
    /// Take over users, keys and modules of the service that ran before.
    Import(import::Args),
    /// Make, list, rotate and revoke API keys.
    #[command(subcommand)]
    Keys(keys::Command),
    /// List, make, stop and change users.
    #[command(subcommand)]
    Users(users::Command),
    /// Add, list, stop and delete stored modules.
    #[command(subcommand)]
    Modules(modules::Command),
    /// Compile one module from standard input; started by the gateway itself.
    #[command(hide = true)]
    CompileWorker,
}

/// Every command and flag, for what is held against them: documents, manifests, scripts.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    // Puts the flags that all commands share into each of them.
    command.build();
    command
}

/// Runs the program. Bad usage exits with 2, a failure with 1.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // The worker handles untrusted bytes: it does nothing else first, not even parse.
    if args.len() == 2 && args[1] == "compile-worker" {
        return exit_code(sandbox::compile_worker());
    }
    sandbox::give_back_large_blocks();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap; printing can only fail on a closed pipe.
            let _ = error.print();
            return exit_code(error.exit_code());
        }
    };
    match run(cli) {
        Ok(code) => exit_code(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<i32> {
    tls::install_crypto_provider();
    let command = match cli.command {
        None if cli.migrate => Command::Migrate(MigrateArgs::default()),
        None => Command::Serve(serve::Args::default()),
        Some(command) => command,
    };
    let file = cli.config.as_deref();
    match command {
        Command::Serve(args) => serve::run(args, configured(file)?),
        Command::Check(args) => check_configuration(args, cli.config),
        Command::Explain(args) => explain::run(&args, &load(file)?, &mut std::io::stdout().lock()),
        Command::Health(args) => {
            let admin = file.map(|file| load(Some(file))).transpose()?;
            let admin = admin.map(|config| config.server.admin);
            health::run(&args, admin, &mut std::io::stdout().lock())
        }
        Command::Migrate(args) => migrate(&args, &load(file)?),
        Command::Exec(args) => exec::run(&args, &load(file)?),
        Command::Import(args) => with_store(&load(file)?, async |store, auth, _| {
            import::run(args, store, auth, &mut std::io::stdout().lock()).await
        }),
        Command::Keys(command) => with_store(&load(file)?, async |store, auth, _| {
            keys::run(command, store, auth, &mut std::io::stdout().lock()).await
        }),
        Command::Users(command) => with_store(&load(file)?, async |store, _, _| {
            users::run(command, store, &mut std::io::stdout().lock()).await
        }),
        Command::Modules(command) => with_store(&load(file)?, async |store, _, sandbox| {
            modules::run(command, store, sandbox, &mut std::io::stdout().lock()).await
        }),
        Command::CompileWorker => {
            bail!("compile-worker takes no arguments; the gateway starts it itself")
        }
    }
}

fn check_configuration(mut args: check::Args, file: Option<PathBuf>) -> anyhow::Result<i32> {
    args.config = file;
    let probes = check::Probes {
        module: &check_module,
        table: &check_table,
        now: std::time::SystemTime::now(),
    };
    let code = check::run(
        &args,
        &config::process_variables(),
        &probes,
        &mut std::io::stdout().lock(),
    );
    Ok(i32::from(code))
}

/// What the sandbox says of a route's module, which may be text.
fn check_module(bytes: &[u8], settings: &sandbox::Settings) -> Result<(), String> {
    let wasm =
        sandbox::to_binary(bytes::Bytes::copy_from_slice(bytes)).map_err(|e| e.to_string())?;
    sandbox::check(&wasm, settings).map_err(|e| e.to_string())
}

/// What the table says of the routes: an error each that is wrong, or which can never match.
fn check_table(routes: &[Route]) -> Result<Vec<check::RouteFinding>, Vec<check::RouteFinding>> {
    let name = |index: usize| {
        routes
            .get(index)
            .map(|r| r.name.clone())
            .unwrap_or_default()
    };
    match Table::build(routes.to_vec()) {
        Ok(table) => {
            let findings = table.unreachable().into_iter();
            Ok(findings
                .map(|u| check::RouteFinding {
                    route: u.name.clone(),
                    message: u.to_string(),
                })
                .collect())
        }
        Err(errors) => Err(errors
            .iter()
            .map(|e| check::RouteFinding {
                route: name(e.index()),
                message: e.to_string(),
            })
            .collect()),
    }
}

fn load(file: Option<&std::path::Path>) -> anyhow::Result<Config> {
    Ok(configured(file)?.loaded.config)
}

/// The configuration; every problem is printed before this fails.
fn configured(file: Option<&std::path::Path>) -> anyhow::Result<Configured> {
    match Config::load(file, &config::process_variables()) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            Ok(Configured {
                file: file.map(std::path::Path::to_owned),
                loaded,
                upgrade: false,
            })
        }
        Err(problems) => {
            eprintln!("{problems}");
            bail!("the configuration is not valid");
        }
    }
}

#[derive(clap::Args, Default)]
struct MigrateArgs {
    /// The role that gateways use (PostgreSQL), where it is not the one that migrates: it gets what they need,
    /// and nothing that would let it change the schema or the audit.
    #[arg(long, value_name = "ROLE")]
    service_role: Option<String>,
    /// Only says whether this program could serve on the database as it is; a newer schema is no hindrance.
    #[arg(long, conflicts_with = "service_role")]
    check: bool,
}

fn migrate(args: &MigrateArgs, config: &Config) -> anyhow::Result<i32> {
    if args.check
        && let Some(file) = store::missing_file(&config.store)
    {
        bail!("there is no database: {} is not there", file.display());
    }
    runtime()?.block_on(async {
        let store = Store::connect(&config.store)
            .await
            .context("opening the database")?;
        if args.check {
            return check_schema(&store).await;
        }
        let done = store.migrate().await.context("migrating the database")?;
        if let Some(role) = &args.service_role {
            let granted = store.grant_to(role).await;
            granted.with_context(|| format!("giving the role '{role}' its rights"))?;
        }
        let applied = done.applied.len();
        writeln!(
            std::io::stdout(),
            "schema version {}, {applied} migration(s) applied",
            done.version
        )?;
        store.close().await;
        Ok(0)
    })
}

/// What a gateway asks for before it starts.
async fn check_schema(store: &Store) -> anyhow::Result<i32> {
    let reading = "reading the database's schema version";
    let pending = store.pending().await.context(reading)?;
    if !pending.is_empty() {
        bail!(
            "the database lacks {} migration(s) that this program needs",
            pending.len()
        );
    }
    store.ping().await.context("reading the database")?;
    let version = env!("CARGO_PKG_VERSION");
    writeln!(
        std::io::stdout(),
        "version {version} can serve on this database"
    )?;
    store.close().await;
    Ok(0)
}

/// Opens the database for a command, on a schema that is up to date.
fn with_store(
    config: &Config,
    work: impl AsyncFnOnce(&Store, &Authenticator, &Sandbox) -> anyhow::Result<()>,
) -> anyhow::Result<i32> {
    let salt = config::salt_at_start(config).context("reading the API key salt")?;
    let made = store::missing_file(&config.store);
    runtime()?.block_on(async {
        let store = Store::connect(&config.store)
            .await
            .context("opening the database")?;
        serve::bring_up_to_date(config, &store).await?;
        if let Some(file) = made {
            writeln!(
                std::io::stderr(),
                "made a new database, {}: the gateway's own is in the directory it runs in, or where its --config says",
                file.display()
            )?;
        }
        let store = store.acting(operator());
        let auth = Authenticator::new(config.auth.settings(salt), store.clone());
        let sandbox = Sandbox::start(config.sandbox.clone().for_one_command())
            .context("starting the sandbox")?;
        work(&store, &auth, &sandbox).await?;
        store.close().await;
        Ok(0)
    })
}

/// Who sits at the command line, as far as this machine knows.
fn operator() -> Actor {
    let name = ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|variable| std::env::var(variable).ok())
        .unwrap_or_default();
    let uid = rustix::process::getuid().as_raw();
    Actor {
        kind: ActorKind::Operator,
        operator: Some(format!("{name} (uid {uid})").trim_start().to_owned()),
        ..Actor::default()
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("starting the runtime")
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
