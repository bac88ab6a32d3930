//! What a module's memory holds before its first instruction, in a file that nobody can change.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// Larger images are not kept: their modules get their data copied for each guest.
const IMAGE_BYTES_MAX: usize = 64 << 20;
/// So much of an image may be zeros between segments, beside three times what the segments hold: an
/// image costs memory for its zeros too, which a few bytes of module must not be able to ask for.
const IMAGE_ZEROS_MAX: usize = 1 << 20;

/// Whether there may be an image so large.
pub(super) fn may_be(image_bytes: usize) -> bool {
    image_bytes <= IMAGE_BYTES_MAX
}

/// Whether an image of so many bytes, of which segments fill so many, is worth keeping.
pub(super) fn is_worth_keeping(image_bytes: usize, data_bytes: usize) -> bool {
    may_be(image_bytes)
        && image_bytes <= data_bytes.saturating_mul(4).saturating_add(IMAGE_ZEROS_MAX)
}

/// The bytes of a memory from the first to the last that data segments reach, in whole pages of the
/// system. Mapped by each slot that shows it, so that guests share the pages they only read.
#[derive(Debug)]
pub(in crate::sandbox) struct Image {
    /// `None` for an image of nothing.
    file: Option<File>,
    from: usize,
    bytes: Vec<u8>,
}

impl Image {
    /// Keeps what `memory` holds in `data`, and around it up to whole pages.
    pub(super) fn new(memory: &[u8], data: Range<usize>) -> io::Result<Image> {
        let page = system_page_bytes();
        let from = data.start - data.start % page;
        let mut bytes = memory.get(from..data.end).unwrap_or_default().to_vec();
        if bytes.is_empty() {
            return Ok(Image {
                file: None,
                from: 0,
                bytes,
            });
        }
        bytes.resize(bytes.len().next_multiple_of(page), 0);
        // SAFETY: the name is a C string, and the call takes no other pointer.
        let descriptor = unsafe {
            libc::memfd_create(
                c"wasm-image".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            )
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        let mut file = unsafe { File::from_raw_fd(descriptor) };
        file.write_all(&bytes)?;
        let seals =
            libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        // SAFETY: the call takes no pointer.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Image {
            file: Some(file),
            from,
            bytes,
        })
    }

    /// Where in a memory it stands.
    pub(super) fn range(&self) -> Range<usize> {
        self.from..self.from + self.bytes.len()
    }

    /// Makes `page`, which stands at `from` in its memory, what it was at first: a part of the image,
    /// and zeros where the image is not.
    pub(super) fn put_back(&self, page: &mut [u8], from: usize) {
        let (image, end) = (self.range(), from + page.len());
        let start = image.start.clamp(from, end);
        let stop = image.end.clamp(start, end);
        page[..start - from].fill(0);
        page[stop - from..].fill(0);
        if start < stop {
            let shown = &self.bytes[start - image.start..stop - image.start];
            page[start - from..stop - from].copy_from_slice(shown);
        }
    }

    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Memory held, in bytes: the copy to restore from and the pages of the file.
    pub(in crate::sandbox) fn held_bytes(&self) -> u64 {
        self.bytes.len() as u64 * 2
    }
}

pub(in crate::sandbox) fn system_page_bytes() -> usize {
    // SAFETY: the call takes no pointer.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes > 0)
        .unwrap_or(4096)
}
