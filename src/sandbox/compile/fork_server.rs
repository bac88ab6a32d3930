//! The gateway's end of the fork server (see [`worker::fork_server`]).

use std::io::{self, ErrorKind, IoSlice, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use rustix::process::Pid;

use super::super::allocator;
use super::super::settings::CompileSettings;
use super::super::worker::fork_server::{BY_WORKER, REPLY_BYTES, Reply};
use super::super::worker::{self, Limits};
use super::process::Process;

/// Workers that are forked from one server. They all have its addresses of code and data, which one that was
/// taken over by its module might know and tell, or one that crashes might have guessed at; so after one that crashed,
/// and now and then anyway, there is another server.
const WORKERS_MAX: u32 = 256;
/// How long a server may take to answer, which takes it a millisecond.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// How much longer one may take that was just started.
const START_TIMEOUT: Duration = Duration::from_secs(8);
/// How often it is looked whether anybody still waits for the answer.
const LOOK: Duration = Duration::from_millis(100);
/// The server's name for itself, whatever the path it is started by.
const NAME: &str = "wasm-wizard";

/// Where workers come from: a server, which is started when it is needed.
pub(super) struct Forks {
    settings: CompileSettings,
    server: Option<ForkServer>,
    /// Takes its place when it is warm.
    next: Option<ForkServer>,
    /// Whether a worker crashed since there is this server, from which its module may have learned.
    has_crashed: Arc<AtomicBool>,
}

impl Forks {
    pub(super) fn new(settings: CompileSettings) -> Forks {
        Forks {
            settings,
            server: None,
            next: None,
            has_crashed: Arc::default(),
        }
    }

    /// To be set when a worker crashed.
    pub(super) fn has_crashed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_crashed)
    }

    /// A new worker with its limits, and the other ends of its pipes. Not when it is over before there is an answer.
    pub(super) fn fork(
        &mut self,
        is_over: &dyn Fn() -> bool,
    ) -> io::Result<(Process, PipeWriter, PipeReader)> {
        let (input, stdin) = io::pipe()?;
        let (stdout, output) = io::pipe()?;
        let pipes = [input.as_raw_fd(), output.as_raw_fd()];
        let pid = self.ask(&pipes, is_over)?;
        Ok((Process::new(pid)?, stdin, stdout))
    }

    fn ask(&mut self, pipes: &[RawFd; 2], is_over: &dyn Fn() -> bool) -> io::Result<Pid> {
        let limits = Limits {
            memory_bytes_max: self.settings.memory_bytes_max,
            // To warm up takes less than one.
            cpu_seconds_max: self.settings.timeout.as_secs().saturating_add(2),
        };
        self.renew();
        if let Some(server) = &mut self.server {
            match server.fork(limits, pipes, is_over) {
                Ok(forked) => return forked,
                // It may have been killed for the sake of memory.
                Err(error) => {
                    self.give_up(&error);
                    if is_over() {
                        return Err(error);
                    }
                }
            }
        }
        let mut server = match self.next.take() {
            Some(server) => server,
            None => ForkServer::start(&self.settings)?,
        };
        let forked = server.fork(limits, pipes, is_over)?;
        self.server = Some(server);
        forked
    }

    /// Starts the next server, if it is time for one. It takes the place of the other once it is warm: until then,
    /// nobody waits for it.
    fn renew(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        let has_crashed = self.has_crashed.swap(false, Ordering::Relaxed);
        if self.next.is_none() && (has_crashed || server.asked >= WORKERS_MAX) {
            match ForkServer::start(&self.settings) {
                Ok(next) => self.next = Some(next),
                Err(error) => {
                    tracing::warn!(%error, "the fork server of compile workers can't be renewed");
                    // One that has served for long is better than none.
                    server.asked = WORKERS_MAX / 2;
                }
            }
        }
        match self.next.take() {
            Some(mut next) if next.is_warm() || next.started.elapsed() >= START_TIMEOUT => {
                if next.is_warm() && matches!(next.process.try_wait(), Ok(None)) {
                    self.server = Some(next);
                } else {
                    tracing::warn!(
                        "the next fork server of compile workers has ended, or does not get warm"
                    );
                    server.asked = WORKERS_MAX / 2;
                }
            }
            next => self.next = next,
        }
    }

    /// Lets go of a server that has ended.
    pub(super) fn look(&mut self) {
        if let Some(server) = &mut self.server
            && let Ok(Some(status)) = server.process.try_wait()
        {
            self.give_up(&io::Error::other(format!("it has ended: {status}")));
        }
    }

    /// What hangs up when the server ends.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.server.as_ref().map(|server| server.control.as_fd())
    }

    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!(%error, "the fork server of compile workers fails; the next worker is forked by another");
        self.server = None;
    }
}

