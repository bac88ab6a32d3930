//! The journal: executions on the disk of this machine, on their way to the database.
//!
//! A record is in the kernel's hands (one `pwrite`) before [`Journal::append`] returns, so that it outlives the
//! process, however that ends; only a machine that loses power loses what [`Journal::sync`] had not written yet.
//! Nothing is kept in memory besides: what is to be delivered is read from the files again, so that a database
//! that is away for long costs disk, not memory.
//!
//! Each process has a folder of its own ([`home`]), and in it each group of threads a file that it alone appends
//! to. A file that is full is sealed and the next one begun; one that was delivered whole is deleted. Folders of
//! processes that are gone are taken over, and delivered again from their beginning: the database knows what it
//! has already.

mod frame;
mod home;
#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::{self, Entry};
use crate::store::usage::Execution;
use crate::telemetry::shard::Sharded;
use frame::{FRAME_BYTES_MAX, MAGIC};
use home::{Found, Home};

/// A file is sealed before it gets larger, in bytes. Delivered files are deleted as a whole, so small ones let go
/// of the disk sooner; a new one costs about a hundred microseconds.
pub(super) const SEGMENT_BYTES_MAX: u64 = 1 << 20;

/// Read at a time, in bytes. What is behind the last record that is wanted was read for nothing.
const CHUNK_BYTES: usize = 64 * 1024;

/// Records in one file, at most: ids count them in 16 bits.
const SEGMENT_RECORDS_MAX: u32 = 1 << 16;

/// The journal of this process, and what others left behind.
pub(super) struct Journal {
    directory: PathBuf,
    home: Arc<Home>,
    bytes_max: u64,
    /// Sets this process's ids apart: 42 random bits.
    instance: u128,
    lanes: Sharded<Mutex<Option<Open>>>,
    /// Oldest first.
    segments: Mutex<VecDeque<Arc<Segment>>>,
    numbers: AtomicU64,
    full: AtomicBool,
    adopted: Mutex<Adopted>,
}

/// Folders of processes that are gone.
#[derive(Default)]
struct Adopted {
    homes: Vec<Arc<Home>>,
    /// Files that are no segments of ours: said once, and not touched.
    strange: HashSet<PathBuf>,
}

/// The file that one group of threads appends to.
struct Open {
    file: File,
    segment: Arc<Segment>,
    at: u64,
    records: u32,
}

/// A file of records, as seen by those who deliver it.
struct Segment {
    home: Arc<Home>,
    path: PathBuf,
    number: u64,
    /// Up to where there are whole frames, or, of another process's file, anything at all.
    written: AtomicU64,
    /// Up to where it was delivered.
    delivered: AtomicU64,
    /// Up to where it is on the disk for sure.
    synced: AtomicU64,
    rows_written: AtomicU64,
    rows_delivered: AtomicU64,
    /// Nothing is appended any more.
    sealed: AtomicBool,
    /// It was said that it can't be read.
    complained: AtomicBool,
}

/// Records to be delivered together.
#[derive(Default)]
pub(super) struct Batch {
    pub executions: Vec<Execution>,
    /// Bytes that were no records.
    pub damaged_bytes: u64,
    marks: Vec<Mark>,
}

/// How far a batch reaches in a file.
struct Mark {
    segment: Arc<Segment>,
    to: u64,
    rows: u64,
}

/// What waits to be delivered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Depth {
    /// Records of this process.
    pub rows: u64,
    pub bytes: u64,
}

