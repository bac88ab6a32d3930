//! The WASI functions as Wasmer host functions: their names, their types, and the way to a guest's
//! memory. The only file of `wasi/` that knows Wasmer.
#![expect(
    unsafe_code,
    reason = "Wasmer gives a guest's memory as a slice through an unsafe function only"
)]

#[cfg(test)]
mod tests;

use wasmer::{
    Function, FunctionEnv, FunctionEnvMut, FunctionType, MemoryView, RuntimeError, Store, Type,
};
use wasmer_vm::Trap;

use super::descriptors::Refusal;
use super::errno::Errno;
use super::files::{Opening, Whence};
use super::memory::Memory;
use super::poll::SubscriptionLayout;
use super::stat::FilestatLayout;
use super::{Answer, Failure, Stop, Wasi, process};

/// What the host functions of one guest work on; lives in a Wasmer `FunctionEnv`.
#[derive(Default)]
pub(in crate::sandbox) struct GuestEnv {
    /// The running guest's state. Between guests there is none, and every function but `proc_exit`
    /// answers `ENOSYS`.
    pub wasi: Option<Wasi>,
    /// The guest's exported memory. A guest without one gets `EFAULT` from functions that need it.
    pub memory: Option<wasmer::Memory>,
}

/// The type of a function, if it exists in WASI preview 1 as we link it; `module` may also be
/// `wasi_unstable`, preview 0.
pub(in crate::sandbox) fn signature(module: &str, name: &str) -> Option<FunctionType> {
    let function = lookup(Edition::from_module(module)?, name)?;
    Some(FunctionType::new(function.parameters, function.results))
}

/// The host function for one import (checked before with [`signature`]).
pub(in crate::sandbox) fn import(
    store: &mut Store,
    env: &FunctionEnv<GuestEnv>,
    module: &str,
    name: &str,
) -> Option<Function> {
    let function = lookup(Edition::from_module(module)?, name)?;
    Some((function.link)(store, env))
}

/// Which WASI a module was built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edition {
    /// `wasi_unstable`. Linked through preview 1, but for the functions whose records or numbers
    /// differ and one that did not exist.
    Preview0,
    /// `wasi_snapshot_preview1`.
    Preview1,
}

impl Edition {
    fn from_module(module: &str) -> Option<Edition> {
        match module {
            "wasi_snapshot_preview1" => Some(Edition::Preview1),
            "wasi_unstable" => Some(Edition::Preview0),
            _ => None,
        }
    }

    fn filestat(self) -> FilestatLayout {
        match self {
            Edition::Preview0 => FilestatLayout::Preview0,
            Edition::Preview1 => FilestatLayout::Preview1,
        }
    }

    /// Preview 1 put the start first.
    fn whence(self, number: u32) -> Option<Whence> {
        match (self, number) {
            (Edition::Preview0, 0) | (Edition::Preview1, 1) => Some(Whence::Current),
            (Edition::Preview0, 1) | (Edition::Preview1, 2) => Some(Whence::End),
            (Edition::Preview0, 2) | (Edition::Preview1, 0) => Some(Whence::Start),
            (Edition::Preview0 | Edition::Preview1, _) => None,
        }
    }

    fn subscription(self) -> SubscriptionLayout {
        match self {
            Edition::Preview0 => SubscriptionLayout::Preview0,
            Edition::Preview1 => SubscriptionLayout::Preview1,
        }
    }
}

/// One function: its type, and how to make it.
struct HostFunction {
    parameters: &'static [Type],
    results: &'static [Type],
    link: Link,
}

type Link = Box<dyn FnOnce(&mut Store, &FunctionEnv<GuestEnv>) -> Function>;

/// The type of a Rust parameter in WebAssembly.
trait Parameter {
    const TYPE: Type;
}

impl Parameter for u32 {
    const TYPE: Type = Type::I32;
}

impl Parameter for u64 {
    const TYPE: Type = Type::I64;
}

/// A `match` over names: each function with its parameters and what it calls. Without `=>` it is
/// the method of [`Wasi`] of that name.
macro_rules! functions {
    ($searched:expr; $( $name:ident ( $($arg:ident : $ty:ident),* ) $(=> $call:expr)? ;)*) => {
        match $searched {
            $( stringify!($name) => HostFunction {
                parameters: &[$(<$ty as Parameter>::TYPE),*],
                results: &[Type::I32],
                link: Box::new(move |store, env| {
                    Function::new_typed_with_env(
                        store,
                        env,
                        move |guest: FunctionEnvMut<'_, GuestEnv>, $($arg: $ty),*| {
                            answer(guest, functions!(@call $name ($($arg),*) $($call)?))
                        },
                    )
                }),
            }, )*
            _ => return None,
        }
    };
    (@call $name:ident ($($arg:ident),*) $call:expr) => { $call };
    (@call $name:ident ($($arg:ident),*)) => { |wasi, memory| wasi.$name(memory, $($arg),*) };
}

