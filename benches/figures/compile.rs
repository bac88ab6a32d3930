//! Never-seen modules: from bytes to ready.

use std::hint::black_box;
use std::num::NonZero;
use std::time::Instant;

use bytes::Bytes;
use wasmer::sys::{Cranelift, EngineBuilder};
use wasmer::{Engine, Module};
use wasmer_compiler_singlepass::Singlepass;

use super::support;
use super::support::report::Samples;

/// The whole way through the compile worker, for three modules of the same size: nearly all data,
/// half and half, nearly all code. Then the compilers by themselves, one thread each.
pub fn never_seen(count: u64) {
    let sandbox = support::sandbox(8);
    let runtime = support::runtime();
    for name in ["echo", "report", "code"] {
        let wasm = support::guest(name);
        for (turn, (way, preparation)) in (0..).zip(support::WAYS) {
            let times = (0..count).map(|number| {
                let number = number | turn << 24 | u64::from(std::process::id()) << 32;
                let wasm = support::never_seen(&wasm, number);
                let begun = Instant::now();
                runtime
                    .block_on(sandbox.prepare(wasm, *preparation))
                    .expect("a module that compiles");
                begun.elapsed()
            });
            Samples::new(times.collect()).print_ms(&format!("prepare {name} {way}"));
        }
        compilers(name, &wasm, count.min(10));
    }
}

fn compilers(name: &str, wasm: &Bytes, count: u64) {
    let mut cranelift = Cranelift::new();
    cranelift.num_threads(NonZero::<usize>::MIN);
    let cranelift: Engine = EngineBuilder::new(cranelift).engine().into();
    let mut singlepass = Singlepass::new();
    singlepass.num_threads(NonZero::<usize>::MIN);
    let singlepass: Engine = EngineBuilder::new(singlepass).engine().into();
    for (compiler, engine) in [("cranelift", &cranelift), ("singlepass", &singlepass)] {
        let times = (0..count).map(|_| {
            let begun = Instant::now();
            black_box(Module::new(engine, wasm).expect("a module that compiles"));
            begun.elapsed()
        });
        Samples::new(times.collect()).print_ms(&format!("compile {name} {compiler}"));
    }
}