impl Journal {
    /// Opens a journal in `directory`, which gateways on the same database may share. `bytes_max` bounds what
    /// this process's journal, and what it has taken over, take on the disk.
    pub(super) fn open(directory: &Path, bytes_max: u64) -> io::Result<Journal> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let home = Arc::new(Home::create(directory)?);
        Ok(Journal {
            directory: directory.to_owned(),
            home,
            bytes_max,
            instance: u128::from(u64::from_le_bytes(random) >> (64 - 42)),
            lanes: Sharded::default(),
            segments: Mutex::default(),
            numbers: AtomicU64::new(1),
            full: AtomicBool::new(false),
            adopted: Mutex::default(),
        })
    }

    /// Appends a record: when this returns, it outlives the process. `at_us` is in microseconds since 1970.
    pub(super) fn append(&self, entry: &Entry<'_>, at_us: i64) -> io::Result<()> {
        let mut lane = lock(self.lanes.mine());
        let is_used_up = |open: &mut Open| {
            open.at + FRAME_BYTES_MAX as u64 > SEGMENT_BYTES_MAX
                || open.records >= SEGMENT_RECORDS_MAX
        };
        if let Some(used_up) = lane.take_if(is_used_up) {
            used_up.segment.sealed.store(true, Ordering::Release);
        }
        let open = match &mut *lane {
            Some(open) => open,
            None => lane.insert(self.new_segment()?),
        };
        let unique = self.instance << 32
            | u128::from(open.segment.number & 0xffff) << 16
            | u128::from(open.records);
        let encode = |buffer: &mut _| record::encode(entry, at_us, unique, buffer);
        let bytes = frame::with_frame(encode, |frame| {
            // At its place rather than at the end: what a failure wrote in part, the next record covers.
            open.file.write_all_at(frame, open.at)?;
            Ok::<_, io::Error>(frame.len() as u64)
        })?;
        open.at += bytes;
        open.records += 1;
        let segment = &open.segment;
        segment.rows_written.fetch_add(1, Ordering::Relaxed);
        segment.written.store(open.at, Ordering::Release);
        Ok(())
    }

    /// Whether it may take no more. Records that come all the same are taken.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Whether records can be written: tries it, in a file that is deleted at once.
    pub(super) fn probe(&self) -> io::Result<()> {
        let path = self.home.path().join("probe");
        let written = create(&path).and_then(|file| file.write_all_at(&[0; 4096], 0));
        // What stays is written over by the next.
        let _ = fs::remove_file(&path);
        written
    }

    /// What is to be delivered next: at most `rows_max` records, the oldest files' first. Until
    /// [`Journal::delivered`] it is the same again. Only one thread may deliver.
    pub(super) fn read(&self, rows_max: usize) -> Batch {
        let mut batch = Batch::default();
        let segments: Vec<_> = lock(&self.segments).iter().cloned().collect();
        for segment in segments {
            if batch.executions.len() >= rows_max {
                break;
            }
            if let Err(error) = segment.read(rows_max, &mut batch)
                && !segment.complained.swap(true, Ordering::Relaxed)
            {
                tracing::error!(
                    file = %segment.path.display(), %error,
                    "a file of the usage journal can't be read; it is tried again"
                );
            }
        }
        batch
    }

    /// The records of a batch need not be kept any longer. Deletes files of which nothing is left.
    pub(super) fn delivered(&self, batch: Batch) {
        for mark in batch.marks {
            let segment = &mark.segment;
            segment
                .rows_delivered
                .fetch_add(mark.rows, Ordering::Relaxed);
            // Never back: one who was stopped in the middle may be late.
            segment.delivered.fetch_max(mark.to, Ordering::AcqRel);
        }
        self.delete_delivered();
    }

    /// Takes over what processes that are gone have left.
    pub(super) fn adopt(&self) -> io::Result<()> {
        let mut adopted = lock(&self.adopted);
        let mut besides = vec![self.home.path().to_owned()];
        besides.extend(adopted.homes.iter().map(|home| home.path().to_owned()));
        besides.extend(adopted.strange.iter().cloned());
        for home in Home::adopt_all(&self.directory, &besides)? {
            let found = match home.segments() {
                Ok(found) => found,
                // Somebody has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let home = Arc::new(home);
            let mut taken = Vec::new();
            for found in found {
                match self.take_over(&home, &found) {
                    Ok(segment) => taken.extend(segment),
                    Err(error) => {
                        tracing::warn!(
                            file = %found.path.display(), %error,
                            "a file in a usage journal is not one of ours; it is left alone"
                        );
                        adopted.strange.insert(home.path().to_owned());
                    }
                }
            }
            tracing::info!(
                folder = %home.path().display(),
                files = taken.len(),
                bytes = taken.iter().map(|s| s.bytes_left()).sum::<u64>(),
                "took over the usage journal of a gateway that is gone"
            );
            adopted.homes.push(home);
            // What is older is delivered first.
            let mut segments = lock(&self.segments);
            for segment in taken.into_iter().rev() {
                segments.push_front(segment);
            }
        }
        drop(adopted);
        self.delete_delivered();
        Ok(())
    }

    /// Writes to the disk what the kernel still has in memory.
    pub(super) fn sync(&self) -> io::Result<()> {
        let segments: Vec<_> = lock(&self.segments).iter().cloned().collect();
        let mut is_new = false;
        for segment in segments {
            let written = segment.written.load(Ordering::Acquire);
            let synced = segment.synced.load(Ordering::Relaxed);
            if synced >= written {
                continue;
            }
            match File::open(&segment.path) {
                Ok(file) => file.sync_data()?,
                // It was delivered and deleted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            is_new |= synced == 0;
            segment.synced.store(written, Ordering::Relaxed);
        }
        if is_new { self.home.sync() } else { Ok(()) }
    }

    pub(super) fn depth(&self) -> Depth {
        let mut depth = Depth::default();
        for segment in lock(&self.segments).iter() {
            depth.bytes += segment.bytes_left();
            let written = segment.rows_written.load(Ordering::Relaxed);
            let delivered = segment.rows_delivered.load(Ordering::Relaxed);
            depth.rows += written.saturating_sub(delivered);
        }
        depth
    }

    /// Ends the journal: where all was delivered nothing stays on the disk, and else the next process takes it
    /// over.
    pub(super) fn close(&self) {
        for lane in self.lanes.iter() {
            if let Some(open) = lock(lane).take() {
                open.segment.sealed.store(true, Ordering::Release);
            }
        }
        self.delete_delivered();
        if lock(&self.segments).is_empty() {
            self.home.remove();
        }
    }

    fn new_segment(&self) -> io::Result<Open> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let path = self.home.segment(number);
        let file = create(&path)?;
        file.write_all_at(&MAGIC, 0)?;
        let at = MAGIC.len() as u64;
        let segment = Arc::new(Segment {
            home: Arc::clone(&self.home),
            path,
            number,
            written: AtomicU64::new(at),
            delivered: AtomicU64::new(at),
            synced: AtomicU64::new(0),
            rows_written: AtomicU64::new(0),
            rows_delivered: AtomicU64::new(0),
            sealed: AtomicBool::new(false),
            complained: AtomicBool::new(false),
        });
        let mut segments = lock(&self.segments);
        segments.push_back(Arc::clone(&segment));
        self.measure(&segments);
        Ok(Open {
            file,
            segment,
            at,
            records: 0,
        })
    }

    /// Another process's file; `None` if there is nothing in it.
    fn take_over(&self, home: &Arc<Home>, found: &Found) -> io::Result<Option<Arc<Segment>>> {
        let mut head = Vec::new();
        open(&found.path)?
            .take(MAGIC.len() as u64)
            .read_to_end(&mut head)?;
        if !MAGIC.starts_with(&head) {
            return Err(io::Error::other("it does not begin as one of this version"));
        }
        if found.bytes <= MAGIC.len() as u64 {
            fs::remove_file(&found.path)?;
            return Ok(None);
        }
        Ok(Some(Arc::new(Segment {
            home: Arc::clone(home),
            path: found.path.clone(),
            number: 0,
            written: AtomicU64::new(found.bytes),
            delivered: AtomicU64::new(MAGIC.len() as u64),
            synced: AtomicU64::new(found.bytes),
            rows_written: AtomicU64::new(0),
            rows_delivered: AtomicU64::new(0),
            sealed: AtomicBool::new(true),
            complained: AtomicBool::new(false),
        })))
    }

    fn delete_delivered(&self) {
        let mut adopted = lock(&self.adopted);
        let (done, left) = {
            let mut segments = lock(&self.segments);
            let all = std::mem::take(&mut *segments);
            let (done, left): (VecDeque<_>, _) = all.into_iter().partition(|s| s.is_done());
            *segments = left;
            self.measure(&segments);
            (done, segments.clone())
        };
        for segment in done {
            if let Err(error) = fs::remove_file(&segment.path) {
                // Delivered again by the next process, which does no harm.
                tracing::warn!(
                    file = %segment.path.display(), %error,
                    "a delivered file of the usage journal can't be deleted"
                );
            }
        }
        adopted.homes.retain(|home| {
            let is_used = left.iter().any(|s| Arc::ptr_eq(&s.home, home));
            if !is_used {
                home.remove();
            }
            is_used
        });
    }

    /// A file that is appended to counts as if it were full, so that the bound holds whatever comes.
    fn measure(&self, segments: &VecDeque<Arc<Segment>>) {
        let bytes: u64 = segments.iter().map(|segment| segment.bytes_on_disk()).sum();
        let is_full = bytes + SEGMENT_BYTES_MAX > self.bytes_max;
        self.full.store(is_full, Ordering::Relaxed);
    }
}

