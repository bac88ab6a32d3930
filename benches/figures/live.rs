//! Many guests alive at the same time, and what each takes.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::support;
use super::support::report::figure;

/// What one guest touches of its memory: see `guests/hold.wat`.
const TOUCHED_KIB: f64 = 128.0;
/// A thread's stack in the kernel, which no file of the process shows.
const KERNEL_STACK_KIB: u64 = 16;

/// What the process takes at the moment, in KiB.
#[derive(Clone, Copy)]
struct Taken {
    /// Its proportional share of all pages.
    resident: u64,
    page_tables: u64,
    threads: u64,
}

/// Starts `count` guests that touch what they touch and sleep, and sees what that took.
pub fn memory(count: u64) {
    let count = usize::try_from(count).expect("a number of guests");
    // One caller does not get all places.
    let sandbox = support::sandbox(count * 2);
    let runtime = support::runtime();
    runtime.block_on(async {
        let module = support::prepare_best(&sandbox, support::guest("hold"))
            .await
            .expect("a module that compiles");
        let before = taken();
        let begun = Instant::now();
        let guests: Vec<_> = (0..count)
            .map(|_| {
                let (sandbox, module) = (sandbox.clone(), module.clone());
                tokio::spawn(async move {
                    let call = support::call(Bytes::new(), Duration::from_secs(600));
                    let ended = sandbox.run(module, call).await;
                    panic!("a guest that sleeps for an hour has ended: {ended:?}");
                })
            })
            .collect();
        settle(&sandbox, count).await;
        figure(
            "live start of all",
            begun.elapsed().as_secs_f64() * 1e3,
            "ms",
        );
        assert!(
            guests.iter().all(|guest| !guest.is_finished()),
            "a guest has ended"
        );
        let during = taken();
        print("live", before, during, count);
        guests.iter().for_each(tokio::task::JoinHandle::abort);
        settle(&sandbox, 0).await;
        let after = taken();
        figure(
            "live left behind",
            (after.resident as f64 - before.resident as f64) / 1024.0,
            "MiB",
        );
    });
}

/// Waits until so many guests run, and what they take no longer grows.
async fn settle(sandbox: &wasm_wizard::sandbox::Sandbox, running: usize) {
    let give_up = Instant::now() + Duration::from_secs(60);
    let mut last = 0;
    loop {
        assert!(Instant::now() < give_up, "not all guests came to run");
        tokio::time::sleep(Duration::from_millis(200)).await;
        let resident = taken().resident;
        if sandbox.load().running == running && resident.abs_diff(last) < 64 {
            return;
        }
        last = resident;
    }
}

fn print(name: &str, before: Taken, during: Taken, count: usize) {
    let each = |before: u64, during: u64| (during as f64 - before as f64) / count as f64;
    let pages = each(before.resident, during.resident);
    let tables = each(before.page_tables, during.page_tables);
    let threads = each(before.threads, during.threads);
    let stacks = threads * KERNEL_STACK_KIB as f64;
    figure(&format!("{name} pages per guest"), pages, "KiB");
    figure(&format!("{name} page tables per guest"), tables, "KiB");
    figure(&format!("{name} kernel stacks per guest"), stacks, "KiB");
    figure(
        &format!("{name} in all per guest"),
        pages + tables + stacks,
        "KiB",
    );
    figure(
        &format!("{name} beyond what it touched"),
        pages + tables + stacks - TOUCHED_KIB,
        "KiB",
    );
}

fn taken() -> Taken {
    Taken {
        resident: field("/proc/self/smaps_rollup", "Pss:"),
        page_tables: field("/proc/self/status", "VmPTE:"),
        threads: field("/proc/self/status", "Threads:"),
    }
}

/// The number in the line of `file` that starts with `name`.
fn field(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).expect("a file of /proc");
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .expect("a field of /proc")
}
