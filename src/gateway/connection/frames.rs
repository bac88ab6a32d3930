//! Counts the frames of an HTTP/2 connection as they come in, before the HTTP/2 library reads them, and
//! knows by those of both directions which streams are open.
//!
//! The library bounds what it keeps, but not how often it is asked to work: streams that are opened
//! and reset, pings, settings, empty frames (CVE-2019-9512 to 9518, CVE-2023-44487, CVE-2024-27316).
//! A client that sends more of these than any real one does loses its connection.

use std::collections::HashSet;
use std::time::Instant;

use super::caps::Requests;

/// Why a client loses its HTTP/2 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Streams that are reset faster than the configuration allows.
    Resets,
    /// PING, SETTINGS, PRIORITY, empty DATA and frames of unknown types.
    Control,
    /// A header block in too many pieces.
    Continuations,
    WindowUpdates,
    /// Streams that are opened although no more are taken.
    Streams,
}

impl Flood {
    pub fn as_str(self) -> &'static str {
        match self {
            Flood::Resets => "resets",
            Flood::Control => "control",
            Flood::Continuations => "continuations",
            Flood::WindowUpdates => "window_updates",
            Flood::Streams => "streams",
        }
    }
}

/// Frames a second that carry nothing. A client that pings, or sends each DATA frame twice, stays
/// far below it.
const CONTROL_PER_SECOND: u32 = 200;
/// A client that takes 10 Gbit/s in windows of 64 KiB sends some 20,000 of these a second.
const WINDOW_UPDATES_PER_SECOND: u32 = 50_000;
/// A header block may have this many CONTINUATION frames: 16 KiB each, at the frame size we announce.
const CONTINUATIONS_MAX: u32 = 80;
/// The connection preface (RFC 9113 section 3.4), which is no frame.
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;

/// Streams that a client may open beyond those it may have, before they are refused: more of them are
/// ignored by the library, which is past its last stream.
const STREAMS_REFUSED_MAX: usize = 64;

/// How far frames have been read.
#[derive(Debug)]
struct Heads {
    /// Bytes to skip: the preface, or the rest of a frame.
    skip: usize,
    head: [u8; FRAME_HEAD_BYTES],
    head_bytes: usize,
}

/// RFC 9113 section 4.1.
#[derive(Debug, Clone, Copy)]
struct Head {
    payload_bytes: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

impl Heads {
    fn behind(skip: usize) -> Heads {
        Heads {
            skip,
            head: [0; FRAME_HEAD_BYTES],
            head_bytes: 0,
        }
    }

    /// Reads on to the end of the next frame's head.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            *bytes = &bytes[skipped..];
            let taken = (FRAME_HEAD_BYTES - self.head_bytes).min(bytes.len());
            self.head[self.head_bytes..self.head_bytes + taken].copy_from_slice(&bytes[..taken]);
            self.head_bytes += taken;
            *bytes = &bytes[taken..];
            if self.head_bytes == FRAME_HEAD_BYTES {
                self.head_bytes = 0;
                let [a, b, c, kind, flags, w, x, y, z] = self.head;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                return Some(Head {
                    payload_bytes: self.skip,
                    kind,
                    flags,
                    stream: u32::from_be_bytes([w & 0x7f, x, y, z]),
                });
            }
        }
        None
    }
}

/// How far a client's frames have been read.
#[derive(Debug)]
pub struct Frames {
    heads: Heads,
    continuations: u32,
    resets: Budget,
    control: Budget,
    window_updates: Budget,
}

impl Frames {
    pub fn new(resets_per_second: u32, now: Instant) -> Frames {
        Frames {
            heads: Heads::behind(PREFACE_BYTES),
            continuations: 0,
            resets: Budget::new(resets_per_second, now),
            control: Budget::new(CONTROL_PER_SECOND, now),
            window_updates: Budget::new(WINDOW_UPDATES_PER_SECOND, now),
        }
    }

