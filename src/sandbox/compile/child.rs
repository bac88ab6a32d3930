//! One child process that does one job, watched from outside.

#![expect(
    unsafe_code,
    reason = "sets up pipes, makes a child less important, and stops it"
)]

use std::cell::Cell;
use std::io::{self, IoSlice, PipeReader, PipeWriter, Read, Write};
use std::iter;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use smallvec::SmallVec;

use super::super::ModuleError;
use super::super::settings::CompileSettings;
use super::super::worker::{self, Answer, Job, Reply};
use super::fork_server::Forks;
use super::keeper::Taken;
use super::process::Process;

/// How often the parent looks whether anybody still waits.
const LOOK: Duration = Duration::from_millis(20);
/// How long a child may take to end after its last word.
const LAST_WORD: Duration = Duration::from_secs(1);
/// What the pipes should hold: a module and its artifact pass in a few steps. More than the kernel
/// lets an ordinary user have is no use.
const PIPE_BYTES: libc::c_int = 1 << 20;
/// Room for what is read, beyond what is known to come.
const READ_BYTES: usize = 4096;
/// How much a compile in the background steps back, even for other compiles.
const NICENESS_BACKGROUND: libc::c_int = 15;

/// Why nothing was made.
pub(super) enum Failure {
    /// Nobody waits for it any more; the child was killed.
    Abandoned,
    /// The worker looked at the input and said no.
    Refused(ModuleError),
    /// There was no answer: it took too long, or the worker died.
    Failed(ModuleError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Failed(ModuleError::Internal(format!(
            "the compile worker's pipes: {error}"
        )))
    }
}

/// A child that does one job. It is killed and reaped when this is dropped.
///
/// The kernel kills it too when the thread that started it ends: see [`super::keeper`].
pub(super) struct Worker {
    child: Process,
    stdin: Option<PipeWriter>,
    stdout: PipeReader,
    /// Dropped after the child has ended.
    taken: Option<Taken>,
    /// Set if it crashes.
    has_crashed: Arc<AtomicBool>,
}

impl Worker {
    /// Starts a child. It warms up by itself.
    pub(super) fn start(forks: &mut Forks, is_over: &dyn Fn() -> bool) -> io::Result<Worker> {
        let (child, stdin, stdout) = forks.fork(is_over)?;
        set_up_pipe(&stdin)?;
        set_up_pipe(&stdout)?;
        Ok(Worker {
            child,
            stdin: Some(stdin),
            stdout,
            taken: None,
            has_crashed: forks.has_crashed(),
        })
    }

    /// Says that it is no spare any more.
    pub(super) fn taken(&mut self, taken: Taken) {
        self.taken = Some(taken);
    }

    /// Whether the child has not ended, as far as is known.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What hangs up when the child ends.
    pub(super) fn pipe(&self) -> BorrowedFd<'_> {
        self.stdout.as_fd()
    }

    /// Gives it a job, of which the pipe takes as much as it holds. Does not wait.
    pub(super) fn begin<'a>(mut self, job: &Job<'a>) -> Result<Working<'a>, Failure> {
        let mut stdin = self.stdin.take();
        let mut talk = Talk {
            head: job.head(),
            input: job.input,
            sent: 0,
            answer: Vec::new(),
        };
        talk.send_all(&mut stdin)?;
        Ok(Working {
            worker: self,
            stdin,
            talk,
        })
    }

    fn killed(self) -> Worker {
        // Fails only for a child that has ended already.
        let _ = self.child.kill();
        self
    }

    fn step_back(&self) {
        // SAFETY: the call takes no pointers. The child is not reaped, so its id is nobody else's.
        unsafe {
            // To become less important never fails; and if it did, the compile is only less polite.
            let child = self.child.id() as libc::id_t;
            libc::setpriority(libc::PRIO_PROCESS, child, NICENESS_BACKGROUND);
        }
    }
}

/// A worker that has a job.
pub(super) struct Working<'a> {
    worker: Worker,
    /// Where what is left of the job goes.
    stdin: Option<PipeWriter>,
    talk: Talk<'a>,
}

