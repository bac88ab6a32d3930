//! Wasmer: from an artifact to a [`Prepared`] module.

#![expect(
    unsafe_code,
    reason = "an artifact is machine code; loading it trusts its bytes"
)]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasmer::sys::{CpuFeature, EngineBuilder, NativeEngineExt};
use wasmer::{Engine, Module};
use wasmer_types::ModuleInfo;

use super::check::Facts;
use super::executor::Pace;
use super::instance::Instance;
use super::memory::Data;
use super::memory::image::Image;
use super::tunables::{Room, SandboxTunables};
use super::warm::{WarmInstances, WarmPool};
use super::{ModuleError, ModuleHash, instrument};
use crate::telemetry::modules::{ModulePlace, ModuleRows};

/// The start section's function is exported under this name and not run by instantiation, so that
/// no guest code runs before the deadline is armed and WASI knows the memory.
pub(super) const START_EXPORT: &str = "wasm-wizard:start";

/// Who makes machine code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Compiler {
    /// In one pass over the code: compiles ten times faster than Cranelift, into code that is two to
    /// five times slower. Only for modules whose [`Facts`] allow it.
    Singlepass,
    /// The best code.
    Cranelift,
}

/// Instances that take longer than this in the making are not made on the thread that asks.
const SLOW_INSTANCE: Duration = Duration::from_millis(1);

/// A module that is compiled, linked and checked, ready to run any number of guests.
pub struct Prepared {
    hash: ModuleHash,
    // Between two guests. `None` if the module's instances serve one guest each.
    warm: Option<WarmInstances>,
    image: Option<Arc<Image>>,
    pace: Pace,
    // The module comes before the engine: the engine owns the machine code, and the module's trap
    // tables must be gone before it.
    module: Module,
    engine: Engine,
    code: Range<usize>,
    imports: Box<[(String, String)]>,
    has_start: bool,
    memory_pages_min: u32,
    tables: Tables,
    stack_bytes_max: u64,
    compiler: Compiler,
    held_bytes: u64,
    rows: ModuleRows,
}

/// What a module's tables want.
#[derive(Debug, Default)]
struct Tables {
    /// Elements of all at the start.
    elements_min: u64,
    /// Elements that each may have by its own word.
    elements_max: Box<[u32]>,
    /// Elements that each may have in any instance.
    ceiling: u32,
    grow: bool,
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

    /// Pages of its memory at the start.
    pub(super) fn memory_pages_min(&self) -> u32 {
        self.memory_pages_min
    }

    /// Whether one of its tables has room to grow in.
    pub(super) fn tables_grow(&self) -> bool {
        self.tables.grow
    }

    /// Elements of its tables at the start.
    pub(super) fn table_elements_min(&self) -> u64 {
        self.tables.elements_min
    }

    /// Whether one of the tables that were refused growth, a bit for each, was so for a limit: not for
    /// a maximum of its own.
    pub(super) fn is_refusal_of_limit(&self, refused: u32, elements_max: u32) -> bool {
        let elements_max = elements_max.min(self.tables.ceiling);
        let mut own = self.tables.elements_max.iter().enumerate();
        refused != 0
            && own.any(|(table, own_max)| {
                refused.checked_shr(table as u32).unwrap_or(0) & 1 == 1 && *own_max > elements_max
            })
    }

    /// The largest stack that its guests can have, in bytes.
    pub(super) fn stack_bytes_max(&self) -> u64 {
        self.stack_bytes_max
    }

    /// Instances ready for the next guest, if they can be made ready again after it.
    pub(super) fn warm(&self) -> Option<&WarmInstances> {
        self.warm.as_ref()
    }

    /// What the module's memory holds at the start, if that is shown to instances rather than copied.
    pub(super) fn image(&self) -> Option<&Arc<Image>> {
        self.image.as_ref()
    }

    /// Whether its guests are short.
    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Whether it has the best code. Else better code may come, and then the sandbox's cache has it.
    pub fn is_optimised(&self) -> bool {
        self.compiler == Compiler::Cranelift
    }

    /// Who compiled it.
    pub(super) fn compiler(&self) -> Compiler {
        self.compiler
    }

    /// Memory held, in bytes, about.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Where its guests are counted.
    pub(super) fn counted_at(&self) -> ModulePlace {
        self.rows.place()
    }
}

