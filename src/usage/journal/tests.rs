//! The journal on a real disk.

use std::io::Write;

use chrono::Utc;

use super::*;
use crate::store::usage::Status;
use crate::usage::Used;

const AMPLE: u64 = 1 << 30;

fn entry(request_id: &str) -> Entry<'_> {
    Entry {
        caller: None,
        module: None,
        module_id: None,
        route: Some("route"),
        status: Status::Success,
        used: Used::default(),
        request_id,
    }
}

fn append(journal: &Journal, request_id: &str) {
    journal
        .append(&entry(request_id), Utc::now().timestamp_micros())
        .unwrap();
}

/// Delivers all there is, and gives the ids of the requests.
fn deliver(journal: &Journal) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let batch = journal.read(100);
        if !batch.has_progress() {
            ids.sort();
            return ids;
        }
        ids.extend(batch.executions.iter().map(|e| e.request_id.to_string()));
        journal.delivered(batch);
    }
}

/// Names of the files in all folders.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in fs::read_dir(directory).unwrap() {
        let folder = folder.unwrap().path();
        files.extend(fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()));
    }
    files.retain(|file| file.extension().is_some_and(|e| e == "segment"));
    files.sort();
    files
}

/// A process that was killed: its lock is free, its files are there.
fn killed(journal: Journal) {
    drop(journal);
}

#[test]
fn what_is_appended_is_delivered_once() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), AMPLE).unwrap();
    assert!(deliver(&journal).is_empty());
    append(&journal, "1");
    append(&journal, "2");
    assert_eq!(journal.depth().rows, 2);
    // Until it is delivered, it is the same again.
    assert_eq!(&*journal.read(1).executions[0].request_id, "1");
    assert_eq!(journal.read(9).executions.len(), 2);
    assert_eq!(deliver(&journal), ["1", "2"]);
    assert_eq!(journal.depth(), Depth::default());
    append(&journal, "3");
    assert_eq!(deliver(&journal), ["3"]);
    journal.close();
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing stays"
    );
}

#[test]
fn what_was_not_delivered_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let first = Journal::open(dir.path(), AMPLE).unwrap();
    append(&first, "1");
    let second = Journal::open(dir.path(), AMPLE).unwrap();
    append(&second, "2");
    second.adopt().unwrap();
    assert_eq!(deliver(&second), ["2"], "the first is alive");
    killed(first);
    second.adopt().unwrap();
    assert_eq!(deliver(&second), ["1"]);
    second.adopt().unwrap();
    assert!(deliver(&second).is_empty());
    // One that closes with something left leaves it to the next.
    append(&second, "3");
    second.close();
    drop(second);
    let third = Journal::open(dir.path(), AMPLE).unwrap();
    third.adopt().unwrap();
    assert_eq!(
        deliver(&third),
        ["2", "3"],
        "what was in the same file comes again"
    );
    third.close();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn only_one_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let first = Journal::open(dir.path(), AMPLE).unwrap();
    append(&first, "1");
    let others: Vec<_> = (0..4)
        .map(|_| Journal::open(dir.path(), AMPLE).unwrap())
        .collect();
    killed(first);
    let delivered: Vec<String> = std::thread::scope(|scope| {
        let all: Vec<_> = others
            .iter()
            .map(|journal| {
                scope.spawn(|| {
                    journal.adopt().unwrap();
                    deliver(journal)
                })
            })
            .collect();
        all.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(delivered, ["1"]);
}

#[test]
fn files_are_sealed_and_deleted_when_they_are_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), AMPLE).unwrap();
    let records = 20_000;
    for n in 0..records {
        append(&journal, &format!("{n:05}"));
    }
    let all = files(dir.path());
    assert!(all.len() > 1, "{all:?}");
    for file in &all {
        assert!(fs::metadata(file).unwrap().len() <= SEGMENT_BYTES_MAX);
    }
    let delivered = deliver(&journal);
    assert_eq!(delivered.len(), records);
    assert!(delivered.is_sorted() && delivered.windows(2).all(|w| w[0] != w[1]));
    assert_eq!(files(dir.path()).len(), 1, "the one that is appended to");
}

#[test]
fn a_full_journal_says_so_and_takes_again_when_it_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), 4 * SEGMENT_BYTES_MAX).unwrap();
    let mut records = 0;
    while !journal.is_full() {
        append(&journal, "a request");
        records += 1;
        assert!(records < 100_000);
    }
    // Those under way are taken all the same, and the bound holds.
    for _ in 0..100 {
        append(&journal, "a request");
    }
    let bytes: u64 = files(dir.path())
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    assert!(bytes <= 4 * SEGMENT_BYTES_MAX, "{bytes}");
    assert_eq!(deliver(&journal).len(), records + 100);
    assert!(!journal.is_full());
}

