//! The fork server: the process that compile workers are forked from.
//!
//! To start this program, link it and run Singlepass for the first time takes some ten milliseconds of
//! a processor more than to fork a process that did all of that. So one process does it once, reads
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
use rustix::process::Pid;
use rustix::stdio::{dup2_stdin, dup2_stdout};

use super::{LIMITS_BYTES, Limits};

pub(in crate::sandbox) const REPLY_BYTES: usize = 8;

/// What is answered to each question: by the server and, as that may be ended meanwhile, by the worker too.
pub(in crate::sandbox) struct Reply {
    /// Of the question; the first has one. The worker's answer has it with [`BY_WORKER`].
    pub number: u32,
    /// The new worker, or why there is none.
    pub forked: io::Result<Pid>,
}

impl Reply {
    /// What the server says when it is warm, before any question.
    const WARM: Reply = Reply {
        number: 0,
        forked: Ok(Pid::INIT),
    };

    fn encode(&self) -> [u8; REPLY_BYTES] {
        let code = match &self.forked {
            Ok(pid) => pid.as_raw_nonzero().get(),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EAGAIN),
        };
        let mut bytes = [0; REPLY_BYTES];
        bytes[..4].copy_from_slice(&self.number.to_le_bytes());
        bytes[4..].copy_from_slice(&code.to_le_bytes());
        bytes
    }

    pub(in crate::sandbox) fn decode(bytes: [u8; REPLY_BYTES]) -> Reply {
        let [a, b, c, d, e, f, g, h] = bytes;
        let code = i32::from_le_bytes([e, f, g, h]);
        let pid = Pid::from_raw(code.max(0));
        Reply {
            number: u32::from_le_bytes([a, b, c, d]),
            forked: pid.ok_or_else(|| io::Error::from_raw_os_error(code.saturating_neg())),
        }
    }
}

/// Tells the worker's answer from the server's.
pub(in crate::sandbox) const BY_WORKER: u32 = 1 << 31;
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
///
/// # Safety
///
/// The process has one thread (see [`be_alone`]): in a worker, what another had begun would stay as it was. Or workers
/// do nothing but become another program.
pub(super) unsafe fn serve(mut control: UnixStream) -> io::Result<Option<Limits>> {
    control.write_all(&Reply::WARM.encode())?;
    let mut number = Reply::WARM.number;
    while let Some((limits, input, output)) = receive(&control)? {
        number += 1;
        // SAFETY: the caller's promise.
        let Some(forked) = unsafe { fork() }.transpose() else {
            let (number, forked) = (number | BY_WORKER, Ok(rustix::process::getpid()));
            // Nobody may be there any more: then there is no job either.
            let _ = control.write_all(&Reply { number, forked }.encode());
            // The socket is standard input too.
            dup2_stdin(input)?;
            dup2_stdout(output)?;
            return Ok(Some(limits));
        };
        // They hang up when the worker ends, whatever holds up the server.
        drop((input, output));
        control.write_all(&Reply { number, forked }.encode())?;
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
///
/// # Safety
///
/// As [`serve`].
unsafe fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: like fork(2), the call copies the process with the calling thread; the pointers it would take
    // are null. The C library does not know of it, and goes on to believe that this thread has the server's
    // id. That is an owner's name for locks that know theirs, and unlike that of any thread of the child; and
    // it is the thread that some calls on one's own thread are about, such as for its affinity, which nobody
    // makes here.
    let pid = unsafe {
        let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
        let none = 0 as libc::c_long;
        libc::syscall(libc::SYS_clone, flags, none, none, none, none)
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid as libc::pid_t)),
    }
}
