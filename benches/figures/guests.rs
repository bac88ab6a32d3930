//! A fresh guest per request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasm_wizard::sandbox::{Prepared, Sandbox};

use super::support::report::{Samples, figure};
use super::support::{self, assert_returned};

const DEADLINE: Duration = Duration::from_secs(5);
/// Requests before the first that counts.
const WARM_UP: u64 = 5_000;

/// Latency of one request after the other, each with an input of its own.
pub fn latencies(time: Duration, guests: &[&str]) {
    let sandbox = support::sandbox(64);
    let runtime = support::runtime();
    for &name in guests {
        let times = runtime.block_on(async {
            let module = support::prepare_best(&sandbox, support::guest(name))
                .await
                .expect("a module that compiles");
            for number in 0..WARM_UP {
                request(&sandbox, &module, name, number).await;
            }
            let mut times = Vec::with_capacity(1 << 22);
            let end = Instant::now() + time;
            while Instant::now() < end {
                times.push(request(&sandbox, &module, name, times.len() as u64).await);
            }
            times
        });
        Samples::new(times).print_us(&format!("guest {name}"));
    }
}

/// Requests per second on one thread, and on two that share nothing but the sandbox. The two are
/// measured in turns, so that a slow spell of the machine meets both.
pub fn threads(time: Duration) {
    const TURNS: u32 = 4;
    let sandbox = support::sandbox(64);
    let module = support::runtime()
        .block_on(support::prepare_best(&sandbox, support::guest("echo")))
        .expect("a module that compiles");
    let mut rates = [0.0; 2];
    for turn in 0..TURNS * 2 {
        let threads = (turn % 2 + 1) as usize;
        rates[threads - 1] += rate(&sandbox, &module, threads, time / TURNS) / f64::from(TURNS);
    }
    figure("threads echo 1", rates[0], "1/s");
    figure("threads echo 2", rates[1], "1/s");
    figure("threads echo 2:1", rates[1] / rates[0], "x");
}

fn rate(sandbox: &Sandbox, module: &Arc<Prepared>, threads: usize, time: Duration) -> f64 {
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let done: u64 = thread::scope(|scope| {
        let counting: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| support::runtime().block_on(count(sandbox, module, &stop))))
            .collect();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        counting
            .into_iter()
            .map(|thread| thread.join().expect("a thread that counts"))
            .sum()
    });
    done as f64 / begun.elapsed().as_secs_f64()
}

async fn count(sandbox: &Sandbox, module: &Arc<Prepared>, stop: &AtomicBool) -> u64 {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        request(sandbox, module, "echo", done).await;
        done += 1;
    }
    done
}

/// One request: what of it belongs to the sandbox is timed, and the answer is looked at.
async fn request(sandbox: &Sandbox, module: &Arc<Prepared>, name: &str, number: u64) -> Duration {
    let input = support::input(number);
    let call = support::call(Bytes::copy_from_slice(&input), DEADLINE);
    let module = Arc::clone(module);
    let begun = Instant::now();
    let outcome = sandbox.run(module, call).await;
    let time = begun.elapsed();
    let outcome = outcome.expect("a guest that starts");
    assert_returned(&outcome);
    if name == "echo" {
        assert!(
            outcome.stdout == input,
            "the answer belongs to another request"
        );
    }
    time
}
