//! Bounds of bulk memory and table operators, checked in the guest's own code; and large ones of
//! memory cut into pieces, between which the guest can be stopped.

use std::collections::BTreeMap;

use wasmer::sys::MiddlewareError;
use wasmer::sys::wasmparser::Operator;
use wasmer::{GlobalInit, Type};
use wasmer_types::ModuleInfo;

use super::code::{Added, Code};
use super::hidden_global;

/// Bytes that one operator fills or copies at a time. A page that was never touched costs a microsecond
/// or more, so this takes half a millisecond at most, and a whole memory would take seconds.
const PIECE_BYTES: i32 = 1 << 20;

/// Where the hidden globals are that the checks use.
#[derive(Debug)]
pub(super) struct Bulk {
    /// Keep an operator's operands while its bounds are checked: three `i32`, one `funcref`, one
    /// `i64`. Nothing else runs between a write and its read, so all functions share them.
    operand: [u32; 3],
    reference: u32,
    end: u32,
    /// The type `() -> ()`, for a call that traps.
    nullary_type: u32,
    /// A global with the length of each passive data segment, zero once it is dropped.
    data_len: BTreeMap<u32, u32>,
    /// The same for element segments.
    element_len: BTreeMap<u32, u32>,
}

impl Bulk {
    /// Adds the hidden globals.
    pub(super) fn prepare(info: &mut ModuleInfo) -> Result<Bulk, MiddlewareError> {
        let mut i32_global = || hidden_global(info, Type::I32, GlobalInit::I32Const(0));
        let operand = [i32_global(), i32_global(), i32_global()];
        let reference = hidden_global(info, Type::FuncRef, GlobalInit::RefNullConst);
        let end = hidden_global(info, Type::I64, GlobalInit::I64Const(0));
        let nullary_type = info
            .signatures
            .iter()
            .find(|(_, ty)| ty.params().is_empty() && ty.results().is_empty())
            .map(|(index, _)| index.as_u32())
            .ok_or_else(|| MiddlewareError::new("instrument", "no function without parameters"))?;

        let data: Vec<(u32, usize)> = info
            .passive_data
            .iter()
            .map(|(index, bytes)| (index.as_u32(), bytes.len()))
            .collect();
        let mut elements: Vec<(u32, usize)> = info
            .passive_elements
            .iter()
            .map(|(index, items)| (index.as_u32(), items.len()))
            .collect();
        elements.sort_unstable();
        Ok(Bulk {
            operand,
            reference,
            end,
            nullary_type,
            data_len: length_globals(info, data)?,
            element_len: length_globals(info, elements)?,
        })
    }

