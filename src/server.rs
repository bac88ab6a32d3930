//! The composition root: from the configuration to listeners, services and background tasks.

mod changes;
mod notify;
mod observe;
mod records;
mod reload;
mod sockets;
mod stop;
mod upgrade;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use pingora_core::apps::HttpServerOptions;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server as PingoraServer, ShutdownSignal, ShutdownSignalWatch};
use pingora_core::services::listening::Service;
use pingora_proxy::http_proxy;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api;
use crate::auth::Authenticator;
use crate::config::{Config, Loaded};
use crate::gateway::connection::{ClientCaps, Gate, HeadDeadline};
use crate::gateway::plan::{Parts, Plan};
use crate::gateway::{BodyRoom, BuiltinMetrics, Gateway, Listener, Serves, Shared};
use crate::limits::Limiter;
use crate::modules::Registry;
use crate::sandbox::{Call, Preparation, Sandbox, ShareKey, Stdout, Strings};
use crate::store::Store;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::metrics;
use crate::telemetry::traces::Tracer;
use crate::tls::{self, CertificateFiles, Terminator, TlsError};
use crate::upstream;
use records::Records;
use reload::Reloader;
use sockets::{OnSocket, Socket};
use stop::{Stop, Successor};
use upgrade::{Handover, Predecessor};

/// How often the database is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How often the last use of keys is written.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Idle connections stay this long after shutdown began, so that a request that is already on its
/// way is answered.
const DRAIN_IDLE: Duration = Duration::from_millis(500);
/// Longest wait after that for connections without a request to be closed.
const DRAIN_SETTLED: Duration = Duration::from_secs(1);
/// Longest wait for the listeners to accept after the services were started.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait at the end for the collector to take the last traces.
const TRACES_LEFT: Duration = Duration::from_secs(2);

/// Connections to the admin listener.
const ADMIN_CONNECTIONS_MAX: usize = 256;

/// A gateway that is ready to run: everything that can be wrong has been checked, no port is bound.
pub struct Server {
    config: Config,
    store: Store,
    auth: Authenticator,
    shared: Arc<Shared>,
    listeners: Vec<Bound>,
    reloader: Reloader,
    successor: Successor,
    predecessor: Option<Predecessor>,
}

/// Where the configuration came from, and what it said.
pub struct Configured {
    /// `None` for the built-in one.
    pub file: Option<PathBuf>,
    pub loaded: Loaded,
    /// Whether to take over from the gateway that runs.
    pub upgrade: bool,
}