/// `proc_exit` ends the guest whatever the state of the host, and is the only one without a result.
fn proc_exit() -> HostFunction {
    HostFunction {
        parameters: &[Type::I32],
        results: &[],
        link: Box::new(|store, env| {
            Function::new_typed_with_env(
                store,
                env,
                |_: FunctionEnvMut<'_, GuestEnv>, code: u32| -> Result<(), RuntimeError> {
                    Err(thrown(process::exit(code)))
                },
            )
        }),
    }
}

/// No descriptor is a socket.
const NO_SOCKET: Refusal = Refusal {
    stream: Errno::Notsock,
    file: Errno::Notsock,
    directory: Errno::Notsock,
};

/// The refusals of functions that change a file: what POSIX has for a pipe, for a file of a read-only
/// file system, and for a descriptor that was not opened for it.
const fn read_only(stream: Errno, file: Errno, directory: Errno) -> Refusal {
    Refusal {
        stream,
        file,
        directory,
    }
}

/// The functions of WASI preview 1, in the order of its documents. Those that change a file, and
/// those on sockets, are refused here.
#[rustfmt::skip]
fn lookup(edition: Edition, name: &str) -> Option<HostFunction> {
    match (edition, name) {
        (Edition::Preview0 | Edition::Preview1, "proc_exit") => return Some(proc_exit()),
        (Edition::Preview0, "sock_accept") => return None,
        (Edition::Preview0 | Edition::Preview1, _) => {}
    }
    Some(functions! { name;
        args_get(argv: u32, argv_buf: u32);
        args_sizes_get(argc_out: u32, argv_buf_size_out: u32);
        environ_get(environ: u32, environ_buf: u32);
        environ_sizes_get(environc_out: u32, environ_buf_size_out: u32);
        clock_res_get(id: u32, out: u32);
        clock_time_get(id: u32, precision: u64, out: u32);

        fd_advise(fd: u32, offset: u64, len: u64, advice: u32) => |wasi, memory| wasi.fd_advise(memory, fd, (offset, len), advice);
        fd_allocate(fd: u32, _offset: u64, _len: u64) => |wasi, _| wasi.refuse(fd, &read_only(Errno::Spipe, Errno::Rofs, Errno::Badf));
        fd_close(fd: u32);
        fd_datasync(fd: u32) => |wasi, _| wasi.ignore(fd, Errno::Inval);
        fd_fdstat_get(fd: u32, out: u32);
        fd_fdstat_set_flags(fd: u32, flags: u32);
        fd_fdstat_set_rights(fd: u32, _base: u64, _inheriting: u64) => |wasi, _| wasi.refuse(fd, &read_only(Errno::Notsup, Errno::Notsup, Errno::Notsup));
        fd_filestat_get(fd: u32, out: u32) => |wasi, memory| wasi.fd_filestat_get(memory, edition.filestat(), fd, out);
        fd_filestat_set_size(fd: u32, _size: u64) => |wasi, _| wasi.refuse(fd, &read_only(Errno::Inval, Errno::Rofs, Errno::Badf));
        fd_filestat_set_times(fd: u32, _atim: u64, _mtim: u64, _flags: u32) => |wasi, _| wasi.refuse(fd, &read_only(Errno::Notsup, Errno::Rofs, Errno::Rofs));
        fd_pread(fd: u32, iovs: u32, iovs_len: u32, offset: u64, out: u32) => |wasi, memory| wasi.fd_pread(memory, fd, (iovs, iovs_len), offset, out);
        fd_prestat_get(fd: u32, out: u32);
        fd_prestat_dir_name(fd: u32, path: u32, path_len: u32);
        fd_pwrite(fd: u32, _iovs: u32, _iovs_len: u32, _offset: u64, _out: u32) => |wasi, _| wasi.refuse(fd, &read_only(Errno::Spipe, Errno::Badf, Errno::Badf));
        fd_read(fd: u32, iovs: u32, iovs_len: u32, out: u32);
        fd_readdir(fd: u32, buf: u32, buf_len: u32, cookie: u64, out: u32) => |wasi, memory| wasi.fd_readdir(memory, fd, (buf, buf_len), cookie, out);
        fd_renumber(from: u32, to: u32);
        fd_seek(fd: u32, offset: u64, whence: u32, out: u32) => |wasi, memory| wasi.fd_seek(memory, fd, offset, edition.whence(whence), out);
        fd_sync(fd: u32) => |wasi, _| wasi.ignore(fd, Errno::Inval);
        fd_tell(fd: u32, out: u32);
        fd_write(fd: u32, iovs: u32, iovs_len: u32, out: u32);

        path_create_directory(fd: u32, path: u32, len: u32) => |wasi, memory| wasi.path_change(memory, &[(fd, path, len)]);
        path_filestat_get(fd: u32, flags: u32, path: u32, len: u32, out: u32) => |wasi, memory| wasi.path_filestat_get(memory, edition.filestat(), (fd, flags), (path, len), out);
        path_filestat_set_times(fd: u32, _flags: u32, path: u32, len: u32, _atim: u64, _mtim: u64, _fst_flags: u32) => |wasi, memory| wasi.path_change(memory, &[(fd, path, len)]);
        path_link(old_fd: u32, _old_flags: u32, old: u32, old_len: u32, new_fd: u32, new: u32, new_len: u32) => |wasi, memory| wasi.path_change(memory, &[(old_fd, old, old_len), (new_fd, new, new_len)]);
        path_open(fd: u32, lookup_flags: u32, path: u32, len: u32, open_flags: u32, rights: u64, _inheriting: u64, flags: u32, out: u32) => |wasi, memory| wasi.path_open(memory, &Opening { fd, lookup_flags, path: (path, len), open_flags, rights, flags }, out);
        path_readlink(fd: u32, path: u32, len: u32, buf: u32, buf_len: u32, out: u32) => |wasi, memory| wasi.path_readlink(memory, fd, (path, len), (buf, buf_len), out);
        path_remove_directory(fd: u32, path: u32, len: u32) => |wasi, memory| wasi.path_change(memory, &[(fd, path, len)]);
        path_rename(old_fd: u32, old: u32, old_len: u32, new_fd: u32, new: u32, new_len: u32) => |wasi, memory| wasi.path_change(memory, &[(old_fd, old, old_len), (new_fd, new, new_len)]);
        path_symlink(old: u32, old_len: u32, fd: u32, new: u32, new_len: u32) => |wasi, memory| wasi.path_symlink(memory, (old, old_len), (fd, new, new_len));
        path_unlink_file(fd: u32, path: u32, len: u32) => |wasi, memory| wasi.path_change(memory, &[(fd, path, len)]);

        poll_oneoff(subscriptions: u32, events: u32, count: u32, events_len_out: u32) => |wasi, memory| wasi.poll_oneoff(memory, edition.subscription(), subscriptions, events, count, events_len_out);
        proc_raise(signal: u32);
        sched_yield();
        random_get(buf: u32, buf_len: u32);

        sock_accept(fd: u32, _flags: u32, _out: u32) => |wasi, _| wasi.refuse(fd, &NO_SOCKET);
        sock_recv(fd: u32, _iovs: u32, _iovs_len: u32, _flags: u32, _len_out: u32, _flags_out: u32) => |wasi, _| wasi.refuse(fd, &NO_SOCKET);
        sock_send(fd: u32, _iovs: u32, _iovs_len: u32, _flags: u32, _len_out: u32) => |wasi, _| wasi.refuse(fd, &NO_SOCKET);
        sock_shutdown(fd: u32, _how: u32) => |wasi, _| wasi.refuse(fd, &NO_SOCKET);
    })
}

