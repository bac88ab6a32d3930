//! The compile worker: a child process that compiles one hostile module, or translates one hostile
//! text to binary, and ends.
//!
//! It is forked before there is anything to compile, from a process that is warm ([`fork_server`]). It bounds
//! itself by the limits it is given, gives up every right it does not need ([`contain`]), says hello
//! and waits. Then come the job and its input, and one answer goes back. No input is read before the
//! worker is contained, and no worker sees two.

#![expect(unsafe_code, reason = "passes on what the fork server asks for")]

mod contain;
pub(super) mod fork_server;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::codegen::Codegen;
use super::engine::Compiler;
use super::{ModuleError, allocator, priority, text};

/// The hidden command that runs [`compile_worker`].
pub(super) const COMMAND: &str = "compile-worker";

/// Tells our protocol from whatever else might be on the other end, with its version.
const MAGIC: [u8; 8] = *b"wwcomp05";
const LIMITS_BYTES: usize = 24;
/// Task and length of the input.
pub(super) const JOB_HEAD_BYTES: usize = 9;
const HELLO_BYTES: usize = 4;
/// All that comes before the payload: hello, tag and length, each in its place. A multiple of sixteen,
/// as an artifact must begin at one.
pub(super) const ANSWER_HEAD_BYTES: usize = 16;
const TAG_AT: usize = 4;
const LENGTH_AT: usize = 8;

/// What a worker may use, sent to the fork server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Address space.
    pub memory_bytes_max: u64,
    /// CPU time, warming up included.
    pub cpu_seconds_max: u64,
}

impl Limits {
    pub(super) fn encode(self) -> [u8; LIMITS_BYTES] {
        let mut bytes = [0; LIMITS_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.memory_bytes_max.to_le_bytes());
        bytes[16..].copy_from_slice(&self.cpu_seconds_max.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; LIMITS_BYTES]) -> Option<Limits> {
        (bytes[..8] == MAGIC).then(|| Limits {
            memory_bytes_max: number(&bytes, 8),
            cpu_seconds_max: number(&bytes, 16),
        })
    }
}

/// What the parent asks for.
pub(super) struct Job<'a> {
    pub task: Task,
    pub input: &'a [u8],
}

/// What is to be done with the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Make machine code of a module that is checked before, or meanwhile: then nobody takes what was
    /// made of one that does not pass.
    Compile(Compiler),
    /// Make binary of text, which nobody looked at before.
    Translate,
}

impl Job<'_> {
    /// What is sent before the input.
    pub(super) fn head(&self) -> [u8; JOB_HEAD_BYTES] {
        let mut head = [0; JOB_HEAD_BYTES];
        head[0] = match self.task {
            Task::Compile(Compiler::Singlepass) => SINGLEPASS,
            Task::Compile(Compiler::Cranelift) => CRANELIFT,
            Task::Translate => TRANSLATE,
        };
        head[1..].copy_from_slice(&(self.input.len() as u64).to_le_bytes());
        head
    }
}

const SINGLEPASS: u8 = 0;
const CRANELIFT: u8 = 1;
const TRANSLATE: u8 = 2;

/// All that a worker wrote.
pub(super) struct Reply {
    /// Why there is no filter on its system calls, as an error number; zero if there is one.
    pub unfiltered: i32,
    pub answer: Answer,
}

/// What the worker says.
pub(super) enum Answer {
    /// The machine code, or the binary.
    Made(Bytes),
    Refused(ModuleError),
}

const MADE: u8 = 0;
const INVALID: u8 = 1;
const OVER_LIMIT: u8 = 2;
const COMPILE_LIMIT: u8 = 3;
const BUSY: u8 = 4;
const INTERNAL: u8 = 5;

impl Answer {
    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Answer::Made(made) => (MADE, made),
            Answer::Refused(ModuleError::Invalid(text)) => (INVALID, text.as_bytes()),
            Answer::Refused(ModuleError::OverLimit(text)) => (OVER_LIMIT, text.as_bytes()),
            Answer::Refused(ModuleError::CompileLimit(text)) => (COMPILE_LIMIT, text.as_bytes()),
            Answer::Refused(ModuleError::Busy) => (BUSY, &[]),
            Answer::Refused(ModuleError::Internal(text)) => (INTERNAL, text.as_bytes()),
        }
    }

    fn write(&self, mut to: impl Write) -> io::Result<()> {
        let (tag, payload) = self.parts();
        let mut head = [0; ANSWER_HEAD_BYTES];
        head[TAG_AT] = tag;
        head[LENGTH_AT..].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        to.write_all(&head[HELLO_BYTES..])?;
        to.write_all(payload)?;
        to.flush()
    }
}