impl Batch {
    /// Whether delivering it leaves less in the journal, be it only damage.
    pub(super) fn has_progress(&self) -> bool {
        !self.marks.is_empty()
    }
}

impl Segment {
    fn is_done(&self) -> bool {
        self.sealed.load(Ordering::Acquire) && self.bytes_left() == 0
    }

    fn bytes_left(&self) -> u64 {
        let delivered = self.delivered.load(Ordering::Acquire);
        self.written
            .load(Ordering::Acquire)
            .saturating_sub(delivered)
    }

    fn bytes_on_disk(&self) -> u64 {
        if self.sealed.load(Ordering::Acquire) {
            self.written.load(Ordering::Acquire)
        } else {
            SEGMENT_BYTES_MAX
        }
    }

    /// Adds records to the batch, up to `rows_max` in all.
    fn read(self: &Arc<Self>, rows_max: usize, batch: &mut Batch) -> io::Result<()> {
        let end = self.written.load(Ordering::Acquire);
        let mut at = self.delivered.load(Ordering::Acquire);
        if at >= end {
            return Ok(());
        }
        let before = batch.executions.len();
        let begun = at;
        let read = self.read_rows(&mut at, end, rows_max, batch);
        // Also of what was read before a failure: it would be in every batch, for ever.
        if read.is_ok() || at > begun {
            batch.marks.push(Mark {
                segment: Arc::clone(self),
                to: at,
                rows: (batch.executions.len() - before) as u64,
            });
        }
        read
    }

