//! Reading, writing, and the descriptor table.

use super::*;

#[test]
fn input_is_scattered_and_ends() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(0, &[(100, 5), (0, 0), (200, 3)]), Ok(8));
    assert_eq!(
        (guest.bytes_at(100, 6), guest.bytes_at(200, 4)),
        (&b"hello\xaa"[..], &b", g\xaa"[..])
    );
    assert_eq!(guest.read(0, &[(300, 100), (400, 100)]), Ok(4));
    assert_eq!(guest.bytes_at(300, 5), b"uest\xaa");
    assert_eq!(guest.read(0, &[(300, 100)]), Ok(0));
    assert_eq!(guest.read(0, &[]), Ok(0));
}

#[test]
fn large_input_arrives_whole() {
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut guest = Guest::with(|config| config.stdin = Bytes::from(input.clone()).into());
    guest.memory = vec![0; 4 << 20];
    assert_eq!(
        guest.read(
            0,
            &[(65536, 1_000_000), (1_065_536, 4), (1_065_540, 2_500_000)]
        ),
        Ok(3_000_000)
    );
    assert!(guest.bytes_at(65536, input.len()) == input);
}

#[test]
fn output_is_gathered_and_counted() {
    let mut guest = Guest::new();
    guest.put(100, b"hello");
    guest.put(200, b"error");
    assert_eq!(guest.write(1, &[(100, 2), (0, 0), (102, 3)]), Ok(5));
    assert_eq!(guest.write(2, &[(200, 5)]), Ok(5));
    assert_eq!(guest.write(1, &[(100, 1), (100, 1)]), Ok(2));
    let output = guest.wasi.finish();
    assert_eq!(output.stdout, b"hellohh");
    assert_eq!(output.stdout_bytes, 7);
    assert_eq!(
        (&output.stderr[..], output.stderr_truncated),
        (&b"error"[..], false)
    );
}

#[test]
fn standard_output_ends_the_guest_at_its_limit_and_keeps_what_fits() {
    let mut guest = Guest::new();
    assert_eq!(guest.write(1, &[(0, 600), (0, 400)]), Ok(1000));
    assert_eq!(guest.write(1, &[(0, 0)]), Ok(0));
    assert_eq!(guest.write(1, &[(0, 1)]), Err(Stop::OutputLimit.into()));
    assert_eq!(guest.wasi.finish().stdout_bytes, 1000);

    let mut guest = Guest::new();
    assert_eq!(
        guest.write(1, &[(0, 600), (0, 600)]),
        Err(Stop::OutputLimit.into())
    );
    let output = guest.wasi.finish();
    assert_eq!((output.stdout.len(), output.stdout_bytes), (1000, 1000));
}

#[test]
fn standard_error_is_cut_but_never_fails() {
    let mut guest = Guest::new();
    guest.put(100, b"0123456789abc");
    assert_eq!(guest.write(2, &[(100, 10)]), Ok(10));
    assert_eq!(guest.write(2, &[(100, 13)]), Ok(13));
    let output = guest.wasi.finish();
    assert_eq!(
        (&output.stderr[..], output.stderr_truncated),
        (&b"0123456789"[..], true)
    );
}

#[test]
fn a_flood_in_one_call_costs_little() {
    let mut guest = Guest::new();
    guest.memory = vec![7; 4 << 20];
    let buffers = [(0, 4 << 20); 1023];
    let start = Instant::now();
    assert_eq!(guest.write(2, &buffers), Ok(1023 * (4 << 20)));
    assert_eq!(guest.write(1, &buffers), Err(Stop::OutputLimit.into()));
    assert!(start.elapsed() < Duration::from_secs(60));
    let output = guest.wasi.finish();
    assert!(output.stdout.capacity() <= 4096 && output.stderr.capacity() <= 64);
}

#[test]
fn buffers_are_checked_before_anything_moves() {
    let end = end();
    for bad in [
        (end - 4, 5),
        (end + 1, 0),
        (u32::MAX, 1),
        (u32::MAX, u32::MAX),
        (0, u32::MAX),
        (end, 1),
    ] {
        let mut guest = Guest::new();
        let before = guest.memory.len();
        assert_eq!(
            guest.read(0, &[(100, 5), bad]),
            Err(Errno::Fault.into()),
            "{bad:?}"
        );
        assert_eq!(guest.bytes_at(100, 5), [0xaa; 5]);
        assert_eq!(
            guest.write(1, &[(100, 5), bad]),
            Err(Errno::Fault.into()),
            "{bad:?}"
        );
        assert_eq!(
            guest.write(2, &[(100, 5), bad]),
            Err(Errno::Fault.into()),
            "{bad:?}"
        );
        assert_eq!(guest.read(0, &[(100, 5)]), Ok(5), "input was lost");
        assert_eq!(guest.memory.len(), before);
        assert_eq!(guest.wasi.finish(), Output::default());
    }
    let mut guest = Guest::new();
    assert_eq!(guest.read(0, &[(end - 4, 4), (end, 0)]), Ok(4));
}

