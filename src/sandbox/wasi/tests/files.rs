//! Files and directories.

use std::fs;

use super::*;

/// `a/b/`, `a/file` ("hello"), `big` (200 KB), `empty`, `ü`.
fn files() -> Arc<Files> {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/file"), "hello").unwrap();
    fs::write(at("big"), big()).unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("ü"), "u").unwrap();
    Arc::new(Files::load(directory.path()).unwrap())
}

fn big() -> Vec<u8> {
    (0..200_000_u32).map(|n| (n / 7) as u8).collect()
}

const ROOT: u32 = 3;
const PATH: u32 = 8192;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 6;
const CREATE: u32 = 1;
const DIRECTORY: u32 = 2;
const EXCLUSIVE: u32 = 4;
const TRUNCATE: u32 = 8;

fn guest() -> Guest {
    Guest::with(|config| config.files = Some(files()))
}

impl Guest {
    fn path(&mut self, path: &str) -> (u32, u32) {
        self.put(PATH, path.as_bytes());
        (PATH, u32::try_from(path.len()).unwrap())
    }

    fn open_with(&mut self, path: &str, change: impl FnOnce(&mut Opening)) -> Result<u32, Failure> {
        let mut opening = Opening {
            fd: ROOT,
            lookup_flags: 0,
            path: self.path(path),
            open_flags: 0,
            rights: READ,
            flags: 0,
        };
        change(&mut opening);
        self.call(|wasi, memory| wasi.path_open(memory, &opening, OUT))?;
        Ok(self.u32_at(OUT))
    }

    fn open(&mut self, path: &str) -> u32 {
        self.open_with(path, |_| {}).unwrap()
    }

    fn pread(&mut self, fd: u32, list: &[(u32, u32)], offset: u64) -> Result<u32, Failure> {
        let iovecs = self.iovecs(list);
        self.call(|wasi, memory| wasi.fd_pread(memory, fd, iovecs, offset, OUT))?;
        Ok(self.u32_at(OUT))
    }

    fn tell(&mut self, fd: u32) -> Result<u64, Failure> {
        self.call(|wasi, memory| wasi.fd_tell(memory, fd, OUT))?;
        Ok(self.u64_at(OUT))
    }

    /// The bytes that one call gives.
    fn readdir(&mut self, fd: u32, len: u32, cookie: u64) -> Result<Vec<u8>, Failure> {
        let buffer = (PATH, len);
        self.call(|wasi, memory| wasi.fd_readdir(memory, fd, buffer, cookie, OUT))?;
        let used = self.u32_at(OUT) as usize;
        Ok(self.bytes_at(PATH, used).to_vec())
    }

    fn filestat(&mut self, path: &str) -> Result<Vec<u8>, Failure> {
        let path = self.path(path);
        let layout = FilestatLayout::Preview1;
        self.call(|wasi, memory| wasi.path_filestat_get(memory, layout, (ROOT, 0), path, 100))?;
        Ok(self.bytes_at(100, 64).to_vec())
    }
}

/// One directory entry: where the next begins, inode, type, name.
type Dirent = (u64, u64, u8, String);

/// Takes entries apart, and what is left of one that was cut.
fn dirents(mut bytes: &[u8]) -> (Vec<Dirent>, usize) {
    let mut entries = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<24>() {
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        let len = usize::try_from(number(16) & 0xffff_ffff).unwrap();
        assert_eq!(head[21..], [0; 3]);
        let Some((name, rest)) = rest.split_at_checked(len) else {
            break;
        };
        let name = String::from_utf8(name.to_vec()).unwrap();
        entries.push((number(0), number(8), head[20], name));
        bytes = rest;
    }
    (entries, bytes.len())
}

#[test]
fn without_files_nothing_is_open_but_the_streams() {
    let mut guest = Guest::new();
    for fd in [3, 4, u32::MAX] {
        assert_eq!(
            guest.call(|wasi, memory| wasi.fd_prestat_get(memory, fd, OUT)),
            BADF
        );
        let opened = guest.open_with("a", |opening| opening.fd = fd);
        assert_eq!(opened, Err(Errno::Badf.into()));
    }
}

