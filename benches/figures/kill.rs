//! How far a guest outlives its deadline.

use std::time::{Duration, Instant};

use bytes::Bytes;
use wasm_wizard::sandbox::End;

use super::support;
use super::support::report::Samples;

/// One guest after the other; the time is the caller's, from the call to the outcome.
pub fn overruns(deadline: Duration, count: usize, guests: &[&str]) {
    let sandbox = support::sandbox(8);
    let runtime = support::runtime();
    for name in guests {
        let module = runtime
            .block_on(support::prepare_best(&sandbox, support::guest(name)))
            .expect("a module that compiles");
        let times = (0..count).map(|_| {
            let call = support::call(Bytes::new(), deadline);
            let module = module.clone();
            let begun = Instant::now();
            let outcome = runtime
                .block_on(sandbox.run(module, call))
                .expect("a guest that starts");
            assert_eq!(outcome.end, End::TimeLimit, "{outcome:?}");
            begun
                .elapsed()
                .checked_sub(deadline)
                .expect("a guest that has all of its time")
        });
        let name = format!("overrun {name} {} ms", deadline.as_millis());
        Samples::new(times.collect()).print_ms(&name);
    }
}