impl Working<'_> {
    /// Waits for the answer.
    pub(super) fn finish(
        self,
        settings: &CompileSettings,
        bounds: Bounds,
        abandoned: impl Fn(&Brake) -> bool,
    ) -> Result<Made, Failure> {
        let Working {
            mut worker,
            stdin,
            mut talk,
        } = self;
        if bounds.is_background {
            worker.step_back();
        }
        let answer_bytes_max = bounds
            .made_bytes_max
            .saturating_add(worker::ANSWER_HEAD_BYTES as u64);
        let brake = Brake {
            child: worker.child.id(),
            held: Cell::default(),
        };
        let mut has_to_end = || match abandoned(&brake) {
            true => Err(Failure::Abandoned),
            false => Ok(bounds.deadline + brake.held.get()),
        };
        talk.run(stdin, &mut worker.stdout, answer_bytes_max, &mut has_to_end)?;
        let Some(reply) = Reply::decode(talk.answer) else {
            return Err(Failure::Failed(died(&mut worker, settings)?));
        };
        warn_if_unfiltered(reply.unfiltered);
        match reply.answer {
            Answer::Made(made) => Ok(Made {
                made,
                by: worker.killed(),
            }),
            Answer::Refused(error) => Err(Failure::Refused(error)),
        }
    }

    /// Takes no answer. What is left is killed, and to be reaped as in [`Made`].
    pub(super) fn stop(self) -> Worker {
        self.worker.killed()
    }
}

/// Has a child that works stand still. Its deadline is so much later.
pub(super) struct Brake {
    child: libc::pid_t,
    held: Cell<Duration>,
}

impl Brake {
    /// The child stands still until `wait` returns.
    pub(super) fn hold(&self, wait: impl FnOnce()) {
        let began = Instant::now();
        self.signal(libc::SIGSTOP);
        wait();
        self.signal(libc::SIGCONT);
        self.held.set(self.held.get() + began.elapsed());
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: the call takes no pointers. The child is not reaped while its worker runs a job, so its
        // id is nobody else's. One that has ended does not notice.
        unsafe { libc::kill(self.child, signal) };
    }
}

/// What came of a job.
pub(super) struct Made {
    pub made: Bytes,
    /// Killed. To be dropped when nobody waits any more: it is reaped then, which takes as long as the
    /// kernel takes to get all its memory back.
    pub by: Worker,
}

/// What one job may take besides what its worker was started with.
pub(super) struct Bounds {
    pub deadline: Instant,
    pub made_bytes_max: u64,
    pub is_background: bool,
}

fn warn_if_unfiltered(errno: i32) {
    static ONCE: Once = Once::new();
    if errno != 0 {
        ONCE.call_once(|| {
            tracing::warn!(
                error = %io::Error::from_raw_os_error(errno),
                "this kernel has no system call filter (seccomp) for compile workers; they are held \
                 by resource limits alone"
            );
        });
    }
}

/// What passes between the two.
struct Talk<'a> {
    head: [u8; worker::JOB_HEAD_BYTES],
    input: &'a [u8],
    /// Of both.
    sent: usize,
    answer: Vec<u8>,
}

