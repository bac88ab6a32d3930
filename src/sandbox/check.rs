//! Whether bytes are a module we would run: decided before anything that a compiler made of them is
//! looked at.
//!
//! Everything here runs on hostile bytes in the gateway's own process, so each step is linear in
//! the module's size, and what is not (branch tables, wide types) is paid from a budget.

mod bounds;
mod code;
mod facts;

use std::fmt::Write as _;

use wasmer::sys::wasmparser::{
    BinaryReaderError, ElementItems, Encoding, ExportSectionReader, ExternalKind, FuncType,
    FuncValidatorAllocations, ImportSectionReader, Imports, MemorySectionReader, Parser, Payload,
    TableSectionReader, TypeRef, TypeSectionReader, ValType, ValidPayload, Validator, WasmFeatures,
};

use self::bounds::count;
use self::code::Budget;
use self::facts::Gathered;
use super::engine::START_EXPORT;
use super::{ModuleError, wasi};

pub(super) use facts::Facts;

/// The WebAssembly that runs here. `externref` is left out on purpose (no import gives a guest
/// one): some of Wasmer's table operators panic on it, and a panic there ends the process.
pub(super) const FEATURES: WasmFeatures = WasmFeatures::FLOATS
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::EXTENDED_CONST);

/// Limits that come from the settings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub wasm_bytes_max: u64,
    pub table_elements_max: u32,
}

/// Whether `wasm` is a core module in binary form, valid, within bounds, with nothing but WASI
/// preview 1 imported and a `_start` to call; and if so, what its code is like.
pub(super) fn check(wasm: &[u8], limits: Limits) -> Result<Facts, ModuleError> {
    header(wasm, limits)?;
    let mut module = Module::new(limits);
    let mut validator = Validator::new_with_features(FEATURES);
    let mut allocations = FuncValidatorAllocations::default();
    let mut parser = Parser::new(0);
    parser.set_features(FEATURES);
    for payload in parser.parse_all(wasm) {
        let payload = payload.map_err(|error| malformed(&error))?;
        // Our own bounds come first: the validator allocates what a section declares.
        module.section(&payload)?;
        match validator
            .payload(&payload)
            .map_err(|error| malformed(&error))?
        {
            ValidPayload::Func(function, body) => {
                module
                    .budget
                    .function(body.range().end - body.range().start)?;
                let mut validating = function.into_validator(allocations);
                code::check(&mut validating, &body, &mut module)?;
                allocations = validating.into_allocations();
            }
            ValidPayload::Ok | ValidPayload::Parser(_) | ValidPayload::End(_) => {}
        }
    }
    module.finish()
}

/// What is seen at a glance: the size, and the first eight bytes.
pub(super) fn header(wasm: &[u8], limits: Limits) -> Result<(), ModuleError> {
    if wasm.len() as u64 > limits.wasm_bytes_max {
        return Err(ModuleError::Invalid(format!(
            "the module has {} bytes, and {} are allowed; strip it (wasm-strip, or -s when linking) \
             and optimise for size (wasm-opt -Oz)",
            wasm.len(),
            limits.wasm_bytes_max
        )));
    }
    if !wasm.starts_with(b"\0asm") {
        return Err(ModuleError::Invalid(
            "this is not WebAssembly: a module starts with the bytes 00 61 73 6d (\"\\0asm\"), or \
             with \"(module\" as text"
                .into(),
        ));
    }
    // The version field of a component is 0x0001_000d, of a core module 1 (component model,
    // Binary.md, "Component Definitions").
    if wasm.get(6..8) == Some(&[1, 0]) {
        return Err(component());
    }
    Ok(())
}

fn component() -> ModuleError {
    ModuleError::Invalid(
        "this is a component; compile to a core module for WASI preview 1 (Rust: --target \
         wasm32-wasip1; others: target wasi preview 1, without componentising)"
            .into(),
    )
}

fn malformed(error: &BinaryReaderError) -> ModuleError {
    ModuleError::Invalid(format!(
        "the module is not valid here: {} (at byte {})",
        printable(error.message()),
        error.offset()
    ))
}

/// A name from the module as it may stand in a message: short, and what can not be seen is escaped.
fn printable(name: &str) -> String {
    const CHARS_MAX: usize = 120;
    let mut text = String::new();
    for (index, character) in name.chars().enumerate() {
        if index == CHARS_MAX {
            text.push('…');
            break;
        }
        // Beyond ASCII too there are characters that are not seen, or turn round what is.
        if matches!(character, ' '..='~') {
            text.push(character);
        } else {
            let _ = write!(text, "{}", character.escape_debug());
        }
    }
    text
}

/// What was seen of the module so far.
struct Module {
    limits: Limits,
    budget: Budget,
    gathered: Gathered,
    /// Parameter and result types by type index.
    types: Vec<FuncType>,
    /// The type index of each function, imports first.
    functions: Vec<u32>,
    start: Option<u32>,
    memories: u32,
    exports_memory: bool,
    imports_wasi: bool,
}

