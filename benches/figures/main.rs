//! `cargo bench --bench figures -- COMMAND`: the figures of `docs/PERFORMANCE.md` that need no
//! network, one per line. `scripts/bench_sandbox.sh` runs them beside another runtime's.

mod compile;
mod cpu;
mod guests;
mod kill;
mod live;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: figures COMMAND

  guest [SECONDS GUEST...] a fresh guest per request: p50, p99 and mean, for tiny, page and echo
  threads [SECONDS]        echo requests per second on one thread and on two
  cpu [ROUNDS]             guests that only compute, against Wasmer without limits
  prepare [COUNT]          never-seen modules, from bytes to ready; and the compilers by themselves
  kill MS COUNT GUEST...   how far guests outlive a deadline of MS milliseconds; at most eight guests
                           of spin, host, bulk, sleep
  live [COUNT]             memory of COUNT guests that are alive at the same time";

const GUESTS: [&str; 3] = ["tiny", "page", "echo"];

fn main() -> ExitCode {
    // Cargo says `--bench` to every benchmark.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        [] | ["guest"] => {
            guests::latencies(Duration::from_secs(3), &GUESTS);
            Some(())
        }
        ["guest", seconds, guests @ ..] => seconds.parse().ok().map(|n| {
            let guests = if guests.is_empty() { &GUESTS } else { guests };
            guests::latencies(Duration::from_secs(n), guests);
        }),
        ["threads", rest @ ..] => number(rest, 3).map(|n| guests::threads(Duration::from_secs(n))),
        ["cpu", rest @ ..] => number(rest, 5).map(cpu::against_plain_wasmer),
        ["prepare", rest @ ..] => number(rest, 20).map(compile::never_seen),
        ["live", rest @ ..] => number(rest, 1000).map(live::memory),
        ["kill", ms, count, guests @ ..] if !guests.is_empty() => {
            match (ms.parse::<u64>(), count.parse::<usize>()) {
                (Ok(ms), Ok(count)) => {
                    kill::overruns(Duration::from_millis(ms), count, guests);
                    Some(())
                }
                (Err(_), _) | (_, Err(_)) => None,
            }
        }
        _ => None,
    };
    if done.is_none() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

/// The one optional number of a command; `None` if it is something else.
fn number(rest: &[&str], default: u64) -> Option<u64> {
    match rest {
        [] => Some(default),
        [number] => number.parse().ok(),
        _ => None,
    }
}
