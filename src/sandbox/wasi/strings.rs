//! Arguments and environment.

use super::super::Strings;
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
        write_sizes(&self.args, memory, count_out, bytes_out)
    }

    pub(super) fn args_get(&mut self, memory: &mut Memory<'_>, table: u32, text: u32) -> Answer {
        write_strings(&self.args, memory, table, text)
    }

    pub(super) fn environ_sizes_get(
        &mut self,
        memory: &mut Memory<'_>,
        count_out: u32,
        bytes_out: u32,
    ) -> Answer {
        write_sizes(&self.env, memory, count_out, bytes_out)
    }

    pub(super) fn environ_get(&mut self, memory: &mut Memory<'_>, table: u32, text: u32) -> Answer {
        write_strings(&self.env, memory, table, text)
    }
}

fn write_sizes(
    strings: &Strings,
    memory: &mut Memory<'_>,
    count_out: u32,
    bytes_out: u32,
) -> Answer {
    let count = u32::try_from(strings.count()).map_err(|_| Errno::Overflow)?;
    let bytes = u32::try_from(strings.as_bytes().len()).map_err(|_| Errno::Overflow)?;
    memory.write_u32(count_out, count)?;
    memory.write_u32(bytes_out, bytes)?;
    Ok(())
}

/// Writes the strings one after the other from `text`, and their addresses from `table`.
fn write_strings(strings: &Strings, memory: &mut Memory<'_>, table: u32, text: u32) -> Answer {
    let (mut slot, mut address) = (table, text);
    for string in strings.iter() {
        memory.write_u32(slot, address)?;
        slot = slot.checked_add(4).ok_or(Errno::Fault)?;
        let len = u32::try_from(string.len() + 1).map_err(|_| Errno::Fault)?;
        address = address.checked_add(len).ok_or(Errno::Fault)?;
    }
    // Where there is nothing to write, no address is wrong.
    if strings.count() > 0 {
        memory.write(text, strings.as_bytes())?;
    }
    Ok(())
}