/// Runs one call on the guest's state and memory, and turns its answer into what the guest sees: a
/// number, or its end.
fn answer(
    mut guest: FunctionEnvMut<'_, GuestEnv>,
    call: impl FnOnce(&mut Wasi, &mut Memory<'_>) -> Answer,
) -> Result<i32, RuntimeError> {
    let (env, store) = guest.data_and_store_mut();
    let Some(wasi) = env.wasi.as_mut() else {
        return Ok(Errno::Nosys.code());
    };
    wasi.spend(1).map_err(thrown)?;
    let answer = match &env.memory {
        Some(memory) => call(wasi, &mut Memory::new(bytes(&mut memory.view(&store)))),
        None => call(wasi, &mut Memory::new(&mut [])),
    };
    match answer {
        Ok(()) => Ok(0),
        Err(Failure::Errno(errno)) => Ok(errno.code()),
        Err(Failure::Stop(stop)) => Err(thrown(stop)),
    }
}

/// The end of the guest as an error that Wasmer passes on as it is. Of any other error it would make
/// one of these itself, with a stack trace, which takes several microseconds under a lock of the whole
/// process; and exiting is how most guests end.
fn thrown(stop: Stop) -> RuntimeError {
    let trap = Trap::user(Box::new(stop));
    RuntimeError::new_from_source(trap.into(), Vec::new(), None)
}

/// A guest's memory for the time of one host call.
fn bytes<'a>(view: &'a mut MemoryView<'_>) -> &'a mut [u8] {
    // SAFETY: Until the slice is gone, nothing else may read, write or resize the memory. That
    // holds: its only caller is `answer`, which makes one view of one memory, inside a host call,
    // and the slice dies before that call returns. While it lives the guest is suspended in this
    // very call on this thread (a `Store` belongs to one thread, and shared memories are not among
    // the features that modules may use), and no WASI function calls back into a guest, grows a
    // memory or makes another view.
    unsafe { view.data_unchecked_mut() }
}