impl Module {
    fn new(limits: Limits) -> Module {
        Module {
            limits,
            budget: Budget::default(),
            gathered: Gathered::default(),
            types: Vec::new(),
            functions: Vec::new(),
            start: None,
            memories: 0,
            exports_memory: false,
            imports_wasi: false,
        }
    }

    fn section(&mut self, payload: &Payload<'_>) -> Result<(), ModuleError> {
        match payload {
            Payload::Version {
                encoding: Encoding::Component,
                ..
            } => Err(component()),
            Payload::TypeSection(reader) => self.types(reader),
            Payload::ImportSection(reader) => self.imports(reader),
            Payload::FunctionSection(reader) => {
                count("functions", reader.count(), bounds::FUNCTIONS_MAX)?;
                for index in reader.clone() {
                    self.functions
                        .push(index.map_err(|error| malformed(&error))?);
                }
                Ok(())
            }
            Payload::TableSection(reader) => self.tables(reader),
            Payload::MemorySection(reader) => self.memories(reader),
            Payload::GlobalSection(reader) => count("globals", reader.count(), bounds::GLOBALS_MAX),
            Payload::ExportSection(reader) => self.exports(reader),
            Payload::ElementSection(reader) => {
                count("element segments", reader.count(), bounds::SEGMENTS_MAX)?;
                let mut elements = 0u32;
                for segment in reader.clone() {
                    let segment = segment.map_err(|error| malformed(&error))?;
                    elements = elements.saturating_add(match segment.items {
                        ElementItems::Functions(items) => items.count(),
                        ElementItems::Expressions(_, items) => items.count(),
                    });
                }
                count("elements in all segments", elements, bounds::ELEMENTS_MAX)
            }
            Payload::DataCountSection {
                count: segments, ..
            } => count("data segments", *segments, bounds::SEGMENTS_MAX),
            Payload::DataSection(reader) => {
                count("data segments", reader.count(), bounds::SEGMENTS_MAX)
            }
            Payload::CodeSectionStart { count: bodies, .. } => {
                count("functions", *bodies, bounds::FUNCTIONS_MAX)
            }
            Payload::CustomSection(reader) => name("a custom section", reader.name()),
            // The validator judges what is left: start, tags, ends, and whatever has no meaning in
            // a core module. (The foreign enum is not exhaustive.)
            _ => Ok(()),
        }
    }

    fn types(&mut self, reader: &TypeSectionReader<'_>) -> Result<(), ModuleError> {
        count("types", reader.count(), bounds::TYPES_MAX)?;
        for ty in reader.clone().into_iter_err_on_gc_types() {
            let ty = ty.map_err(|error| malformed(&error))?;
            let width = ty.params().len().max(ty.results().len());
            count(
                "parameters or results of one type",
                width as u32,
                bounds::TYPE_WIDTH_MAX,
            )?;
            self.budget.widest(width as u64);
            self.gathered.ty(&ty);
            self.types.push(ty);
        }
        Ok(())
    }

    fn imports(&mut self, reader: &ImportSectionReader<'_>) -> Result<(), ModuleError> {
        count("imports", reader.count(), bounds::IMPORTS_MAX)?;
        for group in reader.clone() {
            let Imports::Single(_, import) = group.map_err(|error| malformed(&error))? else {
                return Err(ModuleError::Invalid(
                    "the module uses compact imports; build it without that proposal".into(),
                ));
            };
            name("an import's module", import.module)?;
            name("an import", import.name)?;
            self.import(import.module, import.name, import.ty)?;
        }
        Ok(())
    }

    fn import(&mut self, module: &str, field: &str, ty: TypeRef) -> Result<(), ModuleError> {
        let (from, what) = (printable(module), printable(field));
        let kind = match ty {
            TypeRef::Func(index) | TypeRef::FuncExact(index) => {
                let Some(known) = wasi::link::signature(module, field) else {
                    return Err(unknown_function(module, &from, &what));
                };
                let same = self
                    .types
                    .get(index as usize)
                    .is_some_and(|ty| same_type(ty, &known));
                if !same {
                    return Err(ModuleError::Invalid(format!(
                        "the module imports \"{from}\".\"{what}\" with a type that is not the one of \
                         WASI preview 1, which is {known}; rebuild it against a current wasi-libc"
                    )));
                }
                self.imports_wasi = true;
                self.functions.push(index);
                return Ok(());
            }
            TypeRef::Memory(_) => "memory",
            TypeRef::Table(_) => "table",
            TypeRef::Global(_) => "global",
            TypeRef::Tag(_) => "tag",
        };
        Err(ModuleError::Invalid(format!(
            "the module imports the {kind} \"{from}\".\"{what}\"; only functions of \
             wasi_snapshot_preview1 can be imported. Define the {kind} in the module (for a memory: \
             link without --import-memory)"
        )))
    }

