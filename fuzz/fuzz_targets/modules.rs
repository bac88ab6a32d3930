//! Valid modules of random code, which the compilers must agree about.

#![no_main]

use libfuzzer_sys::arbitrary::Unstructured;
use libfuzzer_sys::{Corpus, fuzz_target};
use wasm_wizard::sandbox::{End, Preparation};

fuzz_target!(
    init: wasm_wizard_fuzz::init(),
    |entropy: &[u8]| -> Corpus {
        let Ok(wasm) = wasm_wizard_fuzz::module(&mut Unstructured::new(entropy)) else {
            return Corpus::Reject;
        };
        let [fast, best] = [Preparation::Fast, Preparation::Optimised]
            .map(|preparation| wasm_wizard_fuzz::upload_and_run(&wasm, preparation));
        if let (Some(fast), Some(best)) = (fast, best) {
            // How deep the stack is depends on the frames, and how far a guest comes on the time.
            let may_differ = |end: &End| matches!(end, End::TimeLimit | End::StackLimit);
            if !may_differ(&fast.end) && !may_differ(&best.end) {
                assert_eq!(fast.end, best.end);
                assert!(fast.stdout == best.stdout, "the output differs");
                assert_eq!(fast.usage.memory_peak_bytes, best.usage.memory_peak_bytes);
            }
        }
        Corpus::Keep
    }
);
