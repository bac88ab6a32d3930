//! Upgrade: a new process takes the listening sockets over from the running one, which then ends its
//! requests and exits. The sockets stay open throughout, so no connection is refused.
//!
//! The running process, the predecessor, listens on a Unix socket. Its successor connects, receives the
//! listening sockets, prepares everything as at any start, accepts connections, and says so with
//! [`READY`]. Only then does the predecessor begin to shut down: a successor that fails changes nothing.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use super::sockets::Socket;

/// What a successor says once it serves.
const READY: &[u8] = b"ready\n";
/// The addresses of all listeners, as text.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// Listeners that a configuration may have, the admin listener included, and some to spare.
const SOCKETS_MAX: usize = 128;
/// Longest wait for a successor, which may have to compile all modules first.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest wait for a process that must only answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no upgrade.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error("no running gateway answers at {path}: {error}", path = .path.display())]
    NoPredecessor { path: PathBuf, error: io::Error },
    #[error("{path} belongs to another user", path = .0.display())]
    Stranger(PathBuf),
    #[error("the running gateway's answer can't be read: {0}")]
    Answer(io::Error),
    #[error("{path}: {error}", path = .path.display())]
    Socket { path: PathBuf, error: io::Error },
}

/// A successor's connection to its predecessor.
pub(super) struct Predecessor {
    stream: UnixStream,
}

/// Connects to the running gateway and receives its sockets. It goes on serving.
pub(super) async fn inherit(path: &Path) -> Result<(Predecessor, Vec<Socket>), UpgradeError> {
    let unreachable = |error| UpgradeError::NoPredecessor {
        path: path.to_owned(),
        error,
    };
    let stream = UnixStream::connect(path).await.map_err(unreachable)?;
    if !is_own(&stream) {
        return Err(UpgradeError::Stranger(path.to_owned()));
    }
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, receive(&stream)).await;
    let sockets = answer
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(UpgradeError::Answer)?;
    Ok((Predecessor { stream }, sockets))
}

impl Predecessor {
    /// Says that this process serves, so that the predecessor ends.
    pub(super) async fn relieve(mut self) -> io::Result<()> {
        self.stream.write_all(READY).await
    }
}

/// What a running gateway offers to its successor.
pub(super) struct Handover {
    listener: UnixListener,
    sockets: Vec<Socket>,
}