    /// Puts the checks before the operator, and all pieces of it but the last, with `poll` after each.
    /// True if the operator is one of those that may take long.
    pub(super) fn check(
        &self,
        operator: &Operator<'_>,
        code: &mut Code<'_>,
        poll: impl Fn(&mut Code<'_>),
    ) -> bool {
        let [first, second, third] = self.operand;
        match *operator {
            Operator::MemoryFill { .. } => {
                set(code, [third, second, first]);
                self.memory_end(code, first, third);
                self.pieces(code, |code| {
                    self.upwards(code, &[first], &poll);
                });
                get(code, [first, second, third]);
            }
            Operator::MemoryCopy { .. } => {
                set(code, [third, second, first]);
                self.memory_end(code, first, third);
                self.memory_end(code, second, third);
                self.pieces(code, |code| {
                    // As with C's memmove: what is read later must not be written before.
                    get(code, [first, second]);
                    code.add(&[Added::I32GtU, Added::If]);
                    self.downwards(code, &poll);
                    code.add(&[Added::Else]);
                    self.upwards(code, &[first, second], &poll);
                    code.add(&[Added::End]);
                });
                get(code, [first, second, third]);
            }
            Operator::MemoryInit { data_index, .. } => {
                set(code, [third, second, first]);
                self.memory_end(code, first, third);
                self.segment_end(code, &self.data_len, data_index, |bulk, code| {
                    bulk.trap_memory(code);
                });
                self.pieces(code, |code| {
                    self.upwards(code, &[first, second], &poll);
                });
                get(code, [first, second, third]);
            }
            Operator::TableGet { table } => {
                set(code, [first]);
                self.table_index(code, table);
                get(code, [first]);
            }
            Operator::TableSet { table } => {
                set(code, [self.reference, first]);
                self.table_index(code, table);
                get(code, [first, self.reference]);
            }
            Operator::TableFill { table } => {
                set(code, [third, self.reference, first]);
                self.table_end(code, table, first);
                get(code, [first, self.reference, third]);
            }
            Operator::TableCopy {
                dst_table,
                src_table,
            } => {
                set(code, [third, second, first]);
                self.table_end(code, dst_table, first);
                self.table_end(code, src_table, second);
                get(code, [first, second, third]);
            }
            Operator::TableInit { elem_index, table } => {
                set(code, [third, second, first]);
                self.table_end(code, table, first);
                self.segment_end(code, &self.element_len, elem_index, |bulk, code| {
                    bulk.trap_table(code, table);
                });
                get(code, [first, second, third]);
            }
            // Every other operator traps in machine code or not at all. (The foreign enum is not
            // exhaustive, and has hundreds of them.)
            _ => return false,
        }
        true
    }

    /// Puts what follows the operator: a dropped segment has no length any more.
    pub(super) fn after(&self, operator: &Operator<'_>, code: &mut Code<'_>) {
        let length = match operator {
            Operator::DataDrop { data_index } => self.data_len.get(data_index),
            Operator::ElemDrop { elem_index } => self.element_len.get(elem_index),
            // No other operator drops a segment.
            _ => None,
        };
        if let Some(global) = length {
            code.add(&[Added::I32Const(0)]);
            set(code, [*global]);
        }
    }

    /// Puts what follows `table.grow`: where it was refused, the table's bit in a global is set.
    pub(super) fn note_refusal(&self, code: &mut Code<'_>, table: u32, refused: u32) {
        let [result, ..] = self.operand;
        set(code, [result]);
        get(code, [result]);
        code.add(&[
            Added::I32Const(1),
            Added::I32Add,
            Added::I32Eqz,
            Added::If,
            Added::GlobalGet(refused),
            Added::I32Const(1_i32.checked_shl(table).unwrap_or(0)),
            Added::I32Or,
            Added::GlobalSet(refused),
            Added::End,
        ]);
        get(code, [result]);
    }

    /// Puts what is for lengths of more than one piece.
    fn pieces(&self, code: &mut Code<'_>, loops: impl FnOnce(&mut Code<'_>)) {
        self.is_more_than_a_piece(code);
        code.add(&[Added::If]);
        loops(code);
        code.add(&[Added::End]);
    }

    /// Leaves whether more than a piece is left.
    fn is_more_than_a_piece(&self, code: &mut Code<'_>) {
        get(code, [self.operand[2]]);
        code.add(&[Added::I32Const(PIECE_BYTES), Added::I32GtU]);
    }

