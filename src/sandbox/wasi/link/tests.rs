//! The host functions through Wasmer itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasmer::{Imports, Instance, Module, Value};

use super::super::{Config, Output};
use super::*;
use crate::sandbox::{Stdout, StopSignal, Strings};

mod examples;
mod table;

const PREVIEW1: &str = "wasi_snapshot_preview1";

/// Every function of preview 1: its parameters (`i` 32 bits, `I` 64), and what it answers when
/// all arguments are 0 (so that the descriptor is standard input) and when all are −1.
const FUNCTIONS: [(&str, &str, i32, i32); 45] = [
    ("args_get", "ii", 0, 21),
    ("args_sizes_get", "ii", 0, 21),
    ("environ_get", "ii", 0, 21),
    ("environ_sizes_get", "ii", 0, 21),
    ("clock_res_get", "ii", 0, 28),
    ("clock_time_get", "iIi", 0, 28),
    ("fd_advise", "iIIi", 70, 8),
    ("fd_allocate", "iII", 70, 8),
    ("fd_close", "i", 0, 8),
    ("fd_datasync", "i", 28, 8),
    ("fd_fdstat_get", "ii", 0, 8),
    ("fd_fdstat_set_flags", "ii", 0, 8),
    ("fd_fdstat_set_rights", "iII", 58, 8),
    ("fd_filestat_get", "ii", 0, 8),
    ("fd_filestat_set_size", "iI", 28, 8),
    ("fd_filestat_set_times", "iIIi", 58, 8),
    ("fd_pread", "iiiIi", 70, 8),
    ("fd_prestat_get", "ii", 8, 8),
    ("fd_prestat_dir_name", "iii", 8, 8),
    ("fd_pwrite", "iiiIi", 70, 8),
    ("fd_read", "iiii", 0, 8),
    ("fd_readdir", "iiiIi", 54, 8),
    ("fd_renumber", "ii", 0, 8),
    ("fd_seek", "iIii", 70, 8),
    ("fd_sync", "i", 28, 8),
    ("fd_tell", "ii", 70, 8),
    ("fd_write", "iiii", 8, 8),
    ("path_create_directory", "iii", 54, 8),
    ("path_filestat_get", "iiiii", 54, 8),
    ("path_filestat_set_times", "iiiiIIi", 54, 8),
    ("path_link", "iiiiiii", 54, 8),
    ("path_open", "iiiiiIIii", 54, 8),
    ("path_readlink", "iiiiii", 54, 8),
    ("path_remove_directory", "iii", 54, 8),
    ("path_rename", "iiiiii", 54, 8),
    ("path_symlink", "iiiii", 54, 8),
    ("path_unlink_file", "iii", 54, 8),
    ("poll_oneoff", "iiii", 28, 28),
    ("proc_raise", "i", 52, 52),
    ("sched_yield", "", 0, 0),
    ("random_get", "ii", 0, 21),
    ("sock_accept", "iii", 57, 8),
    ("sock_recv", "iiiiii", 57, 8),
    ("sock_send", "iiiii", 57, 8),
    ("sock_shutdown", "ii", 57, 8),
];

/// A guest linked by [`import`] and nothing else.
struct Guest {
    store: Store,
    env: FunctionEnv<GuestEnv>,
    instance: Instance,
}

fn config() -> Config {
    Config {
        args: Strings::arguments(["guest"]),
        env: Strings::variables([("A", "1")]),
        stdin: Bytes::new().into(),
        files: None,
        stdout: Stdout::Collect,
        stdout_bytes_max: 1 << 20,
        stderr_bytes_max: 1 << 16,
        started: Instant::now(),
        deadline: Instant::now() + Duration::from_secs(600),
        stop: Arc::new(StopSignal::default()),
        may_block: true,
    }
}