struct ForkServer {
    process: Child,
    started: Instant,
    control: UnixStream,
    /// How many workers it was asked for since it was new, or could not be renewed.
    asked: u32,
    /// The number of the last question.
    last: u32,
    has_answered: bool,
    /// What the last worker said of itself.
    by_worker: Option<Pid>,
}

impl Drop for ForkServer {
    fn drop(&mut self) {
        // Both fail only for a child that is reaped already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // One may be forked of which nobody has heard. It says so itself, before it lets go of the socket.
        if !self.has_answered
            && let Some(pid) = self.unheard()
        {
            // If it is none of ours, it is not there any more.
            drop(Process::new(pid));
        }
    }
}

impl ForkServer {
    /// Does not wait until it is warm.
    fn start(settings: &CompileSettings) -> io::Result<ForkServer> {
        let (control, theirs) = UnixStream::pair()?;
        control.set_read_timeout(Some(LOOK))?;
        let process = Command::new(&settings.worker)
            .arg0(NAME)
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
            started: Instant::now(),
            control,
            asked: 0,
            last: 0,
            has_answered: true,
            by_worker: None,
        })
    }

    /// Whether it has something to say, or has ended.
    fn is_warm(&self) -> bool {
        let mut polls = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        poll(&mut polls, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Fails if the server does. If it can't fork just now, that is its answer.
    fn fork(
        &mut self,
        limits: Limits,
        pipes: &[RawFd; 2],
        is_over: &dyn Fn() -> bool,
    ) -> io::Result<io::Result<Pid>> {
        let message = limits.encode();
        let sent = sendmsg::<UnixAddr>(
            self.control.as_raw_fd(),
            &[IoSlice::new(&message)],
            &[ControlMessage::ScmRights(pipes)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        // A message this small is taken whole by a socket that holds no other.
        if sent != message.len() {
            return Err(ErrorKind::WriteZero.into());
        }
        let is_first = self.last == 0;
        self.asked += 1;
        self.last += 1;
        self.has_answered = false;
        self.by_worker = None;
        let start = if is_first {
            START_TIMEOUT
        } else {
            Duration::ZERO
        };
        // The server's: then it has let go of the worker's pipes.
        let forked = self.reply(self.last, REPLY_TIMEOUT + start, is_over)?;
        self.has_answered = true;
        Ok(forked)
    }

    /// The worker that it forked last, by the worker's own word.
    fn unheard(&mut self) -> Option<Pid> {
        if self.by_worker.is_none() {
            let _ = self.reply(self.last | BY_WORKER, REPLY_TIMEOUT, &|| false);
        }
        self.by_worker
    }

    /// Whom it forked, or why it could not.
    fn reply(
        &mut self,
        number: u32,
        within: Duration,
        is_over: &dyn Fn() -> bool,
    ) -> io::Result<io::Result<Pid>> {
        let began = Instant::now();
        let mut bytes = [0; REPLY_BYTES];
        loop {
            match self.control.read_exact(&mut bytes) {
                Ok(()) => {
                    let reply = Reply::decode(bytes);
                    if reply.number == self.last | BY_WORKER {
                        self.by_worker = reply.forked.as_ref().ok().copied();
                    }
                    // Others are late, and one says that the server is warm.
                    if reply.number == number {
                        return Ok(reply.forked);
                    }
                }
                // Replies are small, and come whole.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if is_over() {
                        return Err(ErrorKind::Interrupted.into());
                    }
                    if began.elapsed() >= within {
                        return Err(io::Error::other("it does not answer"));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