#[test]
fn the_root_is_descriptor_3_and_has_a_name() {
    let mut guest = guest();
    guest
        .call(|wasi, memory| wasi.fd_prestat_get(memory, ROOT, 100))
        .unwrap();
    assert_eq!(guest.bytes_at(100, 9), [0, 0, 0, 0, 1, 0, 0, 0, 0xaa]);
    let mut name =
        |fd, len| guest.call(|wasi, memory| wasi.fd_prestat_dir_name(memory, fd, 100, len));
    assert_eq!(name(ROOT, 0), Err(Errno::Nametoolong.into()));
    assert_eq!(name(ROOT, 1), Ok(()));
    assert_eq!(name(ROOT, u32::MAX), Ok(()));
    assert_eq!(name(4, 1), BADF);
    assert_eq!(name(0, 1), BADF);
    assert_eq!(guest.bytes_at(100, 2), [b'/', 0]);
    // What is opened has no name, so that a C library stops looking.
    let fd = guest.open("a");
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_prestat_get(memory, fd, OUT)),
        BADF
    );
}

#[test]
fn a_file_is_read_from_its_position() {
    let mut guest = guest();
    guest.memory = vec![0xaa; 1 << 20];
    let fd = guest.open("a/file");
    assert_eq!(fd, 4);
    assert_eq!(guest.read(fd, &[(100, 2), (200, 0), (300, 2)]), Ok(4));
    assert_eq!(guest.bytes_at(100, 3), b"he\xaa");
    assert_eq!(guest.bytes_at(300, 3), b"ll\xaa");
    assert_eq!(guest.tell(fd), Ok(4));
    assert_eq!(guest.read(fd, &[(100, 2), (200, 5)]), Ok(1));
    assert_eq!(guest.read(fd, &[(100, 2)]), Ok(0));

    let fd = guest.open("big");
    assert_eq!(
        guest.read(fd, &[(200_000, 150_000), (400_000, 150_000)]),
        Ok(200_000)
    );
    assert_eq!(guest.bytes_at(200_000, 150_000), &big()[..150_000]);
    assert_eq!(guest.bytes_at(400_000, 50_000), &big()[150_000..]);
    let fd = guest.open("empty");
    assert_eq!(guest.read(fd, &[(100, 2)]), Ok(0));
}

#[test]
fn a_bad_buffer_moves_neither_bytes_nor_the_position() {
    let mut guest = guest();
    let fd = guest.open("a/file");
    for list in [&[(100, 2), (end() - 1, 2)][..], &[(100, 2), (u32::MAX, 1)]] {
        assert_eq!(guest.read(fd, list), Err(Errno::Fault.into()));
        assert_eq!(guest.pread(fd, list, 0), Err(Errno::Fault.into()));
    }
    let (iovecs, len) = guest.iovecs(&[(100, 2)]);
    let out = end() - 3;
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_read(memory, fd, iovecs, len, out)),
        FAULT
    );
    assert_eq!(guest.bytes_at(100, 2), b"\xaa\xaa");
    assert_eq!(guest.tell(fd), Ok(0));
}

#[test]
fn pread_leaves_the_position_alone() {
    let mut guest = guest();
    let fd = guest.open("a/file");
    assert_eq!(guest.pread(fd, &[(100, 10)], 3), Ok(2));
    assert_eq!(guest.bytes_at(100, 3), b"lo\xaa");
    assert_eq!(guest.pread(fd, &[(100, 10)], 5), Ok(0));
    assert_eq!(guest.pread(fd, &[(100, 10)], u64::MAX), Ok(0));
    assert_eq!(guest.tell(fd), Ok(0));
    assert_eq!(guest.pread(0, &[(100, 10)], 0), Err(Errno::Spipe.into()));
    assert_eq!(guest.pread(ROOT, &[(100, 10)], 0), Err(Errno::Badf.into()));
}

