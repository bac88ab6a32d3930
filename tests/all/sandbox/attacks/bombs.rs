//! Small modules that are valid and within every bound, and keep a compiler busy or fill its
//! memory. Each costs one child process, for a bounded time.

use super::Expected::Bounded;
use super::binary::{
    CODE, DATA, DATA_COUNT, END, EXPORT, FUNCTION, MEMORY, TYPE, binary, command, leb, repeated,
};
use super::{attacks, body, module};

fn nested_loops(depth: usize) -> Vec<u8> {
    body(&format!(
        "(local i32 i64) {}{}",
        "(loop (br_if 0 (i32.const 0)) ".repeat(depth),
        ")".repeat(depth)
    ))
}

/// Each `if` may or may not change one of many locals: a value for each pair of them.
fn locals_by_branches(locals: usize, branches: usize) -> Vec<u8> {
    let ifs: String = (0..branches)
        .map(|n| {
            let (from, to) = (n % locals, (n * 7 + 1) % locals);
            format!("(if (local.get {from}) (then (local.set {to} (i32.const {n}))))")
        })
        .collect();
    body(&format!("(local {}) {ifs}", "i32 ".repeat(locals)))
}

/// All locals change in each of many loops.
fn locals_by_loops(locals: usize, loops: usize) -> Vec<u8> {
    let sets: String = (0..locals)
        .map(|n| {
            format!(
                "(local.set {n} (i32.add (local.get {}) (i32.const 1)))",
                (n + 1) % locals
            )
        })
        .collect();
    body(&format!(
        "(local {}) {}",
        "i32 ".repeat(locals),
        format!("(loop {sets} (br_if 0 (local.get 0)))").repeat(loops)
    ))
}

fn arithmetic(bytes: usize) -> Vec<u8> {
    // (local.set 0 (i64.mul (local.get 0) (i64.const 3)))
    let step = [0x20, 0, 0x42, 3, 0x7e, 0x21, 0];
    let mut start = vec![1, 1, 0x7e];
    for _ in 0..bytes / step.len() {
        start.extend(step);
    }
    start.push(END);
    command(&[], &start, &[])
}

fn branch_tables(count: usize, targets: usize) -> Vec<u8> {
    let mut start = vec![0];
    start.extend([0x02, 0x40].repeat(100));
    for _ in 0..count {
        start.extend([0x02, 0x40, 0x41, 0, 0x0e]);
        leb(&mut start, targets);
        start.extend((0..targets).map(|n| (n % 100) as u8));
        start.extend([0, END]);
    }
    start.extend([END; 101]);
    command(&[], &start, &[])
}

/// Functions, each of which declares this many locals in a few bytes.
fn locals_in_functions(functions: usize, locals: usize) -> Vec<u8> {
    let mut one = vec![1];
    leb(&mut one, locals);
    one.extend([0x7b, END]);
    let mut body = Vec::new();
    leb(&mut body, one.len());
    body.extend(one);
    many(functions, &body)
}

/// Functions with the same body, its size included.
fn many(count: usize, body: &[u8]) -> Vec<u8> {
    binary(&[
        (TYPE, vec![1, 0x60, 0, 0]),
        (FUNCTION, repeated(count, &[0])),
        (EXPORT, b"\x01\x06_start\x00\x00".to_vec()),
        (CODE, repeated(count, body)),
    ])
}

/// Calls with a thousand arguments and results, one after the other.
fn wide_calls(calls: usize) -> Vec<u8> {
    module(
        &format!(
            "(type $w (func (param {0}) (result {0}))) (func $w (type $w) {1})",
            "i64 ".repeat(1000),
            (0..1000)
                .map(|n| format!("(local.get {n})"))
                .collect::<String>()
        ),
        &format!(
            "{} {} {}",
            "(i64.const 1) ".repeat(1000),
            "(call $w) ".repeat(calls),
            "drop ".repeat(1000)
        ),
    )
}

fn passive_segments(count: usize) -> Vec<u8> {
    let mut segments = Vec::new();
    leb(&mut segments, count);
    segments.extend([1u8, 1, 7].repeat(count));
    let mut size = Vec::new();
    leb(&mut size, count);
    // memory.init of the first, and data.drop.
    let start = [0, 0x41, 0, 0x41, 0, 0x41, 1, 0xfc, 8, 0, 0, 0xfc, 9, 0, END];
    command(
        &[(MEMORY, vec![1, 0, 1])],
        &start,
        &[(DATA_COUNT, size), (DATA, segments)],
    )
}

attacks! {
    quadratic_control_flow => Bounded, vec![
        nested_loops(15_000),
        locals_by_branches(19_000, 19_000),
        locals_by_branches(1_000, 60_000),
        locals_by_loops(2_000, 200),
    ];
    nested_blocks_at_the_bound => Bounded, vec![
        body(&format!("{}{}", "(block ".repeat(19_990), ")".repeat(19_990))),
        body(&format!("{}{}", "(if (i32.const 1) (then ".repeat(19_990), "))".repeat(19_990))),
        body(&format!(
            "{}(br_if 0 (i32.const 1)) (br_if 9000 (i32.const 1)){}",
            "(block ".repeat(10_000),
            ")".repeat(10_000)
        )),
    ];
    one_function_at_the_bound => Bounded, vec![arithmetic(4_000_000)];
    branch_tables_at_the_bound => Bounded, vec![branch_tables(60, 65_520), branch_tables(3_000, 1_200)];
    functions_at_the_bound => Bounded, vec![many(50_000, &[2, 0, END]), many(49_000, &[9, 0, 0x41, 0, 0x41, 0, 0x6a, 0x1a, 0x01, END])];
    locals_at_the_bound => Bounded, vec![locals_in_functions(200, 20_000), locals_in_functions(1, 20_000)];
    wide_calls_one_after_the_other => Bounded, vec![wide_calls(2_000)];
    segments_at_the_bound => Bounded, vec![passive_segments(100_000)];
    globals_and_exports_at_the_bound => Bounded, vec![
        module(&"(global (mut v128) (v128.const i64x2 1 2)) ".repeat(10_000), ""),
        module(&(0..20_000).map(|n| format!("(export \"e{n}\" (func 0))")).collect::<String>(), ""),
    ];
    elements_at_the_bound => Bounded, vec![
        module(
            &format!("(table 19000 funcref) (func $f) (elem (i32.const 0) {})", "$f ".repeat(19_000)),
            "",
        ),
        module(
            &format!("(func $f) {}", "(elem func $f) ".repeat(99_990)),
            "",
        ),
    ];
    deep_constant_expressions => Bounded, vec![
        module(
            &format!(
                "(global i32 {} (i32.const 1) {}))",
                "(i32.add (i32.const 1) ".repeat(20_000),
                ")".repeat(20_000 - 1)
            ),
            "",
        ),
    ];
}
