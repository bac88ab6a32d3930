//! The shared store: Redis, asked in the background.
//!
//! One task holds the one connection. It sends what [`Leases`] wants to know as pipelines of calls of
//! one script, one pipeline after the other, so that what comes up meanwhile travels together. Nothing
//! on the request path knows of it. Redis 5 or newer is needed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisError, TlsCertificates,
};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::leases::{Answer, Call, LEASE, Leases};
use crate::limits::Subject;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::metrics;

const LEASE_SCRIPT: &str = include_str!("lease.lua");
const GENERATION_SCRIPT: &str = include_str!("generation.lua");

/// Of what the scripts store, and part of all keys: gateways whose scripts would not understand each other
/// count apart. To be raised with each change of a stored format.
const FORMAT: u32 = 2;

/// Calls in one pipeline.
const CALLS_MAX: usize = 256;
const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// How often Redis is asked whether it is there, and still the same.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time for giving back what is held, at the end.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(1);
/// What of an error goes to the log.
const REASON_CHARS_MAX: usize = 300;
/// The wait before a connection is tried again: doubled from the first to the last, and each time a
/// random part of the second half of it less, so that many gateways don't come all at once.
const RETRY_FIRST: Duration = Duration::from_millis(40);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// Which Redis, and how.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `redis://` or `rediss://`; it may hold a password.
    pub url: String,
    /// PEM file of the authorities that sign its certificate; `None` trusts the system's.
    pub ca: Option<PathBuf>,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Begins all keys.
    pub key_prefix: String,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("ca", &self.ca)
            .field("timeout", &self.timeout)
            .field("key_prefix", &self.key_prefix)
            .finish_non_exhaustive()
    }
}

/// Why Redis can't be used at all. Says nothing of the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("is not a Redis URL")]
    Url,
    #[error("has the scheme of a Unix socket")]
    Socket,
    #[error("turns off the check of the server's certificate")]
    Insecure,
    #[error("'{}' can't be read: {error}", .path.display())]
    Ca {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("needs a URL that begins with rediss://")]
    CaWithoutTls,
    #[error("holds no certificates that can be used")]
    Certificates,
}

/// Whether this can be the URL of a Redis server.
///
/// # Errors
/// What is wrong with it, without a word of it.
pub fn check_url(url: &str) -> Result<(), SettingsError> {
    let info = url.into_connection_info().map_err(|_| SettingsError::Url)?;
    match info.addr() {
        ConnectionAddr::Tcp(..) => Ok(()),
        ConnectionAddr::TcpTls { insecure: true, .. } => Err(SettingsError::Insecure),
        ConnectionAddr::TcpTls { .. } => Ok(()),
        _ => Err(SettingsError::Socket),
    }
}

/// Talks to Redis for [`Leases`].
pub struct Courier {
    leases: Arc<Leases>,
    health: Health,
    client: Client,
    settings: Settings,
    /// Whether a gateway without Redis is not ready.
    is_vital: bool,
    /// What this gateway is called there: random, so that a new process is a new one.
    gateway: String,
    generation: Generation,
    /// Of the script, as Redis knows it.
    script: String,
    is_up: Option<bool>,
}

/// What Redis was when it was last asked.
#[derive(Default)]
struct Generation {
    name: String,
    since_us: u64,
}

/// The wait before the next try.
struct Backoff(Duration);

impl Courier {
    /// # Errors
    /// When the URL or the file of authorities can't be used. No connection is made.
    pub fn new(
        settings: Settings,
        is_vital: bool,
        leases: Arc<Leases>,
        health: Health,
    ) -> Result<Courier, SettingsError> {
        check_url(&settings.url)?;
        let client = match &settings.ca {
            None => Client::open(settings.url.as_str()).map_err(|_| SettingsError::Url)?,
            Some(path) => {
                if !settings.url.starts_with("rediss://") {
                    return Err(SettingsError::CaWithoutTls);
                }
                let pem = std::fs::read(path).map_err(|error| SettingsError::Ca {
                    path: path.clone(),
                    error,
                })?;
                let certificates = TlsCertificates {
                    client_tls: None,
                    root_cert: Some(pem),
                };
                Client::build_with_tls(settings.url.as_str(), certificates)
                    .map_err(|_| SettingsError::Certificates)?
            }
        };
        metrics().redis_configured.set(1);
        Ok(Courier {
            leases,
            health,
            client,
            settings,
            is_vital,
            gateway: name(),
            generation: Generation::default(),
            script: String::new(),
            is_up: None,
        })
    }

