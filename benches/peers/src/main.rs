//! wasmtime with its pooling allocator, copy-on-write images, a linked `InstancePre` and epochs, on
//! the guests of the sandbox's benchmarks; its figures come out as the sandbox's do.
//!
//! Two settings: `default` gives a guest's pages back to the kernel after each request; `resident`
//! keeps 512 KiB of them and finds those to put back with PAGEMAP_SCAN, its fastest way.

#[path = "../../support/report.rs"]
mod report;
mod wasi;

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, InstancePre, Module, ModuleExport,
    PoolingAllocationConfig, Result, Store,
};

use report::{Samples, figure};
use wasi::{Exit, Guest};

const USAGE: &str = "\
usage: bench-peers GUESTS_DIR COMMAND

  guest [SECONDS]      a fresh guest per request: p50, p99 and mean, for tiny, page and echo
  threads [SECONDS]    echo requests per second on one thread and on two
  prepare [COUNT]      its compiler, one thread
  cpu [ROUNDS]         guests that only compute, with epochs";

/// Requests before the first that counts.
const WARM_UP: u64 = 5_000;
const KEEP_RESIDENT: usize = 512 << 10;
/// How often the epoch advances, and after how many of them a guest is stopped: five seconds.
const TICK: Duration = Duration::from_millis(10);
const DEADLINE_TICKS: u64 = 500;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [dir, command, rest @ ..] = words.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let number = |default| {
        rest.first()
            .map_or(Some(default), |n| n.parse::<u64>().ok())
    };
    let dir = Path::new(dir);
    let done = match *command {
        "guest" => number(3).map(|n| latencies(dir, Duration::from_secs(n))),
        "threads" => number(3).map(|n| threads(dir, Duration::from_secs(n))),
        "prepare" => number(10).map(|n| prepare(dir, n)),
        "cpu" => number(5).map(|n| cpu(dir, n)),
        _ => None,
    };
    match done {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn guest(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let wasm = dir.join(format!("{name}.wasm"));
    if wasm.exists() {
        return Ok(std::fs::read(wasm)?);
    }
    let text = std::fs::read_to_string(dir.join(format!("{name}.wat")))?;
    Ok(wat::parse_str(text).expect("a guest in valid text"))
}

fn engine(keep_resident: usize) -> Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_memories(64)
        .total_core_instances(64)
        .total_tables(64)
        .max_memory_size(128 << 20)
        .table_elements(20_000);
    if keep_resident > 0 {
        pool.linear_memory_keep_resident(keep_resident)
            .table_keep_resident(1 << 16)
            .pagemap_scan(Enabled::Auto);
    }
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .memory_init_cow(true)
        .epoch_interruption(true)
        .max_wasm_stack(1 << 20);
    let engine = Engine::new(&config)?;
    let ticking = engine.weak();
    thread::spawn(move || {
        while let Some(engine) = ticking.upgrade() {
            engine.increment_epoch();
            drop(engine);
            thread::sleep(TICK);
        }
    });
    Ok(engine)
}

/// A module with all that can be done before a request.
struct Prepared {
    linked: InstancePre<Guest>,
    start: ModuleExport,
    memory: Option<ModuleExport>,
}

impl Prepared {
    fn new(engine: &Engine, wasm: &[u8]) -> Result<Prepared> {
        let module = Module::new(engine, wasm)?;
        let start = module
            .get_export_index("_start")
            .expect("the export _start");
        Ok(Prepared {
            memory: module.get_export_index("memory"),
            linked: wasi::linker(engine)?.instantiate_pre(&module)?,
            start,
        })
    }

    fn run(&self, engine: &Engine, stdin: Vec<u8>) -> Result<Vec<u8>> {
        let mut store = Store::new(engine, Guest::new(stdin));
        store.set_epoch_deadline(DEADLINE_TICKS);
        let instance = self.linked.instantiate(&mut store)?;
        let memory = self.memory.as_ref();
        let memory = memory.and_then(|memory| instance.get_module_export(&mut store, memory));
        store.data_mut().memory = memory.and_then(|memory| memory.into_memory());
        let start = instance
            .get_module_export(&mut store, &self.start)
            .and_then(|start| start.into_func())
            .expect("the function _start")
            .typed::<(), ()>(&store)?;
        match start.call(&mut store, ()) {
            Ok(()) => Ok(std::mem::take(&mut store.data_mut().stdout)),
            Err(error) => match error.downcast_ref::<Exit>() {
                Some(Exit(0)) => Ok(std::mem::take(&mut store.data_mut().stdout)),
                Some(Exit(_)) | None => Err(error),
            },
        }
    }
}

