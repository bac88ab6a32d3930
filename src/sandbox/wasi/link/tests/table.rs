//! Every function of preview 1 on every kind of descriptor, and with every argument made hostile in
//! turn. The numbers are those of the specification: `EBADF` 8, `EXIST` 20, `EFAULT` 21, `EINVAL` 28,
//! `EISDIR` 31, `ENOSYS` 52, `ENOTDIR` 54, `ENOTSOCK` 57, `ENOTSUP` 58, `EROFS` 69, `ESPIPE` 70,
//! `ENOTCAPABLE` 76.

use std::fs;

use super::*;
use crate::sandbox::Files;

/// An argument.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Arg {
    /// The descriptor that the call is about.
    Fd,
    /// An address that the function reads or writes; all others are a fault.
    At(u32),
    /// The length of what is at the address before it.
    Len(u32),
    /// How many records are at an address: bounded at 1024.
    Count(u32),
    /// An address that is not looked at: the function refuses before.
    Unused32,
    Unused64,
    /// A plain number.
    N32(u32),
    N64(u64),
}

use Arg::{At, Count, Fd, Len, N32, N64, Unused32, Unused64};

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const ROOT: u32 = 3;
const FILE: u32 = 4;
const DIRECTORY: u32 = 5;

/// Where a result goes; there is room for the largest, a `filestat`.
const OUT: Arg = At(1024);
const BUFFER: Arg = At(2048);
/// One buffer: [`BUFFER`], 16 bytes.
const IOVECS: Arg = At(512);
/// `file`, a name in the root; the directory `d` has one too.
const PATH: Arg = At(256);
const PATH_LEN: Arg = Len(4);
/// A sleep of no time at all.
const SUBSCRIPTION: Arg = At(768);

/// A function, its arguments, and what it answers for standard input, standard output, a file and a
/// directory.
type Row = (&'static str, &'static [Arg], [i32; 4]);

