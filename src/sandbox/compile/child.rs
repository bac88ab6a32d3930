//! One child process that compiles one module, watched from outside.

#![expect(
    unsafe_code,
    reason = "makes pipes non-blocking and waits for both at once"
)]

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::super::ModuleError;
use super::super::settings::CompileSettings;
use super::super::worker::{self, Answer};

/// How often the parent looks whether anybody still waits.
const LOOK: Duration = Duration::from_millis(20);
/// How long a child may take to end after its last word.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Why there is no artifact.
pub(super) enum Failure {
    /// Nobody waits for it any more; the child was killed.
    Abandoned,
    Module(ModuleError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Module(ModuleError::Internal(format!(
            "the compile worker's pipes: {error}"
        )))
    }
}

/// A child that is killed and reaped when this is dropped.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only for a child that is reaped already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Compiles `wasm` (checked before) in a child process. Blocks.
pub(super) fn compile(
    settings: &CompileSettings,
    wasm: &[u8],
    artifact_bytes_max: u64,
    abandoned: impl Fn() -> bool,
) -> Result<Vec<u8>, Failure> {
    let deadline = Instant::now() + settings.timeout;
    let child = Command::new(&settings.worker)
        .arg(worker::COMMAND)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| {
            let worker = settings.worker.display();
            let text = format!("the compile worker {worker} does not start: {error}");
            Failure::Module(ModuleError::Internal(text))
        })?;
    let mut worker = Worker(child);
    let (Some(stdin), Some(stdout)) = (worker.0.stdin.take(), worker.0.stdout.take()) else {
        return Err(io::Error::other("missing").into());
    };
    let job = worker::Job {
        memory_bytes_max: settings.memory_bytes_max,
        cpu_seconds_max: settings.timeout.as_secs().saturating_add(1),
        wasm,
    };
    let answer_bytes_max = artifact_bytes_max.saturating_add(worker::ANSWER_HEAD_BYTES as u64);
    let mut talk = Talk {
        input: job.encode(),
        sent: 0,
        answer: Vec::new(),
        answer_bytes_max,
    };
    talk.run(stdin, stdout, deadline, &abandoned)?;
    match Answer::decode(talk.answer) {
        Some(Answer::Artifact(artifact)) => Ok(artifact),
        Some(Answer::Refused(error)) => Err(Failure::Module(error)),
        None => Err(Failure::Module(died(&mut worker, settings)?)),
    }
}

/// What passes between the two.
struct Talk {
    input: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
    answer_bytes_max: u64,
}

impl Talk {
    /// Sends the job and reads the answer to its end.
    fn run(
        &mut self,
        stdin: ChildStdin,
        mut stdout: ChildStdout,
        deadline: Instant,
        abandoned: &impl Fn() -> bool,
    ) -> Result<(), Failure> {
        set_nonblocking(&stdin)?;
        set_nonblocking(&stdout)?;
        let mut stdin = Some(stdin);
        loop {
            if abandoned() {
                return Err(Failure::Abandoned);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::Module(ModuleError::CompileLimit(
                    "the module takes too long to compile; make it smaller or its functions \
                     simpler"
                        .into(),
                )));
            }
            wait(stdin.as_ref(), &stdout, left.min(LOOK))?;
            if let Some(pipe) = &mut stdin
                && self.send(pipe)?
            {
                stdin = None;
            }
            if self.receive(&mut stdout)? {
                return Ok(());
            }
        }
    }

    /// True when all is sent, or the child reads no more.
    fn send(&mut self, pipe: &mut ChildStdin) -> Result<bool, Failure> {
        loop {
            let rest = self.input.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(true);
            }
            match pipe.write(rest) {
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
    fn receive(&mut self, pipe: &mut ChildStdout) -> Result<bool, Failure> {
        let mut buffer = [0; 64 * 1024];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(read) => self.answer.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            if self.answer.len() as u64 > self.answer_bytes_max {
                return Err(Failure::Module(ModuleError::CompileLimit(
                    "the module compiles to more machine code than is kept; make it smaller".into(),
                )));
            }
        }
    }
}

/// What a child that ended without an answer died of.
fn died(worker: &mut Worker, settings: &CompileSettings) -> io::Result<ModuleError> {
    let deadline = Instant::now() + LAST_WORD;
    let status: ExitStatus = loop {
        if let Some(status) = worker.0.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            worker.0.kill()?;
            break worker.0.wait()?;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
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
        (Some(_), _) | (None, _) => ModuleError::Internal(format!(
            "the compile worker ended without an answer: {status}"
        )),
    })
}

fn set_nonblocking(pipe: &impl AsRawFd) -> io::Result<()> {
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
fn wait(stdin: Option<&ChildStdin>, stdout: &ChildStdout, timeout: Duration) -> io::Result<()> {
    // A negative descriptor is passed over (poll(2)).
    let poll = |fd, events| libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    let mut polls = [
        poll(stdout.as_raw_fd(), libc::POLLIN),
        poll(stdin.map_or(-1, AsRawFd::as_raw_fd), libc::POLLOUT),
    ];
    let milliseconds = i32::try_from(timeout.as_millis().max(1)).unwrap_or(i32::MAX);
    // SAFETY: the array outlives the call, which gets its length.
    let result = unsafe {
        libc::poll(
            polls.as_mut_ptr(),
            polls.len() as libc::nfds_t,
            milliseconds,
        )
    };
    if result == -1 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
