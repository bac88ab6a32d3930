//! Arguments and environment.

use super::errno::Errno;
use super::memory::Memory;
use super::{Answer, Wasi};

impl Wasi {
    pub(super) fn args_sizes_get(
        &mut self,
        memory: &mut Memory<'_>,
        count_out: u32,
        bytes_out: u32,
    ) -> Answer {
        write_sizes(args(&self.args), memory, count_out, bytes_out)
    }

    pub(super) fn args_get(&mut self, memory: &mut Memory<'_>, table: u32, text: u32) -> Answer {
        write_strings(args(&self.args), memory, table, text)
    }

    pub(super) fn environ_sizes_get(
        &mut self,
        memory: &mut Memory<'_>,
        count_out: u32,
        bytes_out: u32,
    ) -> Answer {
        write_sizes(variables(&self.env), memory, count_out, bytes_out)
    }

    pub(super) fn environ_get(&mut self, memory: &mut Memory<'_>, table: u32, text: u32) -> Answer {
        write_strings(variables(&self.env), memory, table, text)
    }
}

/// One C string in pieces, without its NUL.
type Pieces<'a> = [&'a str; 3];

/// An argument keeps its place, so one with a NUL byte is cut there rather than left out.
fn args(args: &[String]) -> impl Iterator<Item = Pieces<'_>> {
    args.iter()
        .map(|arg| [arg.split('\0').next().unwrap_or_default(), "", ""])
}

/// `NAME=value`. A C string can't hold a NUL, nor a name a `=`: such variables are left out.
fn variables(env: &[(String, String)]) -> impl Iterator<Item = Pieces<'_>> {
    env.iter()
        .filter(|(name, value)| {
            !name.is_empty() && !name.contains(['\0', '=']) && !value.contains('\0')
        })
        .map(|(name, value)| [name, "=", value])
}

fn write_sizes<'a>(
    strings: impl Iterator<Item = Pieces<'a>>,
    memory: &mut Memory<'_>,
    count_out: u32,
    bytes_out: u32,
) -> Answer {
    let (mut count, mut bytes) = (0_u64, 0_u64);
    for pieces in strings {
        count += 1;
        bytes += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>() + 1;
    }
    let count = u32::try_from(count).map_err(|_| Errno::Overflow)?;
    let bytes = u32::try_from(bytes).map_err(|_| Errno::Overflow)?;
    memory.write_u32(count_out, count)?;
    memory.write_u32(bytes_out, bytes)?;
    Ok(())
}

/// Writes the strings one after the other from `text`, and their addresses from `table`.
fn write_strings<'a>(
    strings: impl Iterator<Item = Pieces<'a>>,
    memory: &mut Memory<'_>,
    table: u32,
    text: u32,
) -> Answer {
    let (mut slot, mut address) = (table, text);
    for pieces in strings {
        memory.write_u32(slot, address)?;
        slot = slot.checked_add(4).ok_or(Errno::Fault)?;
        for piece in pieces
            .iter()
            .map(|piece| piece.as_bytes())
            .chain([&[0_u8][..]])
        {
            memory.write(address, piece)?;
            let len = u32::try_from(piece.len()).map_err(|_| Errno::Fault)?;
            address = address.checked_add(len).ok_or(Errno::Fault)?;
        }
    }
    Ok(())
}
