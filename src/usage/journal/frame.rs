//! Records in a file: how each is framed, and how they are found again in a file of which parts may be
//! missing or wrong.
//!
//! ```text
//! file   = "wwusage1" frame*
//! frame  = mark (4 bytes)  length (4)  CRC-32 of length and record (4)  record
//! ```
//!
//! A process that is killed leaves at most its last frame in part. Lost power or a bad disk may leave anything
//! anywhere: then whole frames are looked for behind the damage, by their mark.

use crate::usage::record::RECORD_BYTES_MAX;

/// Begins each file. The digit is the version of all that follows.
pub(super) const MAGIC: [u8; 8] = *b"wwusage1";

/// Longest frame, in bytes.
pub(super) const FRAME_BYTES_MAX: usize = HEAD_BYTES + RECORD_BYTES_MAX;

const HEAD_BYTES: usize = 12;
/// Not ASCII, and not in the texts of records.
const MARK: [u8; 4] = [0xf5, 0x57, 0xff, 0x52];

/// What is at the beginning of some bytes.
enum Next<'a> {
    Whole {
        record: &'a [u8],
        bytes: usize,
    },
    /// What is there could be the beginning of a frame.
    Part,
    /// Not a frame.
    Damaged,
}

/// What a scan made of some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Bytes that need not be looked at again.
    pub used: usize,
    /// Of these, bytes that were no frame.
    pub damaged: usize,
}

/// The frame of one record, ready to be written.
pub(super) fn with_frame<T>(
    encode: impl FnOnce(&mut [u8; RECORD_BYTES_MAX]) -> usize,
    then: impl FnOnce(&[u8]) -> T,
) -> T {
    let mut bytes = [0; FRAME_BYTES_MAX];
    let (head, record) = bytes.split_at_mut(HEAD_BYTES);
    let mut length = 0;
    if let Ok(record) = <&mut [u8; RECORD_BYTES_MAX]>::try_from(record) {
        length = encode(record).min(RECORD_BYTES_MAX);
        head[..4].copy_from_slice(&MARK);
        head[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        let sum = checksum(length as u32, &record[..length]);
        head[8..12].copy_from_slice(&sum.to_le_bytes());
    }
    then(&bytes[..HEAD_BYTES + length])
}

/// Calls `each` with the records at the beginning of `bytes`, until it answers that it wants no more. With
/// `is_end` nothing follows the bytes, so that what is there in part is damage.
pub(super) fn scan(bytes: &[u8], is_end: bool, mut each: impl FnMut(&[u8]) -> bool) -> Scanned {
    let mut scanned = Scanned::default();
    while scanned.used < bytes.len() {
        let rest = &bytes[scanned.used..];
        match next(rest) {
            Next::Whole { record, bytes } => {
                scanned.used += bytes;
                if !each(record) {
                    break;
                }
            }
            Next::Part if !is_end => break,
            Next::Part | Next::Damaged => {
                let step = to_next_mark(rest, is_end);
                scanned.damaged += step;
                scanned.used += step;
            }
        }
    }
    scanned
}

fn next(bytes: &[u8]) -> Next<'_> {
    let known = bytes.len().min(MARK.len());
    if bytes[..known] != MARK[..known] {
        return Next::Damaged;
    }
    let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES) else {
        return Next::Part;
    };
    let number = |at: usize| {
        let mut number = [0; 4];
        number.copy_from_slice(&head[at..at + 4]);
        u32::from_le_bytes(number)
    };
    let (length, sum) = (number(4), number(8));
    if length as usize > RECORD_BYTES_MAX {
        return Next::Damaged;
    }
    match rest.get(..length as usize) {
        None => Next::Part,
        Some(record) if checksum(length, record) == sum => Next::Whole {
            record,
            bytes: HEAD_BYTES + record.len(),
        },
        Some(_) => Next::Damaged,
    }
}

/// How many bytes it is to the next place where a frame may begin.
fn to_next_mark(bytes: &[u8], is_end: bool) -> usize {
    match memchr::memmem::find(&bytes[1..], &MARK) {
        Some(at) => at + 1,
        None if is_end => bytes.len(),
        // The last bytes may be the beginning of a mark.
        None => bytes.len().saturating_sub(MARK.len() - 1).max(1),
    }
}

fn checksum(length: u32, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(record);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(record: &[u8]) -> Vec<u8> {
        let encode = |buffer: &mut [u8; RECORD_BYTES_MAX]| {
            buffer[..record.len()].copy_from_slice(record);
            record.len()
        };
        with_frame(encode, <[u8]>::to_vec)
    }

    fn file(records: &[Vec<u8>]) -> Vec<u8> {
        records.iter().flat_map(|record| frame(record)).collect()
    }

    /// Reads a file in pieces, as the journal does.
    fn read(file: &[u8], piece: usize) -> (Vec<Vec<u8>>, usize) {
        let (mut records, mut damaged, mut from) = (Vec::new(), 0, 0);
        while from < file.len() {
            let to = (from + piece).min(file.len());
            let scanned = scan(&file[from..to], to == file.len(), |record| {
                records.push(record.to_vec());
                true
            });
            assert!(scanned.used > 0, "it goes on");
            damaged += scanned.damaged;
            from += scanned.used;
        }
        (records, damaged)
    }

    fn records() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20)
    }

    proptest! {
        #[test]
        fn records_come_back_however_the_file_is_read(records in records(), more in 0..5000_usize) {
            let file = file(&records);
            prop_assert_eq!(read(&file, FRAME_BYTES_MAX + more), (records, 0));
        }

        #[test]
        fn a_torn_tail_is_dropped_and_nothing_else(records in records(), cut in 1..200_usize) {
            let mut bytes = file(&records);
            let last = frame(records.last().unwrap()).len();
            let cut = cut.min(last);
            bytes.truncate(bytes.len() - cut);
            let (read, damaged) = read(&bytes, 4096);
            prop_assert_eq!(&read[..], &records[..records.len() - 1]);
            prop_assert_eq!(damaged, last - cut);
        }

        #[test]
        fn damage_costs_the_records_it_meets(
            records in records(), at in any::<prop::sample::Index>(), byte in 1..=255_u8,
        ) {
            let mut bytes = file(&records);
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
            let (read, _) = read(&bytes, 4096);
            prop_assert_eq!(read.len(), records.len() - 1);
            prop_assert!(read.iter().all(|record| records.contains(record)));
        }

        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = read(&bytes, 2048);
        }
    }

    #[test]
    fn a_hole_of_zeros_is_stepped_over() {
        let (first, second) = (frame(b"first"), frame(b"second"));
        let bytes = [first.as_slice(), &vec![0; 100_000], &second].concat();
        assert_eq!(
            read(&bytes, 4096),
            (vec![b"first".to_vec(), b"second".to_vec()], 100_000)
        );
    }

    #[test]
    fn who_wants_no_more_gets_no_more() {
        let bytes = file(&[b"1".to_vec(), b"2".to_vec(), b"3".to_vec()]);
        let mut seen = 0;
        let scanned = scan(&bytes, true, |_| {
            seen += 1;
            seen < 2
        });
        assert_eq!((seen, scanned.used), (2, bytes.len() / 3 * 2));
    }
}