impl Reply {
    /// How long all of it will be, once the head is there.
    pub(super) fn announced(bytes: &[u8]) -> Option<u64> {
        let head = bytes.first_chunk::<ANSWER_HEAD_BYTES>()?;
        number(head, LENGTH_AT).checked_add(ANSWER_HEAD_BYTES as u64)
    }

    /// The reply in all that the worker wrote; `None` if it is not whole.
    pub(super) fn decode(bytes: Vec<u8>) -> Option<Reply> {
        if Reply::announced(&bytes)? != bytes.len() as u64 {
            return None;
        }
        let (hello, [tag, ..]) = bytes.split_first_chunk::<HELLO_BYTES>()? else {
            return None;
        };
        let (unfiltered, tag) = (i32::from_le_bytes(*hello), *tag);
        let payload = Bytes::from(bytes).slice(ANSWER_HEAD_BYTES..);
        let text = || String::from_utf8_lossy(&payload).into_owned();
        let answer = match tag {
            MADE => Answer::Made(payload),
            INVALID => Answer::Refused(ModuleError::Invalid(text())),
            OVER_LIMIT => Answer::Refused(ModuleError::OverLimit(text())),
            COMPILE_LIMIT => Answer::Refused(ModuleError::CompileLimit(text())),
            BUSY => Answer::Refused(ModuleError::Busy),
            INTERNAL => Answer::Refused(ModuleError::Internal(text())),
            _ => return None,
        };
        Some(Reply { unfiltered, answer })
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// Entry point of the hidden `compile-worker` command, with a socket of the gateway's as standard input: is the
/// fork server, and each of the workers. Returns the process's exit code.
pub fn compile_worker() -> i32 {
    // Whoever reads the other end knows what an end without an answer means.
    i32::from(run().is_err())
}

fn run() -> io::Result<()> {
    contain::begin()?;
    priority::take_turns();
    allocator::prepare_heaps();
    // The compiler may panic on what nobody thought of: that is the module's fault, and the text
    // of the panic means nothing to a client.
    panic::set_hook(Box::new(|_| {}));
    warm_up();
    // Made now, because they look at the machine in ways that the filter forbids.
    let singlepass = Codegen::new(Compiler::Singlepass);
    let cranelift = Codegen::new(Compiler::Cranelift);
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    fork_server::be_alone()?;
    // SAFETY: so it is.
    match unsafe { fork_server::serve(control) }? {
        Some(limits) => work(limits, singlepass, cranelift),
        None => Ok(()),
    }
}

/// The fork server with workers of another kind, for tests: returns true in each of them.
///
/// # Safety
///
/// Each of them does nothing but become another program.
#[doc(hidden)]
pub unsafe fn serve_forks(control: UnixStream) -> io::Result<bool> {
    // SAFETY: the caller's promise.
    Ok(unsafe { fork_server::serve(control) }?.is_some())
}

/// One worker's life.
fn work(limits: Limits, singlepass: Codegen, cranelift: Codegen) -> io::Result<()> {
    contain::begin_worker()?;
    // Neither through the standard library's buffers: what passes is large, and has no lines.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    contain::bound(limits)?;
    // SAFETY: a worker begins with the thread that forked it.
    let mut memory = unsafe { allocator::Ready::reserve() };
    // As long as nobody waits: what the server has in memory is brought to this process too, and more memory
    // is asked for than a small job takes.
    if !has_come(&input) {
        warm_up();
    }
    while !has_come(&input) && memory.fetch() {}
    let unfiltered = contain::filter();
    (&output).write_all(&unfiltered.to_le_bytes())?;

    let answer = job(&mut input).map(|(task, input)| match task {
        Task::Compile(Compiler::Singlepass) => compiled(singlepass, &input),
        Task::Compile(Compiler::Cranelift) => compiled(cranelift, &input),
        Task::Translate => translated(input),
    });
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
            Answer::Refused(ModuleError::CompileLimit(
                "the module needs too much memory to compile; make it smaller".into(),
            ))
        }
        Err(error) => return Err(error),
    };
    answer.write(&output)?;
    // The parent reads to the end of the pipe, which should not have to wait for the end of the process:
    // that gives all its memory back first.
    drop(output);
    contain::close_output();
    Ok(())
}