impl Handover {
    /// Listens for a successor. A predecessor's socket at this path is replaced at once.
    pub(super) fn open(path: &Path, sockets: Vec<Socket>) -> Result<Handover, UpgradeError> {
        let failed = |error| UpgradeError::Socket {
            path: path.to_owned(),
            error,
        };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(failed(io::Error::other("is there and is not a socket")));
            }
            Ok(_) | Err(_) => {}
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        // What a process of the same number left behind is nobody's.
        let _ = std::fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary).map_err(failed)?;
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&temporary, private).map_err(failed)?;
        std::fs::rename(&temporary, path).map_err(failed)?;
        Ok(Handover { listener, sockets })
    }

    /// Resolves once a successor serves. One that fails is logged, and the next may come.
    pub(super) async fn successor(&self) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the upgrade socket can't accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            if !is_own(&stream) {
                tracing::warn!(
                    "another user's process asked for the listening sockets and was refused"
                );
                continue;
            }
            tracing::info!("a new process takes over");
            match self.hand_over(stream).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(%error, "the new process did not take over; this one goes on");
                }
            }
        }
    }

    async fn hand_over(&self, mut stream: UnixStream) -> io::Result<()> {
        send(&stream, &self.sockets).await?;
        let mut said = [0; READY.len()];
        let ready = stream.read_exact(&mut said);
        tokio::time::timeout(SUCCESSOR_TIMEOUT, ready).await??;
        if said != READY {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}

/// Whether the other end is a process of this user, or of root.
fn is_own(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// Sends the sockets with their addresses: one line of text, and the sockets beside it.
async fn send(stream: &UnixStream, sockets: &[Socket]) -> io::Result<()> {
    let addresses: Vec<String> = sockets.iter().map(|s| s.address.to_string()).collect();
    let text = format!("{}\n", addresses.join(" "));
    let fds: Vec<RawFd> = sockets.iter().map(|socket| socket.fd).collect();
    let sent = stream.async_io(Interest::WRITABLE, || {
        let parts = [IoSlice::new(text.as_bytes())];
        let rights = [ControlMessage::ScmRights(&fds)];
        let fd = stream.as_raw_fd();
        Ok(sendmsg::<UnixAddr>(
            fd,
            &parts,
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?)
    });
    let sent = sent.await?;
    // A message this small is taken whole by a socket that was just opened.
    if sent != text.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

async fn receive(stream: &UnixStream) -> io::Result<Vec<Socket>> {
    let received = stream.async_io(Interest::READABLE, || {
        let mut text = [0; MESSAGE_BYTES_MAX];
        let mut parts = [IoSliceMut::new(&mut text)];
        let mut space = nix::cmsg_space!([RawFd; SOCKETS_MAX]);
        let fd = stream.as_raw_fd();
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(fd, &mut parts, Some(&mut space), flags)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(rights) = control {
                fds.extend(rights);
            }
        }
        let length = message.bytes;
        Ok((text[..length].to_vec(), fds))
    });
    let (text, fds) = received.await?;
    paired(&text, &fds).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn paired(text: &[u8], fds: &[RawFd]) -> Option<Vec<Socket>> {
    let line = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
    let addresses: Vec<SocketAddr> = line
        .split(' ')
        .filter(|address| !address.is_empty())
        .map(|address| address.parse().ok())
        .collect::<Option<_>>()?;
    let pairs = addresses.iter().zip(fds);
    (addresses.len() == fds.len()).then(|| {
        pairs
            .map(|(address, fd)| Socket {
                address: *address,
                fd: *fd,
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    fn listening() -> Socket {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Socket {
            address: listener.local_addr().unwrap(),
            fd: listener.into_raw_fd(),
        }
    }

    #[tokio::test]
    async fn a_successor_gets_the_sockets_and_relieves_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/upgrade.sock");
        let (a, b) = (listening(), listening());
        let handover = Handover::open(&path, vec![a, b]).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let relieved = tokio::spawn(async move { handover.successor().await });
        // One that goes away without a word changes nothing.
        drop(inherit(&path).await.unwrap());
        let (predecessor, sockets) = inherit(&path).await.unwrap();
        let addresses: Vec<_> = sockets.iter().map(|s| s.address).collect();
        assert_eq!(addresses, [a.address, b.address]);
        assert!(sockets.iter().all(|s| s.fd != a.fd && s.fd != b.fd));
        assert!(!relieved.is_finished());
        predecessor.relieve().await.unwrap();
        relieved.await.unwrap();
        // The next one's place is taken over while the file is still there.
        assert!(Handover::open(&path, Vec::new()).is_ok());
    }

    #[tokio::test]
    async fn without_a_running_gateway_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let error = inherit(&path).await.err().unwrap();
        assert!(error.to_string().contains("no running gateway"), "{error}");
        std::fs::write(&path, "mine").unwrap();
        assert!(Handover::open(&path, Vec::new()).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn a_message_must_name_each_socket() {
        assert_eq!(paired(b"\n", &[]), Some(Vec::new()));
        assert!(paired(b"127.0.0.1:1 [::1]:2\n", &[3, 4]).is_some());
        for (text, fds) in [
            (&b"127.0.0.1:1\n"[..], &[3, 4][..]),
            (b"127.0.0.1:1 [::1]:2\n", &[3]),
            (b"127.0.0.1:1", &[3]),
            (b"localhost:1\n", &[3]),
            (b"\xff\n", &[]),
        ] {
            assert!(paired(text, fds).is_none(), "{}", text.escape_ascii());
        }
    }
}
