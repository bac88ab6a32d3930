//! Counts the frames of an HTTP/2 connection as they come in, before the HTTP/2 library reads them.
//!
//! The library bounds what it keeps, but not how often it is asked to work: streams that are opened
//! and reset, pings, settings, empty frames (CVE-2019-9512 to 9518, CVE-2023-44487, CVE-2024-27316).
//! A client that sends more of these than any real one does loses its connection.

use std::time::Instant;

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
}

impl Flood {
    pub fn as_str(self) -> &'static str {
        match self {
            Flood::Resets => "resets",
            Flood::Control => "control",
            Flood::Continuations => "continuations",
            Flood::WindowUpdates => "window_updates",
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

/// How far a client's frames have been read.
#[derive(Debug)]
pub struct Frames {
    /// Bytes to skip: the preface, or the rest of a frame.
    skip: usize,
    head: [u8; FRAME_HEAD_BYTES],
    head_bytes: usize,
    continuations: u32,
    resets: Budget,
    control: Budget,
    window_updates: Budget,
}

impl Frames {
    pub fn new(resets_per_second: u32, now: Instant) -> Frames {
        Frames {
            skip: PREFACE_BYTES,
            head: [0; FRAME_HEAD_BYTES],
            head_bytes: 0,
            continuations: 0,
            resets: Budget::new(resets_per_second, now),
            control: Budget::new(CONTROL_PER_SECOND, now),
            window_updates: Budget::new(WINDOW_UPDATES_PER_SECOND, now),
        }
    }

    /// Reads on. The clock is asked only for frames that are counted.
    pub fn accept(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (FRAME_HEAD_BYTES - self.head_bytes).min(bytes.len());
            self.head[self.head_bytes..self.head_bytes + taken].copy_from_slice(&bytes[..taken]);
            self.head_bytes += taken;
            bytes = &bytes[taken..];
            if self.head_bytes == FRAME_HEAD_BYTES {
                self.head_bytes = 0;
                self.frame(&now)?;
            }
        }
        Ok(())
    }

    /// RFC 9113 section 4.1.
    fn frame(&mut self, now: impl Fn() -> Instant) -> Result<(), Flood> {
        const END_STREAM: u8 = 1;
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let is_continuation = kind == 9;
        self.continuations = match is_continuation {
            true => self.continuations + 1,
            false => 0,
        };
        match kind {
            0 if self.skip > 0 || flags & END_STREAM != 0 => Ok(()),
            1 => Ok(()),
            3 => self.resets.take(now()).ok_or(Flood::Resets),
            8 => self.window_updates.take(now()).ok_or(Flood::WindowUpdates),
            9 if self.continuations > CONTINUATIONS_MAX => Err(Flood::Continuations),
            9 if self.skip > 0 => Ok(()),
            _ => self.control.take(now()).ok_or(Flood::Control),
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
            .try_for_each(|piece| frames.accept(piece, || now))
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
        frames.accept(&preface(), now).unwrap();
        for _ in 0..20 {
            frames.accept(&frame(3, 0, 4).repeat(10), now).unwrap();
            passed.set(passed.get() + Duration::from_secs(1));
        }
        assert_eq!(
            frames.accept(&frame(3, 0, 4).repeat(12), now),
            Err(Flood::Resets)
        );
    }
}