#[rustfmt::skip]
const ROWS: [Row; 45] = [
    ("args_get", &[OUT, BUFFER], [0; 4]),
    ("args_sizes_get", &[OUT, BUFFER], [0; 4]),
    ("environ_get", &[OUT, BUFFER], [0; 4]),
    ("environ_sizes_get", &[OUT, BUFFER], [0; 4]),
    ("clock_res_get", &[N32(1), OUT], [0; 4]),
    ("clock_time_get", &[N32(0), N64(1), OUT], [0; 4]),
    ("fd_advise", &[Fd, N64(0), N64(0), N32(0)], [70, 70, 0, 8]),
    ("fd_allocate", &[Fd, Unused64, Unused64], [70, 70, 69, 8]),
    ("fd_close", &[Fd], [0; 4]),
    ("fd_datasync", &[Fd], [28, 28, 0, 8]),
    ("fd_fdstat_get", &[Fd, OUT], [0; 4]),
    ("fd_fdstat_set_flags", &[Fd, N32(4)], [0, 0, 0, 8]),
    ("fd_fdstat_set_rights", &[Fd, Unused64, Unused64], [58; 4]),
    ("fd_filestat_get", &[Fd, OUT], [0; 4]),
    ("fd_filestat_set_size", &[Fd, Unused64], [28, 28, 69, 8]),
    ("fd_filestat_set_times", &[Fd, Unused64, Unused64, Unused32], [58, 58, 69, 69]),
    ("fd_pread", &[Fd, IOVECS, Count(1), N64(2), OUT], [70, 70, 0, 8]),
    ("fd_prestat_get", &[Fd, OUT], [8, 8, 8, 0]),
    ("fd_prestat_dir_name", &[Fd, BUFFER, N32(1)], [8, 8, 8, 0]),
    ("fd_pwrite", &[Fd, Unused32, Unused32, Unused64, Unused32], [70, 70, 8, 8]),
    ("fd_read", &[Fd, IOVECS, Count(1), OUT], [0, 8, 0, 8]),
    ("fd_readdir", &[Fd, BUFFER, Len(500), N64(0), OUT], [54, 54, 54, 0]),
    ("fd_renumber", &[Fd, N32(DIRECTORY)], [0; 4]),
    ("fd_seek", &[Fd, N64(1), N32(0), OUT], [70, 70, 0, 8]),
    ("fd_sync", &[Fd], [28, 28, 0, 8]),
    ("fd_tell", &[Fd, OUT], [70, 70, 0, 8]),
    ("fd_write", &[Fd, IOVECS, Count(1), OUT], [8, 0, 8, 8]),
    ("path_create_directory", &[Fd, PATH, PATH_LEN], [54, 54, 54, 69]),
    ("path_filestat_get", &[Fd, N32(1), PATH, PATH_LEN, OUT], [54, 54, 54, 0]),
    ("path_filestat_set_times", &[Fd, Unused32, PATH, PATH_LEN, Unused64, Unused64, Unused32], [54, 54, 54, 69]),
    ("path_link", &[Fd, Unused32, PATH, PATH_LEN, N32(ROOT), PATH, PATH_LEN], [54, 54, 54, 69]),
    ("path_open", &[Fd, N32(1), PATH, PATH_LEN, N32(0), N64(2), Unused64, N32(0), OUT], [54, 54, 54, 0]),
    ("path_readlink", &[Fd, PATH, PATH_LEN, BUFFER, Len(16), OUT], [54, 54, 54, 28]),
    ("path_remove_directory", &[Fd, PATH, PATH_LEN], [54, 54, 54, 69]),
    ("path_rename", &[N32(ROOT), PATH, PATH_LEN, Fd, PATH, PATH_LEN], [54, 54, 54, 69]),
    ("path_symlink", &[BUFFER, Len(16), Fd, PATH, PATH_LEN], [54, 54, 54, 69]),
    ("path_unlink_file", &[Fd, PATH, PATH_LEN], [54, 54, 54, 69]),
    ("poll_oneoff", &[SUBSCRIPTION, BUFFER, Count(1), OUT], [0; 4]),
    ("proc_raise", &[Unused32], [52; 4]),
    ("sched_yield", &[], [0; 4]),
    ("random_get", &[BUFFER, Len(16)], [0; 4]),
    ("sock_accept", &[Fd, Unused32, Unused32], [57; 4]),
    ("sock_recv", &[Fd, Unused32, Unused32, Unused32, Unused32, Unused32], [57; 4]),
    ("sock_send", &[Fd, Unused32, Unused32, Unused32, Unused32], [57; 4]),
    ("sock_shutdown", &[Fd, Unused32], [57; 4]),
];

impl Arg {
    fn value(self, fd: u32) -> Value {
        match self {
            Fd => Value::I32(fd.cast_signed()),
            At(n) | Len(n) | Count(n) | N32(n) => Value::I32(n.cast_signed()),
            N64(n) => Value::I64(n.cast_signed()),
            Unused32 => Value::I32(-1),
            Unused64 => Value::I64(-1),
        }
    }
}

/// A guest that hands calls on, with a tree of files, of which `file` and `d` are open.
struct Subject {
    guest: Guest,
}

