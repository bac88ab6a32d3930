//! Function bodies: validated operator by operator, with our own bounds on the way.

use wasmer::sys::wasmparser::{FuncValidator, FunctionBody, Operator, WasmModuleResources};

use super::super::ModuleError;
use super::bounds::{self, count};
use super::{Module, malformed};

/// What a module may still cost to validate.
#[derive(Debug)]
pub(super) struct Budget {
    work_left: u64,
    locals_left: u64,
    /// Units of work of an operator that takes or leaves as many operands as a type says.
    wide: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            work_left: bounds::WORK_MAX,
            locals_left: bounds::LOCALS_TOTAL_MAX,
            wide: 1,
        }
    }
}

impl Budget {
    /// Notes a type's width. Up to 32 operands are as cheap as the operator itself.
    pub(super) fn widest(&mut self, width: u64) {
        if width > 32 {
            self.wide = self.wide.max(width);
        }
    }

    pub(super) fn function(&mut self, bytes: u64) -> Result<(), ModuleError> {
        if bytes > bounds::FUNCTION_BYTES_MAX {
            return Err(ModuleError::Invalid(format!(
                "the module has a function of {bytes} bytes, and {} are allowed; optimise for size \
                 or inline less",
                bounds::FUNCTION_BYTES_MAX
            )));
        }
        Ok(())
    }

    fn locals(&mut self, found: u32) -> Result<(), ModuleError> {
        count("locals in one function", found, bounds::LOCALS_MAX)?;
        self.locals_left = self
            .locals_left
            .checked_sub(u64::from(found))
            .ok_or_else(|| {
                ModuleError::Invalid(format!(
                    "the module has too many locals: {} are allowed in all its functions together",
                    bounds::LOCALS_TOTAL_MAX
                ))
            })?;
        Ok(())
    }

    fn work(&mut self, units: u64) -> Result<(), ModuleError> {
        self.work_left = self.work_left.checked_sub(units).ok_or_else(|| {
            ModuleError::Invalid(
                "the module has too much code over types with very many parameters or results, or \
                 too large branch tables; optimise it (wasm-opt -O)"
                    .into(),
            )
        })?;
        Ok(())
    }
}

/// Validates one body.
pub(super) fn check<R: WasmModuleResources>(
    validator: &mut FuncValidator<R>,
    body: &FunctionBody<'_>,
    module: &mut Module,
) -> Result<(), ModuleError> {
    let mut reader = body.get_binary_reader();
    validator
        .read_locals(&mut reader)
        .map_err(|error| malformed(&error))?;
    let locals = validator.len_locals();
    module.budget.locals(locals)?;
    module.gathered.function(locals);
    let (bytes, start) = (body.as_bytes(), body.range().start);
    reader.set_features(super::FEATURES);
    let mut operators = wasmer::sys::wasmparser::OperatorsReader::new(reader);
    while !operators.eof() {
        let (operator, offset) = operators
            .read_with_offset()
            .map_err(|error| malformed(&error))?;
        let wide = module.budget.wide;
        module.budget.work(cost(&operator, wide)?)?;
        validator
            .op(offset, &operator)
            .map_err(|error| malformed(&error))?;
        let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let first_byte = bytes.get(at).copied().unwrap_or_default();
        module
            .gathered
            .operator(&operator, first_byte, &module.types);
        count(
            "nested blocks",
            validator.control_stack_height(),
            bounds::NESTING_MAX,
        )?;
    }
    operators.finish().map_err(|error| malformed(&error))
}

fn cost(operator: &Operator<'_>, wide: u64) -> Result<u64, ModuleError> {
    match operator {
        Operator::BrTable { targets } => {
            count(
                "targets of one br_table",
                targets.len(),
                bounds::BRANCH_TARGETS_MAX,
            )?;
            Ok(wide.saturating_mul(u64::from(targets.len()) + 1))
        }
        Operator::Block { .. }
        | Operator::Loop { .. }
        | Operator::If { .. }
        | Operator::Else
        | Operator::End
        | Operator::Br { .. }
        | Operator::BrIf { .. }
        | Operator::Return
        | Operator::Call { .. }
        | Operator::CallIndirect { .. } => Ok(wide),
        // Every other operator has a fixed, small number of operands. (The foreign enum is not
        // exhaustive, and has hundreds of them.)
        _ => Ok(1),
    }
}
