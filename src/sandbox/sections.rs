//! Modules taken apart into their sections and put together with something added, for tests.

use wasmer::sys::wasmparser::Parser;

pub(super) const TYPE: u8 = 1;
pub(super) const FUNCTION: u8 = 3;
pub(super) const EXPORT: u8 = 7;
pub(super) const CODE: u8 = 10;

/// The order of sections in a module (core specification, section 5.5.16): the count of data
/// segments stands before the code.
const ORDER: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11];

/// The sections of a valid module, without custom ones.
pub(super) struct Sections(Vec<(u8, Vec<u8>)>);

impl Sections {
    pub(super) fn of(wasm: &[u8]) -> Sections {
        let mut sections = Vec::new();
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload.expect("a valid module");
            if let Some((id, range)) = payload.as_section()
                && id != 0
            {
                let range = range.start as usize..range.end as usize;
                sections.push((id, wasm[range].to_vec()));
            }
        }
        Sections(sections)
    }

    /// Appends a function that takes and returns nothing, from its locals on; returns its index among
    /// the module's own functions.
    pub(super) fn add_function(&mut self, body: &[u8]) -> usize {
        let mut ty = Vec::new();
        leb(&mut ty, self.append(TYPE, &[0x60, 0, 0]));
        let mut sized = Vec::new();
        leb(&mut sized, body.len());
        sized.extend_from_slice(body);
        self.append(CODE, &sized);
        self.append(FUNCTION, &ty)
    }

    /// Appends an item to a section that is a vector; returns the item's index.
    pub(super) fn append(&mut self, id: u8, item: &[u8]) -> usize {
        let content = self.section(id);
        let (mut count, mut at) = (0, 0);
        loop {
            count |= usize::from(content[at] & 0x7f) << (7 * at);
            at += 1;
            if content[at - 1] < 0x80 {
                break;
            }
        }
        let mut longer = Vec::new();
        leb(&mut longer, count + 1);
        longer.extend_from_slice(&content[at..]);
        longer.extend_from_slice(item);
        *content = longer;
        count
    }

    /// Puts a section in the place of another, or of none.
    pub(super) fn replace(&mut self, id: u8, content: Vec<u8>) {
        *self.section(id) = content;
    }

    /// A section, made as an empty vector if there is none.
    fn section(&mut self, id: u8) -> &mut Vec<u8> {
        let rank = |id: u8| ORDER.iter().position(|other| *other == id);
        let sections = &mut self.0;
        let at = sections
            .iter()
            .position(|(other, _)| rank(*other) >= rank(id))
            .unwrap_or(sections.len());
        if sections.get(at).is_none_or(|(other, _)| *other != id) {
            sections.insert(at, (id, vec![0]));
        }
        &mut sections[at].1
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        let mut bytes = b"\0asm\x01\0\0\0".to_vec();
        for (id, content) in self.0 {
            bytes.push(id);
            leb(&mut bytes, content.len());
            bytes.extend(content);
        }
        bytes
    }
}

pub(super) fn leb(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}
