//! `wasm-wizard`: see `wasm-wizard --help`, or `README.md` for the tour.

use std::process::ExitCode;

fn main() -> ExitCode {
    wasm_wizard::cli::main(std::env::args_os())
}
