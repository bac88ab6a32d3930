//! The listening sockets: bound before anything else starts, or taken over from the process before, and
//! handed to Pingora.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{IntoRawFd, RawFd};

use anyhow::Context;
use async_trait::async_trait;
use pingora_core::server::{ListenFds, RuntimeOpts, ShutdownWatch};
use pingora_core::services::Service;
use tokio::net::TcpSocket;

/// Files that are asked for, at most, for the memory images of cached modules.
const IMAGES_MAX: u64 = 8192;

/// Connections that may wait to be accepted: a burst of them must not have to try again. Linux takes no
/// more than `net.core.somaxconn`, 4,096 where nobody changed it.
const WAITING_MAX: u32 = 4_096;

/// A socket that listens. Its number stays valid until Pingora closes it at the end of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Socket {
    pub address: SocketAddr,
    pub fd: RawFd,
}

/// Binds what was not inherited; of that, closes what is not wanted any more.
pub(super) fn open(wanted: &[SocketAddr], inherited: Vec<Socket>) -> anyhow::Result<Vec<Socket>> {
    let sockets = wanted.iter().map(|address| {
        match inherited.iter().find(|socket| socket.address == *address) {
            Some(socket) => Ok(*socket),
            None => bind(*address),
        }
    });
    let sockets = sockets.collect::<anyhow::Result<Vec<_>>>()?;
    for socket in inherited.iter().filter(|socket| !sockets.contains(socket)) {
        // One that stayed open would take connections that nobody accepts.
        if let Err(error) = nix::unistd::close(socket.fd) {
            tracing::warn!(address = %socket.address, %error, "a socket that is not needed can't be closed");
        }
    }
    Ok(sockets)
}

/// Says clearly that a port is taken, before anything is started.
fn bind(address: SocketAddr) -> anyhow::Result<Socket> {
    let listener = listen(address).with_context(|| {
        format!(
            "can't listen on {address}: choose another address under `server`, or stop what uses it"
        )
    })?;
    Ok(Socket {
        address,
        fd: listener.into_raw_fd(),
    })
}

/// As `TcpListener::bind`, which has room for 128 connections only.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(WAITING_MAX)?.into_std()
}

/// A service that finds its socket open instead of binding it.
pub(super) struct OnSocket<S> {
    pub service: S,
    pub socket: Socket,
}

#[async_trait]
impl<S: Service> Service for OnSocket<S> {
    async fn start_service(
        &mut self,
        sockets: Option<ListenFds>,
        shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        if let Some(sockets) = &sockets {
            let address = self.socket.address.to_string();
            sockets.lock().add(address, self.socket.fd);
        }
        self.service
            .start_service(sockets, shutdown, listeners_per_fd)
            .await;
    }

    fn name(&self) -> &str {
        self.service.name()
    }

    fn threads(&self) -> Option<usize> {
        self.service.threads()
    }

    fn runtime_opts_override(&self, global: &RuntimeOpts) -> Option<RuntimeOpts> {
        self.service.runtime_opts_override(global)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        self.service.listen_addresses()
    }
}

/// A connection is a file: the soft limit, often 1,024, is raised to what the hard one allows.
pub(super) fn raise_open_files(connections_max: usize, cache_bytes_max: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Each module in the cache may hold a file, the image of its memory. Few count for less than this.
    let images = (cache_bytes_max / (64 * 1024)).min(IMAGES_MAX);
    // Proxied requests hold a second socket; the rest is the database, the log and the like.
    let wanted = connections_max as u64 * 2 + images + 256;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted.min(most)),
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files can't be raised");
        }
    }
    if most < wanted {
        tracing::warn!(
            open_files_max = most,
            wanted,
            "the hard limit of open files is low for server.connections_max and sandbox.cache_max; raise it or lower these"
        );
    }
}
