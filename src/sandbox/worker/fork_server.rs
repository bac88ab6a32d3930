//! The fork server: the process that compile workers are forked from.
//!
//! To start this program, link it and run its compilers for the first time takes some fourteen milliseconds of
//! a processor; to fork a process that did all of that takes three. So one process does it once, reads
//! nothing of any module, and makes a worker each time the gateway asks for one.
//!
//! A worker is a child of the gateway, not of the server (clone(2), `CLONE_PARENT`): the gateway stops it,
//! reaps it and learns how it ended.

#![expect(
    unsafe_code,
    reason = "forks, and takes over descriptors that are sent to it"
)]

use std::fs;
use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use rustix::stdio::{dup2_stdin, dup2_stdout};

use super::{LIMITS_BYTES, Limits};

/// What the server answers: the new worker's process id, or an error number below zero.
pub(in crate::sandbox) const REPLY_BYTES: usize = 4;
/// How long threads may take to end.
const ALONE_WITHIN: Duration = Duration::from_secs(10);

/// Waits until the process has one thread: it must not fork while another is in the middle of something. The
/// compilers' threads end some time after they were told to.
pub(super) fn be_alone() -> io::Result<()> {
    let since = Instant::now();
    while fs::read_dir("/proc/self/task")?.count() > 1 {
        if since.elapsed() > ALONE_WITHIN {
            return Err(io::Error::other("other threads do not end"));
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Serves until the gateway hangs up. Returns once more in each worker: its pipes are standard input and output then, and
/// these are its limits.
pub(super) fn serve(mut control: UnixStream) -> io::Result<Option<Limits>> {
    while let Some((limits, input, output)) = receive(&control)? {
        let reply = match fork() {
            Ok(None) => {
                // The socket is standard input too.
                dup2_stdin(input)?;
                dup2_stdout(output)?;
                return Ok(Some(limits));
            }
            Ok(Some(worker)) => worker,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EAGAIN),
        };
        control.write_all(&reply.to_le_bytes())?;
    }
    Ok(None)
}

/// The next worker's limits and pipes.
fn receive(control: &UnixStream) -> io::Result<Option<(Limits, OwnedFd, OwnedFd)>> {
    let mut bytes = [0; LIMITS_BYTES];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(control.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let length = message.bytes;
    let mut pipes = Vec::with_capacity(2);
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = part {
            // SAFETY: the kernel has just given this process these descriptors; nobody else knows them.
            pipes.extend(rights.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    if length == 0 {
        return Ok(None);
    }
    let foreign = || io::Error::other("this command is for the gateway's own use");
    let limits = (length == LIMITS_BYTES).then(|| Limits::decode(bytes));
    let limits = limits.flatten().ok_or_else(foreign)?;
    let [input, output] = <[OwnedFd; 2]>::try_from(pipes).map_err(|_| foreign())?;
    Ok(Some((limits, input, output)))
}

/// Forks this process into another child of its parent: `None` in the child.
fn fork() -> io::Result<Option<libc::pid_t>> {
    // SAFETY: like fork(2), the call copies the process with the calling thread; the pointers it would take
    // are null. The C library does not know of it and goes on to believe that the child's thread has the server's
    // id: it looks at that only where locks know their owners, which are as before with one thread. There is no
    // other thread that could hold a lock (see `be_alone`).
    let pid = unsafe {
        let flags = libc::CLONE_PARENT | libc::SIGCHLD;
        libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0)
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid as libc::pid_t)),
    }
}
