//! Modules that pass, and every way to be refused.

mod official;

use std::time::{Duration, Instant};

use super::{FEATURES, Limits, ModuleError, check};

const LIMITS: Limits = Limits {
    wasm_bytes_max: 10 * 1024 * 1024,
    table_elements_max: 20_000,
};
const START: &str = "(func (export \"_start\"))";

fn check_text(text: &str) -> Result<(), ModuleError> {
    check(&wat::parse_str(text).unwrap(), LIMITS).map(drop)
}

/// Checks `(module … )` around the text, with a `_start`.
fn check_with_start(text: &str) -> Result<(), ModuleError> {
    check_text(&format!("(module {text} {START})"))
}

fn refused(text: &str) -> String {
    match check_with_start(text) {
        Err(ModuleError::Invalid(message)) => message,
        other => panic!("{text}: {other:?}"),
    }
}

/// A module from sections of our own making, for what no tool would write.
fn binary(sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"\0asm\x01\0\0\0".to_vec();
    for (id, content) in sections {
        bytes.push(*id);
        leb(&mut bytes, content.len());
        bytes.extend_from_slice(content);
    }
    bytes
}

fn leb(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A vector: its length, then the item that often.
fn repeated(count: usize, item: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    leb(&mut bytes, count);
    bytes.extend(item.repeat(count));
    bytes
}

#[test]
fn ordinary_commands_pass() {
    for text in [
        "",
        "(memory (export \"memory\") 1)",
        "(import \"wasi_snapshot_preview1\" \"fd_write\" (func (param i32 i32 i32 i32) (result i32)))
         (memory (export \"memory\") 1)",
        "(import \"wasi_snapshot_preview1\" \"proc_exit\" (func (param i32)))",
        "(import \"wasi_unstable\" \"fd_write\" (func (param i32 i32 i32 i32) (result i32)))",
        "(func (result i64 i64) (i64.const 1) (i64.const 2))",
        "(func (param v128) (result v128) (local.get 0))",
        "(table 10 funcref) (elem (i32.const 0) 0) (func)",
        "(memory 1) (data $d \"x\") (func (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)))",
        "(memory 1) (data (i32.add (i32.const 1) (i32.const 2)) \"x\")",
        "(func (result i32) (i32.extend8_s (i32.trunc_sat_f32_s (f32.const 1))))",
    ] {
        check_with_start(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[test]
fn what_is_no_core_module_is_told_apart() {
    let message = |bytes: &[u8]| check(bytes, LIMITS).unwrap_err().to_string();
    assert!(message(b"").contains("not WebAssembly"));
    assert!(message(b"\x7fELF\x02\x01\x01\0").contains("not WebAssembly"));
    assert!(
        message(b"\0asm\x0d\0\x01\0").contains("this is a component; compile to a core module")
    );
    assert!(message(b"\0asm\x02\0\0\0").contains("not valid here"));
    assert!(message(b"\0asm").contains("not valid here"));
    let large = Limits {
        wasm_bytes_max: 7,
        ..LIMITS
    };
    assert!(
        check(b"\0asm\x01\0\0\0", large)
            .unwrap_err()
            .to_string()
            .contains("wasm-opt")
    );
}

#[test]
fn every_truncation_and_every_flipped_byte_is_survived() {
    let whole = wat::parse_str(format!(
        "(module (import \"wasi_snapshot_preview1\" \"sched_yield\" (func (result i32)))
          (memory (export \"memory\") 1 2) (table 3 funcref) (elem (i32.const 0) 0)
          (global (mut i32) (i32.const 5)) (data (i32.const 0) \"hello\") {START}
          (func (param i32) (result i32) (local i64 f64)
            (block (loop (br_table 0 1 0 (local.get 0)))) (call 0)))"
    ))
    .unwrap();
    check(&whole, LIMITS).unwrap();
    // What ends just before the data is a module, too.
    let valid = (0..whole.len()).filter(|length| check(&whole[..*length], LIMITS).is_ok());
    assert_eq!(valid.count(), 1);
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut broken = whole.clone();
            broken[at] ^= 1 << bit;
            let _ = check(&broken, LIMITS);
        }
    }
}

#[test]
fn imports_are_only_functions_of_wasi_preview_1() {
    let function = refused("(import \"env\" \"log\\u{7}\\u{1b}[31m\" (func))");
    assert!(
        function.contains(r#""env"."log\u{7}\u{1b}[31m""#),
        "{function}"
    );
    assert!(!function.contains('\u{1b}'));
    // What is not seen, or turns the text round.
    let unseen = refused(r#"(import "env" "a\u{202e}b\u{200b}c\u{feff}\u{85}" (func))"#);
    assert!(
        unseen.contains(r"a\u{202e}b\u{200b}c\u{feff}\u{85}"),
        "{unseen}"
    );
    assert!(refused("(import \"wasix_32v1\" \"thread_spawn\" (func))").contains("WASIX"));
    assert!(refused("(import \"wasi_snapshot_preview1\" \"fd_writ\" (func))").contains("fd_writ"));
    assert!(refused("(import \"wasi:cli/run@0.2.0\" \"run\" (func))").contains("preview 2"));
    let typed = refused("(import \"wasi_snapshot_preview1\" \"fd_write\" (func (param i64)))");
    assert!(typed.contains("type"), "{typed}");
    for (what, kind) in [
        ("(memory 1)", "memory"),
        ("(table 1 funcref)", "table"),
        ("(global i32)", "global"),
        ("(global (mut i32))", "global"),
    ] {
        let message = refused(&format!("(import \"env\" \"it\" {what})"));
        assert!(
            message.contains(&format!("imports the {kind} \"env\".\"it\"")),
            "{message}"
        );
    }
    assert!(printed_length(&"n".repeat(4096)) < 600);
}

fn printed_length(name: &str) -> usize {
    refused(&format!("(import \"env\" \"{name}\" (func))")).len()
}

#[test]
fn memories_are_one_of_32_bits_not_shared() {
    assert!(refused("(memory 1 2 shared)").contains("threads"));
    assert!(refused("(memory i64 1)").contains("wasm32"));
    assert!(refused("(memory 1) (memory 1)").contains("multi-memory"));
    let hidden = refused(
        "(import \"wasi_snapshot_preview1\" \"sched_yield\" (func (result i32))) (memory 1)",
    );
    assert!(hidden.contains("export its memory"), "{hidden}");
}

#[test]
fn proposals_that_are_off_are_refused() {
    for text in [
        "(func $f (return_call $f))",
        "(func (param externref))",
        "(table 1 externref)",
        "(elem externref (ref.null extern))",
        "(tag)",
        "(func (result v128) (i8x16.relaxed_swizzle (v128.const i64x2 0 0) (v128.const i64x2 0 0)))",
        "(type (struct))",
        "(func (param (ref func)))",
        "(func (local i64) (i64.add128 (local.get 0) (local.get 0) (local.get 0) (local.get 0)) drop drop)",
        "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))",
    ] {
        assert!(refused(text).contains("not valid here"), "{text}");
    }
}

#[test]
fn a_command_has_a_start_of_no_parameters_and_results() {
    let message = |text: &str| check_text(text).unwrap_err().to_string();
    assert!(message("(module)").contains("_start"));
    assert!(message("(module (func (export \"_initialize\")))").contains("not a library"));
    assert!(message("(module (memory (export \"_start\") 1))").contains("_start"));
    assert!(message("(module (func (export \"_start\") (param i32)))").contains("take nothing"));
    assert!(
        message("(module (func (export \"_start\") (result i32) (i32.const 0)))")
            .contains("return nothing")
    );
    let imported = "(module (import \"wasi_snapshot_preview1\" \"sched_yield\" (func (result i32)))
        (export \"_start\" (func 0)))";
    assert!(message(imported).contains("_start"));
    assert!(refused("(func (export \"wasm-wizard:start\"))").contains("reserved"));
}

#[test]
fn tables_over_the_limit_are_the_modules_own_wish() {
    assert!(matches!(
        check_with_start("(table 20001 funcref)"),
        Err(ModuleError::OverLimit(message)) if message.contains("20000 are allowed")
    ));
    assert!(matches!(
        check_with_start("(table 10001 funcref) (table 10001 funcref)"),
        Err(ModuleError::OverLimit(_))
    ));
    check_with_start("(table 20000 funcref)").unwrap();
    assert!(refused(&"(table 0 funcref)".repeat(17)).contains("too many tables"));
}

#[test]
fn counts_are_bounded() {
    let params = format!("(func (param {}))", "i32 ".repeat(1000));
    check_with_start(&params).unwrap();
    let too_many = format!("(func (param {}))", "i32 ".repeat(1001));
    assert!(check_with_start(&too_many).is_err());
    assert!(refused(&format!("(func (local {}))", "i32 ".repeat(20_001))).contains("locals"));
    assert!(refused(&"(global i32 (i32.const 0))".repeat(10_001)).contains("too many globals"));
    let long = format!("(func (export \"{}\"))", "n".repeat(5000));
    assert!(refused(&long).contains("name of 5000 bytes"));
    let targets = format!("(func (br_table {} (i32.const 0)))", "0 ".repeat(70_000));
    assert!(refused(&targets).contains("br_table"));
}

#[test]
fn deep_nesting_is_refused_and_moderate_nesting_passes() {
    let nested = |depth: usize| {
        let mut body = vec![0];
        body.extend([0x02, 0x40].repeat(depth));
        body.extend(vec![0x0b; depth + 1]);
        let mut code = vec![1];
        leb(&mut code, body.len());
        code.extend(body);
        binary(&[
            (1, vec![1, 0x60, 0, 0]),
            (3, vec![1, 0]),
            (7, b"\x01\x06_start\x00\x00".to_vec()),
            (10, code),
        ])
    };
    check(&nested(10_000), LIMITS).unwrap();
    assert!(
        check(&nested(50_000), LIMITS)
            .unwrap_err()
            .to_string()
            .contains("nested blocks")
    );
}

#[test]
fn a_million_of_anything_is_refused_before_it_is_read() {
    let functions = binary(&[
        (1, vec![1, 0x60, 0, 0]),
        (3, repeated(1_000_000, &[0])),
        (10, repeated(1_000_000, &[2, 0, 0x0b])),
    ]);
    let types = binary(&[(1, repeated(1_000_000, &[0x60, 0, 0]))]);
    let data = binary(&[(5, vec![1, 0, 1]), (11, repeated(1_000_000, &[1, 0]))]);
    let declared = binary(&[(1, vec![0xff, 0xff, 0xff, 0xff, 0x0f])]);
    for module in [functions, types, data, declared] {
        let start = Instant::now();
        check(
            &module,
            Limits {
                wasm_bytes_max: u64::MAX,
                ..LIMITS
            },
        )
        .unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn locals_in_masses_are_refused() {
    // Each body declares 20,000 locals in four bytes.
    let body = [5, 1, 0xa0, 0x9c, 0x01, 0x7f, 0x0b];
    let body = [&[6u8][..], &body[1..]].concat();
    let module = binary(&[
        (1, vec![1, 0x60, 0, 0]),
        (3, repeated(40_000, &[0])),
        (7, b"\x01\x06_start\x00\x00".to_vec()),
        (10, repeated(40_000, &body)),
    ]);
    let error = check(&module, LIMITS).unwrap_err().to_string();
    assert!(error.contains("too many locals"), "{error}");
}

#[test]
fn validation_can_not_be_made_to_take_long() {
    // A block type of 1,000 results, and a branch table with many targets over it: each target makes
    // the validator look at 1,000 operands. What came before has used three quarters of what may be
    // done, so that the table is refused before it is looked at.
    let ty = [&[0x60, 0][..], &repeated(1000, &[0x7f])].concat();
    let types = [&[2, 0x60, 0, 0][..], &ty].concat();
    let module = |targets: usize| {
        let mut body = vec![0u8];
        body.extend([0x02, 0x40, 0x0b].repeat(75_000));
        body.extend([0x02, 1, 0x00, 0x41, 0, 0x0e]);
        body.extend(repeated(targets, &[0]));
        body.extend([0, 0x0b, 0x00, 0x0b]);
        let mut code = vec![1];
        leb(&mut code, body.len());
        code.extend(body);
        binary(&[
            (1, types.clone()),
            (3, vec![1, 0]),
            (7, b"\x01\x06_start\x00\x00".to_vec()),
            (10, code),
        ])
    };
    check(&module(100), LIMITS).unwrap();
    let error = check(&module(60_000), LIMITS).unwrap_err().to_string();
    assert!(error.contains("too much code"), "{error}");
}
