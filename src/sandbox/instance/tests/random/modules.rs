//! Modules of random code.

use arbitrary::Unstructured;
use wasm_smith::Config;
use wasmer::sys::wasmparser::{FuncType, Parser, Payload, ValType};

use super::super::{idle, next_is_like_new};
use super::{LONG, Random, memories, run, seeds};
use crate::sandbox::End;
use crate::sandbox::check::{Limits, check};
use crate::sandbox::deadline::{self, Sitting};
use crate::sandbox::engine::{Compiler, prepare_in};
use crate::sandbox::sections::{EXPORT, Sections, leb};
use crate::sandbox::warm::WarmPool;

/// A module of random code that ends; `None` if the check refuses it.
fn module_of(seed: u64) -> Option<Vec<u8>> {
    let mut random = Random::new(seed);
    let config = Config {
        max_imports: 0,
        max_exports: 0,
        min_types: 4,
        min_funcs: 3,
        max_funcs: 12,
        max_instructions: 300,
        max_type_size: 20,
        min_globals: 3,
        min_memories: 1,
        max_memory32_bytes: 8 << 20,
        min_data_segments: 1,
        max_table_elements: 100,
        max_tables: 2,
        // Most are to come far, and to be put back after.
        disallow_traps: random.below(4) != 0,
        bulk_memory_enabled: random.below(3) == 0,
        reference_types_enabled: random.below(4) == 0,
        simd_enabled: random.below(2) == 0,
        exceptions_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        relaxed_simd_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        compact_imports_enabled: false,
        ..Config::default()
    };
    let entropy = random.bytes(6_000);
    let mut module = wasm_smith::Module::new(config, &mut Unstructured::new(&entropy)).ok()?;
    module.ensure_termination(20_000).ok()?;
    let wasm = with_start(&module.to_bytes(), &mut random)?;
    let limits = Limits {
        wasm_bytes_max: u64::MAX,
        table_elements_max: 1_000,
    };
    check(&wasm, limits).ok().map(|_| wasm)
}

/// The same module with its memory exported, and with a `_start` that calls each function. `None` if
/// it has none.
fn with_start(wasm: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let (mut types, mut functions) = (Vec::new(), Vec::new());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.unwrap() {
            Payload::TypeSection(reader) => {
                let all = reader.into_iter_err_on_gc_types();
                types = all.map(Result::unwrap).collect();
            }
            Payload::FunctionSection(reader) => {
                functions = reader.into_iter().map(Result::unwrap).collect();
            }
            _ => {}
        }
    }
    if functions.is_empty() {
        return None;
    }
    let mut start = vec![0];
    for (index, ty) in functions.iter().enumerate() {
        let ty: &FuncType = &types[*ty as usize];
        for parameter in ty.params() {
            constant(&mut start, *parameter, random);
        }
        start.push(0x10);
        leb(&mut start, index);
        start.extend(ty.results().iter().map(|_| 0x1a));
    }
    start.push(0x0b);
    let mut sections = Sections::of(wasm);
    let mut exports = b"\x02\x06memory\x02\x00\x06_start\x00".to_vec();
    leb(&mut exports, sections.add_function(&start));
    sections.replace(EXPORT, exports);
    Some(sections.bytes())
}

/// The operator that gives a constant of this type.
fn constant(code: &mut Vec<u8>, ty: ValType, random: &mut Random) {
    // Numbers of one byte in signed LEB128, or as they are.
    let small = random.next() as u8 & 0x7f;
    match ty {
        ValType::I32 => code.extend([0x41, small]),
        ValType::I64 => code.extend([0x42, small]),
        ValType::F32 => {
            code.push(0x43);
            code.extend(random.bytes(4));
        }
        ValType::F64 => {
            code.push(0x44);
            code.extend(random.bytes(8));
        }
        ValType::V128 => {
            code.extend([0xfd, 0x0c]);
            code.extend(random.bytes(16));
        }
        ValType::Ref(_) => code.extend([0xd0, 0x70]),
    }
}

#[test]
fn random_modules_leave_nothing() {
    deadline::start().unwrap();
    let sitting = Sitting::take().unwrap();
    let (memories, warm) = (memories(), WarmPool::new(3));
    let (mut accepted, mut kept) = (0, 0);
    for seed in seeds(250) {
        let Some(wasm) = module_of(seed) else {
            continue;
        };
        accepted += 1;
        let memories = &memories[usize::from(seed % 4 == 0)];
        let module = prepare_in(&wasm, Compiler::Cranelift, memories, &warm);
        let stdin = Random::new(seed).bytes(500);
        let mut first = None;
        for _ in 0..4 {
            let outcome = run(&sitting, &module, (&stdin, None), LONG);
            assert!(
                !matches!(outcome.end, End::HostError(_)),
                "seed {seed}: {outcome:?}"
            );
            let seen = (
                outcome.end,
                outcome.stdout,
                outcome.stderr,
                outcome.usage.memory_peak_bytes,
            );
            assert_eq!(*first.get_or_insert(seen.clone()), seen, "seed {seed}");
            if idle(&module) > 0 {
                kept += 1;
                next_is_like_new(&module);
            }
        }
    }
    assert!(accepted > seeds(250).count() / 2, "{accepted}");
    assert!(kept > accepted, "{kept} of {accepted}");
}