impl Subject {
    fn new(edition: &str, row: &Row, files: &Arc<Files>) -> Subject {
        let (name, args, _) = row;
        let list = |of: &dyn Fn(usize, &str) -> String| -> String {
            let types = args.iter().map(|arg| match arg.value(0) {
                Value::I64(_) => "i64",
                _ => "i32",
            });
            types.enumerate().map(|(n, ty)| of(n, ty)).collect()
        };
        let parameters = list(&|_, ty| format!("(param {ty})"));
        let passed = list(&|n, _| format!("(local.get {n})"));
        let text = format!(
            r#"(module
              (import "{edition}" "{name}" (func $f {parameters} (result i32)))
              (import "{edition}" "path_open"
                (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
              (memory (export "memory") 1)
              (data (i32.const 256) "file")
              (data (i32.const 264) "d")
              (data (i32.const 512) "\00\08\00\00\10")
              (data (i32.const 784) "\01")
              (func (export "open") (result i32) (i32.or
                (call $open (i32.const 3) (i32.const 0) (i32.const 256) (i32.const 4)
                  (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 0))
                (call $open (i32.const 3) (i32.const 0) (i32.const 264) (i32.const 1)
                  (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 0))))
              (func (export "call") {parameters} (result i32) (call $f {passed})))"#
        );
        let mut config = config();
        config.stdin = Bytes::from_static(b"some input").into();
        config.files = Some(Arc::clone(files));
        let mut guest = Guest::new(&wat::parse_str(text).unwrap(), Some(config));
        assert_eq!(*guest.call("open").unwrap(), [Value::I32(0)]);
        Subject { guest }
    }

    fn call(&mut self, values: &[Value]) -> i32 {
        let function = self.guest.instance.exports.get_function("call").unwrap();
        let function = function.clone();
        let answer = function.call(&mut self.guest.store, values).unwrap();
        answer[0].unwrap_i32()
    }

    fn memory(&self) -> Vec<u8> {
        let memory = self.guest.instance.exports.get_memory("memory").unwrap();
        memory.view(&self.guest.store).copy_to_vec().unwrap()
    }
}

/// `file` and `d/file`.
fn files() -> Arc<Files> {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("d")).unwrap();
    for path in ["file", "d/file"] {
        fs::write(directory.path().join(path), "content").unwrap();
    }
    Arc::new(Files::load(directory.path()).unwrap())
}

/// Calls a fresh guest's function.
fn ask(edition: &str, row: &Row, files: &Arc<Files>, values: &[Value]) -> i32 {
    Subject::new(edition, row, files).call(values)
}

fn values(row: &Row, fd: u32) -> Vec<Value> {
    row.1.iter().map(|arg| arg.value(fd)).collect()
}

/// The descriptor with which the function gets furthest, and what it answers then.
fn best(row: &Row) -> (u32, i32) {
    let kinds = [STDIN, STDOUT, FILE, ROOT];
    let all = || kinds.into_iter().zip(row.2);
    all()
        .find(|(_, errno)| *errno == 0)
        .or_else(|| all().next_back())
        .unwrap()
}

#[test]
fn every_function_knows_every_kind_of_descriptor() {
    let files = files();
    for row in &ROWS {
        let (name, args, expected) = row;
        let types: Vec<_> = args.iter().map(|arg| arg.value(0).ty()).collect();
        let signature = signature(PREVIEW1, name).unwrap();
        assert_eq!(signature.params(), types, "{name}");
        for (fd, errno) in [STDIN, STDOUT, FILE, ROOT].into_iter().zip(expected) {
            let answer = ask(PREVIEW1, row, &files, &values(row, fd));
            assert_eq!(answer, *errno, "{name} on {fd}");
        }
        // A directory that the guest has opened is as good as the root, but for its name.
        let opened = ask(PREVIEW1, row, &files, &values(row, DIRECTORY));
        let expected = if name.starts_with("fd_prestat") {
            8
        } else {
            expected[3]
        };
        assert_eq!(opened, expected, "{name} on a directory");
    }
}

#[test]
fn the_older_edition_answers_alike() {
    let files = files();
    for row in ROWS.iter().filter(|row| row.0 != "sock_accept") {
        for (fd, errno) in [STDIN, STDOUT, FILE, ROOT].into_iter().zip(row.2) {
            let answer = ask("wasi_unstable", row, &files, &values(row, fd));
            // A subscription has another layout there: clock 0 instead of 1, and as long.
            assert_eq!(answer, errno, "{} on {fd}", row.0);
        }
    }
}

