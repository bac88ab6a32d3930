//! A child process that the standard library did not start.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// A child by its id, which is nobody else's until it is reaped here. It is killed and reaped when
/// this is dropped.
pub(super) struct Process {
    pid: Pid,
    ended: Option<ExitStatus>,
}

impl Process {
    /// The child of this process that has the id, of which there must be one value. Fails if there is none.
    pub(super) fn new(pid: Pid) -> io::Result<Process> {
        match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(waited) => Ok(Process {
                pid,
                ended: waited.map(|(_, status)| ExitStatus::from_raw(status.as_raw())),
            }),
            Err(error) => Err(io::Error::other(format!(
                "process {pid} is none of this one's: {error} (does this kernel know CLONE_PARENT?)"
            ))),
        }
    }

    pub(super) fn id(&self) -> libc::pid_t {
        self.pid.as_raw_nonzero().get()
    }

    /// How it ended, if it has.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap(WaitOptions::NOHANG)
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.reap(WaitOptions::empty())? {
                return Ok(status);
            }
        }
    }

    fn reap(&mut self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            let waited = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), options));
            self.ended = match waited {
                Ok(waited) => waited.map(|(_, status)| ExitStatus::from_raw(status.as_raw())),
                // Somebody else reaped it, and its id may be another's by now. How it ended is not known.
                Err(rustix::io::Errno::CHILD) => Some(ExitStatus::from_raw(libc::SIGKILL)),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(self.ended)
    }

    /// Kills it, if it has not been reaped.
    pub(super) fn kill(&self) -> io::Result<()> {
        match self.ended {
            Some(_) => Ok(()),
            None => Ok(kill_process(self.pid, Signal::KILL)?),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a child that is not there any more.
        let _ = self.kill();
        let _ = self.wait();
    }
}