impl Guest {
    /// Panics where a module imports what we do not link.
    fn new(wasm: &[u8], config: Option<Config>) -> Guest {
        let mut store = Store::default();
        let module = Module::new(&store, wasm).unwrap();
        let wasi = config.map(Wasi::new);
        let env = FunctionEnv::new(&mut store, GuestEnv { wasi, memory: None });
        let mut imports = Imports::new();
        for wanted in module.imports() {
            let (from, name) = (wanted.module(), wanted.name());
            assert_eq!(
                wanted.ty().func().cloned(),
                signature(from, name),
                "{from} {name}"
            );
            imports.define(from, name, import(&mut store, &env, from, name).unwrap());
        }
        let instance = Instance::new(&mut store, &module, &imports).unwrap();
        env.as_mut(&mut store).memory = instance.exports.get_memory("memory").ok().cloned();
        Guest {
            store,
            env,
            instance,
        }
    }

    /// Calls an export. A host function's [`Stop`] comes back as such; a trap panics.
    fn call(&mut self, name: &str) -> Result<Box<[Value]>, Stop> {
        let function = self.instance.exports.get_function(name).unwrap().clone();
        function
            .call(&mut self.store, &[])
            .map_err(|error| error.downcast::<Stop>().unwrap())
    }

    fn finish(mut self) -> Output {
        self.env
            .as_mut(&mut self.store)
            .wasi
            .take()
            .unwrap()
            .finish()
    }
}

/// A module that exports `zeros` and `ones`: the function called with all arguments 0, or −1.
fn caller(module: &str, name: &str, parameters: &str, memory: &str) -> Vec<u8> {
    let list = |with: &dyn Fn(&str) -> String| -> String {
        parameters
            .chars()
            .map(|p| with(if p == 'i' { "i32" } else { "i64" }))
            .collect()
    };
    let text = format!(
        r#"(module (import "{module}" "{name}" (func $f {} (result i32))) {memory}
            (func (export "zeros") (result i32) (call $f {}))
            (func (export "ones") (result i32) (call $f {})))"#,
        list(&|ty| format!("(param {ty})")),
        list(&|ty| format!("({ty}.const 0)")),
        list(&|ty| format!("({ty}.const -1)")),
    );
    wat::parse_str(text).unwrap()
}

#[test]
fn every_function_exists_and_answers_with_its_error_number() {
    for (name, parameters, zeros, ones) in FUNCTIONS {
        let wasm = caller(
            PREVIEW1,
            name,
            parameters,
            r#"(memory (export "memory") 1)"#,
        );
        for (export, errno) in [("zeros", zeros), ("ones", ones)] {
            let mut guest = Guest::new(&wasm, Some(config()));
            assert_eq!(
                *guest.call(export).unwrap(),
                [Value::I32(errno)],
                "{name} {export}"
            );
        }
    }
}

#[test]
fn no_function_needs_memory_or_a_state_to_be_safe() {
    for (name, parameters, ..) in FUNCTIONS {
        let wasm = caller(PREVIEW1, name, parameters, "");
        for export in ["zeros", "ones"] {
            Guest::new(&wasm, Some(config())).call(export).unwrap();
            let answer = Guest::new(&wasm, None).call(export).unwrap();
            assert_eq!(*answer, [Value::I32(52)], "{name}");
        }
    }
    let wasm = caller(PREVIEW1, "clock_time_get", "iIi", "");
    assert_eq!(
        *Guest::new(&wasm, Some(config())).call("zeros").unwrap(),
        [Value::I32(21)]
    );
}

#[test]
fn preview_0_has_the_same_functions_but_one() {
    for (name, parameters, zeros, ones) in FUNCTIONS {
        if name == "sock_accept" {
            assert_eq!(signature("wasi_unstable", name), None);
            continue;
        }
        assert_eq!(signature("wasi_unstable", name), signature(PREVIEW1, name));
        let wasm = caller(
            "wasi_unstable",
            name,
            parameters,
            r#"(memory (export "memory") 1)"#,
        );
        for (export, errno) in [("zeros", zeros), ("ones", ones)] {
            let mut guest = Guest::new(&wasm, Some(config()));
            assert_eq!(
                *guest.call(export).unwrap(),
                [Value::I32(errno)],
                "{name} {export}"
            );
        }
    }
}