#[test]
fn the_older_edition_numbers_the_directions_of_a_seek_differently() {
    let files = files();
    let row = ROWS.iter().find(|row| row.0 == "fd_seek").unwrap();
    // From the start, where the position is, or the end of seven bytes, and one further.
    for (edition, positions) in [(PREVIEW1, [1, 1, 8]), ("wasi_unstable", [1, 8, 1])] {
        for (whence, position) in (0..).zip(positions) {
            let mut values = values(row, FILE);
            values[2] = Value::I32(whence);
            let mut subject = Subject::new(edition, row, &files);
            assert_eq!(subject.call(&values), 0);
            assert_eq!(subject.memory()[1024], position, "{edition} {whence}");
        }
    }
}

#[test]
fn no_function_takes_a_descriptor_that_is_not_open() {
    let files = files();
    for row in &ROWS {
        for (at, arg) in row.1.iter().enumerate() {
            let is_descriptor = *arg == Fd || matches!(arg, N32(ROOT | DIRECTORY));
            for bad in [6, 255, 256, 0x7fff_ffff, u32::MAX] {
                let mut values = values(row, best(row).0);
                values[at] = Value::I32(bad.cast_signed());
                if is_descriptor {
                    let answer = ask(PREVIEW1, row, &files, &values);
                    assert_eq!(answer, 8, "{} argument {at}: {bad}", row.0);
                }
            }
        }
    }
}

#[test]
fn no_function_touches_what_is_not_memory() {
    let files = files();
    for row in &ROWS {
        let (fd, _) = best(row);
        for (at, arg) in row.1.iter().enumerate() {
            let At(_) = arg else { continue };
            for bad in [
                65_536,
                65_535,
                0x7fff_ffff,
                0x8000_0000,
                u32::MAX - 1,
                u32::MAX,
            ] {
                // One byte may be inside, and a path or a name of one byte fit there.
                if bad == 65_535 && row.0 == "fd_prestat_dir_name" {
                    continue;
                }
                let mut values = values(row, fd);
                values[at] = Value::I32(bad.cast_signed());
                let mut subject = Subject::new(PREVIEW1, row, &files);
                let before = subject.memory();
                let answer = subject.call(&values);
                assert_eq!(answer, 21, "{} argument {at}: {bad}", row.0);
                let strings = row.0.ends_with("_get") && row.1.len() == 2;
                assert!(
                    strings || subject.memory() == before,
                    "{} argument {at}: {bad}",
                    row.0
                );
            }
        }
    }
}

#[test]
fn no_length_is_too_large_to_be_refused() {
    let files = files();
    for row in &ROWS {
        let (fd, _) = best(row);
        for (at, arg) in row.1.iter().enumerate() {
            let errno = match arg {
                Len(_) => 21,
                Count(_) => 28,
                Fd | At(_) | Unused32 | Unused64 | N32(_) | N64(_) => continue,
            };
            for bad in [65_536, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
                let mut values = values(row, fd);
                values[at] = Value::I32(bad.cast_signed());
                let mut subject = Subject::new(PREVIEW1, row, &files);
                let before = subject.memory();
                assert_eq!(
                    subject.call(&values),
                    errno,
                    "{} argument {at}: {bad}",
                    row.0
                );
                assert!(subject.memory() == before, "{} argument {at}: {bad}", row.0);
            }
        }
    }
}

#[test]
fn no_arguments_at_all_bring_a_function_down() {
    let files = files();
    let hostile = [0, 1, 3, 4, 8, 65_535, 65_536, 0x7fff_ffff, u32::MAX];
    for row in &ROWS {
        let mut subject = Subject::new(PREVIEW1, row, &files);
        for one in hostile {
            for other in hostile {
                let values: Vec<_> = row
                    .1
                    .iter()
                    .enumerate()
                    .map(|(at, arg)| {
                        let n = if at % 2 == 0 { one } else { other };
                        match arg.value(0) {
                            Value::I64(_) => Value::I64(i64::from(n.cast_signed())),
                            _ => Value::I32(n.cast_signed()),
                        }
                    })
                    .collect();
                let answer = subject.call(&values);
                assert!((0..77).contains(&answer), "{} {values:?}: {answer}", row.0);
            }
        }
    }
}
