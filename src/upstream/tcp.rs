//! Connections by TCP.

use std::io;
use std::net::SocketAddr;

use pingora_core::{Error, ErrorType};
use tokio::net::TcpStream;

/// Connects without Nagle's delay: what is sent is small, and waited for.
///
/// # Errors
/// Of the type that says what went wrong.
pub async fn connect(address: &SocketAddr) -> Result<TcpStream, Box<Error>> {
    let socket = TcpStream::connect(address).await.map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
            io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                ErrorType::ConnectNoRoute
            }
            _ => ErrorType::ConnectError,
        };
        Error::because(kind, "connecting to the upstream", error)
    })?;
    socket
        .set_nodelay(true)
        .map_err(|e| Error::because(ErrorType::SocketError, "setting TCP_NODELAY", e))?;
    Ok(socket)
}