#[test]
fn lists_and_results_outside_of_memory_are_faults() {
    let end = end();
    for fd in [0, 1, 2] {
        let mut guest = Guest::new();
        let mut call = |iovecs, len, out| {
            guest.call(|wasi, memory| match fd {
                0 => wasi.fd_read(memory, fd, iovecs, len, out),
                _ => wasi.fd_write(memory, fd, iovecs, len, out),
            })
        };
        assert_eq!(call(end - 7, 1, OUT), FAULT);
        assert_eq!(call(u32::MAX, 1, OUT), FAULT);
        assert_eq!(call(end - 8, 2, OUT), FAULT);
        assert_eq!(call(0, 0, end - 3), FAULT);
        assert_eq!(call(0, 0, u32::MAX), FAULT);
        assert_eq!(call(end, 0, end - 4), Ok(()));
        assert_eq!(call(0, 1025, OUT), INVAL);
        assert_eq!(call(0, u32::MAX, OUT), INVAL);
        assert_eq!(guest.wasi.finish(), Output::default());
    }
}

#[test]
fn no_more_than_iov_max_buffers_and_four_gigabytes() {
    let mut guest = Guest::new();
    assert_eq!(guest.write(2, &[(0, 1); 1024]), Ok(1024));
    assert_eq!(guest.write(2, &[(0, 1); 1025]), Err(Errno::Inval.into()));
    guest.memory = vec![0; 8 << 20];
    assert_eq!(
        guest.write(2, &[(0, 8 << 20); 512]),
        Err(Errno::Inval.into())
    );
}

#[test]
fn a_buffer_over_its_own_list_changes_nothing() {
    let mut guest = Guest::with(|config| config.stdin = Bytes::from(vec![0xff; 100]).into());
    // The first buffer covers the whole list; the second is still where it was.
    assert_eq!(guest.read(0, &[(IOVECS, 16), (200, 4)]), Ok(20));
    assert_eq!(guest.bytes_at(200, 5), b"\xff\xff\xff\xff\xaa");
    // A result inside a buffer is written last.
    let (iovecs, len) = guest.iovecs(&[(OUT, 8)]);
    guest
        .call(|wasi, memory| wasi.fd_read(memory, 0, iovecs, len, OUT))
        .unwrap();
    assert_eq!(guest.bytes_at(OUT, 8), [8, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn streams_have_a_direction() {
    let mut guest = Guest::new();
    for (fd, list) in [
        (0, &[(0, 1)][..]),
        (0, &[]),
        (3, &[(0, 1)]),
        (u32::MAX, &[]),
    ] {
        assert_eq!(guest.write(fd, list), Err(Errno::Badf.into()));
    }
    for fd in [1, 2, 3, u32::MAX] {
        assert_eq!(guest.read(fd, &[(0, 1)]), Err(Errno::Badf.into()));
    }
}

#[test]
fn a_closed_descriptor_stays_closed() {
    let mut guest = Guest::new();
    for fd in 0..3 {
        assert_eq!(guest.call(|wasi, memory| wasi.fd_close(memory, fd)), Ok(()));
        assert_eq!(guest.call(|wasi, memory| wasi.fd_close(memory, fd)), BADF);
        assert_eq!(
            guest.call(|wasi, memory| wasi.fd_fdstat_get(memory, fd, OUT)),
            BADF
        );
        assert_eq!(guest.seek(fd, 0, Whence::Start), Err(Errno::Badf.into()));
        assert_eq!(guest.call(|wasi, _| wasi.ignore(fd, Errno::Inval)), BADF);
        assert_eq!(
            guest.call(|wasi, memory| wasi.fd_renumber(memory, fd, fd)),
            BADF
        );
    }
    assert_eq!(guest.read(0, &[(0, 1)]), Err(Errno::Badf.into()));
    assert_eq!(guest.write(1, &[(0, 1)]), Err(Errno::Badf.into()));
    assert_eq!(guest.call(|wasi, memory| wasi.fd_close(memory, 3)), BADF);
}

#[test]
fn renumbering_moves_a_stream() {
    let mut guest = Guest::new();
    guest.put(100, b"out");
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_renumber(memory, 1, 1)),
        Ok(())
    );
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_renumber(memory, 1, 3)),
        BADF
    );
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_renumber(memory, 7, 1)),
        BADF
    );
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_renumber(memory, 1, 2)),
        Ok(())
    );
    assert_eq!(guest.write(1, &[(100, 3)]), Err(Errno::Badf.into()));
    assert_eq!(guest.write(2, &[(100, 3)]), Ok(3));
    let output = guest.wasi.finish();
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"out"[..], &b""[..])
    );
}