#[test]
fn preview_0_records_have_their_own_layout() {
    // Sleep 1 ns by a preview 0 subscription: in preview 1's layout the clock id would be 0xff.
    let poll = r#"(module
        (import "MODULE" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) "\ff")
        (data (i32.const 32) "\01")
        (func (export "run") (result i32)
          (drop (call $poll (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 120)))
          (i32.load16_u (i32.const 136))))"#;
    // The errno of the event: success for preview 0, EINVAL for preview 1.
    for (module, errno) in [("wasi_unstable", 0), (PREVIEW1, 28)] {
        let wasm = wat::parse_str(poll.replace("MODULE", module)).unwrap();
        assert_eq!(
            *Guest::new(&wasm, Some(config())).call("run").unwrap(),
            [Value::I32(errno)]
        );
    }
    // nlink of fd_filestat_get: at 20 in preview 0, at 24 in preview 1.
    let stat = r#"(module
        (import "MODULE" "fd_filestat_get" (func $stat (param i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "run") (result i32)
          (drop (call $stat (i32.const 0) (i32.const 0)))
          (i32.load (i32.const 20))))"#;
    for (module, nlink) in [("wasi_unstable", 1), (PREVIEW1, 0)] {
        let wasm = wat::parse_str(stat.replace("MODULE", module)).unwrap();
        assert_eq!(
            *Guest::new(&wasm, Some(config())).call("run").unwrap(),
            [Value::I32(nlink)]
        );
    }
}

#[test]
fn other_modules_and_names_do_not_exist() {
    for module in [
        "",
        "env",
        "wasix_32v1",
        "wasix_64v1",
        "wasi_snapshot_preview2",
        "WASI_UNSTABLE",
    ] {
        assert_eq!(signature(module, "fd_write"), None, "{module}");
    }
    for name in [
        "",
        "fd_dup",
        "proc_fork",
        "FD_READ",
        "fd_read\0",
        "thread-spawn",
    ] {
        assert_eq!(signature(PREVIEW1, name), None, "{name}");
    }
    let mut store = Store::default();
    let env = FunctionEnv::new(&mut store, GuestEnv::default());
    assert!(import(&mut store, &env, "env", "fd_write").is_none());
    assert!(import(&mut store, &env, PREVIEW1, "proc_fork").is_none());
    assert!(import(&mut store, &env, PREVIEW1, "fd_write").is_some());
}

#[test]
fn proc_exit_ends_the_guest_with_its_code_even_without_a_state() {
    assert_eq!(
        signature(PREVIEW1, "proc_exit"),
        Some(FunctionType::new([Type::I32], []))
    );
    for code in [0, 3, -1] {
        let wasm = wat::parse_str(format!(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                (func (export "run") (call $exit (i32.const {code})) unreachable))"#
        ))
        .unwrap();
        for config in [Some(config()), None] {
            assert_eq!(Guest::new(&wasm, config).call("run"), Err(Stop::Exit(code)));
        }
    }
}

#[test]
fn limits_end_the_guest_as_user_errors() {
    let spin = wat::parse_str(
        r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
            (func (export "run") (loop (drop (call $yield)) (br 0))))"#,
    )
    .unwrap();
    let late = Config {
        deadline: Instant::now() + Duration::from_millis(5),
        ..config()
    };
    assert_eq!(
        Guest::new(&spin, Some(late)).call("run"),
        Err(Stop::TimeLimit)
    );
    let cancelled = config();
    cancelled.stop.cancel();
    assert_eq!(
        Guest::new(&spin, Some(cancelled)).call("run"),
        Err(Stop::Cancelled)
    );

    let flood = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 4) "\00\10")
            (func (export "run") (loop
              (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
              (br 0))))"#,
    )
    .unwrap();
    let mut guest = Guest::new(&flood, Some(config()));
    assert_eq!(guest.call("run"), Err(Stop::OutputLimit));
    assert_eq!(guest.finish().stdout.len(), 1 << 20);
}

#[test]
fn memory_that_grew_during_the_run_is_seen_whole() {
    let wasm = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "run") (result i32 i32)
              (call $random (i32.const 65536) (i32.const 4))
              (drop (memory.grow (i32.const 1)))
              (call $random (i32.const 65536) (i32.const 65536))))"#,
    )
    .unwrap();
    let answer = Guest::new(&wasm, Some(config())).call("run").unwrap();
    assert_eq!(*answer, [Value::I32(21), Value::I32(0)]);
}
