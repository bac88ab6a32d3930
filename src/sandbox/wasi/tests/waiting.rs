//! `poll_oneoff`.

use super::*;

const SUBSCRIPTIONS: u32 = 4096;
const EVENTS: u32 = 32768;
const ONE_HOUR_NS: u64 = 3_600_000_000_000;

#[derive(Clone, Copy)]
enum On {
    Clock {
        id: u32,
        timeout_ns: u64,
        flags: u16,
    },
    Read(u32),
    Write(u32),
    Kind(u8),
}

fn sleep(timeout_ns: u64) -> On {
    On::Clock {
        id: 1,
        timeout_ns,
        flags: 0,
    }
}

fn encoded(on: On, userdata: u64, layout: SubscriptionLayout) -> Vec<u8> {
    let (len, clock_at) = match layout {
        SubscriptionLayout::Preview0 => (56, 24),
        SubscriptionLayout::Preview1 => (48, 16),
    };
    let mut bytes = vec![0; len];
    bytes[0..8].copy_from_slice(&userdata.to_le_bytes());
    bytes[8] = match on {
        On::Clock { .. } => 0,
        On::Read(_) => 1,
        On::Write(_) => 2,
        On::Kind(kind) => kind,
    };
    match on {
        On::Clock {
            id,
            timeout_ns,
            flags,
        } => {
            bytes[clock_at..][..4].copy_from_slice(&id.to_le_bytes());
            bytes[clock_at + 8..][..8].copy_from_slice(&timeout_ns.to_le_bytes());
            bytes[clock_at + 24..][..2].copy_from_slice(&flags.to_le_bytes());
        }
        On::Read(fd) | On::Write(fd) => bytes[16..20].copy_from_slice(&fd.to_le_bytes()),
        On::Kind(_) => {}
    }
    bytes
}

/// One event: userdata, errno, kind, nbytes, flags.
type Event = (u64, u16, u8, u64, u16);

impl Guest {
    fn poll_with(
        &mut self,
        layout: SubscriptionLayout,
        list: &[On],
    ) -> Result<Vec<Event>, Failure> {
        let mut bytes = Vec::new();
        for (userdata, on) in (100..).zip(list) {
            bytes.extend(encoded(*on, userdata, layout));
        }
        self.put(SUBSCRIPTIONS, &bytes);
        let count = u32::try_from(list.len()).unwrap();
        self.call(|wasi, memory| {
            wasi.poll_oneoff(memory, layout, SUBSCRIPTIONS, EVENTS, count, OUT)
        })?;
        Ok((0..self.u32_at(OUT))
            .map(|index| self.event(EVENTS + index * 32))
            .collect())
    }

    fn poll(&mut self, list: &[On]) -> Result<Vec<Event>, Failure> {
        self.poll_with(SubscriptionLayout::Preview1, list)
    }

    fn event(&self, at: u32) -> Event {
        let u16_at = |at| u16::from_le_bytes(self.bytes_at(at, 2).try_into().unwrap());
        (
            self.u64_at(at),
            u16_at(at + 8),
            self.bytes_at(at + 10, 1)[0],
            self.u64_at(at + 16),
            u16_at(at + 24),
        )
    }
}

#[test]
fn a_sleep_lasts_and_reports_only_what_is_due() {
    for layout in [SubscriptionLayout::Preview0, SubscriptionLayout::Preview1] {
        let mut guest = Guest::new();
        let start = Instant::now();
        let events = guest.poll_with(
            layout,
            &[sleep(ONE_HOUR_NS), sleep(5_000_000), sleep(u64::MAX)],
        );
        assert_eq!(events, Ok(vec![(101, 0, 0, 0, 0)]));
        assert!(start.elapsed() >= Duration::from_millis(5));
    }
}

