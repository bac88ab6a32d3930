//! The few functions of WASI preview 1 that the guests import, as slim as can be: what is compared
//! is the runtime, not a library.

use wasmtime::{Caller, Engine, Error, Extern, Linker, Memory, Result};

const EBADF: i32 = 8;
const EFAULT: i32 = 21;
const ESPIPE: i32 = 70;
const STDOUT_BYTES_MAX: usize = 8 << 20;

/// What belongs to one guest.
#[derive(Default)]
pub struct Guest {
    stdin: Vec<u8>,
    pub stdout: Vec<u8>,
    pub memory: Option<Memory>,
    read: usize,
}

impl Guest {
    pub fn new(stdin: Vec<u8>) -> Guest {
        Guest {
            stdin,
            ..Guest::default()
        }
    }
}

/// The guest called `proc_exit`.
#[derive(Debug)]
pub struct Exit(pub i32);

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit {}", self.0)
    }
}

impl std::error::Error for Exit {}

pub fn linker(engine: &Engine) -> Result<Linker<Guest>> {
    const WASI: &str = "wasi_snapshot_preview1";
    let mut linker = Linker::new(engine);
    linker.func_wrap(
        WASI,
        "fd_read",
        |mut caller: Caller<'_, Guest>, fd, iovecs, count, read| {
            with_memory(&mut caller, |guest, memory| {
                fd_read(guest, memory, fd, iovecs, count, read)
            })
        },
    )?;
    linker.func_wrap(
        WASI,
        "fd_write",
        |mut caller: Caller<'_, Guest>, fd, iovecs, count, written| {
            with_memory(&mut caller, |guest, memory| {
                fd_write(guest, memory, fd, iovecs, count, written)
            })
        },
    )?;
    linker.func_wrap(
        WASI,
        "fd_fdstat_get",
        |mut caller: Caller<'_, Guest>, fd: i32, at: i32| {
            with_memory(&mut caller, |_, memory| fd_fdstat_get(memory, fd, at))
        },
    )?;
    linker.func_wrap(WASI, "fd_close", |fd: i32| known(fd, 0))?;
    linker.func_wrap(WASI, "fd_seek", |fd: i32, _: i64, _: i32, _: i32| {
        known(fd, ESPIPE)
    })?;
    linker.func_wrap(WASI, "proc_exit", |code: i32| -> Result<()> {
        Err(Error::new(Exit(code)))
    })?;
    Ok(linker)
}

fn with_memory(
    caller: &mut Caller<'_, Guest>,
    function: impl FnOnce(&mut Guest, &mut [u8]) -> Option<i32>,
) -> i32 {
    let memory = match caller.data().memory {
        Some(memory) => memory,
        None => match caller.get_export("memory") {
            Some(Extern::Memory(memory)) => memory,
            _ => return EFAULT,
        },
    };
    let (memory, guest) = memory.data_and_store_mut(caller);
    function(guest, memory).unwrap_or(EFAULT)
}

fn known(fd: i32, errno: i32) -> i32 {
    if (0..=2).contains(&fd) { errno } else { EBADF }
}

fn word(memory: &[u8], at: i32) -> Option<u32> {
    let at = at as u32 as usize;
    Some(u32::from_le_bytes(
        memory.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn write(memory: &mut [u8], at: i32, bytes: &[u8]) -> Option<()> {
    let at = at as u32 as usize;
    memory
        .get_mut(at..at.checked_add(bytes.len())?)?
        .copy_from_slice(bytes);
    Some(())
}

/// Start and length of an iovec's buffer.
fn iovec(memory: &[u8], iovecs: i32, index: i32) -> Option<(usize, usize)> {
    let at = iovecs.wrapping_add(index.wrapping_mul(8));
    Some((
        word(memory, at)? as usize,
        word(memory, at.wrapping_add(4))? as usize,
    ))
}

fn fd_read(
    guest: &mut Guest,
    memory: &mut [u8],
    fd: i32,
    iovecs: i32,
    count: i32,
    at: i32,
) -> Option<i32> {
    if fd != 0 {
        return Some(EBADF);
    }
    let mut total = 0;
    for index in 0..count.min(1024) {
        let (start, length) = iovec(memory, iovecs, index)?;
        let left = &guest.stdin[guest.read..];
        let bytes = &left[..length.min(left.len())];
        memory.get_mut(start..start.checked_add(length)?)?[..bytes.len()].copy_from_slice(bytes);
        guest.read += bytes.len();
        total += bytes.len() as u32;
        if bytes.len() < length {
            break;
        }
    }
    write(memory, at, &total.to_le_bytes())?;
    Some(0)
}

fn fd_write(
    guest: &mut Guest,
    memory: &mut [u8],
    fd: i32,
    iovecs: i32,
    count: i32,
    at: i32,
) -> Option<i32> {
    if fd != 1 && fd != 2 {
        return Some(EBADF);
    }
    let mut total = 0;
    for index in 0..count.min(1024) {
        let (start, length) = iovec(memory, iovecs, index)?;
        let bytes = memory.get(start..start.checked_add(length)?)?;
        if fd == 1 && guest.stdout.len() + length <= STDOUT_BYTES_MAX {
            guest.stdout.extend_from_slice(bytes);
        }
        total += length as u32;
    }
    write(memory, at, &total.to_le_bytes())?;
    Some(0)
}

fn fd_fdstat_get(memory: &mut [u8], fd: i32, at: i32) -> Option<i32> {
    if !(0..=2).contains(&fd) {
        return Some(EBADF);
    }
    let mut stat = [0; 24];
    stat[0] = 2;
    stat[8..16].copy_from_slice(&0x48u64.to_le_bytes());
    write(memory, at, &stat)?;
    Some(0)
}