    /// Works until `stop` resolves, and then gives back what is held. `tried` resolves once it is
    /// known whether Redis answers.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>, tried: oneshot::Sender<()>) {
        let mut tried = Some(tried);
        let mut backoff = Backoff(RETRY_FIRST);
        loop {
            let error = match self.connect().await {
                Ok(mut connection) => {
                    self.noted(Ok(()));
                    // Nobody waits any more, or somebody does and is told.
                    let _ = tried.take().map(|tried| tried.send(()));
                    backoff = Backoff(RETRY_FIRST);
                    match self.serve(&mut connection, &mut stop).await {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.noted(Err(&error));
            let _ = tried.take().map(|tried| tried.send(()));
            tokio::select! {
                biased;
                _ = &mut stop => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    async fn connect(&mut self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.settings.timeout));
        let client = &self.client;
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        self.load(&mut connection).await?;
        self.check(&mut connection).await?;
        Ok(connection)
    }

    async fn load(&mut self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(LEASE_SCRIPT);
        self.script = load.query_async(connection).await?;
        Ok(())
    }

    /// Asks whether Redis is there, and whether it has lost what it held.
    async fn check(&mut self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let mut check = redis::cmd("EVAL");
        check
            .arg(GENERATION_SCRIPT)
            .arg(1)
            .arg(key_of(&self.settings.key_prefix, "generation"))
            .arg(&self.generation.name)
            .arg(name());
        let (name, since_us, now_us): (String, u64, u64) = check.query_async(connection).await?;
        let is_new = name != self.generation.name || since_us != self.generation.since_us;
        let knew_another = !self.generation.name.is_empty();
        self.generation = Generation { name, since_us };
        if is_new && since_us > 0 {
            let ago = Duration::from_micros(now_us.saturating_sub(since_us));
            self.leases.store_has_lost(ago, Instant::now());
            if knew_another {
                tracing::warn!(
                    "Redis has lost the limits it held: minutes begin empty, and what gateways remember of the day is restored"
                );
            }
        }
        Ok(())
    }

    /// Until `stop` resolves, or Redis fails.
    async fn serve(
        &mut self,
        connection: &mut MultiplexedConnection,
        stop: &mut oneshot::Receiver<()>,
    ) -> Result<(), RedisError> {
        let leases = Arc::clone(&self.leases);
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut checked = Instant::now();
        loop {
            tokio::select! {
                biased;
                _ = &mut *stop => {
                    leases.give_back();
                    let last = self.give_back(connection);
                    // What does not get there ends by itself.
                    let _ = tokio::time::timeout(GIVE_BACK_TIMEOUT, last).await;
                    return Ok(());
                }
                _ = sweep.tick() => {
                    leases.sweep(Instant::now());
                    metrics().limit_tokens_held.set(i64::try_from(leases.held()).unwrap_or(i64::MAX));
                    if checked.elapsed() >= CHECK_EVERY {
                        checked = Instant::now();
                        self.check(connection).await?;
                    }
                }
                () = leases.wanted() => {
                    let calls = leases.collect(CALLS_MAX, Instant::now());
                    self.ask(connection, &calls).await?;
                }
            }
        }
    }

    async fn give_back(
        &mut self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), RedisError> {
        loop {
            let calls = self.leases.collect(CALLS_MAX, Instant::now());
            if calls.is_empty() {
                return Ok(());
            }
            self.ask(connection, &calls).await?;
        }
    }

    async fn ask(
        &mut self,
        connection: &mut MultiplexedConnection,
        calls: &[Call],
    ) -> Result<(), RedisError> {
        if calls.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut answers = self.send(connection, calls).await;
        if let Err(error) = &answers
            && error.code() == Some("NOSCRIPT")
        {
            answers = match self.load(connection).await {
                Ok(()) => self.send(connection, calls).await,
                Err(error) => Err(error),
            };
        }
        metrics().redis_call(answers.is_ok(), begun.elapsed());
        match answers {
            Ok(answers) => {
                let now = Instant::now();
                for (call, answer) in calls.iter().zip(answers) {
                    self.leases.settle(call, answer, now);
                }
                Ok(())
            }
            Err(error) => {
                // First, so that nobody who is woken asks again.
                self.leases.set_up(false);
                for call in calls {
                    self.leases.fail(call);
                }
                Err(error)
            }
        }
    }

    async fn send(
        &self,
        connection: &mut MultiplexedConnection,
        calls: &[Call],
    ) -> Result<Vec<Option<Answer>>, RedisError> {
        let mut pipeline = Pipeline::with_capacity(calls.len());
        for call in calls {
            self.add(&mut pipeline, call);
        }
        let answers: Vec<Said> = pipeline.query_async(connection).await?;
        if answers.len() != calls.len() {
            return Err((ErrorKind::UnexpectedReturnType, "answers are missing").into());
        }
        answers.into_iter().map(answer).collect()
    }

    fn add(&self, pipeline: &mut Pipeline, call: &Call) {
        let [(limit_a, window_a), (limit_b, window_b)] = call.windows();
        let [seed_a, seed_b] = call.seed;
        pipeline
            .cmd("EVALSHA")
            .arg(&self.script)
            .arg(1)
            .arg(key(&self.settings.key_prefix, &call.subject))
            .arg(&self.gateway)
            .arg(call.sequence)
            .arg(limit_a)
            .arg(window_a)
            .arg(limit_b)
            .arg(window_b)
            .arg(call.owes_limits())
            .arg(call.held)
            .arg(call.back)
            .arg(call.need)
            .arg(call.ahead)
            .arg(call.owed)
            .arg(u64::try_from(LEASE.as_micros()).unwrap_or(u64::MAX))
            .arg(seed_a.to_string())
            .arg(seed_b.to_string())
            .arg(i32::from(call.restores))
            .arg(call.idle);
    }

    /// Notes whether Redis answers: everywhere, and in the log when that is new.
    fn noted(&mut self, found: Result<(), &RedisError>) {
        let is_up = found.is_ok();
        self.leases.set_up(is_up);
        metrics().redis_up.set(i64::from(is_up));
        // The reason goes to the log: the health page is public.
        const LOST: &str = "Redis does not answer: limits are not shared";
        match found {
            Ok(()) => self.health.set("redis", Ok(())),
            Err(_) if self.is_vital => self.health.set("redis", Err(LOST.to_owned())),
            Err(_) => self.health.degrade("redis", LOST.to_owned()),
        };
        if self.is_up.replace(is_up) == Some(is_up) {
            return;
        }
        match found {
            Ok(()) => tracing::info!("Redis answers: limits are shared"),
            Err(error) => {
                // One that stands for a whole pipeline is long.
                let error: String = error.to_string().chars().take(REASON_CHARS_MAX).collect();
                tracing::error!(error, "Redis does not answer: limits are not shared");
            }
        }
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let most = self.0;
        self.0 = (most * 2).min(RETRY_LAST);
        let part = u32::from(u16::from_ne_bytes(random()));
        most / 2 + most / 2 * part / u32::from(u16::MAX)
    }
}

/// What the script returns.
type Said = (i64, String, String, u32, bool, u32);

fn answer(
    (granted, minute, day, idle_elsewhere, is_wanted, excess): Said,
) -> Result<Option<Answer>, RedisError> {
    let Ok(granted) = u32::try_from(granted) else {
        return Ok(None);
    };
    match (minute.parse(), day.parse()) {
        (Ok(minute), Ok(day)) => Ok(Some(Answer {
            granted,
            debts: [minute, day],
            idle_elsewhere,
            is_wanted,
            excess,
        })),
        _ => Err((ErrorKind::UnexpectedReturnType, "an answer is not a number").into()),
    }
}

/// A subject's key.
fn key(prefix: &str, subject: &Subject) -> String {
    let name = match subject {
        Subject::User(user, tier) => format!("user:{user}:{tier}"),
        Subject::RouteUser(route, user) => format!("route:{route}:user:{user}"),
        Subject::RouteCertificate(route, certificate) => {
            format!("route:{route}:certificate:{certificate}")
        }
        Subject::RouteAddress(route, address) => format!("route:{route}:address:{address}"),
        Subject::AuthFailure(address) => format!("auth:{address}"),
        Subject::Cpu(user, tier) => format!("cpu:{user}:{tier}"),
        Subject::Guests(user, tier) => format!("guests:{user}:{tier}"),
    };
    key_of(prefix, &name)
}

/// What stands in braces decides where a cluster keeps it.
fn key_of(prefix: &str, name: &str) -> String {
    format!("{prefix}:{FORMAT}:{{{name}}}")
}

/// A random name.
fn name() -> String {
    format!("{:016x}", u64::from_ne_bytes(random()))
}

/// Without randomness from the system, the clock has to do: names must only differ.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if getrandom::fill(&mut bytes).is_err() {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
        let nanoseconds =
            since.map_or(0, |since| since.as_nanos()) ^ u128::from(std::process::id());
        for (byte, from) in bytes.iter_mut().zip(nanoseconds.to_ne_bytes()) {
            *byte = from;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_without_being_told() {
        for good in [
            "redis://127.0.0.1",
            "redis://:secret@cache.example:6380/2",
            "rediss://user:secret@cache.example",
        ] {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "cache",
            "http://cache",
            "redis+unix:///run/redis.sock",
            "unix:///run/redis.sock",
            "rediss://:hunter2@cache/#insecure",
        ] {
            let error = check_url(bad).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn retries_wait_longer_each_time_and_never_all_at_once() {
        let mut waits = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let mut backoff = Backoff(RETRY_FIRST);
            let first = backoff.next();
            assert!(
                first >= RETRY_FIRST / 2 && first <= RETRY_FIRST,
                "{first:?}"
            );
            let mut last = first;
            for _ in 0..20 {
                last = backoff.next();
            }
            assert!(last >= RETRY_LAST / 2 && last <= RETRY_LAST, "{last:?}");
            waits.insert(last);
        }
        assert!(waits.len() > 40, "{waits:?}");
    }

    #[test]
    fn keys_say_which_format_is_theirs() {
        let user = Subject::Guests(uuid::Uuid::nil(), crate::account::Tier::Pro);
        let nil = uuid::Uuid::nil();
        assert_eq!(key("ww", &user), format!("ww:2:{{guests:{nil}:pro}}"));
        assert_eq!(key_of("ww", "generation"), "ww:2:{generation}");
    }

    #[test]
    fn a_password_is_not_shown() {
        let settings = Settings {
            url: "redis://:hunter2@cache".into(),
            ca: None,
            timeout: Duration::from_millis(200),
            key_prefix: "ww".into(),
        };
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