#[test]
fn fdstat_says_what_a_stream_can_do() {
    let mut guest = Guest::new();
    for (fd, read, write) in [(0, true, false), (1, false, true), (2, false, true)] {
        guest
            .call(|wasi, memory| wasi.fd_fdstat_get(memory, fd, 100))
            .unwrap();
        let (read_right, write_right, seek_rights) = (1 << 1, 1 << 6, 1 << 2 | 1 << 5);
        let rights = guest.u64_at(108);
        assert_eq!(
            (rights & read_right != 0, rights & write_right != 0),
            (read, write)
        );
        assert_eq!(rights & seek_rights, 0);
        assert_eq!(guest.bytes_at(100, 4), [0; 4]);
        assert_eq!(guest.u64_at(116), 0);
        assert_eq!(guest.bytes_at(124, 1), [0xaa]);
    }
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_fdstat_set_flags(memory, 1, 5)),
        Ok(())
    );
    guest
        .call(|wasi, memory| wasi.fd_fdstat_get(memory, 1, 100))
        .unwrap();
    assert_eq!(guest.bytes_at(100, 4), [0, 0, 5, 0]);
    for flags in [2, 8, 16, 0x20, u32::MAX] {
        assert_eq!(
            guest.call(|wasi, memory| wasi.fd_fdstat_set_flags(memory, 1, flags)),
            INVAL
        );
    }
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_fdstat_set_flags(memory, 3, 0)),
        BADF
    );
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_fdstat_get(memory, 0, end() - 23)),
        FAULT
    );
}

#[test]
fn filestat_has_the_layout_of_its_edition() {
    for (layout, len, nlink_at) in [
        (FilestatLayout::Preview0, 56, 20),
        (FilestatLayout::Preview1, 64, 24),
    ] {
        let mut guest = Guest::new();
        guest
            .call(|wasi, memory| wasi.fd_filestat_get(memory, layout, 0, 100))
            .unwrap();
        let mut expected = vec![0; len];
        expected[nlink_at] = 1;
        expected.push(0xaa);
        assert_eq!(guest.bytes_at(100, len + 1), expected);
        let last = end() - u32::try_from(len).unwrap();
        assert_eq!(
            guest.call(|wasi, memory| wasi.fd_filestat_get(memory, layout, 0, last)),
            Ok(())
        );
        assert_eq!(
            guest.call(|wasi, memory| wasi.fd_filestat_get(memory, layout, 0, last + 1)),
            FAULT
        );
        assert_eq!(
            guest.call(|wasi, memory| wasi.fd_filestat_get(memory, layout, 3, 100)),
            BADF
        );
    }
}

#[test]
fn streams_cannot_seek() {
    let mut guest = Guest::new();
    for whence in [Whence::Start, Whence::Current, Whence::End] {
        assert_eq!(guest.seek(0, 0, whence), Err(Errno::Spipe.into()));
    }
    let mut unknown = |fd| guest.call(|wasi, memory| wasi.fd_seek(memory, fd, 0, None, OUT));
    assert_eq!(unknown(0), INVAL);
    assert_eq!(unknown(3), BADF);
}

#[tokio::test]
async fn output_goes_through_the_pipe_and_ends_with_the_guest() {
    let (writer, mut reader) = pipe(1 << 20);
    let mut guest = Guest::with(|config| {
        config.stdout = Stdout::Pipe(writer);
        config.stdout_bytes_max = 200_000;
    });
    guest.memory = vec![b'x'; 300_000];
    assert_eq!(guest.write(1, &[(2000, 100_000)]), Ok(100_000));
    assert_eq!(
        guest.write(1, &[(2000, 250_000)]),
        Err(Stop::OutputLimit.into())
    );
    let output = guest.wasi.finish();
    assert_eq!((output.stdout.len(), output.stdout_bytes), (0, 200_000));
    let mut piped = 0;
    while let Some(bytes) = reader.read().await {
        assert!(bytes.iter().all(|byte| *byte == b'x'));
        piped += bytes.len();
    }
    assert_eq!(piped, 200_000);
}

#[test]
fn a_pipe_without_a_reader_or_time_ends_the_guest() {
    let (writer, reader) = pipe(16);
    let mut guest = Guest::with(|config| config.stdout = Stdout::Pipe(writer));
    drop(reader);
    assert_eq!(guest.write(1, &[(0, 10)]), Err(Stop::Cancelled.into()));

    let (writer, _reader) = pipe(16);
    let mut guest = Guest::with(|config| {
        config.stdout = Stdout::Pipe(writer);
        config.deadline = Instant::now() + Duration::from_millis(10);
    });
    assert_eq!(guest.write(1, &[(0, 100)]), Err(Stop::TimeLimit.into()));
}
