//! What is added to a guest's code when it is compiled.
//!
//! 1. **Stop polls.** A hidden global tells the guest to stop. It is looked at after every
//!    operator and import that runs outside the guest's own code, where the deadline's signal may
//!    not strike (see [`super::deadline`]); also after those that take no time, as a loop of nothing
//!    else is hardly ever in its own code. Where there is no such signal, every loop and function
//!    looks too.
//! 2. **Bounds checks of bulk operators.** Wasmer reports their failures from Rust code that runs
//!    on the guest's stack, allocates there, and takes locks. A guest that is close to the end of
//!    its stack could make that code fault inside the allocator, and the process would hang. So
//!    the bounds are checked before, where a failure is an ordinary trap of machine code. And what
//!    is large is done in pieces, with a poll after each.
//! 3. **A note of refused growth of tables**, in another hidden global, since Wasmer's tables keep none:
//!    so a guest that fails of its limit is told from one that fails by itself.
//! 4. **A start function that waits** (see [`START_EXPORT`]), and no exports but those called.

//!
//! Most functions have nothing to be added to, so the bytes of a function are gone through once before
//! it is compiled, and those concerned are written anew. (A middleware of Wasmer's that looks at each
//! operator on its way costs Singlepass a quarter of its time.)

mod bulk;
mod code;
mod concerned;

use std::num::NonZero;
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use wasmer::sys::wasmparser::{BinaryReader, BinaryReaderError, FunctionBody, Operator};
use wasmer::sys::{FunctionMiddleware, MiddlewareError, ModuleMiddleware};
use wasmer::{
    CompileError, ExportIndex, GlobalInit, GlobalType, LocalFunctionIndex, Mutability, Type,
};
use wasmer_types::ModuleInfo;

use self::bulk::Bulk;
use self::code::{Added, Code};
use self::concerned::Concerned;
use super::engine::START_EXPORT;

/// The value of the hidden global, an `i64`, that stops the guest. Any negative value does.
pub(super) const STOP: i64 = i64::MIN;

/// Whether the deadline needs polls in loops and functions.
const POLL_LOOPS: bool = cfg!(not(target_arch = "x86_64"));

/// What is added to one module. As a middleware it sees to all but the functions' bodies, and must have
/// done so before it is asked about those.
#[derive(Debug)]
pub(super) struct Instrument {
    poll_loops: bool,
    plan: OnceLock<Plan>,
}

impl Default for Instrument {
    fn default() -> Instrument {
        Instrument {
            poll_loops: POLL_LOOPS,
            plan: OnceLock::new(),
        }
    }
}

/// Where the hidden parts of a module are.
#[derive(Debug)]
struct Plan {
    /// Where loops and functions look, the hidden global that they count in.
    ticks: Option<u32>,
    imported_functions: u32,
    bulk: Bulk,
    /// Notes which tables were refused growth, where one can ask for it: the last global but one.
    refused: Option<u32>,
    /// The last global of the module, so that the tunables find it.
    stop: u32,
}

impl ModuleMiddleware for Instrument {
    fn transform_module_info(&self, info: &mut ModuleInfo) -> Result<(), MiddlewareError> {
        info.exports.retain(|name, export| match export {
            ExportIndex::Function(_) => name == "_start",
            ExportIndex::Memory(_) => name == "memory",
            ExportIndex::Table(_) | ExportIndex::Global(_) | ExportIndex::Tag(_) => false,
        });
        if let Some(start) = info.start_function.take() {
            info.exports
                .insert(START_EXPORT.to_owned(), ExportIndex::Function(start));
        }
        // Names and debug sections would only be carried along with each module.
        info.function_names.clear();
        info.custom_sections.clear();
        info.custom_sections_data.clear();

        let bulk = Bulk::prepare(info)?;
        let ticks = self
            .poll_loops
            .then(|| hidden_global(info, Type::I32, GlobalInit::I32Const(0)));
        let refused =
            tables_grow(info).then(|| hidden_global(info, Type::I32, GlobalInit::I32Const(0)));
        let stop = hidden_global(info, Type::I64, GlobalInit::I64Const(0));
        let plan = Plan {
            ticks,
            imported_functions: u32::try_from(info.num_imported_functions)
                .map_err(|_| MiddlewareError::new("instrument", "too many imports"))?,
            bulk,
            refused,
            stop,
        };
        self.plan
            .set(plan)
            .map_err(|_| MiddlewareError::new("instrument", "used for a second module"))
    }

    fn generate_function_middleware<'a>(
        &self,
        _: LocalFunctionIndex,
    ) -> Box<dyn FunctionMiddleware<'a> + 'a> {
        Box::new(Unchanged)
    }
}

/// Whether a table of the module has room to grow in. (What C and Rust make has none.)
pub(super) fn tables_grow(info: &ModuleInfo) -> bool {
    info.tables
        .values()
        .any(|table| table.maximum != Some(table.minimum))
}

/// Leaves code as it is.
#[derive(Debug)]
struct Unchanged;

impl FunctionMiddleware<'_> for Unchanged {}