    /// Pieces upwards, by moving the operands in `moving`, until one or less is left.
    fn upwards(&self, code: &mut Code<'_>, moving: &[u32], poll: &impl Fn(&mut Code<'_>)) {
        let [first, second, third] = self.operand;
        code.add(&[Added::Loop]);
        get(code, [first, second]);
        code.add(&[Added::I32Const(PIECE_BYTES)]);
        code.repeat();
        for global in moving {
            add(code, *global, PIECE_BYTES);
        }
        add(code, third, -PIECE_BYTES);
        poll(code);
        self.is_more_than_a_piece(code);
        code.add(&[Added::BrIf(0), Added::End]);
    }

    /// Pieces downwards: the last first, until one or less is left at the start.
    fn downwards(&self, code: &mut Code<'_>, poll: &impl Fn(&mut Code<'_>)) {
        let [first, second, third] = self.operand;
        code.add(&[Added::Loop]);
        add(code, third, -PIECE_BYTES);
        for start in [first, second] {
            get(code, [start, third]);
            code.add(&[Added::I32Add]);
        }
        code.add(&[Added::I32Const(PIECE_BYTES)]);
        code.repeat();
        poll(code);
        self.is_more_than_a_piece(code);
        code.add(&[Added::BrIf(0), Added::End]);
    }

    /// Traps unless `start + length` is within the memory: looks at the last byte of the range,
    /// or the one before an empty range, and lets the memory's own guard decide.
    fn memory_end(&self, code: &mut Code<'_>, start: u32, length: u32) {
        let end = Added::GlobalGet(self.end);
        self.sum(code, start, length);
        code.add(&[
            Added::GlobalSet(self.end),
            end,
            Added::I64Eqz,
            Added::I32Eqz,
            Added::If,
            end,
            Added::I64Const(1 << 32),
            Added::I64GtU,
            Added::If,
        ]);
        self.trap_memory(code);
        code.add(&[
            Added::End,
            end,
            Added::I32WrapI64,
            Added::I32Const(1),
            Added::I32Sub,
            Added::I32Load8U { offset: 0 },
            Added::Drop,
            Added::End,
        ]);
    }

    /// Traps unless `second + third` is within the segment.
    fn segment_end(
        &self,
        code: &mut Code<'_>,
        lengths: &BTreeMap<u32, u32>,
        segment: u32,
        trap: impl Fn(&Bulk, &mut Code<'_>),
    ) {
        self.sum(code, self.operand[1], self.operand[2]);
        match lengths.get(&segment) {
            Some(global) => code.add(&[Added::GlobalGet(*global)]),
            // A segment that is not passive was dropped by instantiation.
            None => code.add(&[Added::I32Const(0)]),
        }
        code.add(&[Added::I64ExtendI32U, Added::I64GtU, Added::If]);
        trap(self, code);
        code.add(&[Added::End]);
    }

    /// Traps unless the first operand is an index of the table.
    fn table_index(&self, code: &mut Code<'_>, table: u32) {
        get(code, [self.operand[0]]);
        code.add(&[Added::TableSize(table), Added::I32GeU, Added::If]);
        self.trap_table(code, table);
        code.add(&[Added::End]);
    }

    /// Traps unless `start + third` is within the table.
    fn table_end(&self, code: &mut Code<'_>, table: u32, start: u32) {
        self.sum(code, start, self.operand[2]);
        code.add(&[
            Added::TableSize(table),
            Added::I64ExtendI32U,
            Added::I64GtU,
            Added::If,
        ]);
        self.trap_table(code, table);
        code.add(&[Added::End]);
    }

    /// Leaves the sum of two `i32` as an `i64`, so that it can't wrap around.
    fn sum(&self, code: &mut Code<'_>, left: u32, right: u32) {
        code.add(&[
            Added::GlobalGet(left),
            Added::I64ExtendI32U,
            Added::GlobalGet(right),
            Added::I64ExtendI32U,
            Added::I64Add,
        ]);
    }

    /// Traps with "out of bounds memory access": no memory reaches 8 GiB.
    fn trap_memory(&self, code: &mut Code<'_>) {
        code.add(&[
            Added::I32Const(-1),
            Added::I32Load8U { offset: u32::MAX },
            Added::Drop,
        ]);
    }

    /// Traps with "out of bounds table access": no table has so many elements.
    fn trap_table(&self, code: &mut Code<'_>, table: u32) {
        code.add(&[
            Added::I32Const(-1),
            Added::CallIndirect {
                type_index: self.nullary_type,
                table,
            },
        ]);
    }
}

fn length_globals(
    info: &mut ModuleInfo,
    lengths: Vec<(u32, usize)>,
) -> Result<BTreeMap<u32, u32>, MiddlewareError> {
    let mut globals = BTreeMap::new();
    for (segment, length) in lengths {
        let length = i32::try_from(length)
            .map_err(|_| MiddlewareError::new("instrument", "a segment is too long"))?;
        globals.insert(
            segment,
            hidden_global(info, Type::I32, GlobalInit::I32Const(length)),
        );
    }
    Ok(globals)
}

/// Takes operands off the stack, the topmost first.
fn set<const N: usize>(code: &mut Code<'_>, globals: [u32; N]) {
    code.add(&globals.map(Added::GlobalSet));
}

fn add(code: &mut Code<'_>, global: u32, value: i32) {
    get(code, [global]);
    code.add(&[Added::I32Const(value), Added::I32Add]);
    set(code, [global]);
}

fn get<const N: usize>(code: &mut Code<'_>, globals: [u32; N]) {
    code.add(&globals.map(Added::GlobalGet));
}
