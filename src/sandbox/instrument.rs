//! What is added to a guest's code when it is compiled.
//!
//! 1. **Stop polls.** A hidden global tells the guest to stop. It is looked at after every
//!    operator and import that may spend long outside the guest's own code, where the deadline's
//!    signal may not strike (see [`super::deadline`]). Where there is no such signal, every loop
//!    and function looks too.
//! 2. **Bounds checks of bulk operators.** Wasmer reports their failures from Rust code that runs
//!    on the guest's stack, allocates there, and takes locks. A guest that is close to the end of
//!    its stack could make that code fault inside the allocator, and the process would hang. So
//!    the bounds are checked before, where a failure is an ordinary trap of machine code. And what
//!    is large is done in pieces, with a poll after each.
//! 3. **A start function that waits** (see [`START_EXPORT`]), and no exports but those called.

mod bulk;

use std::sync::{Arc, OnceLock};

use wasmer::sys::wasmparser::{BlockType, Operator};
use wasmer::sys::{FunctionMiddleware, MiddlewareError, MiddlewareReaderState, ModuleMiddleware};
use wasmer::{ExportIndex, GlobalInit, GlobalType, LocalFunctionIndex, Mutability, Type};
use wasmer_types::ModuleInfo;

use self::bulk::Bulk;
use super::engine::START_EXPORT;

/// The value of the hidden global, an `i64`, that stops the guest. Any negative value does.
pub(super) const STOP: i64 = i64::MIN;

/// Whether the deadline needs polls in loops and functions.
const POLL_LOOPS: bool = cfg!(not(target_arch = "x86_64"));

/// The middleware, for one module.
#[derive(Debug)]
pub(super) struct Instrument {
    poll_loops: bool,
    plan: OnceLock<Arc<Plan>>,
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
        let stop = hidden_global(info, Type::I64, GlobalInit::I64Const(0));
        let plan = Plan {
            ticks,
            imported_functions: u32::try_from(info.num_imported_functions)
                .map_err(|_| MiddlewareError::new("instrument", "too many imports"))?,
            bulk,
            stop,
        };
        self.plan
            .set(Arc::new(plan))
            .map_err(|_| MiddlewareError::new("instrument", "used for a second module"))
    }

    fn generate_function_middleware<'a>(
        &self,
        _: LocalFunctionIndex,
    ) -> Box<dyn FunctionMiddleware<'a> + 'a> {
        Box::new(InstrumentFunction {
            plan: self.plan.get().cloned(),
            entered: false,
        })
    }
}

/// Appends a global that no code of the guest can name.
fn hidden_global(info: &mut ModuleInfo, ty: Type, init: GlobalInit) -> u32 {
    let index = info.globals.push(GlobalType::new(ty, Mutability::Var));
    info.global_initializers.push(init);
    index.as_u32()
}

#[derive(Debug)]
struct InstrumentFunction {
    plan: Option<Arc<Plan>>,
    entered: bool,
}

impl<'a> FunctionMiddleware<'a> for InstrumentFunction {
    fn feed(
        &mut self,
        operator: Operator<'a>,
        state: &mut MiddlewareReaderState<'a>,
    ) -> Result<(), MiddlewareError> {
        let plan = self
            .plan
            .as_ref()
            .ok_or_else(|| MiddlewareError::new("instrument", "the module was not seen first"))?;
        if !self.entered {
            self.entered = true;
            plan.count_and_poll(state);
        }
        let poll = match &operator {
            Operator::Call { function_index } => *function_index < plan.imported_functions,
            Operator::MemoryGrow { .. } | Operator::TableGrow { .. } => true,
            other => plan.bulk.check(other, state, |state| plan.poll(state))?,
        };
        let is_loop = matches!(operator, Operator::Loop { .. });
        state.push_operator(operator.clone());
        plan.bulk.after(&operator, state);
        if poll {
            plan.poll(state);
        }
        if is_loop {
            plan.count_and_poll(state);
        }
        Ok(())
    }
}

impl Plan {
    /// Traps if told to stop.
    fn poll(&self, state: &mut MiddlewareReaderState<'_>) {
        state.extend(&[
            Operator::GlobalGet {
                global_index: self.stop,
            },
            Operator::I64Const { value: 0 },
            Operator::I64LtS,
            Operator::If {
                blockty: BlockType::Empty,
            },
            Operator::Unreachable,
            Operator::End,
        ]);
    }

    /// The same where loops and functions have to look. The compiler would take a read that no write
    /// comes before out of the loop; counting in another global keeps it in. (Counting in the same
    /// one would not do: a processor that always has a write of its own to it under way may
    /// overwrite the order to stop without ever having seen it.)
    fn count_and_poll(&self, state: &mut MiddlewareReaderState<'_>) {
        let Some(ticks) = self.ticks else {
            return;
        };
        state.extend(&[
            Operator::GlobalGet {
                global_index: ticks,
            },
            Operator::I32Const { value: 1 },
            Operator::I32Add,
            Operator::GlobalSet {
                global_index: ticks,
            },
        ]);
        self.poll(state);
    }
}

#[cfg(test)]
mod tests;
