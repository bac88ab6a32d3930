//! Bounds of bulk memory and table operators, checked in the guest's own code; and large ones of
//! memory cut into pieces, between which the guest can be stopped.

use std::collections::BTreeMap;

use wasmer::sys::wasmparser::{BlockType, MemArg, Operator};
use wasmer::sys::{MiddlewareError, MiddlewareReaderState};
use wasmer::{GlobalInit, Type};
use wasmer_types::ModuleInfo;

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
    pub(super) fn check<'a>(
        &self,
        operator: &Operator<'a>,
        state: &mut MiddlewareReaderState<'a>,
        poll: impl Fn(&mut MiddlewareReaderState<'a>),
    ) -> Result<bool, MiddlewareError> {
        let [first, second, third] = self.operand;
        match *operator {
            Operator::MemoryFill { .. } => {
                set(state, [third, second, first]);
                self.memory_end(state, first, third);
                self.pieces(state, |state| {
                    self.upwards(state, operator, &[first], &poll);
                });
                get(state, [first, second, third]);
            }
            Operator::MemoryCopy { .. } => {
                set(state, [third, second, first]);
                self.memory_end(state, first, third);
                self.memory_end(state, second, third);
                self.pieces(state, |state| {
                    // As with C's memmove: what is read later must not be written before.
                    get(state, [first, second]);
                    state.extend(&[
                        Operator::I32GtU,
                        Operator::If {
                            blockty: BlockType::Empty,
                        },
                    ]);
                    self.downwards(state, operator, &poll);
                    state.extend(&[Operator::Else]);
                    self.upwards(state, operator, &[first, second], &poll);
                    state.extend(&[Operator::End]);
                });
                get(state, [first, second, third]);
            }
            Operator::MemoryInit { data_index, .. } => {
                set(state, [third, second, first]);
                self.memory_end(state, first, third);
                self.segment_end(state, &self.data_len, data_index, |bulk, state| {
                    bulk.trap_memory(state);
                });
                self.pieces(state, |state| {
                    self.upwards(state, operator, &[first, second], &poll);
                });
                get(state, [first, second, third]);
            }
            Operator::TableGet { table } => {
                set(state, [first]);
                self.table_index(state, table);
                get(state, [first]);
            }
            Operator::TableSet { table } => {
                set(state, [self.reference, first]);
                self.table_index(state, table);
                get(state, [first, self.reference]);
            }
            Operator::TableFill { table } => {
                set(state, [third, self.reference, first]);
                self.table_end(state, table, first);
                get(state, [first, self.reference, third]);
            }
            Operator::TableCopy {
                dst_table,
                src_table,
            } => {
                set(state, [third, second, first]);
                self.table_end(state, dst_table, first);
                self.table_end(state, src_table, second);
                get(state, [first, second, third]);
            }
            Operator::TableInit { elem_index, table } => {
                set(state, [third, second, first]);
                self.table_end(state, table, first);
                self.segment_end(state, &self.element_len, elem_index, |bulk, state| {
                    bulk.trap_table(state, table);
                });
                get(state, [first, second, third]);
            }
            // Every other operator traps in machine code or not at all. (The foreign enum is not
            // exhaustive, and has hundreds of them.)
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Puts what follows the operator: a dropped segment has no length any more.
    pub(super) fn after(&self, operator: &Operator<'_>, state: &mut MiddlewareReaderState<'_>) {
        let length = match operator {
            Operator::DataDrop { data_index } => self.data_len.get(data_index),
            Operator::ElemDrop { elem_index } => self.element_len.get(elem_index),
            // No other operator drops a segment.
            _ => None,
        };
        if let Some(global) = length {
            state.extend(&[Operator::I32Const { value: 0 }]);
            set(state, [*global]);
        }
    }

    /// Puts what is for lengths of more than one piece.
    fn pieces<'a>(
        &self,
        state: &mut MiddlewareReaderState<'a>,
        loops: impl FnOnce(&mut MiddlewareReaderState<'a>),
    ) {
        self.is_more_than_a_piece(state);
        state.extend(&[Operator::If {
            blockty: BlockType::Empty,
        }]);
        loops(state);
        state.extend(&[Operator::End]);
    }

    /// Leaves whether more than a piece is left.
    fn is_more_than_a_piece(&self, state: &mut MiddlewareReaderState<'_>) {
        get(state, [self.operand[2]]);
        state.extend(&[Operator::I32Const { value: PIECE_BYTES }, Operator::I32GtU]);
    }

    /// Pieces upwards, by moving the operands in `moving`, until one or less is left.
    fn upwards<'a>(
        &self,
        state: &mut MiddlewareReaderState<'a>,
        operator: &Operator<'a>,
        moving: &[u32],
        poll: &impl Fn(&mut MiddlewareReaderState<'a>),
    ) {
        let [first, second, third] = self.operand;
        state.extend(&[Operator::Loop {
            blockty: BlockType::Empty,
        }]);
        get(state, [first, second]);
        state.extend(&[Operator::I32Const { value: PIECE_BYTES }, operator.clone()]);
        for global in moving {
            add(state, *global, PIECE_BYTES);
        }
        add(state, third, -PIECE_BYTES);
        poll(state);
        self.is_more_than_a_piece(state);
        state.extend(&[Operator::BrIf { relative_depth: 0 }, Operator::End]);
    }

    /// Pieces downwards: the last first, until one or less is left at the start.
    fn downwards<'a>(
        &self,
        state: &mut MiddlewareReaderState<'a>,
        operator: &Operator<'a>,
        poll: &impl Fn(&mut MiddlewareReaderState<'a>),
    ) {
        let [first, second, third] = self.operand;
        state.extend(&[Operator::Loop {
            blockty: BlockType::Empty,
        }]);
        add(state, third, -PIECE_BYTES);
        for start in [first, second] {
            get(state, [start, third]);
            state.extend(&[Operator::I32Add]);
        }
        state.extend(&[Operator::I32Const { value: PIECE_BYTES }, operator.clone()]);
        poll(state);
        self.is_more_than_a_piece(state);
        state.extend(&[Operator::BrIf { relative_depth: 0 }, Operator::End]);
    }

    /// Traps unless `start + length` is within the memory: looks at the last byte of the range,
    /// or the one before an empty range, and lets the memory's own guard decide.
    fn memory_end(&self, state: &mut MiddlewareReaderState<'_>, start: u32, length: u32) {
        let end = Operator::GlobalGet {
            global_index: self.end,
        };
        self.sum(state, start, length);
        state.extend(&[
            Operator::GlobalSet {
                global_index: self.end,
            },
            end.clone(),
            Operator::I64Eqz,
            Operator::I32Eqz,
            Operator::If {
                blockty: BlockType::Empty,
            },
            end.clone(),
            Operator::I64Const { value: 1 << 32 },
            Operator::I64GtU,
            Operator::If {
                blockty: BlockType::Empty,
            },
        ]);
        self.trap_memory(state);
        state.extend(&[
            Operator::End,
            end,
            Operator::I32WrapI64,
            Operator::I32Const { value: 1 },
            Operator::I32Sub,
            Operator::I32Load8U { memarg: at(0) },
            Operator::Drop,
            Operator::End,
        ]);
    }

    /// Traps unless `second + third` is within the segment.
    fn segment_end(
        &self,
        state: &mut MiddlewareReaderState<'_>,
        lengths: &BTreeMap<u32, u32>,
        segment: u32,
        trap: impl Fn(&Bulk, &mut MiddlewareReaderState<'_>),
    ) {
        self.sum(state, self.operand[1], self.operand[2]);
        match lengths.get(&segment) {
            Some(global) => state.extend(&[Operator::GlobalGet {
                global_index: *global,
            }]),
            // A segment that is not passive was dropped by instantiation.
            None => state.extend(&[Operator::I32Const { value: 0 }]),
        }
        state.extend(&[
            Operator::I64ExtendI32U,
            Operator::I64GtU,
            Operator::If {
                blockty: BlockType::Empty,
            },
        ]);
        trap(self, state);
        state.extend(&[Operator::End]);
    }

    /// Traps unless the first operand is an index of the table.
    fn table_index(&self, state: &mut MiddlewareReaderState<'_>, table: u32) {
        get(state, [self.operand[0]]);
        state.extend(&[
            Operator::TableSize { table },
            Operator::I32GeU,
            Operator::If {
                blockty: BlockType::Empty,
            },
        ]);
        self.trap_table(state, table);
        state.extend(&[Operator::End]);
    }

    /// Traps unless `start + third` is within the table.
    fn table_end(&self, state: &mut MiddlewareReaderState<'_>, table: u32, start: u32) {
        self.sum(state, start, self.operand[2]);
        state.extend(&[
            Operator::TableSize { table },
            Operator::I64ExtendI32U,
            Operator::I64GtU,
            Operator::If {
                blockty: BlockType::Empty,
            },
        ]);
        self.trap_table(state, table);
        state.extend(&[Operator::End]);
    }

    /// Leaves the sum of two `i32` as an `i64`, so that it can't wrap around.
    fn sum(&self, state: &mut MiddlewareReaderState<'_>, left: u32, right: u32) {
        state.extend(&[
            Operator::GlobalGet { global_index: left },
            Operator::I64ExtendI32U,
            Operator::GlobalGet {
                global_index: right,
            },
            Operator::I64ExtendI32U,
            Operator::I64Add,
        ]);
    }

    /// Traps with "out of bounds memory access": no memory reaches 8 GiB.
    fn trap_memory(&self, state: &mut MiddlewareReaderState<'_>) {
        state.extend(&[
            Operator::I32Const { value: -1 },
            Operator::I32Load8U {
                memarg: at(u64::from(u32::MAX)),
            },
            Operator::Drop,
        ]);
    }

    /// Traps with "out of bounds table access": no table has so many elements.
    fn trap_table(&self, state: &mut MiddlewareReaderState<'_>, table: u32) {
        state.extend(&[
            Operator::I32Const { value: -1 },
            Operator::CallIndirect {
                type_index: self.nullary_type,
                table_index: table,
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
fn set<const N: usize>(state: &mut MiddlewareReaderState<'_>, globals: [u32; N]) {
    state.extend(&globals.map(|global_index| Operator::GlobalSet { global_index }));
}

fn add(state: &mut MiddlewareReaderState<'_>, global: u32, value: i32) {
    get(state, [global]);
    state.extend(&[Operator::I32Const { value }, Operator::I32Add]);
    set(state, [global]);
}

fn get<const N: usize>(state: &mut MiddlewareReaderState<'_>, globals: [u32; N]) {
    state.extend(&globals.map(|global_index| Operator::GlobalGet { global_index }));
}

fn at(offset: u64) -> MemArg {
    MemArg {
        align: 0,
        max_align: 0,
        offset,
        memory: 0,
    }
}