#[test]
fn a_seek_goes_anywhere_but_before_the_start() {
    let mut guest = guest();
    let fd = guest.open("a/file");
    assert_eq!(guest.seek(fd, 3, Whence::Start), Ok(3));
    assert_eq!(guest.seek(fd, -1, Whence::Current), Ok(2));
    assert_eq!(guest.seek(fd, -1, Whence::End), Ok(4));
    assert_eq!(guest.read(fd, &[(100, 10)]), Ok(1));
    assert_eq!(guest.bytes_at(100, 2), b"o\xaa");
    assert_eq!(guest.seek(fd, 1 << 40, Whence::End), Ok((1 << 40) + 5));
    assert_eq!(guest.read(fd, &[(100, 10)]), Ok(0));
    assert_eq!(guest.seek(fd, i64::MAX, Whence::Start), Ok(i64::MAX as u64));
    assert_eq!(
        guest.seek(fd, 1, Whence::Current),
        Err(Errno::Overflow.into())
    );
    assert_eq!(guest.seek(fd, 2, Whence::Start), Ok(2));
    assert_eq!(
        guest.seek(fd, -3, Whence::Current),
        Err(Errno::Inval.into())
    );
    assert_eq!(
        guest.seek(fd, i64::MIN, Whence::End),
        Err(Errno::Inval.into())
    );
    let out = end() - 7;
    let whence = Some(Whence::Start);
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_seek(memory, fd, 0, whence, out)),
        FAULT
    );
    assert_eq!(guest.tell(fd), Ok(2));
    assert_eq!(guest.seek(ROOT, 0, Whence::Start), Err(Errno::Badf.into()));
    assert_eq!(guest.tell(ROOT), Err(Errno::Badf.into()));
    assert_eq!(guest.tell(0), Err(Errno::Spipe.into()));
}

#[test]
fn a_directory_lists_itself_its_parent_and_its_entries() {
    let mut guest = guest();
    let entry = |next, inode, kind, name: &str| (next, inode, kind, name.to_owned());
    let root = [
        entry(1, 1, 3, "."),
        entry(2, 1, 3, ".."),
        entry(3, 2, 3, "a"),
        entry(4, 5, 4, "big"),
        entry(5, 6, 4, "empty"),
        entry(6, 7, 4, "ü"),
    ];
    let whole = guest.readdir(ROOT, 4096, 0).unwrap();
    assert_eq!(dirents(&whole), (root.to_vec(), 0));
    for cookie in 0..=6 {
        let rest = guest.readdir(ROOT, 4096, cookie).unwrap();
        assert_eq!(dirents(&rest).0, root[usize::try_from(cookie).unwrap()..]);
    }
    for cookie in [7, u64::from(u32::MAX), u64::MAX] {
        assert_eq!(guest.readdir(ROOT, 4096, cookie), Ok(vec![]));
    }
    let a = guest.open("a");
    let inside = guest.readdir(a, 4096, 0).unwrap();
    let expected = vec![
        entry(1, 2, 3, "."),
        entry(2, 1, 3, ".."),
        entry(3, 3, 3, "b"),
        entry(4, 4, 4, "file"),
    ];
    assert_eq!(dirents(&inside), (expected, 0));
    let file = guest.open("a/file");
    assert_eq!(guest.readdir(file, 4096, 0), Err(Errno::Notdir.into()));
    assert_eq!(guest.readdir(0, 4096, 0), Err(Errno::Notdir.into()));
}

#[test]
fn a_full_buffer_cuts_the_last_entry() {
    let mut guest = guest();
    let whole = guest.readdir(ROOT, 4096, 0).unwrap();
    for len in 0..=whole.len() + 1 {
        guest.put(PATH, &[0xaa; 300]);
        let part = guest.readdir(ROOT, u32::try_from(len).unwrap(), 0).unwrap();
        assert_eq!(part, &whole[..len.min(whole.len())]);
        assert_eq!(
            guest.bytes_at(PATH + u32::try_from(part.len()).unwrap(), 1),
            [0xaa]
        );
    }
    // With room for one entry at a time, as a C library goes on, all are seen.
    let (mut cookie, mut names) = (0, Vec::new());
    loop {
        let part = guest.readdir(ROOT, 32, cookie).unwrap();
        let (entries, _) = dirents(&part);
        cookie = entries.last().map_or(cookie, |entry| entry.0);
        names.extend(entries.into_iter().map(|entry| entry.3));
        if part.len() < 32 {
            break;
        }
    }
    assert_eq!(names, [".", "..", "a", "big", "empty", "ü"]);
}

