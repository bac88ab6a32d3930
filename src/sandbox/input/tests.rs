use std::thread;
use std::time::Duration;

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(300)
}

/// Reads to the end, at most `at_most` bytes at a time.
fn read_all(mut reader: InputReader, at_most: usize) -> Result<Vec<u8>, Cut> {
    let mut all = Vec::new();
    let mut buffer = vec![0; at_most];
    loop {
        match reader.wait_until(soon())? {
            Readiness::Bytes(_) => {}
            Readiness::Ended => return Ok(all),
            Readiness::Nothing => panic!("nothing came"),
        }
        let len = reader.read_now(&mut buffer);
        assert!(len > 0);
        all.extend_from_slice(&buffer[..len]);
    }
}

#[tokio::test]
async fn bytes_arrive_in_order_through_a_bounded_buffer() {
    for (bytes_max, put, at_most) in [(7, 3, 5), (1, 1, 1), (64, 13, 1000), (0, 2, 3)] {
        let (mut writer, reader) = input(bytes_max);
        let sent: Vec<u8> = (0..20_000u32).map(|n| n as u8).collect();
        let thread = thread::spawn(move || read_all(reader, at_most));
        for chunk in sent.chunks(put) {
            writer.room().await;
            writer.put(chunk);
            let held = writer.shared.lock().buffer.len();
            assert!(held < bytes_max.max(1) + put, "{held} bytes are held");
        }
        writer.finish();
        assert_eq!(thread.join().unwrap(), Ok(sent));
    }
}

#[tokio::test]
async fn a_full_pipe_waits_until_half_of_it_is_read() {
    let (mut writer, mut reader) = input(8);
    writer.put(b"12345678");
    let full = tokio::time::timeout(Duration::from_millis(1), writer.room()).await;
    assert!(full.is_err());
    reader.shared.lock().writer = None;
    let waiting = tokio::spawn(async move {
        writer.room().await;
        writer
    });
    // The task has to be waiting before the reads count.
    while reader.shared.lock().writer.is_none() {
        tokio::task::yield_now().await;
    }
    let mut buffer = [0; 3];
    assert_eq!(reader.read_now(&mut buffer), 3);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert_eq!(reader.read_now(&mut buffer), 3);
    drop(waiting.await.unwrap());
}

#[test]
fn readiness_says_what_a_read_would_find() {
    let (mut writer, mut reader) = input(8);
    assert_eq!(reader.readiness(), Ok(Readiness::Nothing));
    writer.put(b"abc");
    assert_eq!(reader.readiness(), Ok(Readiness::Bytes(3)));
    writer.finish();
    assert_eq!(reader.readiness(), Ok(Readiness::Bytes(3)));
    assert_eq!(reader.read_now(&mut [0; 8]), 3);
    assert_eq!(reader.readiness(), Ok(Readiness::Ended));
    assert_eq!(reader.read_now(&mut [0; 8]), 0);
    let start = Instant::now();
    let (_writer, reader) = input(8);
    let until = start + Duration::from_millis(20);
    assert_eq!(reader.wait_until(until), Ok(Readiness::Nothing));
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn a_writer_that_goes_without_a_word_cuts_the_input() {
    let (mut writer, reader) = input(8);
    writer.put(b"abc");
    let thread = thread::spawn(move || read_all(reader, 8));
    drop(writer);
    assert_eq!(thread.join().unwrap(), Err(Cut));
}

#[test]
fn closing_from_outside_wakes_the_reader() {
    let (_writer, reader) = input(8);
    let stdin = Stdin::Pipe(reader);
    let closer = stdin.closer().unwrap();
    let Stdin::Pipe(reader) = stdin else {
        panic!("it was a pipe");
    };
    let thread = thread::spawn(move || reader.wait_until(soon()));
    closer.close();
    assert_eq!(thread.join().unwrap(), Err(Cut));
    assert!(Stdin::from(Bytes::new()).closer().is_none());
}

#[tokio::test]
async fn nobody_who_reads_is_no_reason_to_wait() {
    let (mut writer, reader) = input(2);
    writer.put(b"abc");
    drop(reader);
    writer.room().await;
    writer.put(b"more");
    assert!(writer.shared.lock().buffer.is_empty());
    writer.finish();
}