impl Server {
    /// Binds the ports, or takes them over from the gateway that runs; starts the sandbox, compiles the
    /// routes' modules and loads the certificates.
    pub async fn prepare(
        configured: Configured,
        store: Store,
        auth: Authenticator,
    ) -> anyhow::Result<Server> {
        // From here on a hang-up asks for a reload; its default would end the process.
        let hangups = signal(SignalKind::hangup())?;
        let config = configured.loaded.config.clone();
        let successor = Successor::of_this(configured.file.as_deref())?;
        let mut listeners = listeners(&config)?;
        let (predecessor, inherited) = match &config.server.upgrade_socket {
            Some(path) if configured.upgrade => {
                let (predecessor, sockets) = upgrade::inherit(path).await?;
                (Some(predecessor), sockets)
            }
            None if configured.upgrade => {
                bail!("server.upgrade_socket is null: name a socket, restart, and then upgrade")
            }
            Some(_) | None => (None, Vec::new()),
        };
        let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.address).collect();
        let sockets = sockets::open(&addresses, inherited)?;
        for (listener, socket) in listeners.iter_mut().zip(sockets) {
            listener.socket = Some(socket);
        }
        let sandbox = Sandbox::start(config.sandbox.clone()).context("starting the sandbox")?;
        self_test(&sandbox)
            .await
            .context("the sandbox does not work on this machine")?;
        let registry = Registry::new(
            store.clone(),
            sandbox.clone(),
            config.sandbox.wasm_bytes_max,
        );
        let usage = records::open(&config.usage)?;
        let tracer = Tracer::start(config.tracing.as_ref())?;
        let health = Health::new();
        let limiter = Limiter::start(&config.limits, &health).await;
        let limiter = limiter.map_err(|error| anyhow!("limits.redis: {error}"))?;
        let control_plane = api::State {
            settings: Arc::new(config.api.clone()),
            store: store.clone(),
            auth: auth.clone(),
            registry: registry.clone(),
            sandbox: sandbox.clone(),
            usage: usage.clone(),
            limiter: limiter.clone(),
            key_creation: Arc::default(),
        };
        registry
            .changed()
            .await
            .context("reading which modules are stopped")?;
        note_configuration(&store, &configured.loaded).await;
        let plan = Plan::prepare(parts(&config, &control_plane), &registry, None)
            .await
            .context("preparing the routes")?;
        health.set("sandbox", Ok(()));
        health.config_loaded();
        check_database(&store, &health).await;
        let shared = Arc::new(Shared {
            plan: ArcSwap::from_pointee(plan),
            auth: auth.clone(),
            limiter,
            sandbox,
            registry: registry.clone(),
            health,
            control: tokio::runtime::Handle::current(),
            builtin_metrics: BuiltinMetrics::default(),
            body_room: BodyRoom::new(config.gateway.api_body_bytes_max),
            usage,
            tracer,
        });
        let terminators = listeners.iter().filter_map(|l| l.tls.clone()).collect();
        let reloader = Reloader {
            shared: Arc::clone(&shared),
            registry: registry.clone(),
            control_plane,
            terminators,
            running: configured,
            hangups,
        };
        Ok(Server {
            config,
            store,
            auth,
            shared,
            listeners,
            reloader,
            successor,
            predecessor,
        })
    }

    /// Serves until a signal says stop, then lets running requests end and writes out what is
    /// queued.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let listeners = std::mem::take(&mut self.listeners);
        let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.address).collect();
        let sockets = listeners.iter().filter_map(|l| l.socket).collect();
        sockets::raise_open_files(
            self.config.gateway.bounds.connections_max,
            self.config.sandbox.cache_bytes_max,
        );
        let (stop, stopped) = watch::channel(false);
        let grace = self.config.server.shutdown_grace;
        let serving = self.start_pingora(listeners, stopped, grace)?;
        let background = self.start_background();
        let records = Records::start(&self.shared, &self.store, &self.config.usage);
        let observing = tokio::spawn(observe::observe(self.config.clone(), self.store.clone()));
        let tending = tokio::spawn(changes::tend_tokens(self.auth.clone()));
        let (registry, auth) = (&self.shared.registry, &self.auth);
        let changes = self.store.changes();
        let follower = tokio::spawn(changes::follow(changes, registry.clone(), auth.clone()));
        let rechecks = tokio::spawn(changes::recheck(registry.clone(), auth.clone()));
        let certificates = tokio::spawn(tls::watch(self.reloader.terminators.clone()));
        let reloads = tokio::spawn(self.reloader.run());
        wait_until_accepting(&addresses).await?;
        tracing::info!(addresses = ?addresses, environment = %format!("{:?}", self.config.environment).to_lowercase(), version = env!("CARGO_PKG_VERSION"), "the gateway is ready");

        let late = match self.predecessor.take() {
            Some(predecessor) => predecessor.relieve().await.err(),
            None => None,
        };
        let successors = tokio::spawn(self.successor.start_on_request());
        let by = match &late {
            Some(_) => Stop::Late,
            None => {
                notify::ready();
                let path = self.config.server.upgrade_socket.as_deref();
                let handover = Handover::offer(path, sockets);
                stop::stop(handover.as_ref()).await?
            }
        };
        tracing::info!(signal = by.name(), "shutting down");
        reloads.abort();
        certificates.abort();
        successors.abort();
        // Where another process serves, the service goes on: neither those who ask for its health nor
        // systemd must think that it stops.
        if by.ends_the_service() {
            self.shared.health.start_draining();
            notify::stopping();
        }
        // The receiver lives as long as Pingora runs; if it is gone there is nothing to stop.
        let _ = stop.send(true);
        drain(grace).await;
        self.shared.sandbox.shut_down();
        background.abort();
        observing.abort();
        tending.abort();
        follower.abort();
        rechecks.abort();
        self.shared.limiter.close().await;
        write_out(&self.auth).await;
        records.finish().await;
        tokio::task::block_in_place(|| self.shared.tracer.finish(TRACES_LEFT));
        self.store.close().await;
        tracing::info!("stopped");
        // Pingora's thread sleeps out its own grace period; nothing of ours runs on it any more.
        drop(serving);
        late.map_or(Ok(()), |late| Err(late.into()))
    }

    /// Starts the listeners on a thread of their own: Pingora blocks the one it runs on.
    fn start_pingora(
        &self,
        listeners: Vec<Bound>,
        stopped: watch::Receiver<bool>,
        grace: Duration,
    ) -> anyhow::Result<std::thread::JoinHandle<()>> {
        let conf = ServerConf {
            threads: self.config.server.threads,
            // Pingora keeps as many for each of the threads.
            upstream_keepalive_pool_size: self
                .config
                .server
                .upstream_idle_max
                .div_ceil(self.config.server.threads),
            max_retries: upstream::TRIES_MAX as usize,
            // A connection stays on its thread, which saves what moving it costs. No guest holds that
            // thread for longer than its slice.
            work_stealing: false,
            grace_period_seconds: Some(grace.as_secs() + 60),
            ..ServerConf::default()
        };
        let mut server = PingoraServer::new_with_opt_and_conf(Opt::default(), conf);
        server.bootstrap();
        let bounds = &self.config.gateway.bounds;
        let caps = ClientCaps::new(bounds.connections_max, bounds.connections_per_address_max);
        // Operators get in while the public listeners are full.
        let admin = ClientCaps::new(ADMIN_CONNECTIONS_MAX, u32::MAX);
        for (listener, bound) in listeners.into_iter().enumerate() {
            let Some(socket) = bound.socket else {
                bail!("the listener on {} has no socket", bound.address);
            };
            let caps = match bound.serves {
                Serves::Admin { .. } => &admin,
                Serves::Everything | Serves::Redirect { .. } => &caps,
            };
            let service = self.service(&server, caps, listener, bound);
            server.add_service(OnSocket { service, socket });
        }
        std::thread::Builder::new()
            .name("pingora".into())
            .spawn(move || {
                server.run(RunArgs {
                    shutdown_signal: Box::new(StopWatch(stopped)),
                })
            })
            .context("starting the listeners' thread")
    }

    fn service(
        &self,
        server: &PingoraServer,
        caps: &ClientCaps,
        listener: usize,
        bound: Bound,
    ) -> Service<Gate<HeadDeadline<pingora_proxy::HttpProxy<Gateway>>>> {
        let settings = &self.config.gateway;
        let public = !matches!(bound.serves, Serves::Admin { .. } | Serves::Redirect { .. });
        let gateway = Gateway {
            shared: Arc::clone(&self.shared),
            serves: bound.serves,
            listener,
        };
        let mut proxy = http_proxy(&server.configuration, gateway);
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(settings.timeouts.keepalive);
        options.keepalive_request_limit = Some(settings.bounds.requests_per_connection_max - 1);
        proxy.server_options = Some(options);
        proxy.h2_options = Some(h2_options(settings));
        let head = HeadDeadline {
            inner: Arc::new(proxy),
            timeout: settings.timeouts.request_head,
            keepalive: settings.timeouts.keepalive,
            drain: DRAIN_IDLE,
        };
        let gate = Gate {
            app: Arc::new(head),
            shared: Arc::clone(&self.shared),
            caps: caps.clone(),
            tls: bound.tls,
            proxy_protocol: bound.proxy_protocol,
        };
        let mut service = Service::new(format!("listener {}", bound.address), gate);
        service.add_tcp(&bound.address.to_string());
        if !public {
            service.threads = Some(1);
        }
        service
    }

    fn start_background(&self) -> tokio::task::JoinHandle<()> {
        let (store, health) = (self.store.clone(), self.shared.health.clone());
        let auth = self.auth.clone();
        tokio::spawn(async move {
            let mut flushed = Instant::now();
            loop {
                health.beat(Instant::now());
                check_database(&store, &health).await;
                metrics().database.connections(store.connections());
                if flushed.elapsed() >= FLUSH_EVERY {
                    flushed = Instant::now();
                    write_out(&auth).await;
                }
                tokio::time::sleep(PING_EVERY).await;
            }
        })
    }
}

