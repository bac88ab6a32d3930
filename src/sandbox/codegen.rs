//! From checked WebAssembly to an artifact: what the compile worker does with Wasmer's compilers.
//!
//! Wasmer's own way to an artifact is made for who runs it in the same process: it validates once
//! more, maps the machine code, links it and registers it for backtraces. Here all of that is another
//! process's to do, or was done by it, so the artifact is built from its parts. And it goes without
//! the map from each machine instruction to the WebAssembly it was made from, which takes more room
//! than the code: nobody reads a guest's backtrace.

use std::fmt;
use std::num::NonZero;
use std::sync::Arc;

use wasmer::CompileError;
use wasmer::sys::{Cranelift, EngineBuilder, Features};
use wasmer_compiler::types::function::Compilation;
use wasmer_compiler::types::module::CompileModuleInfo;
use wasmer_compiler::{
    ArtifactBuild, ArtifactCreate, CompilerConfig, Engine, FunctionBodyData, ModuleEnvironment,
    ModuleMiddleware, ModuleTranslationState,
};
use wasmer_compiler_singlepass::Singlepass;
use wasmer_types::entity::PrimaryMap;
use wasmer_types::target::Target;
use wasmer_types::{CompilationProgressCallback, LocalFunctionIndex};

use super::ModuleError;
use super::engine::Compiler;
use super::instrument::Instrument;

/// Functions that Singlepass compiles at the same time, at most.
const SINGLEPASS_THREADS_MAX: NonZero<usize> = NonZero::new(4).unwrap();

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

/// A compiler for one module (the instrumentation is made for one).
pub(super) struct Codegen(Engine);

impl Codegen {
    pub(super) fn new(compiler: Compiler) -> Codegen {
        let instrument = Arc::new(Instrument::default());
        let builder = match compiler {
            Compiler::Singlepass => {
                let mut singlepass = Singlepass::new();
                // Somebody waits for it, and it is over soon.
                let threads = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
                let threads = threads.min(SINGLEPASS_THREADS_MAX);
                singlepass.num_threads(threads);
                EngineBuilder::new(Instrumented::new(singlepass, instrument).on(threads))
            }
            Compiler::Cranelift => {
                let mut cranelift = Cranelift::new();
                // The settings say how many compiles run at a time, and each takes one core.
                cranelift.num_threads(NonZero::<usize>::MIN);
                EngineBuilder::new(Instrumented::new(cranelift, instrument))
            }
        };
        Codegen(builder.set_features(Some(features())).engine())
    }

    /// For tests that run what they compile.
    #[cfg(test)]
    pub(super) fn engine(self) -> wasmer::Engine {
        self.0.into()
    }

    /// Compiles bytes to an artifact, which is worth something only if they pass [`super::check::check`]:
    /// they are not validated here. Belongs in the compile worker: nothing bounds its time or memory, and a
    /// hostile module can make it panic.
    pub(super) fn compile(self, wasm: &[u8]) -> Result<Vec<u8>, ModuleError> {
        let engine = self.0;
        let module = ModuleEnvironment::new()
            .translate(wasm)
            .map_err(|error| refused(CompileError::Wasm(error)))?
            .module;
        let (memories, tables) = (module.memories.values(), module.tables.values());
        let tunables = engine.tunables();
        let memory_styles = memories.map(|memory| tunables.memory_style(memory));
        let table_styles = tables.map(|table| tunables.table_style(table));
        let built = ArtifactBuild::new(
            &mut engine.inner_mut(),
            wasm,
            engine.target(),
            memory_styles.collect(),
            table_styles.collect(),
            None,
        );
        built.map_err(refused)?.serialize().map_err(|error| {
            ModuleError::Internal(format!("the artifact does not serialise: {error}"))
        })
    }
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

/// The configuration of a compiler that gets instrumented code, and whose artifacts have no map of
/// instructions.
pub(super) struct Instrumented<C> {
    config: C,
    instrument: Arc<Instrument>,
    /// That instrument, at the most.
    threads: NonZero<usize>,
    /// For all but the code.
    middlewares: Vec<Arc<dyn ModuleMiddleware>>,
}

impl<C: CompilerConfig> Instrumented<C> {
    pub(super) fn new(config: C, instrument: Arc<Instrument>) -> Instrumented<C> {
        Instrumented {
            config,
            middlewares: vec![Arc::clone(&instrument) as Arc<dyn ModuleMiddleware>],
            threads: NonZero::<usize>::MIN,
            instrument,
        }
    }

    /// With more than one thread to instrument.
    pub(super) fn on(self, threads: NonZero<usize>) -> Instrumented<C> {
        Instrumented { threads, ..self }
    }

    /// With a middleware before the instrumentation, and one behind it.
    #[cfg(test)]
    pub(super) fn between(
        mut self,
        before: Arc<dyn ModuleMiddleware>,
        behind: Arc<dyn ModuleMiddleware>,
    ) -> Instrumented<C> {
        self.middlewares.insert(0, before);
        self.middlewares.push(behind);
        self
    }
}

impl<C: CompilerConfig + 'static> CompilerConfig for Instrumented<C> {
    fn compiler(self: Box<Self>) -> Box<dyn wasmer_compiler::Compiler> {
        Box::new(InstrumentedCompiler {
            compiler: Box::new(self.config).compiler(),
            instrument: self.instrument,
            threads: self.threads,
            middlewares: self.middlewares,
        })
    }

    fn supported_features_for_target(&self, target: &Target) -> Features {
        self.config.supported_features_for_target(target)
    }

    fn push_middleware(&mut self, middleware: Arc<dyn ModuleMiddleware>) {
        self.middlewares.push(middleware);
    }
}

struct InstrumentedCompiler {
    compiler: Box<dyn wasmer_compiler::Compiler>,
    instrument: Arc<Instrument>,
    threads: NonZero<usize>,
    middlewares: Vec<Arc<dyn ModuleMiddleware>>,
}

impl fmt::Debug for InstrumentedCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.compiler.fmt(f)
    }
}

/// What is not passed on is for options that are never set.
impl wasmer_compiler::Compiler for InstrumentedCompiler {
    fn name(&self) -> &str {
        self.compiler.name()
    }

    fn deterministic_id(&self) -> String {
        self.compiler.deterministic_id()
    }

    fn compile_module(
        &self,
        target: &Target,
        info: &CompileModuleInfo,
        info_blob: &[u8],
        translation: &ModuleTranslationState,
        functions: PrimaryMap<LocalFunctionIndex, FunctionBodyData<'_>>,
        progress: Option<&CompilationProgressCallback>,
    ) -> Result<Compilation, CompileError> {
        let bodies: Vec<&[u8]> = functions.values().map(|function| function.data).collect();
        let written = self.instrument.bodies(&bodies, self.threads)?;
        let bodies = functions.values().zip(&written);
        let functions = bodies
            .map(|(function, written)| FunctionBodyData {
                data: written.as_deref().unwrap_or(function.data),
                module_offset: function.module_offset,
            })
            .collect();
        let mut compiled = self.compiler.compile_module(
            target,
            info,
            info_blob,
            translation,
            functions,
            progress,
        )?;
        match &mut compiled {
            Compilation::Rkyv { compilation, .. } => {
                for function in compilation.functions.values_mut() {
                    function.frame_info.address_map.instructions = Vec::new();
                }
            }
            // The other kind of artifact, which none of ours is.
            Compilation::Elf { .. } => {}
        }
        Ok(compiled)
    }

    fn get_middlewares(&self) -> &[Arc<dyn ModuleMiddleware>] {
        &self.middlewares
    }
}
