//! An execution as bytes, on its way through the journal.
//!
//! Numbers are little-endian. What is optional is announced by a flag, so that a record of an anonymous
//! caller is as short as it can be: about 90 bytes, and 180 with everything.

use std::sync::Arc;

use chrono::DateTime;
use uuid::Uuid;

use crate::sandbox::ModuleHash;
use crate::store::usage::{self, Caller, Execution, Status};

/// Longest record, in bytes.
pub(super) const RECORD_BYTES_MAX: usize = 1024;

/// Longest text in one. Names of routes and ids of requests are shorter; anything else would be cut.
const TEXT_BYTES_MAX: usize = 255;

const VERSION: u8 = 1;
const HAS_CALLER: u8 = 1;
const HAS_MODULE: u8 = 1 << 1;
const HAS_MODULE_ID: u8 = 1 << 2;
const HAS_ROUTE: u8 = 1 << 3;
/// These make the status an exact one. Programs that do not know them pass over them, as this one does over flags
/// that it does not know: so gateways of two versions can bring each other's records to the database.
const IS_STACK_LIMIT: u8 = 1 << 4;
const IS_TABLE_LIMIT: u8 = 1 << 5;

/// The statuses that have a number, which is their place here. No other ever gets one, as whoever does not know it
/// would take the record for damage; it gets a flag, beside what [`Status::before`] says.
const NUMBERED: [Status; 8] = [
    Status::Success,
    Status::ExecutionError,
    Status::TimeLimitExceeded,
    Status::MemoryLimitExceeded,
    Status::OutputLimitExceeded,
    Status::ValidationError,
    Status::Rejected,
    Status::Cancelled,
];

/// An execution that has ended, or was refused, as it is recorded.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// `None` for an anonymous caller.
    pub caller: Option<Caller>,
    pub module: Option<ModuleHash>,
    pub module_id: Option<Uuid>,
    /// `None` for the API.
    pub route: Option<&'a str>,
    pub status: Status,
    pub used: Used,
    pub request_id: &'a str,
}

/// What an execution used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub wall_us: u64,
    pub cpu_us: u64,
    pub memory_peak_bytes: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// Writes records into a buffer that is large enough for any.
struct Writer<'a> {
    buffer: &'a mut [u8; RECORD_BYTES_MAX],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        // The texts are bounded, so there is always room.
        if let Some(place) = self.buffer.get_mut(self.at..self.at + bytes.len()) {
            place.copy_from_slice(bytes);
            self.at += bytes.len();
        }
    }

    fn text(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        self.put(&[text.len() as u8]);
        self.put(text.as_bytes());
    }
}

/// Writes the record into the buffer; returns its length. `unique` makes its id differ from those of others
/// that end in the same millisecond. `at_us` is in microseconds since 1970.
pub(super) fn encode(
    entry: &Entry<'_>,
    at_us: i64,
    unique: u128,
    buffer: &mut [u8; RECORD_BYTES_MAX],
) -> usize {
    let mut flags = 0;
    for (flag, is_there) in [
        (HAS_CALLER, entry.caller.is_some()),
        (HAS_MODULE, entry.module.is_some()),
        (HAS_MODULE_ID, entry.module_id.is_some()),
        (HAS_ROUTE, entry.route.is_some()),
        (IS_STACK_LIMIT, entry.status == Status::StackLimitExceeded),
        (IS_TABLE_LIMIT, entry.status == Status::TableLimitExceeded),
    ] {
        if is_there {
            flags |= flag;
        }
    }
    let status = NUMBERED.iter().position(|s| *s == entry.status.before());
    let mut writer = Writer { buffer, at: 0 };
    writer.put(&[VERSION, status.unwrap_or_default() as u8, flags]);
    writer.put(usage::id(at_us, unique).as_bytes());
    writer.put(&at_us.to_le_bytes());
    let used = &entry.used;
    for value in [
        used.wall_us,
        used.cpu_us,
        used.memory_peak_bytes,
        used.bytes_in,
        used.bytes_out,
    ] {
        writer.put(&value.to_le_bytes());
    }
    if let Some(caller) = &entry.caller {
        writer.put(caller.user_id.as_bytes());
        writer.put(caller.key_id.as_bytes());
    }
    if let Some(module) = &entry.module {
        writer.put(&module.0);
    }
    if let Some(module_id) = &entry.module_id {
        writer.put(module_id.as_bytes());
    }
    if let Some(route) = entry.route {
        writer.text(route);
    }
    writer.text(entry.request_id);
    writer.at
}