impl Tables {
    fn of(info: &ModuleInfo, ceiling: u32) -> Tables {
        let tables = info.tables.values();
        let own_max = tables
            .clone()
            .map(|table| table.maximum.unwrap_or(u32::MAX));
        Tables {
            elements_min: tables.map(|table| u64::from(table.minimum)).sum(),
            elements_max: own_max.collect(),
            ceiling,
            grow: instrument::tables_grow(info),
        }
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

/// The features of this machine's CPU, of which a compiler may use any.
pub(super) fn host_cpu() -> String {
    let names: Vec<String> = CpuFeature::for_host()
        .iter()
        .map(|feature| feature.to_string())
        .collect();
    names.join(",")
}

/// Makes Wasmer install its handlers of SIGSEGV, SIGILL and SIGFPE now, rather than with the first
/// guest: whatever else handles those signals must have been installed before, not in between.
pub(super) fn install_trap_handlers() {
    let engine: Engine = EngineBuilder::headless().engine().into();
    drop(wasmer::Store::new(engine));
}

/// An artifact, and what is known about it.
pub(super) struct Compiled {
    pub artifact: Bytes,
    pub facts: Facts,
    pub compiler: Compiler,
}

/// Loads an artifact that [`super::codegen`] made.
///
/// # Safety
///
/// The artifact is run as machine code: it must come from our own compile worker, over its pipe, or
/// from the artifact store, which authenticates it.
pub(super) unsafe fn load(
    hash: ModuleHash,
    compiled: Compiled,
    tunables: SandboxTunables,
    warm: &WarmPool,
) -> Result<Prepared, ModuleError> {
    let Compiled {
        artifact,
        facts,
        compiler,
    } = compiled;
    let artifact_bytes = artifact.len() as u64;
    // An engine of its own for each module: the engine owns the machine code and frees none of it
    // before its end.
    let mut engine: Engine = EngineBuilder::headless().engine().into();
    let room = tunables.room();
    let stack_bytes_max = tunables.stack_bytes_max();
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
    let memory_pages_min = module
        .info()
        .memories
        .values()
        .next()
        .map_or(0, |memory| memory.minimum.0);
    let tables = Tables::of(module.info(), room.table_elements_max);
    let mut prepared = Prepared {
        hash,
        warm: None,
        image: None,
        pace: Pace::new(false),
        module,
        engine,
        code: start..end,
        imports,
        has_start,
        memory_pages_min,
        tables,
        stack_bytes_max,
        compiler,
        // The artifact stays in memory beside the code mapped from it.
        held_bytes: artifact_bytes.saturating_mul(2),
        rows: ModuleRows::new(&hash.to_string()),
    };
    prepared.look_at_an_instance(facts, room, warm);
    Ok(prepared)
}

impl Prepared {
    /// Makes an instance for no guest: to see how long that takes, and for the image that all others
    /// will show. A module whose segments do not fit has none, nor one whose image would be too large
    /// or mostly empty.
    fn look_at_an_instance(&mut self, facts: Facts, room: Room, warm: &WarmPool) {
        let began = Instant::now();
        let room = Room {
            pages_max: self.memory_pages_min,
            ..room
        };
        let first = Instance::new(self, room, Data::Measured);
        self.pace = Pace::new(first.is_err() || began.elapsed() > SLOW_INSTANCE);
        let image = match first {
            Ok(instance) if facts.resettable => instance.image(),
            Ok(_) | Err(_) => return,
        };
        match image {
            Ok(image) => {
                let image = image.map(Arc::new);
                let bytes = image.as_ref().map_or(0, |image| image.held_bytes());
                self.held_bytes = self.held_bytes.saturating_add(bytes);
                if image.is_some() || self.memory_pages_min == 0 {
                    self.image = image;
                    self.warm = Some(warm.module());
                }
            }
            Err(error) => tracing::warn!(%error, "no image of a module's memory"),
        }
    }
}

/// Compiles text in this process with Cranelift, for unit tests.
#[cfg(test)]
pub(super) fn prepare_here(text: &str) -> Arc<Prepared> {
    prepare_with(text, Compiler::Cranelift)
}

/// Compiles text in this process, for unit tests. Whether the compiler may have it is not looked at.
#[cfg(test)]
pub(super) fn prepare_with(text: &str, compiler: Compiler) -> Arc<Prepared> {
    let wasm = wat::parse_str(text).expect("valid text");
    let memories = super::memory::MemoryPool::new(8, super::memory::dirty::is_tracked());
    prepare_in(&wasm, compiler, &memories, &WarmPool::new(8))
}

/// As [`prepare_with`], from binary, with pools that other modules may share.
#[cfg(test)]
pub(super) fn prepare_in(
    wasm: &[u8],
    compiler: Compiler,
    memories: &super::memory::MemoryPool,
    warm: &WarmPool,
) -> Arc<Prepared> {
    let limits = super::check::Limits {
        wasm_bytes_max: u64::MAX,
        table_elements_max: u32::MAX,
    };
    // Some tests compile what no upload may be; it is then as well with the strictest facts.
    let facts = super::check::check(wasm, limits).unwrap_or(Facts {
        resettable: false,
        singlepass: false,
    });
    let compiled = Compiled {
        artifact: super::codegen::Codegen::new(compiler)
            .compile(wasm)
            .expect("a module that compiles")
            .into(),
        facts,
        compiler,
    };
    let tunables = SandboxTunables::new(memories.clone(), 1000, 1 << 20);
    // SAFETY: made by the lines above.
    let prepared = unsafe { load(ModuleHash::of(wasm), compiled, tunables, warm) };
    Arc::new(prepared.expect("an artifact that loads"))
}

#[cfg(test)]
mod tests;
