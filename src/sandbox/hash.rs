//! A module's identity.

use std::fmt;

use sha2::{Digest, Sha256};

/// SHA-256 of a module's bytes: its identity. Displays as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleHash(pub [u8; 32]);

impl ModuleHash {
    /// The identity of these bytes (WebAssembly binary, as stored).
    pub fn of(wasm: &[u8]) -> ModuleHash {
        ModuleHash(Sha256::digest(wasm).into())
    }

    /// Reads what it displays, in either case.
    pub fn parse(text: &str) -> Option<ModuleHash> {
        let mut bytes = [0; 32];
        let is_whole = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digits = text.as_bytes().chunks_exact(2);
        for (byte, pair) in bytes.iter_mut().zip(digits).filter(|_| is_whole) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        is_whole.then_some(ModuleHash(bytes))
    }
}

impl fmt::Display for ModuleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ModuleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModuleHash({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::ModuleHash;

    #[test]
    fn it_is_sha_256_in_lower_case_hexadecimal() {
        assert_eq!(
            ModuleHash::of(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            ModuleHash::of(b"").to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        for bytes in [b"abc".as_slice(), b""] {
            let hash = ModuleHash::of(bytes);
            let text = hash.to_string();
            assert_eq!(ModuleHash::parse(&text), Some(hash));
            assert_eq!(ModuleHash::parse(&text.to_uppercase()), Some(hash));
            assert_eq!(ModuleHash::parse(&text[1..]), None);
            assert_eq!(ModuleHash::parse(&format!("+{}", &text[1..])), None);
            assert_eq!(ModuleHash::parse(&format!("{text}0")), None);
        }
        assert!(format!("{:?}", ModuleHash::of(b"")).starts_with("ModuleHash(e3b0"));
    }
}