#[test]
fn files_tell_their_size_and_nothing_of_the_host() {
    let mut guest = guest();
    for (path, inode, kind, size) in [
        (".", 1, 3, 0),
        ("a", 2, 3, 0),
        ("a/b/", 3, 3, 0),
        ("a/file", 4, 4, 5),
        ("big", 5, 4, 200_000),
        ("empty", 6, 4, 0),
    ] {
        let mut expected = vec![0; 64];
        expected[0] = 1;
        expected[8] = inode;
        expected[16] = kind;
        expected[24] = 1;
        expected[32..36].copy_from_slice(&u32::to_le_bytes(size));
        for time in [40, 48, 56] {
            expected[time..time + 4].copy_from_slice(&1_000_000_000_u32.to_le_bytes());
        }
        assert_eq!(guest.filestat(path), Ok(expected.clone()), "{path}");
        let fd = guest.open(path);
        let layout = FilestatLayout::Preview1;
        guest
            .call(|wasi, memory| wasi.fd_filestat_get(memory, layout, fd, 100))
            .unwrap();
        assert_eq!(guest.bytes_at(100, 64), expected);

        let layout = FilestatLayout::Preview0;
        guest
            .call(|wasi, memory| wasi.fd_filestat_get(memory, layout, fd, 100))
            .unwrap();
        assert_eq!(guest.bytes_at(100, 20), &expected[..20]);
        assert_eq!(guest.bytes_at(120, 4), [1, 0, 0, 0]);
        assert_eq!(guest.bytes_at(124, 32), &expected[32..]);
        guest
            .call(|wasi, memory| wasi.fd_close(memory, fd))
            .unwrap();
    }
    assert_eq!(guest.filestat("missing"), Err(Errno::Noent.into()));
    assert_eq!(guest.filestat("a/file/"), Err(Errno::Notdir.into()));
    assert_eq!(
        guest.filestat("../etc/passwd"),
        Err(Errno::Notcapable.into())
    );
    assert_eq!(guest.filestat("/etc/passwd"), Err(Errno::Notcapable.into()));
    let path = guest.path("a");
    let layout = FilestatLayout::Preview1;
    let mut stat = |at: (u32, u32), out| {
        guest.call(|wasi, memory| wasi.path_filestat_get(memory, layout, at, path, out))
    };
    assert_eq!(stat((ROOT, 1), 100), Ok(()));
    assert_eq!(stat((ROOT, 2), 100), INVAL);
    assert_eq!(stat((ROOT, 0), end() - 63), FAULT);
    assert_eq!(stat((0, 0), 100), Err(Errno::Notdir.into()));
    assert_eq!(stat((9, 0), 100), BADF);
}

#[test]
fn only_reading_can_be_opened() {
    let mut guest = guest();
    let cases: [(&str, u32, u64, Errno); 17] = [
        ("a/file", TRUNCATE, READ, Errno::Rofs),
        ("a/file", CREATE | TRUNCATE, READ | WRITE, Errno::Rofs),
        ("a/file", 0, WRITE, Errno::Rofs),
        ("a/file", CREATE, WRITE, Errno::Rofs),
        ("a/file", CREATE | EXCLUSIVE, READ, Errno::Exist),
        ("a", CREATE | EXCLUSIVE, READ, Errno::Exist),
        ("a/new", CREATE, READ, Errno::Rofs),
        ("new", CREATE | EXCLUSIVE, WRITE, Errno::Rofs),
        ("missing/new", CREATE, READ, Errno::Noent),
        ("a/file/new", CREATE, READ, Errno::Notdir),
        ("new", 0, READ, Errno::Noent),
        ("a", 0, READ | WRITE, Errno::Isdir),
        ("a", TRUNCATE, READ, Errno::Isdir),
        ("a", CREATE, READ, Errno::Isdir),
        ("a/file", DIRECTORY, READ, Errno::Notdir),
        ("a", DIRECTORY | CREATE, READ, Errno::Inval),
        ("a/file", 16, READ, Errno::Inval),
    ];
    for (path, flags, rights, errno) in cases {
        let opened = guest.open_with(path, |opening| {
            opening.open_flags = flags;
            opening.rights = rights;
        });
        assert_eq!(opened, Err(errno.into()), "{path} {flags} {rights}");
    }
    for (flags, errno) in [(0x1f, None), (0x20, Some(Errno::Inval))] {
        let opened = guest.open_with("a/file", |opening| opening.flags = flags);
        assert_eq!(opened.err(), errno.map(Into::into));
    }
    for (flags, errno) in [(1, None), (2, Some(Errno::Inval))] {
        let opened = guest.open_with("a/file", |opening| opening.lookup_flags = flags);
        assert_eq!(opened.err(), errno.map(Into::into));
    }
    assert!(
        guest
            .open_with("a/file", |opening| opening.open_flags = CREATE)
            .is_ok()
    );
    assert!(
        guest
            .open_with("a", |opening| opening.open_flags = DIRECTORY)
            .is_ok()
    );
    // Without the right to read too: it is told, not held.
    assert!(
        guest
            .open_with("a/file", |opening| opening.rights = 0)
            .is_ok()
    );
    let file = guest.open("a/file");
    assert_eq!(guest.write(file, &[(0, 1)]), Err(Errno::Badf.into()));
    assert_eq!(guest.write(ROOT, &[(0, 1)]), Err(Errno::Badf.into()));
    assert_eq!(guest.read(ROOT, &[(0, 1)]), Err(Errno::Badf.into()));
}