/// Waits for the requests in flight, at most `grace`.
async fn drain(grace: Duration) {
    let deadline = Instant::now() + grace;
    // A connection that was just accepted is not a request yet, nor is one that waits for its next: such
    // are closed after [`DRAIN_IDLE`], and only then can nothing come any more.
    tokio::time::sleep(DRAIN_IDLE.min(grace)).await;
    let settled = Instant::now() + DRAIN_SETTLED;
    loop {
        let is_quiet = metrics().connections.get() == 0 || Instant::now() >= settled;
        if metrics().requests_active.get() == 0 && is_quiet {
            return;
        }
        if Instant::now() >= deadline {
            tracing::warn!(
                requests = metrics().requests_active.get(),
                "requests were cut off by the end of the grace period"
            );
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What of the configuration a plan is made of.
fn parts(config: &Config, control_plane: &api::State) -> Parts {
    let state = api::State {
        settings: Arc::new(config.api.clone()),
        ..control_plane.clone()
    };
    Parts {
        settings: config.gateway.clone(),
        tiers: config.limits.tiers.clone(),
        access_log: config.logging.access,
        control_plane: api::router(state),
        routes: config.routes.clone(),
    }
}

/// What the configuration lets listen, with the certificates loaded.
fn listeners(config: &Config) -> anyhow::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for listener in &config.server.listeners {
        bound.push(match listener {
            Listener::Https {
                address,
                files,
                proxy_protocol,
            } => {
                make_development_certificates(&files.certificates)
                    .context("making the development certificate")?;
                let terminator = Terminator::new(address.to_string(), files.clone())?;
                Bound {
                    address: *address,
                    serves: Serves::Everything,
                    socket: None,
                    tls: Some(Arc::new(terminator)),
                    proxy_protocol: *proxy_protocol,
                }
            }
            Listener::HttpRedirect {
                address,
                https_port,
                proxy_protocol,
            } => Bound {
                address: *address,
                serves: Serves::Redirect {
                    https_port: *https_port,
                },
                socket: None,
                tls: None,
                proxy_protocol: *proxy_protocol,
            },
            Listener::Http {
                address,
                proxy_protocol,
            } => Bound {
                address: *address,
                serves: Serves::Everything,
                socket: None,
                tls: None,
                proxy_protocol: *proxy_protocol,
            },
        });
    }
    if let Some(address) = config.server.admin {
        let metrics_path = config.metrics.enabled.then(|| config.metrics.path.clone());
        bound.push(Bound {
            address,
            serves: Serves::Admin { metrics_path },
            socket: None,
            tls: None,
            proxy_protocol: false,
        });
    }
    if bound.is_empty() {
        bail!("no listener is configured; add one under `server`");
    }
    Ok(bound)
}

fn make_development_certificates(certificates: &[CertificateFiles]) -> Result<(), TlsError> {
    for files in certificates.iter().filter(|c| c.development) {
        if tls::ensure_development(files)? {
            tracing::info!(cert = %files.cert.display(), "made a development certificate");
        }
    }
    Ok(())
}

/// A listener with what it serves.
struct Bound {
    address: SocketAddr,
    serves: Serves,
    /// Open once nothing else is wrong.
    socket: Option<Socket>,
    tls: Option<Arc<Terminator>>,
    proxy_protocol: bool,
}

/// Tells Pingora when to stop: the signals are ours.
struct StopWatch(watch::Receiver<bool>);

#[async_trait]
impl ShutdownSignalWatch for StopWatch {
    async fn recv(&self) -> ShutdownSignal {
        let mut stopped = self.0.clone();
        match stopped.wait_for(|stop| *stop).await {
            Ok(_) => ShutdownSignal::GracefulTerminate,
            // The sender is gone without a word: the process is on its way out.
            Err(_) => ShutdownSignal::FastShutdown,
        }
    }
}

fn h2_options(settings: &crate::gateway::Settings) -> H2Options {
    const WINDOW: u32 = 256 * 1024;
    // What of one answer waits to be written: each of as many as a client may have at a time.
    const SEND_BUFFER_BYTES: usize = 128 * 1024;
    const RESETS_PENDING_MAX: usize = 32;
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(settings.bounds.h2_streams_max);
    h2.max_header_list_size(u32::try_from(settings.bounds.head_bytes_max).unwrap_or(u32::MAX));
    h2.max_concurrent_reset_streams(RESETS_PENDING_MAX);
    h2.max_pending_accept_reset_streams(RESETS_PENDING_MAX);
    h2.max_local_error_reset_streams(Some(256));
    h2.max_send_buffer_size(SEND_BUFFER_BYTES);
    h2.initial_window_size(WINDOW);
    h2.initial_connection_window_size(4 * WINDOW);
    h2
}

/// Compiles and runs the smallest guest: a machine on which that fails must not come up.
async fn self_test(sandbox: &Sandbox) -> anyhow::Result<()> {
    const TINY: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;
    let wasm = crate::sandbox::to_binary(Bytes::from_static(TINY.as_bytes()))?;
    let module = sandbox.prepare(wasm, Preparation::Optimised).await?;
    let call = Call {
        args: Strings::arguments(["self-test"]),
        env: Strings::default(),
        stdin: Bytes::new().into(),
        files: None,
        stdout: Stdout::Collect,
        limits: crate::sandbox::GuestLimits {
            deadline: Duration::from_secs(5),
            memory_bytes_max: 1 << 20,
            stdout_bytes_max: 1024,
            stderr_bytes_max: 1024,
            stack_bytes_max: 1 << 20,
            table_elements_max: 100_000,
        },
        share: ShareKey::default(),
    };
    let outcome = sandbox.run(module, call).await?;
    if !outcome.end.is_success() {
        bail!("the test guest ended with {:?}", outcome.end);
    }
    Ok(())
}

/// Puts a configuration that is another than the last one into the audit.
async fn note_configuration(store: &Store, loaded: &Loaded) {
    if let Err(error) = store.config_used(loaded.facts()).await {
        tracing::warn!(%error, "the change of the configuration is not in the audit");
    }
}

async fn check_database(store: &Store, health: &Health) {
    let found = store.ping().await.map_err(|error| error.to_string());
    metrics().database.up.set(i64::from(found.is_ok()));
    // The details go to the log: the health page is public.
    let public = found
        .as_ref()
        .map(|_| ())
        .map_err(|_| "the database does not answer".to_owned());
    if health.set("database", public) {
        match found {
            Ok(()) => tracing::info!("the database answers"),
            Err(error) => tracing::error!(error, "the database does not answer"),
        }
    }
}

/// What can't be written now stays noted for the next time.
async fn write_out(auth: &Authenticator) {
    if let Err(error) = auth.flush().await {
        tracing::warn!(%error, "the last use of keys could not be written yet");
    }
}

async fn wait_until_accepting(addresses: &[SocketAddr]) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    for address in addresses {
        let mut reachable = *address;
        if reachable.ip().is_unspecified() {
            let loopback: std::net::IpAddr = if reachable.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            };
            reachable.set_ip(loopback);
        }
        while tokio::net::TcpStream::connect(reachable).await.is_err() {
            if Instant::now() >= deadline {
                bail!("the listener on {address} did not start");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}
