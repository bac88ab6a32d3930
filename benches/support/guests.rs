//! The guests of the benchmarks, as modules.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;

/// The guests' modules, built where that has not been done.
pub fn guests() -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-guests");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench_guests.sh");
    let status = Command::new(script).arg(&out).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "scripts/bench_guests.sh has failed"
    );
    out
}

/// A guest's module in binary form.
pub fn guest(name: &str) -> Bytes {
    let dir = guests();
    let wasm = dir.join(format!("{name}.wasm"));
    let bytes = if wasm.exists() {
        std::fs::read(&wasm).expect("a guest that can be read")
    } else {
        wat::parse_file(dir.join(format!("{name}.wat"))).expect("a guest in valid text")
    };
    bytes.into()
}

/// The module with a custom section more, so that no cache knows it.
pub fn never_seen(wasm: &Bytes, number: u64) -> Bytes {
    // Id 0, the section's size, the name's size, the name, and what makes it new.
    let mut bytes = wasm.to_vec();
    bytes.extend_from_slice(&[0, 13, 4]);
    bytes.extend_from_slice(b"seen");
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.into()
}
