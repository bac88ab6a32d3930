//! Modules that are refused before any compiler sees them, and those at the bound that are not.

use super::Expected::{Exits, Invalid};
use super::binary::{
    CODE, DATA, DATA_COUNT, END, EXPORT, FOUR_GIB, FUNCTION, HEADER, MEMORY, TYPE, binary, command,
    leb, repeated,
};
use super::{attacks, body, module, text};

/// An unbounded vector for each section, and one for each vector inside of one.
fn vectors_of_four_gib() -> Vec<Vec<u8>> {
    let within = |before: &[u8], after: &[u8]| [before, &FOUR_GIB, after].concat();
    let mut modules: Vec<Vec<u8>> = (1..=13)
        .map(|id| binary(&[(id, within(&[], &[]))]))
        .collect();
    // A type's parameters and its results.
    modules.push(binary(&[(TYPE, within(&[1, 0x60], &[]))]));
    modules.push(binary(&[(TYPE, within(&[1, 0x60, 0], &[]))]));
    // The names of an import and of an export, and of a custom section.
    modules.push(binary(&[(2, within(&[1], b"env"))]));
    modules.push(binary(&[(2, within(b"\x01\x03env", b"it"))]));
    modules.push(binary(&[(EXPORT, within(&[1], b"_start"))]));
    modules.push(binary(&[(0, within(&[], b"name"))]));
    // A segment's bytes, a segment's functions, and a segment's expressions.
    modules.push(binary(&[
        (MEMORY, vec![1, 0, 1]),
        (DATA, within(&[1, 1], &[])),
    ]));
    modules.push(binary(&[(9, within(&[1, 1, 0], &[0]))]));
    modules.push(binary(&[(9, within(&[1, 5, 0x70], &[0xd0, 0x70, END]))]));
    // Pages of memory, a body's size, its groups of locals, its locals, and a branch's targets.
    modules.push(binary(&[(MEMORY, within(&[1, 0], &[]))]));
    let code = |content| {
        binary(&[
            (TYPE, vec![1, 0x60, 0, 0]),
            (FUNCTION, vec![1, 0]),
            (EXPORT, b"\x01\x06_start\x00\x00".to_vec()),
            (CODE, content),
        ])
    };
    modules.push(code(within(&[1], &[0, END])));
    modules.push(command(&[], &within(&[], &[0x7f, END]), &[]));
    modules.push(command(&[], &within(&[1], &[0x7f, END]), &[]));
    modules.push(command(&[], &within(&[0, 0x41, 0, 0x0e], &[0, END]), &[]));
    // The count of data segments, with and without segments.
    modules.push(command(&[], &[0, END], &[(DATA_COUNT, FOUR_GIB.to_vec())]));
    modules
}

fn sections_of_four_gib() -> Vec<Vec<u8>> {
    (0..=13)
        .flat_map(|id| {
            let claim = [HEADER, &[id], &FOUR_GIB].concat();
            let started = [&claim[..], &[1, 0, 0, 0]].concat();
            [claim, started]
        })
        .collect()
}

