//! A guest's linear memory as WASI sees it: little-endian values and checked ranges.

use super::errno::Errno;

/// Most buffers in one `fd_read` or `fd_write`; the value of `IOV_MAX` on Linux.
pub(super) const IOVECS_MAX: u32 = 1024;

const IOVEC_BYTES: u32 = 8;

/// The whole of a guest's memory during one host call. A guest without memory has an empty one,
/// in which every access but that of nothing at address 0 is a fault.
pub(super) struct Memory<'a> {
    bytes: &'a mut [u8],
}

/// One buffer of a scatter/gather list, not checked yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Iovec {
    pub address: u32,
    pub len: u32,
}

impl<'a> Memory<'a> {
    pub fn new(bytes: &'a mut [u8]) -> Memory<'a> {
        Memory { bytes }
    }

    /// The range, or `EFAULT` when any part of it is outside. Empty ranges must start inside or
    /// right at the end.
    pub fn slice(&self, address: u32, len: u32) -> Result<&[u8], Errno> {
        let (start, end) = bounds(address, len)?;
        self.bytes.get(start..end).ok_or(Errno::Fault)
    }

    pub fn slice_mut(&mut self, address: u32, len: u32) -> Result<&mut [u8], Errno> {
        let (start, end) = bounds(address, len)?;
        self.bytes.get_mut(start..end).ok_or(Errno::Fault)
    }

    /// Checks that the range can be written later in this call.
    pub fn check(&self, address: u32, len: u32) -> Result<(), Errno> {
        self.slice(address, len).map(drop)
    }

    pub fn read_array<const N: usize>(&self, address: u32) -> Result<[u8; N], Errno> {
        let len = u32::try_from(N).map_err(|_| Errno::Overflow)?;
        self.slice(address, len)?
            .try_into()
            .map_err(|_| Errno::Fault)
    }

    pub fn write(&mut self, address: u32, value: &[u8]) -> Result<(), Errno> {
        let len = u32::try_from(value.len()).map_err(|_| Errno::Fault)?;
        self.slice_mut(address, len)?.copy_from_slice(value);
        Ok(())
    }

    pub fn write_u32(&mut self, address: u32, value: u32) -> Result<(), Errno> {
        self.write(address, &value.to_le_bytes())
    }

    pub fn write_u64(&mut self, address: u32, value: u64) -> Result<(), Errno> {
        self.write(address, &value.to_le_bytes())
    }

    /// Reads a scatter/gather list into `list` and checks all of it, so that nothing is moved when
    /// a later buffer is bad and nothing a guest does to the list through an overlapping buffer
    /// matters. Returns the buffers' total length. More than [`IOVECS_MAX`] buffers or 2³²−1 bytes
    /// in all are `EINVAL`, as in POSIX `readv`.
    pub fn read_iovecs(
        &self,
        address: u32,
        count: u32,
        list: &mut Vec<Iovec>,
    ) -> Result<u32, Errno> {
        list.clear();
        if count > IOVECS_MAX {
            return Err(Errno::Inval);
        }
        let table = self.slice(address, count * IOVEC_BYTES)?;
        let mut total: u32 = 0;
        for entry in table.as_chunks::<{ IOVEC_BYTES as usize }>().0 {
            let [a0, a1, a2, a3, l0, l1, l2, l3] = *entry;
            let iovec = Iovec {
                address: u32::from_le_bytes([a0, a1, a2, a3]),
                len: u32::from_le_bytes([l0, l1, l2, l3]),
            };
            self.check(iovec.address, iovec.len)?;
            total = total.checked_add(iovec.len).ok_or(Errno::Inval)?;
            list.push(iovec);
        }
        Ok(total)
    }
}

/// Start and end of a range. The sum of two 32-bit numbers can't overflow 64 bits.
fn bounds(address: u32, len: u32) -> Result<(usize, usize), Errno> {
    let end = u64::from(address) + u64::from(len);
    let start = usize::try_from(address).map_err(|_| Errno::Fault)?;
    let end = usize::try_from(end).map_err(|_| Errno::Fault)?;
    Ok((start, end))
}