    /// Adds the records from `at` on, which moves behind them.
    fn read_rows(
        &self,
        at: &mut u64,
        end: u64,
        rows_max: usize,
        batch: &mut Batch,
    ) -> io::Result<()> {
        let file = open(&self.path)?;
        let mut decoder = record::Decoder::default();
        let mut chunk = vec![0; CHUNK_BYTES.min((end - *at) as usize)];
        while *at < end && batch.executions.len() < rows_max {
            let bytes = chunk.len().min((end - *at) as usize);
            let (bytes, is_end) = read_at(&file, &mut chunk[..bytes], *at, end)?;
            let scanned = frame::scan(bytes, is_end, |record| {
                match decoder.decode(record) {
                    Some(execution) => batch.executions.push(execution),
                    None => batch.damaged_bytes += record.len() as u64,
                }
                batch.executions.len() < rows_max
            });
            batch.damaged_bytes += scanned.damaged as u64;
            *at = match (scanned.used, is_end) {
                // The file is shorter than it was: what is missing stays missing.
                (0, true) => end,
                (used, _) => *at + used as u64,
            };
        }
        Ok(())
    }
}

/// What of the file is at `at`, and whether that reaches its end, or `end`.
fn read_at<'a>(
    file: &File,
    chunk: &'a mut [u8],
    at: u64,
    end: u64,
) -> io::Result<(&'a [u8], bool)> {
    let mut read = 0;
    while read < chunk.len() {
        match file.read_at(&mut chunk[read..], at + read as u64) {
            Ok(0) => return Ok((&chunk[..read], true)),
            Ok(bytes) => read += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let is_end = at + read as u64 >= end;
    Ok((&chunk[..read], is_end))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// Nothing is left half done by a panic under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
