//! `wasm-wizard`: see `wasm-wizard --help`, or `README.md` for the tour.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: wasm_wizard::sandbox::Allocator = wasm_wizard::sandbox::Allocator;

fn main() -> ExitCode {
    wasm_wizard::cli::main(std::env::args_os())
}
