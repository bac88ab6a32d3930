//! Stacks that are full: whatever a frame looks like, the end of the stack is a trap.
//!
//! A compiler that moves the stack pointer past the guard page corrupts the host or ends it. So each
//! case runs in a child process, this test's own program started again, and a child that dies fails
//! the test. (Singlepass reserves frames without touching them: see the bounds in `check::facts`,
//! which these shapes are at.)

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::{env, iter};

use wasmer::{Function, Instance, Module, Store, imports};
use wasmer_types::TrapCode;

use super::Compiler;
use crate::sandbox::check::{Limits, check};
use crate::sandbox::codegen::Codegen;

/// Names the case of a child: compiler and number of the shape.
const CASE: &str = "WASM_WIZARD_TEST_FRAME";
/// Depths at which a recursion begins, so that the frame that does not fit begins at every address
/// of a page that a frame can begin at.
const DEPTHS: i32 = 64;
/// Sizes of the frames that make up the depth, in locals.
const PADS: [usize; 4] = [0, 7, 10, 13];

/// A recursion, as functions with `$hostile` among them, which takes nothing and returns nothing.
type Shape = (&'static str, String);

fn times(count: usize, what: &str) -> String {
    iter::repeat_n(what, count).collect::<Vec<_>>().join(" ")
}

/// Endless recursion of a function with so many parameters, results, and locals.
fn recursion(params: usize, results: usize, locals: usize, ty: &str) -> String {
    format!(
        "(func $r (param {}) (result {}) (local {}) (call $r {}))
         (func $hostile (call $r {}) {})",
        times(params, ty),
        times(results, ty),
        times(locals, ty),
        (0..params)
            .map(|param| format!("(local.get {param})"))
            .collect::<String>(),
        times(params, &format!("({ty}.const 7)")),
        times(results, "(drop)"),
    )
}

/// Recursion below open blocks of this type, and with so many operands on the stack.
fn nested(blocks: usize, open: &str, operands: usize, params: usize) -> String {
    format!(
        "(func $r (param {}) {} {} (call $r {}) unreachable {})
         (func $hostile (call $r {}))",
        times(params, "i64"),
        times(blocks, open),
        times(operands, "(local.get 0)"),
        (0..params)
            .map(|param| format!("(local.get {param})"))
            .collect::<String>(),
        times(blocks, "end unreachable"),
        times(params, "(i64.const 7)"),
    )
}

/// Shapes within the bounds that make Singlepass safe, and at them.
fn inside() -> Vec<Shape> {
    let results = |count| format!("block (result {})", times(count, "i64"));
    let looped = format!(
        "{} loop (param {}) (result {})",
        times(16, "(i64.const 3)"),
        times(16, "i64"),
        times(16, "i64")
    );
    let indirect = recursion(128, 16, 200, "i64").replace(
        "(call $r (local.get 0)",
        "(call_indirect (type $wide) (local.get 0)",
    );
    let wide = format!(
        "(type $wide (func (param {}) (result {})))",
        times(128, "i64"),
        times(16, "i64")
    );
    vec![
        ("parameters", recursion(128, 0, 0, "i64")),
        ("results", recursion(1, 16, 0, "i64")),
        ("locals", recursion(0, 0, 400, "i64")),
        ("all of these", recursion(128, 16, 272, "i64")),
        ("floats", recursion(128, 16, 272, "f64")),
        ("narrow ones", recursion(128, 16, 272, "f32")),
        ("open blocks", nested(8, &results(16), 0, 128)),
        ("open blocks of one result", nested(128, &results(1), 0, 1)),
        ("open loops", nested(2, &looped, 0, 128)),
        ("operands", nested(0, "", 5_000, 128)),
        (
            "open blocks and operands",
            nested(8, &results(16), 2_000, 128),
        ),
        (
            "indirect calls",
            format!(
                "{wide} {} (table 1 funcref) (elem (i32.const 0) $r)",
                indirect.replace("(local.get 127))", "(local.get 127) (i32.const 0))"),
            ),
        ),
    ]
}

/// Shapes beyond the bounds, of every kind that would pass Singlepass's guard page. For Cranelift.
fn outside() -> Vec<Shape> {
    let results = format!("block (result {})", times(16, "i64"));
    vec![
        ("parameters", recursion(129, 0, 0, "i64")),
        ("many parameters", recursion(1_000, 0, 0, "i64")),
        ("results", recursion(1, 17, 0, "i64")),
        ("many results", recursion(1, 400, 0, "i64")),
        ("locals", recursion(0, 0, 401, "i64")),
        ("locals of more than a page", recursion(0, 0, 600, "i64")),
        ("many locals", recursion(0, 0, 20_000, "i64")),
        (
            "vectors",
            recursion(2, 1, 2, "v128").replace("const 7", "const i64x2 7 7"),
        ),
        ("open blocks", nested(9, &results, 0, 1)),
        ("many open blocks", nested(200, &results, 0, 1)),
    ]
}

fn text(shape: &str, pad: usize) -> String {
    format!(
        "(module
           (import \"wasi_snapshot_preview1\" \"sched_yield\" (func $depth (result i32)))
           (memory (export \"memory\") 1)
           {shape}
           (func $pad (param i32) (local {})
             (if (local.get 0)
               (then (call $pad (i32.sub (local.get 0) (i32.const 1))) (local.set 0 (i32.const 1)))
               (else (call $hostile))))
           (func (export \"_start\") (call $pad (call $depth))))",
        times(pad, "i64")
    )
}

/// Runs a shape at every depth; panics unless all of them end in a full stack.
fn run(compiler: Compiler, shape: &str) {
    for pad in PADS {
        let engine = Codegen::new(compiler).engine();
        let wasm = wat::parse_str(text(shape, pad)).unwrap();
        let module = Module::new(&engine, wasm).unwrap();
        for depth in 0..DEPTHS {
            let mut store = Store::new(engine.clone());
            let imports = imports! {
                "wasi_snapshot_preview1" => {
                    "sched_yield" => Function::new_typed(&mut store, move || depth),
                }
            };
            let instance = Instance::new(&mut store, &module, &imports).unwrap();
            let start = instance
                .exports
                .get_typed_function::<(), ()>(&store, "_start")
                .unwrap();
            let error = start.call(&mut store).unwrap_err();
            assert_eq!(
                error.clone().to_trap(),
                Some(TrapCode::StackOverflow),
                "{error}"
            );
        }
    }
}

/// Not a test by itself: what the children of the others run.
#[test]
fn child() {
    let Ok(case) = env::var(CASE) else {
        return;
    };
    let (which, number) = case.split_once(' ').unwrap();
    let number: usize = number.parse().unwrap();
    match which {
        "singlepass" => run(Compiler::Singlepass, &inside()[number].1),
        "cranelift" => run(Compiler::Cranelift, &inside()[number].1),
        "outside" => run(Compiler::Cranelift, &outside()[number].1),
        other => panic!("{other}"),
    }
}

fn children(which: &str, shapes: &[Shape]) {
    for (number, (name, _)) in shapes.iter().enumerate() {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "sandbox::engine::tests::child", "--nocapture"])
            .env(CASE, format!("{which} {number}"))
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{which}, {name}: signal {:?}, {}",
            output.status.signal(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn may_use_singlepass(shape: &str) -> bool {
    let limits = Limits {
        wasm_bytes_max: u64::MAX,
        table_elements_max: u32::MAX,
    };
    check(&wat::parse_str(text(shape, 0)).unwrap(), limits)
        .unwrap()
        .singlepass
}

#[test]
fn a_full_stack_is_a_trap_in_singlepass_code_within_the_bounds() {
    for (name, shape) in inside() {
        assert!(may_use_singlepass(&shape), "{name}");
    }
    // Elsewhere it is not used.
    if cfg!(target_arch = "x86_64") {
        children("singlepass", &inside());
    }
}

#[test]
fn a_full_stack_is_a_trap_in_cranelift_code() {
    children("cranelift", &inside());
    for (name, shape) in outside() {
        assert!(!may_use_singlepass(&shape), "{name}");
    }
    children("outside", &outside());
}