#[test]
fn what_is_below_a_directory_can_be_opened_from_it_and_no_more() {
    let mut guest = guest();
    let a = guest.open("a");
    let below = guest.open_with("b/../file", |opening| opening.fd = a);
    assert!(below.is_ok());
    for path in ["..", "../big", "b/../../big", "/a/file"] {
        let opened = guest.open_with(path, |opening| opening.fd = a);
        assert_eq!(opened, Err(Errno::Notcapable.into()), "{path}");
    }
    let file = guest.open("a/file");
    for (fd, errno) in [(file, Errno::Notdir), (1, Errno::Notdir), (99, Errno::Badf)] {
        let opened = guest.open_with("a", |opening| opening.fd = fd);
        assert_eq!(opened, Err(errno.into()));
    }
}

#[test]
fn descriptors_are_bounded_and_used_again() {
    let mut guest = guest();
    for fd in 4..256 {
        assert_eq!(guest.open("a/file"), fd);
    }
    assert_eq!(guest.open_with("a/file", |_| {}), Err(Errno::Mfile.into()));
    for fd in [100, 50, ROOT] {
        guest
            .call(|wasi, memory| wasi.fd_close(memory, fd))
            .unwrap();
    }
    // The root is gone, but `a` can be reached no more either.
    assert_eq!(guest.open_with("a", |_| {}), Err(Errno::Badf.into()));
}

#[test]
fn the_lowest_free_number_is_given_but_no_streams() {
    let mut guest = guest();
    for fd in [0, 1, 2] {
        guest
            .call(|wasi, memory| wasi.fd_close(memory, fd))
            .unwrap();
    }
    assert_eq!(
        [guest.open("a"), guest.open("a"), guest.open("a")],
        [4, 5, 6]
    );
    guest.call(|wasi, memory| wasi.fd_close(memory, 4)).unwrap();
    assert_eq!([guest.open("a"), guest.open("a")], [4, 7]);
}

#[test]
fn renumbering_moves_files_with_their_position_and_the_root_with_its_name() {
    let mut guest = guest();
    let file = guest.open("a/file");
    guest.read(file, &[(100, 2)]).unwrap();
    guest
        .call(|wasi, memory| wasi.fd_renumber(memory, file, 0))
        .unwrap();
    assert_eq!(guest.tell(file), Err(Errno::Badf.into()));
    assert_eq!(guest.read(0, &[(100, 10)]), Ok(3));
    guest
        .call(|wasi, memory| wasi.fd_renumber(memory, ROOT, 2))
        .unwrap();
    assert_eq!(
        guest.call(|wasi, memory| wasi.fd_prestat_get(memory, 2, OUT)),
        Ok(())
    );
    assert!(guest.open_with("a", |opening| opening.fd = 2).is_ok());
}

