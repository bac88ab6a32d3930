//! Configuration: YAML and environment variables become validated types once; nothing else sees
//! raw text.
//!
//! [`tree`] reads the file and knows the line of everything in it, [`file`](mod@file) mirrors its keys,
//! [`env`](mod@env) puts the variables over them, and [`validate`] builds the [`Config`]. Each goes on after
//! a problem, so that all are reported at once.

mod context;
mod de;
mod env;
mod file;
mod problem;
mod reload;
mod secret;
mod tree;
mod validate;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use crate::{api, auth, gateway, limits, route, sandbox, store, telemetry, usage};

pub use context::Source;
pub use env::{VARIABLES, Variable, process_variables};
pub use problem::{Origin, Path, Problem, Problems};
pub use reload::RELOADABLE;
pub use secret::{SaltSource, TokenSecretSource};
pub use values::{Period, Size};

use context::Context;

/// The built-in configuration: what runs without a file.
pub const BUILT_IN: &str = include_str!("../../conf/wasm-wizard.yaml");

/// The whole configuration, validated. Each part is the settings type of the module it is for.
#[derive(Clone, PartialEq)]
pub struct Config {
    pub environment: Environment,
    pub server: Server,
    pub gateway: gateway::Settings,
    pub api: api::Settings,
    pub auth: Auth,
    pub limits: limits::Settings,
    pub sandbox: sandbox::Settings,
    pub store: store::Settings,
    pub usage: usage::Settings,
    pub logging: telemetry::logging::Settings,
    /// `None` where there are no traces.
    pub tracing: Option<telemetry::traces::Settings>,
    pub metrics: Metrics,
    pub routes: Vec<route::Route>,
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    Development,
    Staging,
    Production,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    pub listeners: Vec<gateway::Listener>,
    /// The admin listener; `None` where there is none.
    pub admin: Option<SocketAddr>,
    /// Threads that serve connections.
    pub threads: usize,
    /// Longest wait for running requests at shutdown.
    pub shutdown_grace: Duration,
    /// Where a new process asks for the listening sockets; `None` lets none do so.
    pub upgrade_socket: Option<PathBuf>,
    /// Whether a change of the configuration file is taken over without being asked for.
    pub reload_on_change: bool,
    /// Idle connections to upstreams that each listener keeps.
    pub upstream_idle_max: usize,
}

/// Settings of authentication, all but the secrets, which [`salt_at_start`] and [`tokens_at_start`]
/// fetch.
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    pub salt: SaltSource,
    pub cache_ttl: Duration,
    pub negative_ttl: Duration,
    pub outage_grace: Duration,
    pub cache_keys_max: u64,
    /// `None` issues no tokens.
    pub tokens: Option<Tokens>,
}

/// Settings of access and refresh tokens, all but the secrets.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    pub secrets: TokenSecretSource,
    pub issuer: String,
    pub audience: String,
    pub access_ttl: Duration,
    pub refresh_ttl: Duration,
    pub session_ttl: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    pub enabled: bool,
    /// Path on the admin listener.
    pub path: String,
    /// The file that says when the last backup was made; `None` where nobody watches over that.
    pub backup_stamp: Option<PathBuf>,
}

/// A configuration that can be used, and what should be known about it.
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<Problem>,
    /// Where each value was written, for what is found out about it later.
    pub source: Source,
    effective: file::File,
}

impl Config {
    /// Reads the file, or the built-in configuration where there is none, and puts the variables
    /// over it. Touches no file besides this one and those that `…_FILE` variables name. Paths in
    /// the configuration are relative to the working directory.
    ///
    /// # Errors
    /// Every problem that can be found without opening a certificate, a module or the database.
    pub fn load(
        file: Option<&FilePath>,
        variables: &BTreeMap<String, String>,
    ) -> Result<Loaded, Problems> {
        let name = file.map_or("built-in configuration".to_string(), |path| {
            path.display().to_string()
        });
        let mut cx = Context::new(name);
        let text = match file {
            Some(path) => read_file(path, &mut cx),
            None => Some(BUILT_IN.to_string()),
        };
        let read = text.and_then(|text| read_text(&text, &mut cx));
        let is_whole = read.is_some();
        let mut effective = read.unwrap_or_default();
        env::apply(&mut effective, variables, &mut cx);
        // Half a file would be blamed for what the other half says.
        let config = if is_whole {
            validate::config(&effective, &mut cx)
        } else {
            None
        };
        if let (None, false) = (&config, cx.has_problems()) {
            cx.file_problem("the configuration can't be used", "");
        }
        let (source, warnings) = cx.finish()?;
        match config {
            Some(config) => Ok(Loaded {
                config,
                warnings,
                source,
                effective,
            }),
            None => Err(Problems(Vec::new())),
        }
    }
}