/// Takes a record apart.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn id(&mut self) -> Option<Uuid> {
        self.array().map(Uuid::from_bytes)
    }

    /// No column can hold NUL, so a text with it is none.
    fn text(&mut self) -> Option<&'a str> {
        let length = self.byte()?;
        let text = std::str::from_utf8(self.take(length.into())?).ok()?;
        (!text.contains('\0')).then_some(text)
    }
}

/// Reads records one after the other.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The route's name in the last record that had one. The next one's is likely to be the same.
    route: Option<Arc<str>>,
}

impl Decoder {
    /// The execution of a record; `None` when it is not one that [`encode`] made.
    pub(super) fn decode(&mut self, record: &[u8]) -> Option<Execution> {
        let mut reader = Reader(record);
        if reader.byte()? != VERSION {
            return None;
        }
        let numbered = *NUMBERED.get(usize::from(reader.byte()?))?;
        let flags = reader.byte()?;
        let has = |flag| flags & flag != 0;
        let status = if has(IS_STACK_LIMIT) {
            Status::StackLimitExceeded
        } else if has(IS_TABLE_LIMIT) {
            Status::TableLimitExceeded
        } else {
            numbered
        };
        let id = reader.id()?;
        let at = i64::from_le_bytes(reader.array()?);
        let execution = Execution {
            id,
            at: DateTime::from_timestamp_micros(at).filter(|_| is_day(at))?,
            status,
            wall_us: reader.number()?,
            cpu_us: reader.number()?,
            memory_peak_bytes: reader.number()?,
            bytes_in: reader.number()?,
            bytes_out: reader.number()?,
            caller: if has(HAS_CALLER) {
                let (user_id, key_id) = (reader.id()?, reader.id()?);
                Some(Caller { user_id, key_id })
            } else {
                None
            },
            module: if has(HAS_MODULE) {
                Some(ModuleHash(reader.array()?))
            } else {
                None
            },
            module_id: if has(HAS_MODULE_ID) {
                Some(reader.id()?)
            } else {
                None
            },
            route: if has(HAS_ROUTE) {
                let route = reader.text()?;
                if self.route.as_deref() != Some(route) {
                    self.route = Some(route.into());
                }
                self.route.clone()
            } else {
                None
            },
            request_id: reader.text()?.into(),
        };
        reader.0.is_empty().then_some(execution)
    }
}

