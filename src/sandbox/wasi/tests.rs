use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::files::{Opening, Whence};
use super::memory::Memory;
use super::poll::SubscriptionLayout;
use super::stat::FilestatLayout;
use super::*;
use crate::sandbox::{Stdin, Strings, input, pipe};

mod files;
mod streams;
mod waiting;

/// A guest's memory and WASI state. The deadline is far off unless a test moves it.
struct Guest {
    wasi: Wasi,
    memory: Vec<u8>,
    stop: Arc<StopSignal>,
}

/// Where tests let functions put their results, and lists of buffers.
const OUT: u32 = 16;
const IOVECS: u32 = 1024;
const PAGE: usize = 65536;

const FAULT: Answer = Err(Failure::Errno(Errno::Fault));
const BADF: Answer = Err(Failure::Errno(Errno::Badf));
const INVAL: Answer = Err(Failure::Errno(Errno::Inval));

fn config(stop: &Arc<StopSignal>) -> Config {
    Config {
        args: Strings::arguments(["program", "x=1"]),
        env: Strings::variables([("A", "1"), ("EMPTY", "")]),
        stdin: Bytes::from_static(b"hello, guest").into(),
        files: None,
        stdout: Stdout::Collect,
        stdout_bytes_max: 1000,
        stderr_bytes_max: 10,
        started: Instant::now(),
        deadline: Instant::now() + Duration::from_secs(600),
        stop: Arc::clone(stop),
        may_block: true,
    }
}