    fn tables(&mut self, reader: &TableSectionReader<'_>) -> Result<(), ModuleError> {
        count("tables", reader.count(), bounds::TABLES_MAX)?;
        let mut elements = 0u64;
        for table in reader.clone() {
            let table = table.map_err(|error| malformed(&error))?;
            elements = elements.saturating_add(table.ty.initial);
        }
        let elements_max = self.limits.table_elements_max;
        if elements > u64::from(elements_max) {
            return Err(ModuleError::OverLimit(format!(
                "the module's tables start with {elements} elements, and {elements_max} are allowed"
            )));
        }
        Ok(())
    }

    fn memories(&mut self, reader: &MemorySectionReader<'_>) -> Result<(), ModuleError> {
        if reader.count() > 1 {
            return Err(ModuleError::Invalid(
                "the module has more than one memory; build it without multi-memory".into(),
            ));
        }
        for memory in reader.clone() {
            let memory = memory.map_err(|error| malformed(&error))?;
            let problem = if memory.shared {
                "shared; build it without threads (no -pthread, no wasm32-wasip1-threads)"
            } else if memory.memory64 {
                "a 64-bit one; build it for wasm32"
            } else if memory.page_size_log2.is_some() {
                "one with custom page sizes; build it without that proposal"
            } else {
                self.memories += 1;
                continue;
            };
            return Err(ModuleError::Invalid(format!(
                "the module's memory is {problem}"
            )));
        }
        Ok(())
    }

    fn exports(&mut self, reader: &ExportSectionReader<'_>) -> Result<(), ModuleError> {
        count("exports", reader.count(), bounds::EXPORTS_MAX)?;
        for export in reader.clone() {
            let export = export.map_err(|error| malformed(&error))?;
            name("an export", export.name)?;
            match (export.name, export.kind) {
                ("_start", ExternalKind::Func) => self.start = Some(export.index),
                ("memory", ExternalKind::Memory) => self.exports_memory = true,
                (START_EXPORT, _) => {
                    return Err(ModuleError::Invalid(format!(
                        "the export name \"{START_EXPORT}\" is reserved; rename it"
                    )));
                }
                (_, _) => {}
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Facts, ModuleError> {
        let Some(start) = self.start else {
            return Err(ModuleError::Invalid(
                "the module exports no function \"_start\"; build a command (a program with main), \
                 not a library or reactor"
                    .into(),
            ));
        };
        let ty = self
            .functions
            .get(start as usize)
            .and_then(|index| self.types.get(*index as usize));
        if !ty.is_some_and(|ty| ty.params().is_empty() && ty.results().is_empty()) {
            return Err(ModuleError::Invalid(
                "the module's \"_start\" must take nothing and return nothing".into(),
            ));
        }
        if self.memories > 0 && !self.exports_memory && self.imports_wasi {
            return Err(ModuleError::Invalid(
                "the module does not export its memory as \"memory\", so WASI can't reach it; export \
                 it (linkers do by default)"
                    .into(),
            ));
        }
        Ok(self.gathered.facts())
    }
}

fn name(what: &str, text: &str) -> Result<(), ModuleError> {
    if text.len() <= bounds::NAME_BYTES_MAX {
        return Ok(());
    }
    Err(ModuleError::Invalid(format!(
        "the module has {what} with a name of {} bytes, and {} are allowed",
        text.len(),
        bounds::NAME_BYTES_MAX
    )))
}

fn unknown_function(module: &str, from: &str, what: &str) -> ModuleError {
    let hint = if module.starts_with("wasix") {
        "; WASIX is not offered. Build for plain WASI preview 1 (wasm32-wasip1)"
    } else if module.starts_with("wasi_") {
        "; it is not a function of WASI preview 1 as offered here"
    } else if module == "wasi" {
        "; threads are not offered. Build for wasm32-wasip1, without -threads"
    } else if module.starts_with("wasi:") || module.contains(':') {
        "; that is WASI preview 2. Build for WASI preview 1 (wasm32-wasip1)"
    } else if module == "env" || module.starts_with("__wbindgen") || module == "wbg" {
        "; it expects a JavaScript host or an unresolved symbol. Build for WASI preview 1 \
         (wasm32-wasip1), and link everything in"
    } else {
        "; only functions of wasi_snapshot_preview1 can be imported"
    };
    ModuleError::Invalid(format!(
        "the module imports unknown function \"{from}\".\"{what}\"{hint}"
    ))
}

fn same_type(ty: &FuncType, known: &wasmer::FunctionType) -> bool {
    let same = |ours: &[ValType], theirs: &[wasmer::Type]| {
        ours.len() == theirs.len()
            && ours
                .iter()
                .zip(theirs)
                .all(|(ours, theirs)| match (ours, theirs) {
                    (ValType::I32, wasmer::Type::I32)
                    | (ValType::I64, wasmer::Type::I64)
                    | (ValType::F32, wasmer::Type::F32)
                    | (ValType::F64, wasmer::Type::F64) => true,
                    // No function of WASI takes a vector or a reference.
                    (
                        ValType::I32
                        | ValType::I64
                        | ValType::F32
                        | ValType::F64
                        | ValType::V128
                        | ValType::Ref(_),
                        _,
                    ) => false,
                })
    };
    same(ty.params(), known.params()) && same(ty.results(), known.results())
}

#[cfg(test)]
mod tests;