    /// Reads on. The clock is asked only for frames that are counted.
    pub fn accept(
        &mut self,
        mut bytes: &[u8],
        now: impl Fn() -> Instant,
        mut streams: Option<&mut Streams>,
    ) -> Result<(), Flood> {
        while let Some(head) = self.heads.next(&mut bytes) {
            self.frame(head, &now)?;
            if let Some(streams) = streams.as_deref_mut() {
                match head.kind {
                    HEADERS => streams.opened(head.stream)?,
                    RST_STREAM => streams.ended(head.stream),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn frame(&mut self, head: Head, now: impl Fn() -> Instant) -> Result<(), Flood> {
        self.continuations = match head.kind == CONTINUATION {
            true => self.continuations + 1,
            false => 0,
        };
        match head.kind {
            DATA if head.payload_bytes > 0 || head.flags & END_STREAM != 0 => Ok(()),
            HEADERS => Ok(()),
            RST_STREAM => self.resets.take(now()).ok_or(Flood::Resets),
            WINDOW_UPDATE => self.window_updates.take(now()).ok_or(Flood::WindowUpdates),
            CONTINUATION if self.continuations > CONTINUATIONS_MAX => Err(Flood::Continuations),
            CONTINUATION if head.payload_bytes > 0 => Ok(()),
            _ => self.control.take(now()).ok_or(Flood::Control),
        }
    }
}

/// The streams of a connection, each from its first frame to the last of its answer, or a reset: so
/// long the library holds what has not been sent of it, though whoever made the answer is done.
#[derive(Debug)]
pub struct Streams {
    open: HashSet<u32>,
    /// Clients number their streams upwards (RFC 9113 section 5.1.1).
    newest: u32,
    open_max: usize,
    answers: Heads,
    requests: Requests,
}

impl Streams {
    pub fn new(streams_max: u32, requests: Requests) -> Streams {
        Streams {
            open: HashSet::new(),
            newest: 0,
            open_max: streams_max as usize + STREAMS_REFUSED_MAX,
            answers: Heads::behind(0),
            requests,
        }
    }

    /// Reads what is sent to the client.
    pub fn sent(&mut self, mut bytes: &[u8]) {
        while let Some(head) = self.answers.next(&mut bytes) {
            match head.kind {
                DATA | HEADERS if head.flags & END_STREAM != 0 => self.ended(head.stream),
                RST_STREAM => self.ended(head.stream),
                _ => {}
            }
        }
    }

    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// A header block: a request's, unless the stream is known, or was.
    fn opened(&mut self, stream: u32) -> Result<(), Flood> {
        if stream <= self.newest {
            return Ok(());
        }
        self.newest = stream;
        if self.open.len() >= self.open_max {
            return Err(Flood::Streams);
        }
        self.open.insert(stream);
        self.requests.add();
        Ok(())
    }

    fn ended(&mut self, stream: u32) {
        if self.open.remove(&stream) {
            self.requests.remove();
        }
    }
}

/// So many a second, and as many at once.
#[derive(Debug)]
struct Budget {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Budget {
    fn new(per_second: u32, now: Instant) -> Budget {
        Budget {
            per_second: f64::from(per_second),
            left: f64::from(per_second),
            at: now,
        }
    }

    fn take(&mut self, now: Instant) -> Option<()> {
        if self.left < 1.0 {
            let since = now.saturating_duration_since(self.at).as_secs_f64();
            self.left = (self.left + since * self.per_second).min(self.per_second);
            self.at = now;
        }
        if self.left < 1.0 {
            return None;
        }
        self.left -= 1.0;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::super::caps::ClientCaps;
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEAD_BYTES + payload, 0);
        frame
    }

    fn preface() -> Vec<u8> {
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
    }

    fn read(bytes: &[u8], piece: usize) -> Result<(), Flood> {
        let now = Instant::now();
        let mut frames = Frames::new(10, now);
        bytes
            .chunks(piece)
            .try_for_each(|piece| frames.accept(piece, || now, None))
    }

    #[test]
    fn ordinary_traffic_passes_however_it_is_cut() {
        let mut bytes = preface();
        bytes.extend(frame(4, 0, 18));
        for _ in 0..1000 {
            bytes.extend(frame(1, 4, 40));
            bytes.extend(frame(0, 0, 300));
            bytes.extend(frame(0, 1, 0));
            bytes.extend(frame(8, 0, 4));
        }
        bytes.extend(frame(3, 0, 4).repeat(10));
        for piece in [1, 7, 9, 100, bytes.len()] {
            assert_eq!(read(&bytes, piece), Ok(()));
        }
    }

    #[test]
    fn floods_are_seen() {
        for (one, expected) in [
            (frame(3, 0, 4), Flood::Resets),
            ([frame(1, 5, 9), frame(3, 0, 4)].concat(), Flood::Resets),
            (frame(6, 0, 8), Flood::Control),
            (frame(4, 0, 0), Flood::Control),
            (frame(2, 0, 5), Flood::Control),
            (frame(0, 0, 0), Flood::Control),
            (frame(0xfa, 0, 3), Flood::Control),
            (frame(9, 0, 100), Flood::Continuations),
            (frame(9, 0, 0), Flood::Continuations),
            (frame(8, 0, 4), Flood::WindowUpdates),
        ] {
            let mut bytes = preface();
            bytes.extend(one.repeat(60_000));
            for piece in [13, bytes.len()] {
                assert_eq!(read(&bytes, piece), Err(expected));
            }
        }
    }

    #[test]
    fn time_gives_room_again() {
        let start = Instant::now();
        let passed = Cell::new(Duration::ZERO);
        let mut frames = Frames::new(10, start);
        let now = || start + passed.get();
        frames.accept(&preface(), now, None).unwrap();
        for _ in 0..20 {
            frames
                .accept(&frame(3, 0, 4).repeat(10), now, None)
                .unwrap();
            passed.set(passed.get() + Duration::from_secs(1));
        }
        assert_eq!(
            frames.accept(&frame(3, 0, 4).repeat(12), now, None),
            Err(Flood::Resets)
        );
    }

    fn of_stream(stream: u32, mut frame: Vec<u8>) -> Vec<u8> {
        frame[5..9].copy_from_slice(&stream.to_be_bytes());
        frame
    }

    #[test]
    fn a_stream_is_open_until_its_answer_has_left() {
        let caps = ClientCaps::new(1, 1);
        let now = Instant::now();
        for piece in [1, 5, 1000] {
            let mut frames = Frames::new(100, now);
            let mut streams = Streams::new(10, caps.requests(None));
            let mut come = |streams: &mut Streams, bytes: Vec<u8>| {
                bytes
                    .chunks(piece)
                    .try_for_each(|piece| frames.accept(piece, || now, Some(&mut *streams)))
            };
            let go = |streams: &mut Streams, bytes: Vec<u8>| {
                bytes.chunks(piece).for_each(|piece| streams.sent(piece));
            };
            come(&mut streams, preface()).unwrap();
            for stream in [1, 3, 5, 7] {
                come(&mut streams, of_stream(stream, frame(1, 4, 20))).unwrap();
            }
            assert_eq!(streams.open.len(), 4);
            // Trailers open nothing.
            come(&mut streams, of_stream(3, frame(1, 5, 20))).unwrap();
            go(&mut streams, frame(4, 0, 12));
            go(&mut streams, of_stream(1, frame(1, 4, 30)));
            go(&mut streams, of_stream(1, frame(0, 0, 300)));
            assert_eq!(streams.open.len(), 4);
            go(&mut streams, of_stream(1, frame(0, 1, 300)));
            go(&mut streams, of_stream(3, frame(1, 5, 30)));
            go(&mut streams, of_stream(5, frame(3, 0, 4)));
            assert_eq!(streams.open.len(), 1);
            // What has ended can't end once more, or begin again.
            go(&mut streams, of_stream(5, frame(3, 0, 4)));
            come(&mut streams, of_stream(5, frame(3, 0, 4))).unwrap();
            come(&mut streams, of_stream(5, frame(1, 5, 20))).unwrap();
            assert_eq!(streams.open.len(), 1);
            come(&mut streams, of_stream(7, frame(3, 0, 4))).unwrap();
            assert!(streams.open.is_empty());
            // No more are remembered than can be refused.
            let open = (0..200)
                .try_for_each(|n| come(&mut streams, of_stream(101 + 2 * n, frame(1, 4, 20))));
            assert_eq!(open, Err(Flood::Streams));
        }
    }
}