impl Guest {
    fn new() -> Guest {
        Guest::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Guest {
        let stop = Arc::new(StopSignal::default());
        let mut config = config(&stop);
        change(&mut config);
        Guest {
            wasi: Wasi::new(config),
            memory: vec![0xaa; PAGE],
            stop,
        }
    }

    /// One call on the state and the memory.
    fn call<T>(&mut self, call: impl FnOnce(&mut Wasi, &mut Memory<'_>) -> T) -> T {
        call(&mut self.wasi, &mut Memory::new(&mut self.memory))
    }

    fn put(&mut self, address: u32, bytes: &[u8]) {
        self.call(|_, memory| memory.write(address, bytes)).unwrap();
    }

    /// Puts a list of buffers at [`IOVECS`]; returns its arguments.
    fn iovecs(&mut self, list: &[(u32, u32)]) -> (u32, u32) {
        let bytes: Vec<u8> = list
            .iter()
            .flat_map(|(address, len)| [address.to_le_bytes(), len.to_le_bytes()])
            .flatten()
            .collect();
        self.put(IOVECS, &bytes);
        (IOVECS, u32::try_from(list.len()).unwrap())
    }

    fn read(&mut self, fd: u32, list: &[(u32, u32)]) -> Result<u32, Failure> {
        let (iovecs, len) = self.iovecs(list);
        self.call(|wasi, memory| wasi.fd_read(memory, fd, iovecs, len, OUT))?;
        Ok(self.u32_at(OUT))
    }

    fn write(&mut self, fd: u32, list: &[(u32, u32)]) -> Result<u32, Failure> {
        let (iovecs, len) = self.iovecs(list);
        self.call(|wasi, memory| wasi.fd_write(memory, fd, iovecs, len, OUT))?;
        Ok(self.u32_at(OUT))
    }

    fn seek(&mut self, fd: u32, offset: i64, whence: Whence) -> Result<u64, Failure> {
        let offset = offset.cast_unsigned();
        self.call(|wasi, memory| wasi.fd_seek(memory, fd, offset, Some(whence), OUT))?;
        Ok(self.u64_at(OUT))
    }

    fn bytes_at(&self, address: u32, len: usize) -> &[u8] {
        &self.memory[address as usize..][..len]
    }

    fn u32_at(&self, address: u32) -> u32 {
        u32::from_le_bytes(self.bytes_at(address, 4).try_into().unwrap())
    }

    fn u64_at(&self, address: u32) -> u64 {
        u64::from_le_bytes(self.bytes_at(address, 8).try_into().unwrap())
    }
}

fn end() -> u32 {
    u32::try_from(PAGE).unwrap()
}

#[test]
fn arguments_are_c_strings_in_a_table() {
    let mut guest = Guest::with(|config| config.args.add_argument("cut\0off"));
    guest
        .call(|wasi, memory| wasi.args_sizes_get(memory, OUT, OUT + 4))
        .unwrap();
    assert_eq!((guest.u32_at(OUT), guest.u32_at(OUT + 4)), (3, 16));
    guest
        .call(|wasi, memory| wasi.args_get(memory, 100, 200))
        .unwrap();
    assert_eq!(
        [guest.u32_at(100), guest.u32_at(104), guest.u32_at(108)],
        [200, 208, 212]
    );
    assert_eq!(guest.bytes_at(200, 17), b"program\0x=1\0cut\0\xaa");
}

#[test]
fn variables_that_a_c_string_cannot_hold_are_left_out() {
    let mut guest = Guest::with(|config| {
        for (name, value) in [("N\0", "x"), ("N", "x\0y"), ("A=B", "x"), ("", "x")] {
            config.env.add_variable(name, value);
        }
    });
    guest
        .call(|wasi, memory| wasi.environ_sizes_get(memory, OUT, OUT + 4))
        .unwrap();
    assert_eq!((guest.u32_at(OUT), guest.u32_at(OUT + 4)), (2, 11));
    guest
        .call(|wasi, memory| wasi.environ_get(memory, 100, 200))
        .unwrap();
    assert_eq!(guest.bytes_at(200, 12), b"A=1\0EMPTY=\0\xaa");
}

#[test]
fn strings_that_do_not_fit_are_a_fault() {
    let mut guest = Guest::new();
    let end = end();
    assert_eq!(
        guest.call(|wasi, memory| wasi.args_get(memory, end - 8, end - 12)),
        Ok(())
    );
    for (table, text) in [
        (end - 7, 0),
        (100, end - 11),
        (u32::MAX, 0),
        (100, u32::MAX),
        (u32::MAX - 3, u32::MAX),
    ] {
        assert_eq!(
            guest.call(|wasi, memory| wasi.args_get(memory, table, text)),
            FAULT
        );
    }
    for (count, bytes) in [(end - 3, 0), (0, end - 3), (u32::MAX, 0)] {
        assert_eq!(
            guest.call(|wasi, memory| wasi.environ_sizes_get(memory, count, bytes)),
            FAULT
        );
    }
}

#[test]
fn no_address_is_wrong_where_nothing_is_written() {
    let mut guest = Guest::with(|config| config.env = Strings::default());
    for (table, text) in [(end(), end() + 1), (u32::MAX, u32::MAX)] {
        let got = guest.call(|wasi, memory| wasi.environ_get(memory, table, text));
        assert_eq!(got, Ok(()));
    }
}

#[test]
fn clocks_advance_and_tell_nothing_of_the_host_uptime() {
    let mut guest = Guest::new();
    for id in [0, 1] {
        guest
            .call(|wasi, memory| wasi.clock_res_get(memory, id, OUT))
            .unwrap();
        assert_eq!(guest.u64_at(OUT), 1000);
    }
    guest
        .call(|wasi, memory| wasi.clock_time_get(memory, 1, 0, OUT))
        .unwrap();
    let first = guest.u64_at(OUT);
    let minute_ns = 60_000_000_000;
    assert!(
        (1_000_000_000..1_000_000_000 + minute_ns).contains(&first),
        "{first}"
    );
    let give_up = Instant::now() + Duration::from_secs(120);
    while guest.u64_at(OUT) == first {
        assert!(Instant::now() < give_up, "the clock stands still");
        guest
            .call(|wasi, memory| wasi.clock_time_get(memory, 1, 0, OUT))
            .unwrap();
    }
    guest
        .call(|wasi, memory| wasi.clock_time_get(memory, 0, u64::MAX, OUT))
        .unwrap();
    let host = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert!(host.abs_diff(Duration::from_nanos(guest.u64_at(OUT))) < Duration::from_secs(60));
    assert_eq!(guest.u64_at(OUT) % 1000, 0);
}

#[test]
fn clocks_that_we_do_not_have() {
    let mut guest = Guest::new();
    for (id, errno) in [
        (2, Errno::Notsup),
        (3, Errno::Notsup),
        (4, Errno::Inval),
        (u32::MAX, Errno::Inval),
    ] {
        let expected: Answer = Err(errno.into());
        assert_eq!(
            guest.call(|wasi, memory| wasi.clock_time_get(memory, id, 0, OUT)),
            expected
        );
        assert_eq!(
            guest.call(|wasi, memory| wasi.clock_res_get(memory, id, OUT)),
            expected
        );
    }
    let last = end() - 7;
    assert_eq!(
        guest.call(|wasi, memory| wasi.clock_time_get(memory, 0, 0, last)),
        FAULT
    );
    assert_eq!(
        guest.call(|wasi, memory| wasi.clock_time_get(memory, 0, 0, last - 1)),
        Ok(())
    );
}

#[test]
fn random_bytes_fill_exactly_the_buffer() {
    let mut guest = Guest::new();
    guest.memory.fill(0);
    let len = 10_000;
    guest
        .call(|wasi, memory| wasi.random_get(memory, 100, len))
        .unwrap();
    assert!(guest.memory[..100].iter().all(|byte| *byte == 0));
    assert!(guest.memory[10_100..].iter().all(|byte| *byte == 0));
    // Every chunk has its own bytes: no 16 zeros in a row, and the chunks differ.
    assert!(
        guest.memory[100..10_100]
            .chunks(16)
            .all(|bytes| bytes.iter().any(|byte| *byte != 0))
    );
    assert_ne!(guest.bytes_at(100, 64), guest.bytes_at(100 + 4096, 64));
}

#[test]
fn random_buffers_outside_of_memory_are_not_touched() {
    let mut guest = Guest::new();
    let before = guest.memory.clone();
    for (address, len) in [
        (0, u32::MAX),
        (end() - 1, 2),
        (u32::MAX, u32::MAX),
        (end() + 1, 0),
        (1, end()),
    ] {
        assert_eq!(
            guest.call(|wasi, memory| wasi.random_get(memory, address, len)),
            FAULT
        );
    }
    assert!(guest.memory == before);
    assert_eq!(
        guest.call(|wasi, memory| wasi.random_get(memory, end(), 0)),
        Ok(())
    );
}

#[test]
fn much_randomness_does_not_outlive_the_deadline_or_a_cancel() {
    let mut guest =
        Guest::with(|config| config.deadline = Instant::now() + Duration::from_millis(20));
    guest.memory = vec![0; 1 << 30];
    let answer = guest.call(|wasi, memory| wasi.random_get(memory, 0, 1 << 30));
    assert_eq!(answer, Err(Stop::TimeLimit.into()));
    // It was stopped on the way: the end of the buffer is as it was.
    let last = guest.memory.len() - 4096;
    assert!(guest.memory[last..].iter().all(|byte| *byte == 0));

    let mut guest = Guest::new();
    guest.stop.cancel();
    assert_eq!(
        guest.call(|wasi, memory| wasi.random_get(memory, 0, 5000)),
        Err(Stop::Cancelled.into())
    );
}

#[test]
fn a_guest_that_only_calls_the_host_meets_its_deadline() {
    let mut guest = Guest::with(|config| config.deadline = Instant::now());
    let calls = (0..1000)
        .take_while(|_| guest.wasi.spend(1).is_ok())
        .count();
    assert!(calls < 1000);
    assert_eq!(process::exit(u32::MAX), Stop::Exit(-1));
    assert_eq!(process::exit(3), Stop::Exit(3));
}

#[test]
fn a_guest_without_memory_gets_faults() {
    let mut wasi = Guest::new().wasi;
    let memory = &mut Memory::new(&mut []);
    assert_eq!(wasi.args_sizes_get(memory, 0, 0), FAULT);
    assert_eq!(wasi.clock_time_get(memory, 0, 0, 0), FAULT);
    assert_eq!(wasi.fd_write(memory, 1, 0, 0, 0), FAULT);
    assert_eq!(wasi.fd_read(memory, 0, 0, 1, 0), FAULT);
    assert_eq!(wasi.random_get(memory, 0, 1), FAULT);
    assert_eq!(wasi.random_get(memory, 0, 0), Ok(()));
    assert_eq!(wasi.fd_close(memory, 0), Ok(()));
}