/// One request: what of it belongs to the runtime is timed, and the answer is looked at.
fn request(engine: &Engine, module: &Prepared, name: &str, number: u64) -> Result<Duration> {
    let input = input(number);
    let stdin = input.to_vec();
    let begun = Instant::now();
    let stdout = module.run(engine, stdin)?;
    let time = begun.elapsed();
    if name == "echo" {
        assert!(stdout == input, "the answer belongs to another request");
    }
    Ok(time)
}

/// 64 bytes that differ from request to request, as the sandbox's benchmarks make them.
fn input(number: u64) -> [u8; 64] {
    let mut bytes = [b'.'; 64];
    let mut state = number;
    for chunk in bytes.chunks_exact_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn latencies(dir: &Path, time: Duration) -> Result<()> {
    for (setting, keep_resident) in [("default", 0), ("resident", KEEP_RESIDENT)] {
        let engine = engine(keep_resident)?;
        for name in ["tiny", "page", "echo"] {
            let module = Prepared::new(&engine, &guest(dir, name)?)?;
            for number in 0..WARM_UP {
                request(&engine, &module, name, number)?;
            }
            let mut times = Vec::with_capacity(1 << 22);
            let end = Instant::now() + time;
            while Instant::now() < end {
                times.push(request(&engine, &module, name, times.len() as u64)?);
            }
            Samples::new(times).print_us(&format!("wasmtime {setting} guest {name}"));
        }
    }
    Ok(())
}

fn threads(dir: &Path, time: Duration) -> Result<()> {
    const TURNS: u32 = 4;
    for (setting, keep_resident) in [("default", 0), ("resident", KEEP_RESIDENT)] {
        let engine = engine(keep_resident)?;
        let module = Prepared::new(&engine, &guest(dir, "echo")?)?;
        let mut rates = [0.0; 2];
        for turn in 0..TURNS * 2 {
            let threads = (turn % 2 + 1) as usize;
            rates[threads - 1] += rate(&engine, &module, threads, time / TURNS) / f64::from(TURNS);
        }
        let name = format!("wasmtime {setting} threads echo");
        figure(&format!("{name} 1"), rates[0], "1/s");
        figure(&format!("{name} 2"), rates[1], "1/s");
        figure(&format!("{name} 2:1"), rates[1] / rates[0], "x");
    }
    Ok(())
}

fn rate(engine: &Engine, module: &Prepared, threads: usize, time: Duration) -> f64 {
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let done: u64 = thread::scope(|scope| {
        let counting: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = 0;
                    while !stop.load(Ordering::Relaxed) {
                        request(engine, module, "echo", done).expect("a guest that returns");
                        done += 1;
                    }
                    done
                })
            })
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

fn prepare(dir: &Path, count: u64) -> Result<()> {
    let engine = engine(0)?;
    for name in ["echo", "report", "code"] {
        let wasm = guest(dir, name)?;
        let mut times = Vec::new();
        for _ in 0..count {
            let begun = Instant::now();
            Module::new(&engine, &wasm)?;
            times.push(begun.elapsed());
        }
        Samples::new(times).print_ms(&format!("wasmtime compile {name}"));
    }
    Ok(())
}

fn cpu(dir: &Path, rounds: u64) -> Result<()> {
    let engine = engine(0)?;
    for kernel in ["mix", "matmul", "sieve", "fib"] {
        let module = Prepared::new(&engine, &guest(dir, &format!("cpu_{kernel}"))?)?;
        let mut times = Vec::new();
        for round in 0..=rounds {
            let begun = cpu_time();
            module.run(&engine, Vec::new())?;
            if round > 0 {
                times.push(cpu_time() - begun);
            }
        }
        Samples::new(times).print_ms(&format!("wasmtime cpu {kernel}"));
    }
    Ok(())
}

/// CPU time of the calling thread, as the kernel accounts for it.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a file of /proc");
    let on_cpu_ns = text
        .split_whitespace()
        .next()
        .and_then(|ns| ns.parse().ok());
    Duration::from_nanos(on_cpu_ns.expect("a time"))
}