#[test]
fn an_absolute_time_is_reached_on_the_guests_clock() {
    for id in [0, 1] {
        let mut guest = Guest::new();
        guest
            .call(|wasi, memory| wasi.clock_time_get(memory, id, 0, OUT))
            .unwrap();
        let timeout_ns = guest.u64_at(OUT) + 3_000_001;
        let events = guest.poll(&[On::Clock {
            id,
            timeout_ns,
            flags: 1,
        }]);
        assert_eq!(events, Ok(vec![(100, 0, 0, 0, 0)]));
        guest
            .call(|wasi, memory| wasi.clock_time_get(memory, id, 0, OUT))
            .unwrap();
        assert!(guest.u64_at(OUT) >= timeout_ns, "clock {id}");
        // A time in the past is due at once.
        assert_eq!(
            guest
                .poll(&[On::Clock {
                    id,
                    timeout_ns: 0,
                    flags: 1
                }])
                .unwrap()
                .len(),
            1
        );
    }
}

#[test]
fn streams_are_ready_and_wake_a_sleeper() {
    let mut guest = Guest::new();
    let events = guest.poll(&[
        sleep(ONE_HOUR_NS),
        On::Read(0),
        On::Write(1),
        On::Write(2),
        sleep(0),
    ]);
    let expected = vec![
        (101, 0, 1, 12, 0),
        (102, 0, 2, 65536, 0),
        (103, 0, 2, 65536, 0),
        (104, 0, 0, 0, 0),
    ];
    assert_eq!(events, Ok(expected));
    guest.read(0, &[(0, 100)]).unwrap();
    assert_eq!(guest.poll(&[On::Read(0)]), Ok(vec![(100, 0, 1, 0, 1)]));
}

#[test]
fn what_cannot_be_waited_for_is_an_event_with_an_error() {
    let mut guest = Guest::new();
    let cpu_time = On::Clock {
        id: 2,
        timeout_ns: 0,
        flags: 0,
    };
    let no_clock = On::Clock {
        id: 77,
        timeout_ns: 0,
        flags: 0,
    };
    let events = guest.poll(&[
        On::Read(1),
        On::Write(0),
        On::Read(3),
        On::Write(u32::MAX),
        cpu_time,
        no_clock,
    ]);
    let errnos: Vec<_> = events.unwrap().iter().map(|event| event.1).collect();
    assert_eq!(errnos, [8, 8, 8, 8, 58, 28]);
}

#[test]
fn malformed_calls_are_refused() {
    let mut guest = Guest::new();
    assert_eq!(guest.poll(&[]), Err(Errno::Inval.into()));
    assert_eq!(
        guest.poll(&[sleep(0), On::Kind(3)]),
        Err(Errno::Inval.into())
    );
    assert_eq!(
        guest.poll(&[On::Clock {
            id: 1,
            timeout_ns: 0,
            flags: 2
        }]),
        Err(Errno::Inval.into())
    );
    let preview1 = SubscriptionLayout::Preview1;
    guest.memory = vec![0; 1 << 20];
    let mut call = |at, events, count, out| {
        guest.call(|wasi, memory| wasi.poll_oneoff(memory, preview1, at, events, count, out))
    };
    assert_eq!(call(0, 0, 1025, OUT), INVAL);
    assert_eq!(call(0, 0, u32::MAX, OUT), INVAL);
    let end = 1 << 20;
    assert_eq!(call(end - 47, 0, 1, OUT), FAULT);
    assert_eq!(call(0, end - 31, 1, OUT), FAULT);
    assert_eq!(call(0, 0, 1, end - 3), FAULT);
    assert_eq!(call(u32::MAX, u32::MAX, 1024, u32::MAX), FAULT);
    assert_eq!(call(end - 48, end - 32, 1, end - 4), Ok(()));
    // Everything at the same place is the guest's own affair, as long as it is in memory.
    assert_eq!(call(0, 0, 1024, 0), Ok(()));
}

#[test]
fn a_sleep_past_the_deadline_is_a_time_limit() {
    for timeout_ns in [ONE_HOUR_NS, u64::MAX] {
        for flags in [0, 1] {
            let mut guest =
                Guest::with(|config| config.deadline = Instant::now() + Duration::from_millis(10));
            let start = Instant::now();
            let on = On::Clock {
                id: 1,
                timeout_ns,
                flags,
            };
            assert_eq!(guest.poll(&[on, on]), Err(Stop::TimeLimit.into()));
            assert!(start.elapsed() < Duration::from_secs(60));
        }
    }
}