impl Loaded {
    /// The configuration in effect, as YAML with secrets hidden. Without secrets it is a
    /// configuration file again.
    ///
    /// # Errors
    /// Never in practice; the serializer's signature has one.
    pub fn to_yaml(&self) -> Result<String, serde_yaml::Error> {
        use serde::Serialize as _;
        let mut yaml = Vec::new();
        let mut serializer = serde_yaml::Serializer::new(&mut yaml);
        let map = serde_yaml::with::singleton_map_recursive::serialize(
            &self.effective,
            serde_yaml::value::Serializer,
        )?;
        map.serialize(&mut serializer)?;
        drop(serializer);
        Ok(String::from_utf8_lossy(&yaml).into_owned())
    }
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

impl Auth {
    /// The settings, with the salt put in.
    pub fn settings(&self, salt: auth::Salt) -> auth::Settings {
        auth::Settings {
            salt,
            cache_ttl: self.cache_ttl,
            negative_ttl: self.negative_ttl,
            outage_grace: self.outage_grace,
            cache_keys_max: self.cache_keys_max,
        }
    }
}

/// The salt, read or made now. In development, where none is set, the first start makes one and
/// keeps it in a file with mode 0600.
///
/// # Errors
/// When that file can't be read or made, holds no salt, or can be read by others; the message
/// names it.
pub fn salt_at_start(config: &Config) -> io::Result<auth::Salt> {
    config.auth.salt.read_or_create()
}

/// The settings of access tokens, their secrets read or made as the salt is; `None` where there are
/// to be none.
///
/// # Errors
/// As for [`salt_at_start`].
pub fn tokens_at_start(config: &Config) -> io::Result<Option<auth::TokenSettings>> {
    let Some(tokens) = &config.auth.tokens else {
        return Ok(None);
    };
    Ok(Some(auth::TokenSettings {
        secrets: tokens.secrets.read_or_create()?,
        issuer: tokens.issuer.clone(),
        audience: tokens.audience.clone(),
        access_ttl: tokens.access_ttl,
        refresh_ttl: tokens.refresh_ttl,
        family_ttl: tokens.session_ttl,
    }))
}

/// The JSON Schema of the file, as `conf/wasm-wizard.schema.json` has it.
pub fn json_schema() -> String {
    let schema = schemars::schema_for!(file::File);
    // A schema is plain JSON; it always serializes.
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

/// Where the development salt is kept, relative to the working directory.
fn development_salt() -> PathBuf {
    PathBuf::from("data/api_salt")
}

/// Where the development secret of access tokens is kept.
fn development_token_secret() -> PathBuf {
    PathBuf::from("data/jwt_secret")
}

fn read_file(path: &FilePath, cx: &mut Context) -> Option<String> {
    let mut bytes = Vec::new();
    // One byte more than is allowed, so that the parser sees that it is too much.
    let read = std::fs::File::open(path).and_then(|file| {
        file.take(tree::FILE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
    });
    if let Err(error) = read {
        cx.file_problem(
            format_args!("can't be read: {error}"),
            "check the path given with --config",
        );
        return None;
    }
    let text = String::from_utf8(bytes);
    if text.is_err() {
        cx.file_problem("is not UTF-8", "save it as UTF-8 text");
    }
    text.ok()
}

fn read_text(text: &str, cx: &mut Context) -> Option<file::File> {
    let parsed = tree::parse(text);
    cx.flaws(parsed.flaws);
    let root = parsed.root?;
    let mut left_out = parsed.left_out;
    let (file, misfits) = de::read(&root, &mut left_out);
    cx.source.root = Some(root);
    cx.source.left_out = left_out;
    cx.misfits(misfits);
    file
}