/// Whether both databases can hold the time: from 1970 to 9999.
fn is_day(at_us: i64) -> bool {
    const YEAR_10000_US: i64 = 253_402_300_800_000_000;
    (0..YEAR_10000_US).contains(&at_us)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(record: &[u8]) -> Option<Execution> {
        Decoder::default().decode(record)
    }

    fn bytes(entry: &Entry<'_>, at: DateTime<chrono::Utc>) -> Vec<u8> {
        let mut buffer = [0; RECORD_BYTES_MAX];
        let length = encode(entry, at.timestamp_micros(), 7, &mut buffer);
        buffer[..length].to_vec()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            caller in any::<Option<(u128, u128)>>(),
            module in any::<Option<[u8; 32]>>(),
            module_id in any::<Option<u128>>(),
            route in proptest::option::of("[a-z0-9._-]{0,255}"),
            request_id in "[A-Za-z0-9._-]{0,255}",
            status in 0..Status::ALL.len(),
            numbers in any::<[u64; 5]>(),
            micros in 0..4_000_000_000_000_000_i64,
        ) {
            let at = DateTime::from_timestamp_micros(micros).unwrap();
            let caller = caller.map(|(user, key)| Caller {
                user_id: Uuid::from_u128(user),
                key_id: Uuid::from_u128(key),
            });
            let [wall_us, cpu_us, memory_peak_bytes, bytes_in, bytes_out] = numbers;
            let entry = Entry {
                caller,
                module: module.map(ModuleHash),
                module_id: module_id.map(Uuid::from_u128),
                route: route.as_deref(),
                status: Status::ALL[status],
                used: Used { wall_us, cpu_us, memory_peak_bytes, bytes_in, bytes_out },
                request_id: &request_id,
            };
            let record = bytes(&entry, at);
            let expected = Execution {
                id: usage::id(micros, 7),
                at,
                caller,
                module: entry.module,
                module_id: entry.module_id,
                route: route.as_deref().map(Arc::from),
                status: entry.status,
                wall_us, cpu_us, memory_peak_bytes, bytes_in, bytes_out,
                request_id: request_id.as_str().into(),
            };
            prop_assert_eq!(decode(&record), Some(expected));
            // No part of it is one, nor is it with something behind it.
            for cut in 0..record.len() {
                prop_assert_eq!(decode(&record[..cut]), None);
            }
            let longer = [record.as_slice(), &[0]].concat();
            prop_assert_eq!(decode(&longer), None);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }

    fn of_status(status: Status) -> Vec<u8> {
        let entry = Entry {
            caller: None,
            module: None,
            module_id: None,
            route: None,
            status,
            used: Used::default(),
            request_id: "r",
        };
        bytes(&entry, DateTime::UNIX_EPOCH)
    }

    /// What the journals of programs hold that have numbers for statuses only.
    #[test]
    fn records_of_before_are_read() {
        for (number, status) in [
            Status::Success,
            Status::ExecutionError,
            Status::TimeLimitExceeded,
            Status::MemoryLimitExceeded,
            Status::OutputLimitExceeded,
            Status::ValidationError,
            Status::Rejected,
            Status::Cancelled,
        ]
        .into_iter()
        .enumerate()
        {
            let mut record = vec![1, number as u8, 0];
            record.extend(usage::id(0, 7).as_bytes());
            record.extend([0; 6 * 8]);
            record.extend([1, b'r']);
            assert_eq!(record, of_status(status));
            assert_eq!(decode(&record).map(|read| read.status), Some(status));
            record[1] = 8;
            assert_eq!(decode(&record), None);
        }
    }

    /// They look at the number and at four flags, and see no difference.
    #[test]
    fn programs_of_before_read_new_statuses_as_errors() {
        let known = of_status(Status::ExecutionError);
        for status in [Status::StackLimitExceeded, Status::TableLimitExceeded] {
            let mut record = of_status(status);
            assert_eq!(decode(&record).map(|read| read.status), Some(status));
            record[2] &= HAS_CALLER | HAS_MODULE | HAS_MODULE_ID | HAS_ROUTE;
            assert_eq!(record, known, "{status:?}");
        }
    }

    #[test]
    fn a_record_of_the_longest_texts_fits() {
        let long = "ü".repeat(1000);
        let entry = Entry {
            caller: Some(Caller {
                user_id: Uuid::max(),
                key_id: Uuid::max(),
            }),
            module: Some(ModuleHash([1; 32])),
            module_id: Some(Uuid::max()),
            route: Some(&long),
            status: Status::Cancelled,
            used: Used {
                wall_us: u64::MAX,
                ..Used::default()
            },
            request_id: &long,
        };
        let record = bytes(&entry, DateTime::UNIX_EPOCH);
        assert!(record.len() < RECORD_BYTES_MAX);
        let decoded = decode(&record).unwrap();
        assert_eq!(*decoded.route.unwrap(), *"ü".repeat(127));
        assert_eq!(*decoded.request_id, *"ü".repeat(127));
    }

    #[test]
    fn text_that_no_column_can_hold_is_no_record() {
        let entry = Entry {
            caller: None,
            module: None,
            module_id: None,
            route: None,
            status: Status::Success,
            used: Used::default(),
            request_id: "a\0b",
        };
        assert_eq!(decode(&bytes(&entry, DateTime::UNIX_EPOCH)), None);
    }

    #[test]
    fn records_one_after_the_other_have_their_own_routes() {
        let of_route = |route| {
            let entry = Entry {
                caller: None,
                module: None,
                module_id: None,
                route,
                status: Status::Success,
                used: Used::default(),
                request_id: "r",
            };
            bytes(&entry, DateTime::UNIX_EPOCH)
        };
        let mut decoder = Decoder::default();
        for route in [Some("a"), Some("a"), None, Some("a"), Some("b"), Some("")] {
            let decoded = decoder.decode(&of_route(route)).unwrap();
            assert_eq!(decoded.route.as_deref(), route);
        }
    }

    #[test]
    fn times_that_a_database_can_not_hold_are_no_records() {
        let mut record = of_status(Status::Success);
        let at = 3 + 16;
        let last = chrono::NaiveDate::from_ymd_opt(9999, 12, 31).unwrap();
        let last = last.and_hms_micro_opt(23, 59, 59, 999_999).unwrap();
        let last_us = last.and_utc().timestamp_micros();
        for (at_us, is_good) in [
            (0, true),
            (-1, false),
            (last_us, true),
            (last_us + 1, false),
            (i64::MAX, false),
            (i64::MIN, false),
        ] {
            record[at..at + 8].copy_from_slice(&at_us.to_le_bytes());
            assert_eq!(decode(&record).is_some(), is_good, "{at_us}");
        }
    }
}
