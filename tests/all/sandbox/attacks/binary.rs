//! Modules byte by byte, for what no tool would write.

/// Section numbers (WebAssembly core specification, section 5.5.2).
pub const TYPE: u8 = 1;
pub const FUNCTION: u8 = 3;
pub const MEMORY: u8 = 5;
pub const EXPORT: u8 = 7;
pub const CODE: u8 = 10;
pub const DATA: u8 = 11;
pub const DATA_COUNT: u8 = 12;

pub const HEADER: &[u8] = b"\0asm\x01\0\0\0";

/// 2³²−1 in LEB128.
pub const FOUR_GIB: [u8; 5] = [0xff, 0xff, 0xff, 0xff, 0x0f];

/// The operator that ends a body.
pub const END: u8 = 0x0b;

/// A module from the contents of its sections.
pub fn binary(sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = HEADER.to_vec();
    for (id, content) in sections {
        bytes.push(*id);
        leb(&mut bytes, content.len());
        bytes.extend_from_slice(content);
    }
    bytes
}

/// A command whose `_start` has this body, locals first, without its size; `before` are sections
/// between the types and the exports, `after` follow the code.
pub fn command(before: &[(u8, Vec<u8>)], start: &[u8], after: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut sections = vec![(TYPE, vec![1, 0x60, 0, 0]), (FUNCTION, vec![1, 0])];
    sections.extend_from_slice(before);
    sections.push((EXPORT, b"\x01\x06_start\x00\x00".to_vec()));
    let mut code = vec![1];
    leb(&mut code, start.len());
    code.extend_from_slice(start);
    // The count of data segments stands before the code, the segments after it.
    sections.extend(after.iter().filter(|(id, _)| *id == DATA_COUNT).cloned());
    sections.push((CODE, code));
    sections.extend(after.iter().filter(|(id, _)| *id != DATA_COUNT).cloned());
    binary(&sections)
}

pub fn leb(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A vector: its length, then the item that often.
pub fn repeated(count: usize, item: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    leb(&mut bytes, count);
    bytes.extend(item.repeat(count));
    bytes
}
