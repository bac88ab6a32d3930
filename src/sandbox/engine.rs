//! Wasmer: from WebAssembly to an artifact (in the compile worker), and from an artifact to a
//! [`Prepared`] module (in the gateway).

#![expect(
    unsafe_code,
    reason = "an artifact is machine code; loading it trusts its bytes"
)]

use std::fmt;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;

use wasmer::sys::{CompilerConfig, Cranelift, EngineBuilder, Features, NativeEngineExt};
use wasmer::{CompileError, Engine, Module};

use super::instrument::Instrument;
use super::tunables::SandboxTunables;
use super::{ModuleError, ModuleHash};

/// The start section's function is exported under this name and not run by instantiation, so that
/// no guest code runs before the deadline is armed and WASI knows the memory.
pub(super) const START_EXPORT: &str = "wasm-wizard:start";

/// A module that is compiled, linked and checked, ready to run any number of guests.
pub struct Prepared {
    hash: ModuleHash,
    // The module comes before the engine: the engine owns the machine code, and the module's trap
    // tables must be gone before it.
    module: Module,
    engine: Engine,
    code: Range<usize>,
    imports: Box<[(String, String)]>,
    has_start: bool,
    held_bytes: u64,
}

impl Prepared {
    pub fn hash(&self) -> ModuleHash {
        self.hash
    }

    pub(super) fn module(&self) -> &Module {
        &self.module
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The addresses of the guest's functions: machine code made from the guest's own code.
    pub(super) fn code(&self) -> Range<usize> {
        self.code.clone()
    }

    /// Module and name of each import, in order.
    pub(super) fn imports(&self) -> &[(String, String)] {
        &self.imports
    }

    pub(super) fn has_start(&self) -> bool {
        self.has_start
    }

    /// Memory held, in bytes, about.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

/// The features of [`super::check::FEATURES`], as Wasmer names them; those it has no name for are
/// always on.
fn features() -> Features {
    let mut features = Features::none();
    features
        .bulk_memory(true)
        .reference_types(true)
        .multi_value(true)
        .simd(true)
        .extended_const(true);
    features
}

/// Compiles checked bytes to an artifact. Belongs in the compile worker: nothing bounds its time
/// or memory, and a hostile module can make it panic.
pub(super) fn compile(wasm: &[u8]) -> Result<Vec<u8>, ModuleError> {
    let mut cranelift = Cranelift::new();
    // One thread: the settings say how many compiles run at a time, and each takes one core.
    cranelift.num_threads(NonZero::<usize>::MIN);
    cranelift.push_middleware(Arc::new(Instrument::default()));
    let engine: Engine = EngineBuilder::new(cranelift)
        .set_features(Some(features()))
        .engine()
        .into();
    let module = Module::new(&engine, wasm).map_err(refused)?;
    let artifact = module.serialize().map_err(|error| {
        ModuleError::Internal(format!("the artifact does not serialise: {error}"))
    })?;
    Ok(artifact.to_vec())
}

fn refused(error: CompileError) -> ModuleError {
    match error {
        CompileError::Wasm(error) => {
            ModuleError::Invalid(format!("the module can't be compiled: {error}"))
        }
        CompileError::Validate(text) | CompileError::UnsupportedFeature(text) => {
            ModuleError::Invalid(format!("the module can't be compiled: {text}"))
        }
        // Functions too large for the code generator, and memory that ran out.
        CompileError::Codegen(text) | CompileError::Resource(text) => {
            ModuleError::CompileLimit(format!("the module is too large to compile: {text}"))
        }
        CompileError::UnsupportedTarget(text) | CompileError::MiddlewareError(text) => {
            ModuleError::Internal(format!("the compiler refused: {text}"))
        }
        // Only a progress callback aborts, and there is none.
        CompileError::Aborted(error) => {
            ModuleError::Internal(format!("the compiler stopped: {error}"))
        }
    }
}

/// Makes Wasmer install its handlers of SIGSEGV, SIGILL and SIGFPE now, rather than with the first
/// guest: whatever else handles those signals must have been installed before, not in between.
pub(super) fn install_trap_handlers() {
    let engine: Engine = EngineBuilder::headless().engine().into();
    drop(wasmer::Store::new(engine));
}

/// Loads an artifact that [`compile`] made.
///
/// # Safety
///
/// The bytes are run as machine code: they must come from our own compile worker, over its pipe.
pub(super) unsafe fn load(
    hash: ModuleHash,
    artifact: Vec<u8>,
    tunables: SandboxTunables,
) -> Result<Prepared, ModuleError> {
    let artifact_bytes = artifact.len() as u64;
    // An engine of its own for each module: the engine owns the machine code and frees none of it
    // before its end.
    let mut engine: Engine = EngineBuilder::headless().engine().into();
    engine.set_tunables(tunables);
    // SAFETY: passed on to the caller.
    let module = unsafe { Module::deserialize_unchecked(&engine, artifact) }
        .map_err(|error| ModuleError::Internal(format!("the artifact does not load: {error}")))?;
    let extents = module
        .sys_artifact()
        .and_then(|artifact| artifact.finished_function_extents())
        .ok_or_else(|| ModuleError::Internal("the artifact has no code for this machine".into()))?;
    let start = extents
        .iter()
        .map(|(_, extent)| extent.ptr.0 as usize)
        .min()
        .unwrap_or(0);
    let end = extents
        .iter()
        .map(|(_, extent)| (extent.ptr.0 as usize).saturating_add(extent.length))
        .max()
        .unwrap_or(0);
    let imports = module
        .imports()
        .map(|import| (import.module().to_owned(), import.name().to_owned()))
        .collect();
    let has_start = module.exports().any(|export| export.name() == START_EXPORT);
    Ok(Prepared {
        hash,
        module,
        engine,
        code: start..end,
        imports,
        has_start,
        // The artifact stays in memory beside the code mapped from it.
        held_bytes: artifact_bytes.saturating_mul(2),
    })
}

/// Compiles text in this process, for unit tests.
#[cfg(test)]
pub(super) fn prepare_here(text: &str) -> Arc<Prepared> {
    let wasm = wat::parse_str(text).expect("valid text");
    let artifact = compile(&wasm).expect("a module that compiles");
    let memories = super::memory::MemoryPool::new(8);
    let tunables = SandboxTunables::new(memories, 1000, 1 << 20);
    // SAFETY: made by the line above.
    let prepared = unsafe { load(ModuleHash::of(&wasm), artifact, tunables) };
    Arc::new(prepared.expect("an artifact that loads"))
}