/// A body with what is added to it; `None` if that is nothing.
type Written = Result<Option<Vec<u8>>, CompileError>;

/// So much code that it is worth another thread.
const THREAD_BYTES: usize = 32 << 10;

impl Instrument {
    /// All functions' bodies as [`Instrument::body`] has them, in their order.
    pub(super) fn bodies(
        &self,
        bodies: &[&[u8]],
        threads: NonZero<usize>,
    ) -> Result<Vec<Option<Vec<u8>>>, CompileError> {
        let bytes: usize = bodies.iter().map(|body| body.len()).sum();
        let others = threads.get().min(bytes / THREAD_BYTES).saturating_sub(1);
        let next = AtomicUsize::new(0);
        // Each takes the next that nobody has taken.
        let work = || {
            std::iter::from_fn(|| {
                let index = next.fetch_add(1, Ordering::Relaxed);
                Some((index, self.body(bodies.get(index)?)))
            })
            .collect::<Vec<_>>()
        };
        let mut written = vec![None; bodies.len()];
        let mut put = |done: Vec<(usize, Written)>| {
            done.into_iter().try_for_each(|(index, body)| {
                written[index] = body?;
                Ok::<_, CompileError>(())
            })
        };
        thread::scope(|scope| {
            // Where no more threads can be had, those that there are do it.
            let helpers: Vec<_> = (0..others)
                .filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            put(work())?;
            helpers
                .into_iter()
                .try_for_each(|helper| match helper.join() {
                    Ok(done) => put(done),
                    Err(panic) => panic::resume_unwind(panic),
                })
        })?;
        Ok(written)
    }

    /// A function's body (its locals and operators) with what is added; `None` if that is nothing.
    fn body(&self, body: &[u8]) -> Written {
        let plan = self.plan.get().ok_or_else(|| {
            CompileError::MiddlewareError("instrument: the module was not seen first".into())
        })?;
        plan.body(body)
            .map_err(|error| CompileError::Validate(error.to_string()))
    }
}

/// Appends a global that no code of the guest can name.
fn hidden_global(info: &mut ModuleInfo, ty: Type, init: GlobalInit) -> u32 {
    let index = info.globals.push(GlobalType::new(ty, Mutability::Var));
    info.global_initializers.push(init);
    index.as_u32()
}

impl Plan {
    fn body(&self, body: &[u8]) -> Result<Option<Vec<u8>>, BinaryReaderError> {
        let mut operators = FunctionBody::new(BinaryReader::new(body, 0)).get_operators_reader()?;
        let mut code = Code::new(body);
        let mut at = position(operators.original_position());
        code.before(at, at);
        self.count_and_poll(&mut code);
        let mut concerned = Concerned::default();
        while !operators.eof() {
            operators.visit_operator(&mut concerned)?;
            let end = position(operators.original_position());
            let start = std::mem::replace(&mut at, end);
            let Some(operator) = concerned.take() else {
                continue;
            };
            code.before(start, end);
            let poll = match &operator {
                Operator::Call { function_index } => *function_index < self.imported_functions,
                operator if is_call_of_the_host(operator) => true,
                other => self.bulk.check(other, &mut code, |code| self.poll(code)),
            };
            code.behind();
            self.bulk.after(&operator, &mut code);
            if let (Operator::TableGrow { table }, Some(refused)) = (&operator, self.refused) {
                self.bulk.note_refusal(&mut code, *table, refused);
            }
            if poll {
                self.poll(&mut code);
            }
            if matches!(operator, Operator::Loop { .. }) {
                self.count_and_poll(&mut code);
            }
        }
        Ok(code.finish())
    }

    /// Traps if told to stop.
    fn poll(&self, code: &mut Code<'_>) {
        code.add(&[
            Added::GlobalGet(self.stop),
            Added::I64Const(0),
            Added::I64LtS,
            Added::If,
            Added::Unreachable,
            Added::End,
        ]);
    }

    /// The same where loops and functions have to look. The compiler would take a read that no write
    /// comes before out of the loop; counting in another global keeps it in. (Counting in the same
    /// one would not do: a processor that always has a write of its own to it under way may
    /// overwrite the order to stop without ever having seen it.)
    fn count_and_poll(&self, code: &mut Code<'_>) {
        let Some(ticks) = self.ticks else {
            return;
        };
        code.add(&[
            Added::GlobalGet(ticks),
            Added::I32Const(1),
            Added::I32Add,
            Added::GlobalSet(ticks),
        ]);
        self.poll(code);
    }
}

/// Whether the compilers make a call into Wasmer of an operator. Those of bulk operators are in [`Bulk`].
fn is_call_of_the_host(operator: &Operator<'_>) -> bool {
    matches!(
        operator,
        Operator::MemoryGrow { .. }
            | Operator::MemorySize { .. }
            | Operator::TableGrow { .. }
            | Operator::TableSize { .. }
            | Operator::RefFunc { .. }
            | Operator::DataDrop { .. }
            | Operator::ElemDrop { .. }
    )
}

/// A position in a body, which begins at zero.
fn position(original: u64) -> usize {
    usize::try_from(original).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
