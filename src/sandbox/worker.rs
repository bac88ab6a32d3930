//! The compile worker: a child process that compiles one hostile module and ends.
//!
//! The parent writes one job to its standard input: a head of fixed size (trusted), then the
//! module. The worker bounds itself by the head before it reads the module, and writes one answer
//! to standard output: a tag, a length, and that many bytes.

#![expect(unsafe_code, reason = "sets limits of its own process")]

use std::fs;
use std::io::{self, Read, Write};
use std::panic;

use super::{ModuleError, engine};

/// The hidden command that runs [`compile_worker`].
pub(super) const COMMAND: &str = "compile-worker";

/// Tells our protocol from whatever else might be on the other end, with its version.
const MAGIC: [u8; 8] = *b"wwcomp01";
const JOB_HEAD_BYTES: usize = 32;
/// Tag and length.
pub(super) const ANSWER_HEAD_BYTES: usize = 9;

/// What the parent asks for.
pub(super) struct Job<'a> {
    /// Address space of the worker.
    pub memory_bytes_max: u64,
    pub cpu_seconds_max: u64,
    /// Checked before.
    pub wasm: &'a [u8],
}

/// What the worker says.
pub(super) enum Answer {
    Artifact(Vec<u8>),
    Refused(ModuleError),
}

impl Job<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(JOB_HEAD_BYTES + self.wasm.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.memory_bytes_max.to_le_bytes());
        bytes.extend_from_slice(&self.cpu_seconds_max.to_le_bytes());
        bytes.extend_from_slice(&(self.wasm.len() as u64).to_le_bytes());
        bytes.extend_from_slice(self.wasm);
        bytes
    }
}

const ARTIFACT: u8 = 0;
const INVALID: u8 = 1;
const OVER_LIMIT: u8 = 2;
const COMPILE_LIMIT: u8 = 3;
const BUSY: u8 = 4;
const INTERNAL: u8 = 5;

impl Answer {
    /// The head, which goes before the payload.
    fn head(tag: u8, payload: &[u8]) -> [u8; ANSWER_HEAD_BYTES] {
        let mut head = [tag; ANSWER_HEAD_BYTES];
        head[1..].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        head
    }

    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Answer::Artifact(artifact) => (ARTIFACT, artifact),
            Answer::Refused(ModuleError::Invalid(text)) => (INVALID, text.as_bytes()),
            Answer::Refused(ModuleError::OverLimit(text)) => (OVER_LIMIT, text.as_bytes()),
            Answer::Refused(ModuleError::CompileLimit(text)) => (COMPILE_LIMIT, text.as_bytes()),
            Answer::Refused(ModuleError::Busy) => (BUSY, &[]),
            Answer::Refused(ModuleError::Internal(text)) => (INTERNAL, text.as_bytes()),
        }
    }

    /// The answer in all that the worker wrote; `None` if it is not whole.
    pub(super) fn decode(mut bytes: Vec<u8>) -> Option<Answer> {
        let (head, payload) = bytes.split_first_chunk::<ANSWER_HEAD_BYTES>()?;
        let [tag, length @ ..] = *head;
        if payload.len() as u64 != u64::from_le_bytes(length) {
            return None;
        }
        let text = || String::from_utf8_lossy(payload).into_owned();
        Some(Answer::Refused(match tag {
            ARTIFACT => {
                bytes.drain(..ANSWER_HEAD_BYTES);
                return Some(Answer::Artifact(bytes));
            }
            INVALID => ModuleError::Invalid(text()),
            OVER_LIMIT => ModuleError::OverLimit(text()),
            COMPILE_LIMIT => ModuleError::CompileLimit(text()),
            BUSY => ModuleError::Busy,
            INTERNAL => ModuleError::Internal(text()),
            _ => return None,
        }))
    }
}

