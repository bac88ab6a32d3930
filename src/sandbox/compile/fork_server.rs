//! The gateway's end of the fork server (see [`worker::fork_server`]).

use std::io::{self, IoSlice, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use rustix::process::Pid;

use super::super::allocator;
use super::super::settings::CompileSettings;
use super::super::worker::fork_server::REPLY_BYTES;
use super::super::worker::{self, Limits};
use super::process::Process;

/// Workers that are forked from one server. They all have its addresses of code and data, which one that was
/// taken over by its module might know and tell; so now and then there is another server.
const WORKERS_MAX: u32 = 256;
/// How long the server may take to answer, its start included.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Where workers come from: a server, which is started when it is needed.
pub(super) struct Forks {
    settings: CompileSettings,
    server: Option<ForkServer>,
}

impl Forks {
    pub(super) fn new(settings: CompileSettings) -> Forks {
        Forks {
            settings,
            server: None,
        }
    }

    /// A new worker with its limits, and the other ends of its pipes.
    pub(super) fn fork(&mut self) -> io::Result<(Process, PipeWriter, PipeReader)> {
        let limits = Limits {
            memory_bytes_max: self.settings.memory_bytes_max,
            // To warm up takes less than one.
            cpu_seconds_max: self.settings.timeout.as_secs().saturating_add(2),
        };
        self.server.take_if(|server| server.workers >= WORKERS_MAX);
        let started_before = self.server.is_some();
        match self.fork_once(limits) {
            // It may have been killed for the sake of memory since.
            Err(_) if started_before => self.fork_once(limits),
            result => result,
        }
    }

    /// A server that fails is not asked again.
    fn fork_once(&mut self, limits: Limits) -> io::Result<(Process, PipeWriter, PipeReader)> {
        let mut server = match self.server.take() {
            Some(server) => server,
            None => ForkServer::start(&self.settings)?,
        };
        let (input, stdin) = io::pipe()?;
        let (stdout, output) = io::pipe()?;
        let pid = server.fork(limits, input.into(), output.into())?;
        self.server = Some(server);
        Ok((Process::new(pid), stdin, stdout))
    }
}

struct ForkServer {
    process: Child,
    control: UnixStream,
    /// How many it has forked.
    workers: u32,
}

impl Drop for ForkServer {
    fn drop(&mut self) {
        // Both fail only for a child that is reaped already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // One that it forked, of which nobody has heard.
        if let Some(pid) = self.reply().ok().and_then(Result::ok) {
            drop(Process::new(pid));
        }
    }
}

impl ForkServer {
    /// Does not wait until it is warm.
    fn start(settings: &CompileSettings) -> io::Result<ForkServer> {
        let (control, theirs) = UnixStream::pair()?;
        control.set_read_timeout(Some(REPLY_TIMEOUT))?;
        let process = Command::new(&settings.worker)
            .arg(worker::COMMAND)
            .env_clear()
            .env(allocator::ARENA.to_string_lossy().as_ref(), "1")
            // Cranelift has threads made for what it does beside its compiles, and none is told how many:
            // then they look at the machine, which a worker's filter forbids.
            .env("RAYON_NUM_THREADS", "1")
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(ForkServer {
            process,
            control,
            workers: 0,
        })
    }

    fn fork(&mut self, limits: Limits, input: OwnedFd, output: OwnedFd) -> io::Result<Pid> {
        let message = limits.encode();
        let pipes = [input.as_raw_fd(), output.as_raw_fd()];
        let sent = sendmsg::<UnixAddr>(
            self.control.as_raw_fd(),
            &[IoSlice::new(&message)],
            &[ControlMessage::ScmRights(&pipes)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        // A message this small is taken whole by a socket that holds no other.
        if sent != message.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let pid = self.reply()??;
        self.workers += 1;
        Ok(pid)
    }

    /// Whom it forked, or why it could not.
    fn reply(&mut self) -> io::Result<io::Result<Pid>> {
        let mut reply = [0; REPLY_BYTES];
        self.control.read_exact(&mut reply)?;
        let reply = i32::from_le_bytes(reply);
        Ok(Pid::from_raw(reply.max(0)).ok_or_else(|| io::Error::from_raw_os_error(-reply)))
    }
}

#[cfg(test)]
pub(super) mod tests;