#[test]
fn a_sleeper_is_woken_by_a_cancel() {
    let mut guest = Guest::new();
    let stop = Arc::clone(&guest.stop);
    let sleeper = thread::spawn(move || guest.poll(&[sleep(ONE_HOUR_NS)]));
    stop.cancel();
    assert_eq!(sleeper.join().unwrap(), Err(Stop::Cancelled.into()));
}

/// A guest on a thread that must not wait.
fn inline(change: impl FnOnce(&mut Config)) -> Guest {
    Guest::with(|config| {
        config.may_block = false;
        change(config);
    })
}

#[test]
fn a_sleep_where_the_thread_must_not_wait_ends_the_guest() {
    let mut guest = inline(|_| {});
    assert_eq!(guest.poll(&[sleep(0)]), Ok(vec![(100, 0, 0, 0, 0)]));
    assert_eq!(
        guest
            .poll(&[On::Read(0), sleep(ONE_HOUR_NS)])
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        guest.poll(&[sleep(ONE_HOUR_NS)]),
        Err(Stop::WouldBlock.into())
    );
    assert_eq!(guest.poll(&[sleep(u64::MAX)]), Err(Stop::WouldBlock.into()));
}

#[tokio::test]
async fn output_is_held_back_where_the_thread_must_not_wait() {
    let (writer, mut reader) = pipe(4);
    let mut guest = inline(|config| {
        config.stdout = Stdout::Pipe(writer);
        config.stdout_bytes_max = 1 << 20;
    });
    guest.memory = vec![b'x'; 100_000];
    assert_eq!(guest.write(1, &[(2000, 65_536)]), Ok(65_536));
    let nothing = tokio::time::timeout(Duration::from_millis(1), reader.read()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    assert_eq!(guest.write(1, &[(2000, 1)]), Err(Stop::WouldBlock.into()));
    assert_eq!(guest.wasi.finish().stdout, b"");
    assert_eq!(reader.read().await.map(|bytes| bytes.len()), Some(65_536));
    assert_eq!(reader.read().await, None);

    // The guest's own limit comes first where it is the lower one.
    let mut guest = inline(|config| config.stdout = Stdout::Pipe(pipe(4).0));
    guest.memory = vec![b'x'; 100_000];
    assert_eq!(
        guest.write(1, &[(2000, 65_536)]),
        Err(Stop::OutputLimit.into())
    );
}

#[tokio::test]
async fn a_guest_that_would_have_waited_starts_again_with_what_it_had() {
    let (writer, mut reader) = pipe(100);
    let mut guest = inline(|config| config.stdout = Stdout::Pipe(writer));
    assert_eq!(guest.read(0, &[(0, 5)]), Ok(5));
    assert_eq!(guest.write(1, &[(0, 5)]), Ok(5));
    let config = guest.wasi.rewind();
    assert!(config.may_block);
    assert_eq!(config.args, Strings::arguments(["program", "x=1"]));
    assert_eq!(config.env.count(), 2);
    assert_eq!(
        (config.stdout_bytes_max, config.stderr_bytes_max),
        (1000, 10)
    );
    let mut again = Guest::new();
    again.wasi = Wasi::new(config);
    assert_eq!(again.read(0, &[(100, 50)]), Ok(12));
    assert_eq!(again.write(1, &[(100, 12)]), Ok(12));
    drop(again);
    assert_eq!(reader.read().await.as_deref(), Some(&b"hello, guest"[..]));
    assert_eq!(reader.read().await, None);
}

#[test]
fn much_randomness_is_not_for_a_thread_that_must_not_wait() {
    let mut guest = inline(|_| {});
    guest.memory = vec![0; 1 << 17];
    let mut random = |len| guest.call(|wasi, memory| wasi.random_get(memory, 0, len));
    assert_eq!(random(65_536), Ok(()));
    assert_eq!(random(65_537), Err(Stop::WouldBlock.into()));
}

/// A guest whose input comes through a pipe.
fn piped(may_block: bool) -> (Guest, crate::sandbox::InputWriter) {
    let (writer, reader) = input(100);
    let guest = Guest::with(|config| {
        config.stdin = Stdin::Pipe(reader);
        config.may_block = may_block;
    });
    (guest, writer)
}

#[test]
fn input_is_read_as_it_comes() {
    let (mut guest, mut writer) = piped(true);
    writer.put(b"first");
    // What is there is enough: a read does not wait for its buffers to fill.
    assert_eq!(guest.read(0, &[(0, 0), (0, 3), (10, 50)]), Ok(5));
    assert_eq!(guest.bytes_at(10, 3), b"st\xaa");
    let thread = thread::spawn(move || {
        assert_eq!(guest.read(0, &[(0, 50)]), Ok(6));
        assert_eq!(guest.bytes_at(0, 6), b"second");
        assert_eq!(guest.read(0, &[(0, 50)]), Ok(0));
        assert_eq!(guest.read(0, &[(0, 50)]), Ok(0));
        guest
    });
    writer.put(b"second");
    writer.finish();
    thread.join().unwrap();
}

#[test]
fn a_read_of_nothing_does_not_wait() {
    let (mut guest, _writer) = piped(true);
    assert_eq!(guest.read(0, &[]), Ok(0));
    assert_eq!(guest.read(0, &[(0, 0)]), Ok(0));
}

#[test]
fn waiting_for_input_ends_with_the_deadline_or_the_source() {
    let (mut guest, writer) = piped(true);
    guest.wasi.deadline = Instant::now() + Duration::from_millis(10);
    assert_eq!(guest.read(0, &[(0, 1)]), Err(Stop::TimeLimit.into()));
    assert_eq!(guest.poll(&[On::Read(0)]), Err(Stop::TimeLimit.into()));
    drop(writer);
    assert_eq!(guest.read(0, &[(0, 1)]), Err(Stop::Cancelled.into()));
    assert_eq!(guest.poll(&[On::Read(0)]), Err(Stop::Cancelled.into()));
}

#[test]
fn a_poll_waits_for_input() {
    let (mut guest, mut writer) = piped(true);
    // The earlier of the two: here the time.
    assert_eq!(
        guest.poll(&[On::Read(0), sleep(3_000_000)]),
        Ok(vec![(101, 0, 0, 0, 0)])
    );
    let thread = thread::spawn(move || {
        let events = guest.poll(&[sleep(ONE_HOUR_NS), On::Read(0)]);
        assert_eq!(events, Ok(vec![(101, 0, 1, 4, 0)]));
        assert_eq!(guest.read(0, &[(0, 50)]), Ok(4));
        let events = guest.poll(&[On::Read(0)]);
        assert_eq!(events, Ok(vec![(100, 0, 1, 0, 1)]));
        // With output, which is always ready, input is only looked at.
        let (mut guest, _writer) = piped(true);
        let events = guest.poll(&[On::Read(0), On::Write(1)]);
        assert_eq!(events, Ok(vec![(101, 0, 2, 65536, 0)]));
    });
    writer.put(b"more");
    writer.finish();
    thread.join().unwrap();
}

#[test]
fn a_pipe_is_not_touched_where_the_thread_must_not_wait() {
    let (mut guest, mut writer) = piped(false);
    writer.put(b"all of it");
    assert_eq!(guest.read(0, &[(0, 50)]), Err(Stop::WouldBlock.into()));
    assert_eq!(guest.poll(&[On::Read(0)]), Err(Stop::WouldBlock.into()));
    guest.call(|wasi, memory| wasi.fd_close(memory, 0)).unwrap();
    guest.wasi = Wasi::new(guest.wasi.rewind());
    assert_eq!(guest.read(0, &[(0, 50)]), Ok(9));
}

#[tokio::test]
async fn input_that_nothing_leads_to_is_let_go() {
    let (mut guest, mut writer) = piped(true);
    writer.put(&[0; 200]);
    guest
        .call(|wasi, memory| wasi.fd_renumber(memory, 0, 2))
        .unwrap();
    let full = tokio::time::timeout(Duration::from_millis(1), writer.room()).await;
    assert!(full.is_err(), "descriptor 2 is standard input now");
    guest
        .call(|wasi, memory| wasi.fd_renumber(memory, 1, 2))
        .unwrap();
    writer.room().await;
}