/// Entry point of the hidden `compile-worker` command: reads one job on standard input, writes the
/// artifact or an error on standard output. Returns the process's exit code.
pub fn compile_worker() -> i32 {
    let answer = job().unwrap_or_else(|error| {
        Answer::Refused(match error.kind() {
            io::ErrorKind::OutOfMemory => ModuleError::CompileLimit(
                "the module needs too much memory to compile; make it smaller".into(),
            ),
            _ => ModuleError::Internal(format!("the compile worker: {error}")),
        })
    });
    let (tag, payload) = answer.parts();
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(&Answer::head(tag, payload))
        .and_then(|()| stdout.write_all(payload))
        .and_then(|()| stdout.flush());
    i32::from(written.is_err())
}

fn job() -> io::Result<Answer> {
    contain()?;
    let mut stdin = io::stdin().lock();
    let mut head = [0; JOB_HEAD_BYTES];
    stdin.read_exact(&mut head)?;
    if head[..8] != MAGIC {
        return Err(io::Error::other(
            "this command is for the gateway's own use",
        ));
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    limit(libc::RLIMIT_AS, number(8))?;
    limit(libc::RLIMIT_CPU, number(16))?;
    let mut wasm = Vec::new();
    stdin.take(number(24)).read_to_end(&mut wasm)?;
    if wasm.len() as u64 != number(24) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // The compiler may panic on what nobody thought of: that is the module's fault, and the text
    // of the panic means nothing to a client.
    panic::set_hook(Box::new(|_| {}));
    let compiled = panic::catch_unwind(|| engine::compile(&wasm));
    Ok(match compiled {
        Ok(Ok(artifact)) => Answer::Artifact(artifact),
        Ok(Err(error)) => Answer::Refused(error),
        Err(_) => Answer::Refused(ModuleError::CompileLimit(
            "the compiler can't handle this module; simplify it, or build it with another \
             optimisation level"
                .into(),
        )),
    })
}

/// What the worker gives up before it knows its job: new privileges, files, core dumps, life after
/// its parent.
fn contain() -> io::Result<()> {
    // The first to go when memory runs out. Best effort: not every system lets us.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    // SAFETY: these calls change attributes of this process and take no pointers. Nothing in this
    // process owns the descriptors closed here: it has opened none.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
        // Linux before 5.9 lacks it; the parent's descriptors are close-on-exec anyway.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
    }
    limit(libc::RLIMIT_CORE, 0)?;
    // No file can be written. (A limit on processes would count all of the user's.)
    limit(libc::RLIMIT_FSIZE, 0)
}

fn limit(resource: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let mut current = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives both calls.
    unsafe {
        check(libc::getrlimit(resource, &mut current))?;
        let most = most.min(current.rlim_max);
        check(libc::setrlimit(
            resource,
            &libc::rlimit {
                rlim_cur: most,
                rlim_max: most,
            },
        ))
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ModuleError;
    use super::{ANSWER_HEAD_BYTES, Answer};

    fn encoded(answer: &Answer) -> Vec<u8> {
        let (tag, payload) = answer.parts();
        [&Answer::head(tag, payload)[..], payload].concat()
    }

    #[test]
    fn answers_survive_the_pipe() {
        let artifact = encoded(&Answer::Artifact(vec![1, 2, 3]));
        assert!(
            matches!(Answer::decode(artifact), Some(Answer::Artifact(bytes)) if bytes == [1, 2, 3])
        );
        let text = || "why".to_owned();
        for error in [
            ModuleError::Invalid(text()),
            ModuleError::OverLimit(text()),
            ModuleError::CompileLimit(text()),
            ModuleError::Busy,
            ModuleError::Internal(text()),
        ] {
            let decoded = Answer::decode(encoded(&Answer::Refused(error.clone())));
            let Some(Answer::Refused(again)) = decoded else {
                panic!("{error:?}")
            };
            assert_eq!(format!("{again:?}"), format!("{error:?}"));
        }
    }

    #[test]
    fn a_cut_or_lengthened_or_unknown_answer_is_none() {
        let whole = encoded(&Answer::Artifact(vec![7; 20]));
        for length in 0..whole.len() {
            assert!(
                Answer::decode(whole[..length].to_vec()).is_none(),
                "{length} bytes"
            );
        }
        assert!(Answer::decode([&whole[..], b"x"].concat()).is_none());
        assert!(Answer::decode([&[9; ANSWER_HEAD_BYTES][..], &[0; 9]].concat()).is_none());
    }
}
