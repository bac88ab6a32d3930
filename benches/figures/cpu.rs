//! Guests that only compute: what limits cost them.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use wasmer::sys::{Cranelift, EngineBuilder};
use wasmer::{Engine, Instance, Module, Store, imports};

use super::support::report::{Samples, figure};
use super::support::{self, assert_returned};

/// Each kernel in the sandbox and in Wasmer as it comes, in turns: medians, and their ratio. Times
/// are of the processor, so that what else the machine does counts less.
pub fn against_plain_wasmer(rounds: u64) {
    let sandbox = support::sandbox(8);
    let runtime = support::runtime();
    for kernel in ["mix", "matmul", "sieve", "fib"] {
        let wasm = support::guest(&format!("cpu_{kernel}"));
        let ours = runtime
            .block_on(support::prepare_best(&sandbox, wasm.clone()))
            .expect("a module that compiles");
        let engine: Engine = EngineBuilder::new(Cranelift::new()).engine().into();
        let plain = Module::new(&engine, &wasm).expect("a module that compiles");
        let (mut limited, mut free) = (Vec::new(), Vec::new());
        // The first round warms up and does not count.
        for round in 0..=rounds {
            let call = support::call(Bytes::new(), Duration::from_secs(60));
            let outcome = runtime
                .block_on(sandbox.run(ours.clone(), call))
                .expect("a guest that starts");
            assert_returned(&outcome);
            let time = run_plain(&engine, &plain);
            if round > 0 {
                limited.push(outcome.usage.cpu);
                free.push(time);
            }
        }
        let (limited, free) = (Samples::new(limited), Samples::new(free));
        limited.print_ms(&format!("cpu {kernel}"));
        free.print_ms(&format!("cpu {kernel} plain"));
        let ratio = limited.quantile(0.5).as_secs_f64() / free.quantile(0.5).as_secs_f64();
        figure(&format!("cpu {kernel} ratio"), ratio, "x");
    }
}

/// As the sandbox counts it: from before instantiation until the instance is gone.
fn run_plain(engine: &Engine, module: &Module) -> Duration {
    let begun = cpu_time();
    let mut store = Store::new(engine.clone());
    let instance = Instance::new(&mut store, module, &imports! {}).expect("an instance");
    let start = instance
        .exports
        .get_typed_function::<(), ()>(&store, "_start")
        .expect("the export _start");
    start.call(&mut store).expect("a guest that returns");
    drop(store);
    cpu_time() - begun
}

/// CPU time of the calling thread, as the kernel accounts for it.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("a file of /proc");
    let on_cpu_ns = text
        .split_whitespace()
        .next()
        .and_then(|ns| ns.parse().ok());
    Duration::from_nanos(on_cpu_ns.expect("a time"))
}