impl Talk<'_> {
    /// Sends the job and reads the answer to its end. The deadline is asked for each time.
    fn run(
        &mut self,
        mut stdin: Option<PipeWriter>,
        stdout: &mut PipeReader,
        answer_bytes_max: u64,
        deadline: &mut impl FnMut() -> Result<Instant, Failure>,
    ) -> Result<(), Failure> {
        loop {
            let left = deadline()?.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::Failed(ModuleError::CompileLimit(
                    "the module takes too long to compile; make it smaller or its functions \
                     simpler"
                        .into(),
                )));
            }
            wait(stdin.as_ref(), stdout, left.min(LOOK))?;
            self.send_all(&mut stdin)?;
            if self.receive(stdout, answer_bytes_max)? {
                return Ok(());
            }
        }
    }

    /// Sends what the pipe takes, and closes it when that is all.
    fn send_all(&mut self, stdin: &mut Option<PipeWriter>) -> Result<(), Failure> {
        if let Some(pipe) = stdin
            && self.send(pipe)?
        {
            *stdin = None;
        }
        Ok(())
    }

    /// True when all is sent, or the child reads no more.
    fn send(&mut self, pipe: &mut PipeWriter) -> Result<bool, Failure> {
        loop {
            let head = self.head.get(self.sent..).unwrap_or_default();
            let of_input = self.sent.saturating_sub(self.head.len());
            let input = self.input.get(of_input..).unwrap_or_default();
            if head.is_empty() && input.is_empty() {
                return Ok(true);
            }
            match pipe.write_vectored(&[IoSlice::new(head), IoSlice::new(input)]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Why it reads no more, its answer or its end will say.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// True when the child has closed its end.
    fn receive(&mut self, pipe: &mut PipeReader, bytes_max: u64) -> Result<bool, Failure> {
        loop {
            let announced = Reply::announced(&self.answer).unwrap_or(0);
            if announced.max(self.answer.len() as u64) > bytes_max {
                return Err(Failure::Failed(ModuleError::CompileLimit(
                    "the module compiles to more machine code than is kept; make it smaller".into(),
                )));
            }
            self.make_room((announced as usize).saturating_sub(self.answer.len()))?;
            let room = self.answer.capacity() - self.answer.len();
            match pipe.take(room as u64).read_to_end(&mut self.answer) {
                // The pipe's end, or that of the room.
                Ok(read) if read < room => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes room for what is left of the answer, if that is known, and some more: its end has to be
    /// seen too.
    fn make_room(&mut self, left: usize) -> io::Result<()> {
        let room = self.answer.capacity() - self.answer.len();
        let reserved = if room > left {
            Ok(())
        } else if left > 0 {
            self.answer.try_reserve_exact(left + READ_BYTES)
        } else {
            self.answer.try_reserve(READ_BYTES)
        };
        reserved.map_err(|_| io::ErrorKind::OutOfMemory.into())
    }
}

/// What a child that ended without an answer died of.
fn died(worker: &mut Worker, settings: &CompileSettings) -> io::Result<ModuleError> {
    let deadline = Instant::now() + LAST_WORD;
    let status: ExitStatus = loop {
        if let Some(status) = worker.child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            worker.child.kill()?;
            break worker.child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    if let Some(
        libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGSYS,
    ) = status.signal()
    {
        worker.has_crashed.store(true, Ordering::Relaxed);
    }
    Ok(match (status.signal(), status.code()) {
        (Some(libc::SIGXCPU), _) => ModuleError::CompileLimit(
            "the module takes too long to compile; make it smaller or its functions simpler".into(),
        ),
        // An allocation that failed aborts, a stack that is full faults, and the kernel kills what
        // takes too much memory.
        (Some(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS | libc::SIGKILL | libc::SIGILL), _) => {
            ModuleError::CompileLimit(format!(
                "the module needs too much memory to compile ({} bytes are given); make it smaller \
                 or its functions simpler",
                settings.memory_bytes_max
            ))
        }
        // Nothing that a compiler does by itself. It may be an attack, and the log must say so.
        (Some(libc::SIGSYS), _) => {
            tracing::error!("a compile worker made a system call that is forbidden, and was ended");
            ModuleError::CompileLimit(
                "the compiler can't handle this module; simplify it, or build it with another \
                 optimisation level"
                    .into(),
            )
        }
        (Some(_), _) | (None, _) => ModuleError::Internal(format!(
            "the compile worker ended without an answer: {status}"
        )),
    })
}

/// Makes a pipe non-blocking, and large where the kernel lets us.
fn set_up_pipe(pipe: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: asks for another size of a pipe that the caller owns.
    unsafe {
        libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES);
    }
    set_nonblocking(pipe)
}

pub(super) fn set_nonblocking(pipe: &impl AsRawFd) -> io::Result<()> {
    let fd = pipe.as_raw_fd();
    // SAFETY: changes flags of a descriptor that the caller owns.
    let result = unsafe {
        match libc::fcntl(fd, libc::F_GETFL) {
            -1 => -1,
            flags => libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK),
        }
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Waits until one of the pipes is ready, or for `timeout`.
fn wait(stdin: Option<&PipeWriter>, stdout: &PipeReader, timeout: Duration) -> io::Result<()> {
    let stdout = PollFd::new(stdout.as_fd(), PollFlags::POLLIN);
    let stdin = stdin.map(|stdin| PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
    let mut polls: SmallVec<[PollFd; 2]> = iter::once(stdout).chain(stdin).collect();
    let milliseconds = u16::try_from(timeout.as_millis().max(1)).unwrap_or(u16::MAX);
    match poll(&mut polls, milliseconds) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
