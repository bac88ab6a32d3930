//! The migrations are built into the program: a new file among them must rebuild it. And compiled
//! modules on disk are of use only to the sandbox that made them: a fingerprint of its sources tells
//! one from another.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=src/sandbox");
    println!("cargo:rerun-if-changed=Cargo.lock");
    let root = env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?;
    let mut fingerprint = Fnv(0xcbf2_9ce4_8422_2325);
    fingerprint.add_all(&Path::new(&root).join("src/sandbox"))?;
    // The exact versions of the compilers. A package without it has no other way to build either.
    if let Ok(lock) = fs::read(Path::new(&root).join("Cargo.lock")) {
        fingerprint.add(&lock);
    }
    println!("cargo:rustc-env=SANDBOX_FINGERPRINT={:016x}", fingerprint.0);
    Ok(())
}

/// FNV-1a (draft-eastlake-fnv): the sources are ours, so nobody looks for a collision.
struct Fnv(u64);

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Every file below a folder, in the order of their names.
    fn add_all(&mut self, folder: &Path) -> io::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.add(entry.file_name().as_encoded_bytes());
            if entry.file_type()?.is_dir() {
                self.add_all(&entry.path())?;
            } else {
                self.add(&fs::read(entry.path())?);
            }
        }
        Ok(())
    }
}