/// Translates a small module and compiles it, so that the code for it is in memory and linked when the job
/// comes. By Singlepass, as somebody waits for it: a large job for Cranelift takes a hundred milliseconds and more.
/// And Cranelift starts threads that never end, with which there could be no fork: so it runs for the first
/// time when the filter is in force, and what it asks of the system then, the filter allows.
fn warm_up() {
    if let Ok(wasm) = wat::parse_str(WARM_UP) {
        // What fails here will fail for the job, and is told there.
        let _ = panic::catch_unwind(|| Codegen::new(Compiler::Singlepass).compile(&wasm));
    }
}

/// Something of everything that programs are made of.
const WARM_UP: &str = r#"(module
  (memory (export "memory") 1)
  (table 2 funcref) (elem (i32.const 0) $integers $floats)
  (global $sp (mut i32) (i32.const 1024))
  (type $unary (func (param i32) (result i32)))
  (func $integers (param i32) (result i32) (local i64)
    (local.set 1 (i64.extend_i32_u (local.get 0)))
    (block (loop
      (br_if 1 (i32.eqz (local.get 0)))
      (i64.store (local.get 0) (i64.mul (local.get 1) (i64.load offset=8 (local.get 0))))
      (local.set 0 (i32.sub (i32.div_u (local.get 0) (i32.const 3)) (i32.const 1)))
      (br 0)))
    (if (i64.lt_s (local.get 1) (i64.const 9))
      (then (global.set $sp (i32.add (global.get $sp) (i32.const 16))))
      (else (i32.store8 (i32.const 3) (i32.shl (local.get 0) (i32.const 2)))))
    (block (block (block (br_table 0 1 2 (local.get 0))) (drop (memory.grow (i32.const 1)))))
    (select (local.get 0) (i32.load8_s (global.get $sp)) (i32.wrap_i64 (local.get 1))))
  (func $floats (param i32) (result i32) (local f64)
    (local.set 1 (f64.add (f64.convert_i32_s (local.get 0)) (f64.load (local.get 0))))
    (memory.copy (i32.const 0) (i32.const 64) (local.get 0))
    (i32.trunc_sat_f64_s (f64.sqrt (local.get 1))))
  (func (export "_start")
    (drop (call $integers (i32.const 7)))
    (drop (call_indirect (type $unary) (i32.const 5) (i32.const 1)))))"#;

/// Whether there is something to read, or nothing will be.
fn has_come(input: &File) -> bool {
    let mut polls = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    // What is wrong with it, reading will tell.
    poll(&mut polls, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Reads the job to its end.
fn job(input: &mut impl Read) -> io::Result<(Task, Vec<u8>)> {
    let mut head = [0; JOB_HEAD_BYTES];
    input.read_exact(&mut head)?;
    let task = match head[0] {
        SINGLEPASS => Task::Compile(Compiler::Singlepass),
        CRANELIFT => Task::Compile(Compiler::Cranelift),
        TRANSLATE => Task::Translate,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let length = usize::try_from(number(&head, 1)).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length)?;
    bytes.resize(length, 0);
    input.read_exact(&mut bytes)?;
    Ok((task, bytes))
}

fn compiled(codegen: Codegen, wasm: &[u8]) -> Answer {
    // What a panic leaves of the compiler is not used again.
    let compiled = panic::catch_unwind(AssertUnwindSafe(|| codegen.compile(wasm)));
    match compiled {
        Ok(Ok(artifact)) => Answer::Made(artifact.into()),
        Ok(Err(error)) => Answer::Refused(error),
        Err(_) => Answer::Refused(ModuleError::CompileLimit(
            "the compiler can't handle this module; simplify it, or build it with another \
             optimisation level"
                .into(),
        )),
    }
}

fn translated(text: Vec<u8>) -> Answer {
    match panic::catch_unwind(|| text::to_binary(text.into())) {
        Ok(Ok(binary)) => Answer::Made(binary),
        Ok(Err(error)) => Answer::Refused(error),
        Err(_) => Answer::Refused(ModuleError::CompileLimit(text::TOO_HARD.into())),
    }
}

#[cfg(test)]
mod tests;
