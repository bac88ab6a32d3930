//! A function's body as bytes, with what is added to it.

/// What may be added: the operators that the checks and polls are made of. They are encoded as in the
/// core specification, section 5.4.
#[derive(Debug, Clone, Copy)]
pub(super) enum Added {
    Unreachable,
    /// Blocks here take nothing and leave nothing.
    Loop,
    If,
    Else,
    End,
    BrIf(u32),
    CallIndirect {
        type_index: u32,
        table: u32,
    },
    Drop,
    GlobalGet(u32),
    GlobalSet(u32),
    /// One byte, from an address of any alignment.
    I32Load8U {
        offset: u32,
    },
    TableSize(u32),
    I32Const(i32),
    I64Const(i64),
    I32Eqz,
    I32GtU,
    I32GeU,
    I32Add,
    I32Sub,
    I32Or,
    I64Eqz,
    I64LtS,
    I64GtU,
    I64Add,
    I32WrapI64,
    I64ExtendI32U,
}

/// A body that is being gone through. What is not concerned is copied as it is, in one piece from one
/// addition to the next; where nothing is added, nothing is copied.
pub(super) struct Code<'a> {
    body: &'a [u8],
    /// The operator at hand.
    operator: &'a [u8],
    /// Where additions go: before the operator or behind it.
    at: usize,
    /// So much of the body is in `bytes`.
    copied: usize,
    bytes: Vec<u8>,
}