#[test]
fn threads_append_at_once_and_every_id_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), AMPLE).unwrap();
    let at = Utc::now().timestamp_micros();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..3_000 {
                    journal.append(&entry("r"), at).unwrap();
                }
            });
        }
    });
    let mut ids = HashSet::new();
    loop {
        let batch = journal.read(1000);
        if !batch.has_progress() {
            break;
        }
        assert_eq!(batch.damaged_bytes, 0);
        ids.extend(batch.executions.iter().map(|execution| execution.id));
        journal.delivered(batch);
    }
    assert_eq!(ids.len(), 24_000);
}

#[test]
fn a_record_that_could_not_be_written_whole_is_covered_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), AMPLE).unwrap();
    append(&journal, "1");
    // The beginning of a frame that a full disk cut off.
    let mut file = OpenOptions::new()
        .append(true)
        .open(&files(dir.path())[0])
        .unwrap();
    file.write_all(&[0xf5, 0x57, 0xff, 0x52, 9, 0, 0]).unwrap();
    assert_eq!(journal.read(9).damaged_bytes, 0, "nobody sees it");
    append(&journal, "2");
    killed(journal);
    let next = Journal::open(dir.path(), AMPLE).unwrap();
    next.adopt().unwrap();
    assert_eq!(next.read(9).damaged_bytes, 0);
    assert_eq!(deliver(&next), ["1", "2"]);
}

#[test]
fn whatever_is_left_behind_nothing_crashes_and_what_is_whole_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let first = Journal::open(dir.path(), AMPLE).unwrap();
    for request in ["1", "2", "3"] {
        append(&first, request);
    }
    let file = files(dir.path()).remove(0);
    let folder = file.parent().unwrap().to_owned();
    killed(first);
    let whole = fs::read(&file).unwrap();
    let frame = (whole.len() - MAGIC.len()) / 3;
    // In the same folder: a torn end, a head in part, nothing at all, noise, a hole, and damage.
    let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    write("2.segment", &whole[..whole.len() - 5]);
    write("3.segment", &MAGIC[..5]);
    write("4.segment", b"");
    write("5.segment", b"something else entirely, and quite long too");
    write(
        "6.segment",
        &[
            MAGIC.to_vec(),
            vec![0; 300_000],
            whole[MAGIC.len()..].to_vec(),
        ]
        .concat(),
    );
    let mut damaged = whole.clone();
    damaged[MAGIC.len() + frame + 20] ^= 0xff;
    write("7.segment", &damaged);
    write(
        "8.segment",
        b"wwusage9 and whatever a later version puts there",
    );
    write("9.segment", &[MAGIC.to_vec(), vec![0xf5; 100_000]].concat());

    let next = Journal::open(dir.path(), AMPLE).unwrap();
    next.adopt().unwrap();
    let delivered = deliver(&next);
    let expected = ["1", "1", "1", "1", "2", "2", "2", "3", "3", "3"];
    assert_eq!(delivered, expected);
    let left: Vec<_> = files(dir.path())
        .iter()
        .map(|f| f.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        left,
        ["5.segment", "8.segment"],
        "what is not ours is not touched"
    );
    // And it is not taken up again and again.
    next.adopt().unwrap();
    assert!(deliver(&next).is_empty());
}

#[test]
fn a_folder_that_goes_away_is_an_error_not_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(&dir.path().join("usage"), AMPLE).unwrap();
    append(&journal, "1");
    fs::remove_dir_all(dir.path().join("usage")).unwrap();
    assert!(journal.read(9).executions.is_empty());
    assert!(journal.adopt().is_err());
    assert!(journal.probe().is_err());
    assert!(journal.sync().is_ok());
    journal.close();
    assert!(
        journal
            .append(&entry("2"), Utc::now().timestamp_micros())
            .is_err()
    );
}

#[test]
fn sync_writes_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), AMPLE).unwrap();
    journal.sync().unwrap();
    append(&journal, "1");
    journal.sync().unwrap();
    let segment = lock(&journal.segments)[0].clone();
    let (written, synced) = (&segment.written, &segment.synced);
    assert_eq!(
        written.load(Ordering::Relaxed),
        synced.load(Ordering::Relaxed)
    );
    journal.probe().unwrap();
}