fn truncated() -> Vec<Vec<u8>> {
    // Without names and data, which would be sections of their own after a whole module.
    let whole = module(
        "(import \"wasi_snapshot_preview1\" \"proc_exit\" (func (param i32)))
         (memory (export \"memory\") 1)",
        "(call 0 (i32.const 0))",
    );
    (0..whole.len())
        .map(|length| whole[..length].to_vec())
        .collect()
}

fn functions(count: usize) -> Vec<u8> {
    binary(&[
        (TYPE, vec![1, 0x60, 0, 0]),
        (FUNCTION, repeated(count, &[0])),
        (EXPORT, b"\x01\x06_start\x00\x00".to_vec()),
        (CODE, repeated(count, &[2, 0, END])),
    ])
}

fn locals(count: usize) -> Vec<u8> {
    let mut start = vec![1];
    leb(&mut start, count);
    start.extend([0x7e, END]);
    command(&[], &start, &[])
}

fn one_function(bytes: usize) -> Vec<u8> {
    let mut start = vec![0];
    start.resize(bytes, 0x01);
    start.push(END);
    command(&[], &start, &[])
}

fn nested(opener: &[u8], depth: usize) -> Vec<u8> {
    let mut start = vec![0];
    for _ in 0..depth {
        start.extend_from_slice(opener);
    }
    start.extend(vec![END; depth + 1]);
    command(&[], &start, &[])
}

fn data_segments(count: usize) -> Vec<u8> {
    let active = repeated(count, &[0, 0x41, 0, END, 0]);
    command(&[(MEMORY, vec![1, 0, 1])], &[0, END], &[(DATA, active)])
}

fn custom_sections(count: usize, bytes: usize) -> Vec<u8> {
    let mut content = b"\x04name".to_vec();
    content.resize(bytes, 0xff);
    command(&[], &[0, END], &vec![(0, content); count])
}

/// An import by this name from this module.
fn import(from: &str, name: &str) -> Vec<u8> {
    let mut content = vec![1];
    for name in [from, name] {
        leb(&mut content, name.len());
        content.extend_from_slice(name.as_bytes());
    }
    content.extend([0, 0]);
    binary(&[
        (TYPE, vec![1, 0x60, 0, 0]),
        (2, content),
        (FUNCTION, vec![1, 0]),
        (EXPORT, b"\x01\x06_start\x00\x01".to_vec()),
        (CODE, vec![1, 2, 0, END]),
    ])
}

attacks! {
    wasix_imports => Invalid("WASIX is not offered"), ["wasix_32v1", "wasix_64v1"]
        .into_iter()
        .flat_map(|from| {
            ["proc_fork", "proc_exec", "thread_spawn", "sock_open", "sock_connect", "fd_pipe", "dlopen"]
                .map(|name| import(from, name))
        })
        .collect();
    unknown_imports => Invalid("imports unknown function"), [
        ("env", "system"),
        ("", ""),
        ("wasi", "thread-spawn"),
        ("wasi_snapshot_preview1", "sock_open"),
        ("wasi_snapshot_preview1", "fd_write\0"),
        ("wasi_snapshot_preview1 ", "fd_write"),
        ("wasi_snapshot_preview2", "fd_write"),
        ("wasi:cli/run@0.2.0", "run"),
        ("GOT.func", "x"),
    ]
    .map(|(from, name)| import(from, name))
    .into();
    imports_of_another_type => Invalid("with a type that is not the one of WASI preview 1"), vec![
        import("wasi_snapshot_preview1", "fd_write"),
        import("wasi_snapshot_preview1", "proc_exit"),
    ];
    imports_that_are_no_functions => Invalid("only functions of wasi_snapshot_preview1 can be imported"), [
        "(memory 1)", "(table 1 funcref)", "(global i32)", "(global (mut i64))",
    ]
    .map(|what| module(&format!("(import \"wasi_snapshot_preview1\" \"it\" {what})"), ""))
    .into();
    names_with_control_characters_imported => Invalid("\\u{1b}[2J"), vec![
        import("env\u{1b}[2J\r\n\0", "x"),
        import("env", "\u{1b}[2J\u{7}\u{9b}\u{85}"),
        import("wasi_snapshot_preview1", "fd_write\u{1b}[2J"),
    ];
    names_with_control_characters_exported => Exits(0), vec![
        module("(func (export \"\\1b[2J\\0d\\0a\\00\")) (memory (export \"\\u{202e}\\u{85}\") 1)", ""),
    ];
    names_too_long => Invalid("name of 5000 bytes"), vec![
        import(&"n".repeat(5_000), "x"),
        import("wasi_snapshot_preview1", &"n".repeat(5_000)),
        module(&format!("(func (export \"{}\"))", "n".repeat(5_000)), ""),
    ];
    component_model_binaries => Invalid("this is a component"), vec![
        b"\0asm\x0d\0\x01\0".to_vec(),
        b"\0asm\x0a\0\x01\0".to_vec(),
        b"\0asm\x0d\0\x01\0\x00\x0e\x06\x6d\x65\x6d\x6f\x72\x79\x01\x02\x03\x04\x05\x06\x07".to_vec(),
    ];
    other_versions => Invalid("the module is not valid"), vec![
        b"\0asm\x02\0\0\0".to_vec(),
        b"\0asm\x00\0\0\0".to_vec(),
        b"\0asm\xff\xff\xff\xff".to_vec(),
        b"\0asm\x01\0\x02\0".to_vec(),
    ];
    no_webassembly_at_all => Invalid("not WebAssembly"), vec![
        Vec::new(),
        b"\0".to_vec(),
        b"\x7fELF\x02\x01\x01\0".to_vec(),
        b"#!/bin/sh\nid\n".to_vec(),
        vec![0; 1 << 20],
        vec![0xff; 1 << 20],
    ];
    truncated_binaries => Invalid(""), truncated();
    sections_that_claim_four_gib => Invalid("the module"), sections_of_four_gib();
    vectors_that_claim_four_gib => Invalid("the module"), vectors_of_four_gib();
    a_million_functions => Invalid("too many functions"), vec![functions(1_000_000), functions(50_001)];
    fifty_thousand_locals => Invalid("locals"), vec![locals(50_000), locals(0xffff_ffff)];
    one_function_of_seven_mb => Invalid("a function of"), vec![one_function(7_000_000)];
    fifty_thousand_nested_blocks => Invalid("nested blocks"), vec![
        nested(&[0x02, 0x40], 50_000),
        nested(&[0x03, 0x40], 50_000),
        nested(&[0x41, 0, 0x04, 0x40], 50_000),
    ];
    huge_branch_tables => Invalid("br_table"), vec![
        command(&[], &[&[0, 0x41, 0, 0x0e][..], &repeated(1_000_000, &[0]), &[0, END]].concat(), &[]),
        body(&format!("(br_table {} (i32.const 0))", "0 ".repeat(65_522))),
    ];
    too_many_data_segments => Invalid("too many data segments"), vec![
        data_segments(100_001),
        data_segments(1_000_000),
    ];
    a_hundred_thousand_data_segments => Exits(0), vec![data_segments(100_000)];
    ten_mb_of_custom_sections => Exits(0), vec![
        custom_sections(1, 10_000_000),
        custom_sections(1_000, 9_990),
        custom_sections(1_400_000, 5),
    ];
    /// What no tool would make: a compiler that got these would make code that obeys no rule.
    code_of_the_wrong_types => Invalid("the module is not valid here"), [
        "(drop (i32.add (i64.const 1) (i32.const 2)))",
        "(i32.const 1)",
        "drop",
        "(i32.store (f64.const 0) (i32.const 1))",
        "(drop (i32.load (i64.const 0x7fffffffffff)))",
        "(drop (i32.load align=8 (i32.const 0)))",
        "(drop (block (result i64) (i32.const 1)))",
        "(if (i64.const 1) (then nop))",
        "(loop (br 7))",
        "(drop (block (result i64) (br 0 (i32.const 1))))",
        "(br_table 0 9 (i32.const 0))",
        "(local.set 5 (i32.const 1))",
        "(local i32) (local.set 0 (i64.const -1))",
        "(global.set 3 (i32.const 1))",
        "(call 99)",
        "(call $exit (i64.const 1))",
        "(call_indirect (i32.const 0))",
        "(drop (table.get 0 (i32.const 0)))",
        "(memory.init 4 (i32.const 0) (i32.const 0) (i32.const 1))",
        "(data.drop 0)",
        "(elem.drop 0)",
        "(drop (ref.func $write))",
        "(drop (select (i32.const 0) (i64.const 0) (i32.const 1)))",
        "(unreachable) (drop (i32.add (i64.const 1) (i32.const 2)))",
        "(return (i32.const 3)) (i64.eqz)",
        "(drop (v128.const i64x2 0 0)) (i8x16.add)",
    ]
    .map(body)
    .into();
    /// References to what is not there, outside of code.
    indices_of_nothing => Invalid("the module is not valid here"), [
        "(start 7)",
        "(start $takes) (func $takes (param i32))",
        "(export \"it\" (func 9))",
        "(table 1 funcref) (elem (i32.const 0) 9)",
        "(elem (i32.const 0) 0)",
        "(table 1 funcref) (elem (i64.const 0) 0)",
        "(data (i32.const 0) \"x\")",
        "(memory 1) (data (f32.const 0) \"x\")",
        "(memory 1) (data (global.get 0) \"x\") (global (mut i32) (i32.const 0))",
        "(global i32 (global.get 5))",
        "(global i64 (i32.const 5))",
        "(memory 65537)",
        "(memory 3 2)",
        "(table 3 2 funcref)",
        "(export \"twice\" (func 0)) (export \"twice\" (func 0))",
        "(func (type 8))",
    ]
    .map(|fields| module(fields, ""))
    .into();
    shared_and_wide_memories => Invalid("the module's memory is"), vec![
        module("(memory 1 2 shared)", ""),
        module("(memory i64 1)", ""),
        module("(memory 1 (pagesize 1))", ""),
    ];
    two_memories => Invalid("more than one memory"), vec![module("(memory 1) (memory 1)", "")];
    no_start_to_call => Invalid("\"_start\""), [
        "(module)",
        "(module (memory (export \"_start\") 1))",
        "(module (func (export \"_start\") (param i32)))",
        "(module (func (export \"_start\") (result i32) unreachable))",
    ]
    .map(text)
    .into();
    a_module_too_large => Invalid("bytes, and"), vec![custom_sections(11, 1 << 20)];
}
