//! Upgrade: a new process takes the listening sockets over from the running one, which then ends its
//! requests and exits. The sockets stay open throughout, so no connection is refused.
//!
//! The running process, the predecessor, listens on a Unix socket. Its successor connects, receives the
//! listening sockets, prepares everything as at any start, accepts connections, and says so with
//! [`READY`]. Only then does the predecessor begin to shut down, and say so with [`GONE`]: a successor
//! that fails changes nothing. While it prepares it says [`WORKING`] every second; one that falls silent
//! is given up, and told so with [`LATE`] should it wake up again.

use std::convert::Infallible;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::sockets::Socket;

/// What a successor says while it prepares, and once it serves. Of the same length, so that each is
/// read by itself.
const WORKING: &[u8; 8] = b"working\n";
const READY: &[u8; 8] = b"ready  \n";
/// What it is told then: that its predecessor goes, or has given it up.
const GONE: &[u8; 8] = b"gone   \n";
const LATE: &[u8; 8] = b"late   \n";
/// What others are told meanwhile, with the number of the process that takes over.
const BUSY: &str = "busy ";
/// The addresses of all listeners, as text.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// Listeners that a configuration may have, the admin listener included, and some to spare.
const SOCKETS_MAX: usize = 128;
/// Longest wait for a successor, which may have to compile all modules first.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest silence of a successor, and how often it says something.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const WORKING_EVERY: Duration = Duration::from_secs(1);
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
    #[error("process {0} is taking over already; wait for it, or end it")]
    Busy(String),
    #[error("the running gateway did not hear of this process for too long and goes on without it")]
    Late,
    #[error("{path}: {error}", path = .path.display())]
    Socket { path: PathBuf, error: io::Error },
}

/// A successor's connection to its predecessor.
pub(super) struct Predecessor {
    read: OwnedReadHalf,
    /// Says that this process works, and gives the connection back when it is told to stop.
    working: JoinHandle<OwnedWriteHalf>,
    stop: oneshot::Sender<()>,
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
    let sockets = answer.unwrap_or_else(|_| {
        let error = io::Error::from(io::ErrorKind::TimedOut);
        Err(UpgradeError::Answer(error))
    })?;
    let (read, write) = stream.into_split();
    let (stop, stopped) = oneshot::channel();
    let predecessor = Predecessor {
        read,
        working: tokio::spawn(say_working(write, stopped)),
        stop,
    };
    Ok((predecessor, sockets))
}

async fn say_working(
    mut write: OwnedWriteHalf,
    mut stopped: oneshot::Receiver<()>,
) -> OwnedWriteHalf {
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => return write,
            () = tokio::time::sleep(WORKING_EVERY) => {
                // That nobody listens any more is seen at the end.
                let _ = write.write_all(WORKING).await;
            }
        }
    }
}

impl Predecessor {
    /// Says that this process serves, so that the predecessor ends. Where that one has ended by
    /// itself, this process serves in any case.
    ///
    /// # Errors
    /// [`UpgradeError::Late`], where the predecessor goes on.
    pub(super) async fn relieve(mut self) -> Result<(), UpgradeError> {
        let _ = self.stop.send(());
        let told = async {
            let mut write = self.working.await.map_err(io::Error::other)?;
            // Where that fails, something was said before.
            let _ = write.write_all(READY).await;
            let mut said = [0; GONE.len()];
            self.read.read_exact(&mut said).await?;
            Ok::<_, io::Error>(said)
        };
        // What it said before it closed the connection can be read all the same, so this is its end.
        let told = tokio::time::timeout(ANSWER_TIMEOUT, told);
        let said = told
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match said {
            Ok(said) if said == *LATE => Err(UpgradeError::Late),
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "the gateway that ran before is gone already");
                Ok(())
            }
        }
    }
}

/// What a running gateway offers to its successor.
pub(super) struct Handover {
    listener: UnixListener,
    sockets: Vec<Socket>,
}

impl Handover {
    /// Listens for a successor, where that can be: a gateway that can't is one all the same.
    pub(super) fn offer(path: Option<&Path>, sockets: Vec<Socket>) -> Option<Handover> {
        let opened = Handover::open(path?, sockets);
        let reason = "upgrades are not possible: the upgrade socket can't be opened";
        opened
            .inspect_err(|error| tracing::warn!(%error, reason))
            .ok()
    }