#[test]
fn fdstat_says_what_files_and_directories_can_do() {
    let mut guest = guest();
    let file = guest
        .open_with("a/file", |opening| opening.flags = 4)
        .unwrap();
    let mut fdstat = |fd| {
        guest
            .call(|wasi, memory| wasi.fd_fdstat_get(memory, fd, 100))
            .unwrap();
        let kind = guest.bytes_at(100, 1)[0];
        (
            kind,
            guest.bytes_at(102, 1)[0],
            guest.u64_at(108),
            guest.u64_at(116),
        )
    };
    let (seek, tell, readdir) = (1 << 2, 1 << 5, 1 << 14);
    let (kind, flags, base, inheriting) = fdstat(file);
    assert_eq!((kind, flags, inheriting), (4, 4, 0));
    assert_eq!(
        base & (READ | WRITE | seek | tell | readdir),
        READ | seek | tell
    );
    let (kind, _, base, inheriting) = fdstat(ROOT);
    assert_eq!(kind, 3);
    assert_eq!(base & (READ | WRITE | seek | tell | readdir), readdir);
    // With writing, so that a C library asks for it and hears that it is refused.
    assert_eq!(inheriting & (READ | WRITE), READ | WRITE);
    let mut set =
        |fd, flags| guest.call(|wasi, memory| wasi.fd_fdstat_set_flags(memory, fd, flags));
    assert_eq!(set(file, 1), Ok(()));
    assert_eq!(set(file, 2), INVAL);
    assert_eq!(set(ROOT, 1), BADF);
}

#[test]
fn nothing_is_a_link_and_nothing_can_be_changed() {
    let mut guest = guest();
    for (path, errno) in [
        ("a/file", Errno::Inval),
        ("a", Errno::Inval),
        ("x", Errno::Noent),
    ] {
        let path = guest.path(path);
        let answer =
            guest.call(|wasi, memory| wasi.path_readlink(memory, ROOT, path, (0, 10), OUT));
        assert_eq!(answer, Err(errno.into()));
    }
    for (path, errno) in [
        ("a", Errno::Rofs),
        ("new", Errno::Rofs),
        ("/a", Errno::Notcapable),
        ("a\0", Errno::Inval),
        ("", Errno::Noent),
    ] {
        let (at, len) = guest.path(path);
        let answer = guest.call(|wasi, memory| wasi.path_change(memory, &[(ROOT, at, len)]));
        assert_eq!(answer, Err(errno.into()), "{path}");
        let answer = guest.call(|wasi, memory| wasi.path_symlink(memory, (0, 10), (ROOT, at, len)));
        assert_eq!(answer, Err(errno.into()), "{path}");
    }
    let (at, len) = guest.path("a");
    let mut rename = |one: u32, other: u32| {
        guest.call(|wasi, memory| wasi.path_change(memory, &[(one, at, len), (other, at, len)]))
    };
    assert_eq!(rename(ROOT, 9), BADF);
    assert_eq!(rename(1, ROOT), Err(Errno::Notdir.into()));
    assert_eq!(rename(ROOT, ROOT), Err(Errno::Rofs.into()));
}

#[test]
fn files_are_always_ready() {
    let mut guest = guest();
    let file = guest.open("a/file");
    guest.read(file, &[(100, 2)]).unwrap();
    let mut subscriptions = Vec::new();
    for (kind, fd) in [(1_u8, file), (2, file), (1, ROOT)] {
        let mut bytes = [0_u8; 48];
        bytes[8] = kind;
        bytes[16..20].copy_from_slice(&fd.to_le_bytes());
        subscriptions.extend(bytes);
    }
    guest.put(4096, &subscriptions);
    let layout = SubscriptionLayout::Preview1;
    guest
        .call(|wasi, memory| wasi.poll_oneoff(memory, layout, 4096, 8192, 3, OUT))
        .unwrap();
    assert_eq!(guest.u32_at(OUT), 3);
    let errno = |event: u32| guest.bytes_at(8192 + event * 32 + 8, 2)[0];
    assert_eq!([errno(0), errno(1), errno(2)], [0, 8, 8]);
    assert_eq!(guest.u64_at(8192 + 16), 3);
}

#[test]
fn a_guest_that_starts_again_has_its_files_again() {
    let mut guest = Guest::with(|config| {
        config.files = Some(files());
        config.may_block = false;
    });
    let file = guest.open("a/file");
    guest.read(file, &[(100, 2)]).unwrap();
    guest.wasi = Wasi::new(guest.wasi.rewind());
    assert_eq!(guest.tell(file), Err(Errno::Badf.into()));
    let file = guest.open("a/file");
    assert_eq!(guest.read(file, &[(100, 10)]), Ok(5));
}
