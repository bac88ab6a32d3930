//! What is found out about a module's code while it is read, for those who compile and run it.

use wasmer::sys::wasmparser::{BlockType, FuncType, Operator, ValType};

/// What is known about a module that passed the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) struct Facts {
    /// Only memory and globals differ after a run: no code changes a table or drops a segment. So
    /// an instance is like new once those two are put back.
    pub resettable: bool,
    /// Singlepass may compile it.
    pub singlepass: bool,
}

/// Singlepass moves the stack pointer without touching what it skips, and below the stack is one
/// guard page of 4096 bytes. The bounds below keep what any code skips at a time well under a page,
/// so that a stack that is full always hits the guard page, and with the stack pointer still in it.
///
/// A frame has 8 bytes for each parameter and local, reserved at once, and zeroed later or from the
/// far end: 400 and what is saved beside them are 3,300 bytes.
const FRAME_LOCALS_MAX: u32 = 400;
/// Each open block has 8 bytes for each of its results, and a loop for its parameters twice; nothing
/// is written there before the block ends. 128 are 1,024 bytes.
const OPEN_SLOTS_MAX: u32 = 128;
/// A call reserves 8 bytes for each argument and result: 1,152 bytes. With the open blocks and saved
/// registers, 2,500.
const PARAMETERS_MAX: usize = 128;
const RESULTS_MAX: usize = 16;

/// The first byte of every operator on vectors, which Singlepass does not know.
const VECTOR_PREFIX: u8 = 0xfd;

/// The facts as far as the module has been read.
#[derive(Debug)]
pub(super) struct Gathered {
    facts: Facts,
    /// Slots of each open block of the current function.
    open: Vec<u32>,
    open_slots: u32,
}

impl Default for Gathered {
    fn default() -> Gathered {
        Gathered {
            facts: Facts {
                resettable: true,
                singlepass: true,
            },
            open: Vec::new(),
            open_slots: 0,
        }
    }
}

impl Gathered {
    pub(super) fn facts(&self) -> Facts {
        self.facts
    }

    /// A type of functions or blocks.
    pub(super) fn ty(&mut self, ty: &FuncType) {
        let (params, results) = (ty.params(), ty.results());
        if params.len() > PARAMETERS_MAX
            || results.len() > RESULTS_MAX
            || params.iter().chain(results).any(|ty| *ty == ValType::V128)
        {
            self.facts.singlepass = false;
        }
    }

    /// A function begins; `locals` are with its parameters.
    pub(super) fn function(&mut self, locals: u32) {
        self.open.clear();
        self.open_slots = 0;
        if locals > FRAME_LOCALS_MAX {
            self.facts.singlepass = false;
        }
    }

    /// An operator of the function that began last. `types` are the module's.
    pub(super) fn operator(&mut self, operator: &Operator<'_>, first_byte: u8, types: &[FuncType]) {
        if first_byte == VECTOR_PREFIX {
            self.facts.singlepass = false;
        }
        match operator {
            Operator::Block { blockty } | Operator::Loop { blockty } | Operator::If { blockty } => {
                let slots = slots(*blockty, types);
                self.open.push(slots);
                self.open_slots = self.open_slots.saturating_add(slots);
                if self.open_slots > OPEN_SLOTS_MAX {
                    self.facts.singlepass = false;
                }
            }
            // The last one ends the function, and finds no open block.
            Operator::End => self.open_slots -= self.open.pop().unwrap_or(0),
            Operator::TableSet { .. }
            | Operator::TableGrow { .. }
            | Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. }
            | Operator::ElemDrop { .. }
            | Operator::DataDrop { .. } => self.facts.resettable = false,
            // The features that are on have no other operator that changes a table or a segment.
            // (The foreign enum is not exhaustive, and has hundreds of them.)
            _ => {}
        }
    }
}

/// The most that a block of this type reserves.
fn slots(ty: BlockType, types: &[FuncType]) -> u32 {
    match ty {
        BlockType::Empty => 0,
        BlockType::Type(_) => 1,
        BlockType::FuncType(index) => types.get(index as usize).map_or(u32::MAX, |ty| {
            u32::try_from(2 * ty.params().len() + ty.results().len()).unwrap_or(u32::MAX)
        }),
    }
}

#[cfg(test)]
mod tests;