    /// Listens for a successor. A predecessor's socket at this path is replaced at once.
    fn open(path: &Path, sockets: Vec<Socket>) -> Result<Handover, UpgradeError> {
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
            let pid = process(&stream);
            tracing::info!(pid, "a new process takes over");
            let handed = tokio::select! {
                biased;
                handed = self.hand_over(stream) => handed,
                never = self.refuse_others(&pid) => match never {},
            };
            match handed {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(pid, %error, "the new process did not take over; this one goes on");
                }
            }
        }
    }

    async fn hand_over(&self, mut stream: UnixStream) -> io::Result<()> {
        send(&stream, &self.sockets).await?;
        let listening = tokio::time::timeout(SUCCESSOR_TIMEOUT, until_ready(&mut stream));
        let ready = listening
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let answer = if ready.is_ok() { GONE } else { LATE };
        // It reads this even after it has ended, if it is there to read.
        let told = stream.write_all(answer).await;
        ready?;
        if let Err(error) = told {
            tracing::warn!(%error, "the new process has not heard that this one goes");
        }
        Ok(())
    }

    /// Tells other processes which one takes over.
    async fn refuse_others(&self, pid: &str) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((mut stream, _)) => {
                    tracing::warn!(
                        pid = process(&stream),
                        "another process asked for the listening sockets meanwhile and was refused"
                    );
                    // What it makes of that is its affair.
                    let _ = stream.write_all(format!("{BUSY}{pid}\n").as_bytes()).await;
                }
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }
}

/// Listens to a successor until it serves.
async fn until_ready(stream: &mut UnixStream) -> io::Result<()> {
    let mut said = [0; WORKING.len()];
    loop {
        let hearing = tokio::time::timeout(SILENCE_MAX, stream.read_exact(&mut said));
        hearing.await.map_err(|_| {
            let silence = format!("it was silent for {} s", SILENCE_MAX.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, silence)
        })??;
        match &said {
            WORKING => {}
            READY => return Ok(()),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The number of the process at the other end.
fn process(stream: &UnixStream) -> String {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
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

async fn receive(stream: &UnixStream) -> Result<Vec<Socket>, UpgradeError> {
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
    let (text, fds) = received.await.map_err(UpgradeError::Answer)?;
    if let Some(pid) = text.strip_prefix(BUSY.as_bytes()) {
        let pid = String::from_utf8_lossy(pid).trim_end().to_owned();
        return Err(UpgradeError::Busy(pid));
    }
    paired(&text, &fds).ok_or_else(|| {
        let error = io::Error::from(io::ErrorKind::InvalidData);
        UpgradeError::Answer(error)
    })
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
        // Meanwhile others are told who is at it.
        let busy = inherit(&path).await.err().unwrap();
        let own = format!("process {} is taking over", std::process::id());
        assert!(busy.to_string().contains(&own), "{busy}");
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

    #[tokio::test(start_paused = true)]
    async fn a_successor_that_falls_silent_is_given_up_and_learns_it() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (read, mut write) = theirs.into_split();
        write.write_all(&WORKING.repeat(3)).await.unwrap();
        let given_up = until_ready(&mut ours).await.unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
        ours.write_all(LATE).await.unwrap();
        drop(ours);
        let (stop, stopped) = oneshot::channel();
        let predecessor = Predecessor {
            read,
            working: tokio::spawn(say_working(write, stopped)),
            stop,
        };
        let late = predecessor.relieve().await.unwrap_err();
        assert!(matches!(late, UpgradeError::Late), "{late}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_works_has_its_time() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = theirs.into_split();
        let (stop, stopped) = oneshot::channel();
        let predecessor = Predecessor {
            read,
            working: tokio::spawn(say_working(write, stopped)),
            stop,
        };
        let heard = tokio::spawn(async move {
            until_ready(&mut ours).await.unwrap();
            ours.write_all(GONE).await.unwrap();
        });
        tokio::time::sleep(3 * SILENCE_MAX).await;
        assert!(!heard.is_finished());
        predecessor.relieve().await.unwrap();
        heard.await.unwrap();
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
