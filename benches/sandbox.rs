//! `cargo bench --bench sandbox`: a fresh guest per request, and what comes before the first one.
//!
//! Criterion's statistics for one runtime, this one. The table in `docs/PERFORMANCE.md`, with
//! percentiles and with another runtime beside it, comes from `benches/figures.rs`.

mod support;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

const DEADLINE: Duration = Duration::from_secs(5);

/// One request for each guest, from the call to its outcome, with the instance put back.
fn fresh_guest(criterion: &mut Criterion) {
    let sandbox = support::sandbox(64);
    let runtime = support::runtime();
    let mut group = criterion.benchmark_group("fresh guest");
    for name in ["tiny", "page", "echo"] {
        let module = runtime
            .block_on(support::prepare_best(&sandbox, support::guest(name)))
            .expect("a module that compiles");
        let requests = AtomicU64::new(0);
        let next = || {
            let number = requests.fetch_add(1, Ordering::Relaxed);
            support::call(Bytes::copy_from_slice(&support::input(number)), DEADLINE)
        };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                next,
                |call| {
                    let outcome = runtime.block_on(sandbox.run(module.clone(), call));
                    support::assert_returned(&outcome.expect("a guest that starts"));
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Judging a module's bytes, and preparing one that is known.
fn modules(criterion: &mut Criterion) {
    let sandbox = support::sandbox(64);
    let runtime = support::runtime();
    let mut group = criterion.benchmark_group("module");
    for name in ["echo", "report", "code"] {
        let wasm = support::guest(name);
        group.bench_function(format!("check {name}"), |bencher| {
            bencher.iter(|| sandbox.check(black_box(&wasm)).expect("a valid module"));
        });
        runtime
            .block_on(support::prepare_best(&sandbox, wasm.clone()))
            .expect("a module that compiles");
        group.bench_function(format!("prepare {name}, known"), |bencher| {
            bencher.iter(|| {
                runtime
                    .block_on(support::prepare_best(&sandbox, wasm.clone()))
                    .expect("a module that is known")
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(5)).without_plots();
    targets = fresh_guest, modules
}
criterion_main!(benches);