impl<'a> Code<'a> {
    pub(super) fn new(body: &'a [u8]) -> Code<'a> {
        Code {
            body,
            operator: &[],
            at: 0,
            copied: 0,
            bytes: Vec::new(),
        }
    }

    /// Comes to the operator in `start..end`; additions go before it.
    pub(super) fn before(&mut self, start: usize, end: usize) {
        self.operator = self.body.get(start..end).unwrap_or_default();
        self.at = start;
    }

    /// From now on, additions go behind the operator.
    pub(super) fn behind(&mut self) {
        self.at += self.operator.len();
    }

    pub(super) fn add(&mut self, operators: &[Added]) {
        self.copy_up();
        for operator in operators {
            operator.encode(&mut self.bytes);
        }
    }

    /// Adds the operator at hand once more.
    pub(super) fn repeat(&mut self) {
        self.copy_up();
        self.bytes.extend_from_slice(self.operator);
    }

    /// The whole body, if it is not the same as before.
    pub(super) fn finish(mut self) -> Option<Vec<u8>> {
        if self.bytes.is_empty() {
            return None;
        }
        self.at = self.body.len();
        self.copy_up();
        Some(self.bytes)
    }

    fn copy_up(&mut self) {
        if self.bytes.is_empty() {
            // A poll takes a dozen bytes, and most functions that have one have few.
            self.bytes
                .reserve(self.body.len() + self.body.len() / 4 + 64);
        }
        let unchanged = self.body.get(self.copied..self.at).unwrap_or_default();
        self.bytes.extend_from_slice(unchanged);
        self.copied = self.at;
    }
}

impl Added {
    fn encode(self, bytes: &mut Vec<u8>) {
        /// The type of a block that takes nothing and leaves nothing.
        const EMPTY: u8 = 0x40;
        match self {
            Added::Unreachable => bytes.push(0x00),
            Added::Loop => bytes.extend([0x03, EMPTY]),
            Added::If => bytes.extend([0x04, EMPTY]),
            Added::Else => bytes.push(0x05),
            Added::End => bytes.push(0x0b),
            Added::BrIf(depth) => with_index(bytes, 0x0d, depth),
            Added::CallIndirect { type_index, table } => {
                with_index(bytes, 0x11, type_index);
                unsigned(bytes, table);
            }
            Added::Drop => bytes.push(0x1a),
            Added::GlobalGet(index) => with_index(bytes, 0x23, index),
            Added::GlobalSet(index) => with_index(bytes, 0x24, index),
            Added::I32Load8U { offset } => {
                bytes.extend([0x2d, 0]);
                unsigned(bytes, offset);
            }
            Added::TableSize(table) => {
                bytes.push(0xfc);
                with_index(bytes, 16, table);
            }
            Added::I32Const(value) => {
                bytes.push(0x41);
                signed(bytes, i64::from(value));
            }
            Added::I64Const(value) => {
                bytes.push(0x42);
                signed(bytes, value);
            }
            Added::I32Eqz => bytes.push(0x45),
            Added::I32GtU => bytes.push(0x4b),
            Added::I32GeU => bytes.push(0x4f),
            Added::I32Add => bytes.push(0x6a),
            Added::I32Sub => bytes.push(0x6b),
            Added::I32Or => bytes.push(0x72),
            Added::I64Eqz => bytes.push(0x50),
            Added::I64LtS => bytes.push(0x53),
            Added::I64GtU => bytes.push(0x56),
            Added::I64Add => bytes.push(0x7c),
            Added::I32WrapI64 => bytes.push(0xa7),
            Added::I64ExtendI32U => bytes.push(0xad),
        }
    }
}

fn with_index(bytes: &mut Vec<u8>, operator: u8, index: u32) {
    bytes.push(operator);
    unsigned(bytes, index);
}

/// LEB128 (core specification, section 5.2.2).
fn unsigned(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn signed(bytes: &mut Vec<u8>, mut value: i64) {
    loop {
        let low = value as u8 & 0x7f;
        value >>= 7;
        // The last byte's highest bit of value is the sign.
        if (value == 0 && low & 0x40 == 0) || (value == -1 && low & 0x40 != 0) {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use wasmer::sys::wasmparser::{BinaryReader, BlockType, Operator, OperatorsReader};

    use super::*;

    fn decoded(added: Added) -> String {
        let mut bytes = Vec::new();
        // Where the parser knows an operator only in its place, it stands there.
        if matches!(added, Added::Else) {
            Added::If.encode(&mut bytes);
        }
        let before = bytes.len();
        added.encode(&mut bytes);
        let mut reader = OperatorsReader::new(BinaryReader::new(&bytes, 0));
        if before > 0 {
            reader.read().unwrap();
        }
        let operator: Operator<'_> = reader.read().unwrap();
        assert!(reader.eof(), "{added:?}");
        format!("{operator:?}")
    }

    /// What the parser reads is what was meant.
    #[test]
    fn operators_survive_the_encoding() {
        let empty = BlockType::Empty;
        let same = |added: Added, operator: Operator<'_>| {
            assert_eq!(decoded(added), format!("{operator:?}"));
        };
        same(Added::Unreachable, Operator::Unreachable);
        same(Added::Loop, Operator::Loop { blockty: empty });
        same(Added::If, Operator::If { blockty: empty });
        same(Added::Else, Operator::Else);
        same(Added::End, Operator::End);
        same(Added::Drop, Operator::Drop);
        same(Added::I32Eqz, Operator::I32Eqz);
        same(Added::I32GtU, Operator::I32GtU);
        same(Added::I32GeU, Operator::I32GeU);
        same(Added::I32Add, Operator::I32Add);
        same(Added::I32Sub, Operator::I32Sub);
        same(Added::I32Or, Operator::I32Or);
        same(Added::I64Eqz, Operator::I64Eqz);
        same(Added::I64LtS, Operator::I64LtS);
        same(Added::I64GtU, Operator::I64GtU);
        same(Added::I64Add, Operator::I64Add);
        same(Added::I32WrapI64, Operator::I32WrapI64);
        same(Added::I64ExtendI32U, Operator::I64ExtendI32U);
        for index in [0, 1, 127, 128, 16_383, 16_384, u32::MAX] {
            let relative_depth = index;
            same(Added::BrIf(index), Operator::BrIf { relative_depth });
            let global_index = index;
            same(
                Added::GlobalGet(index),
                Operator::GlobalGet { global_index },
            );
            same(
                Added::GlobalSet(index),
                Operator::GlobalSet { global_index },
            );
            same(
                Added::TableSize(index),
                Operator::TableSize { table: index },
            );
            let (type_index, table_index) = (index, index / 3);
            same(
                Added::CallIndirect {
                    type_index,
                    table: table_index,
                },
                Operator::CallIndirect {
                    type_index,
                    table_index,
                },
            );
            let loaded = decoded(Added::I32Load8U { offset: index });
            assert!(loaded.starts_with("I32Load8U"), "{loaded}");
            assert!(loaded.contains(&format!("offset: {index},")), "{loaded}");
        }
        for value in [0, 1, -1, 63, 64, -64, -65, 8191, 8192, i32::MAX, i32::MIN] {
            same(Added::I32Const(value), Operator::I32Const { value });
            let value = i64::from(value) << 31;
            same(Added::I64Const(value), Operator::I64Const { value });
        }
    }

    #[test]
    fn what_is_not_concerned_stays_as_it_is() {
        let body = [0, 0x01, 0x41, 5, 0x1a, 0x0b];
        let mut code = Code::new(&body);
        code.before(1, 2);
        code.behind();
        assert_eq!(code.finish(), None);

        let mut code = Code::new(&body);
        code.before(1, 2);
        code.add(&[Added::Unreachable]);
        code.behind();
        code.before(2, 4);
        code.behind();
        code.repeat();
        code.add(&[Added::Drop]);
        code.before(4, 5);
        code.behind();
        let expected = [0, 0x00, 0x01, 0x41, 5, 0x41, 5, 0x1a, 0x1a, 0x0b];
        assert_eq!(code.finish().unwrap(), expected);
    }
}
