//! How much of everything a module may have.
//!
//! Each bound is several times what the largest programs seen have (Go, Rust, C, CPython), and
//! small enough that a module at the bound is still validated, compiled or refused in time. Every
//! count below costs memory or time again for each guest, so "as many as the format allows" is no
//! choice.

use super::super::ModuleError;

pub(super) const TYPES_MAX: u32 = 20_000;
/// Parameters of one function or block type, and results (the limit of the JS API, section
/// "Implementation-defined Limits").
pub(super) const TYPE_WIDTH_MAX: u32 = 1_000;
pub(super) const IMPORTS_MAX: u32 = 1_000;
pub(super) const FUNCTIONS_MAX: u32 = 50_000;
pub(super) const GLOBALS_MAX: u32 = 10_000;
/// Exports are cut down to what is called, but their names are read.
pub(super) const EXPORTS_MAX: u32 = 20_000;
pub(super) const TABLES_MAX: u32 = 16;
/// Data segments, and element segments. Go's linker emits a data segment for each run of bytes
/// between zeros: a program of 12 MB has 86,000.
pub(super) const SEGMENTS_MAX: u32 = 100_000;
/// Elements in all element segments: instantiation writes each of them.
pub(super) const ELEMENTS_MAX: u32 = 1_000_000;
pub(super) const NAME_BYTES_MAX: usize = 4_096;
/// Locals of one function, parameters included.
pub(super) const LOCALS_MAX: u32 = 20_000;
/// Locals of all functions together: a declaration of any number takes five bytes, and each one
/// costs the compiler memory.
pub(super) const LOCALS_TOTAL_MAX: u64 = 4_000_000;
/// Bytes of one function. CPython's interpreter loop has over 500 KiB.
pub(super) const FUNCTION_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Blocks inside blocks. Go's compiler nests as deep as a function has resume points.
pub(super) const NESTING_MAX: u32 = 20_000;
/// Targets of one `br_table`.
pub(super) const BRANCH_TARGETS_MAX: u32 = 65_520;
/// Units of validation work in a module: one for an operator, and the width of the widest type
/// for each operator and branch target that takes one. Ten million operators of ordinary code
/// stay below a tenth.
pub(super) const WORK_MAX: u64 = 200_000_000;

/// An error that names the thing, how many there are, and how many may be.
pub(super) fn count(what: &str, found: u32, max: u32) -> Result<(), ModuleError> {
    if found <= max {
        return Ok(());
    }
    Err(ModuleError::Invalid(format!(
        "the module has too many {what}: {found}, and {max} are allowed; split the program or \
         optimise it for size (wasm-opt -Oz)"
    )))
}
