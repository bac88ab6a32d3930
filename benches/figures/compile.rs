//! Never-seen modules: from bytes to ready.

use std::hint::black_box;
use std::num::NonZero;
use std::time::Instant;

use bytes::Bytes;
use wasmer::sys::{Cranelift, EngineBuilder};
use wasmer::{Engine, Module};
use wasmer_compiler_singlepass::Singlepass;

use super::support;
use super::support::report::{Samples, figure};

/// The whole way through the compile worker, for three modules of the same size: nearly all data,
/// half and half, nearly all code. Then the compilers by themselves, one thread each.
pub fn never_seen(count: u64) {
    let sandbox = support::sandbox(8);
    let runtime = support::runtime();
    for name in ["echo", "report", "code"] {
        let wasm = support::guest(name);
        for (turn, (way, preparation)) in (0..).zip(support::WAYS) {
            let before = workers_cpu_ms();
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
            let each = (workers_cpu_ms() - before) / count as f64;
            figure(&format!("prepare {name} {way} worker cpu"), each, "ms");
        }
        compilers(name, &wasm, count.min(10));
    }
}

/// CPU time of all compile workers that have ended, start and end included (`cutime` and `cstime` of proc(5)).
fn workers_cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let ticks = |field: usize| -> f64 {
        let text = fields.split_whitespace().nth(field).expect("a field");
        text.parse().expect("a number")
    };
    // A tick is a hundredth of a second on every Linux of today.
    (ticks(13) + ticks(14)) * 10.0
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
