//! Bytes as a client sends them: text, binary, or neither.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use wasm_wizard::sandbox::Preparation;

fuzz_target!(
    init: wasm_wizard_fuzz::init(),
    |bytes: &[u8]| -> Corpus {
        // Most bytes never come as far as to a compiler, so what does is compiled the quick way.
        wasm_wizard_fuzz::upload_and_run(bytes, Preparation::Fast);
        Corpus::Keep
    }
);
