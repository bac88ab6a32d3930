//! What the machine, or the container, gives to the process: the other half of what the process
//! uses.

use std::fs;
use std::path::Path;

use prometheus::{IntGauge, IntGaugeVec};

use super::metrics::Registrar;

const CGROUPS: &str = "/sys/fs/cgroup";

/// What there is, and how much of it is taken.
pub struct HostMetrics {
    cpus: IntGauge,
    memory_limit: IntGauge,
    memory_used: IntGauge,
    disk_size: IntGaugeVec,
    disk_available: IntGaugeVec,
    backup_watched: IntGauge,
    backup_made: IntGauge,
}

impl HostMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> HostMetrics {
        HostMetrics {
            cpus: r.gauge("cpus", "Processors that the process may use."),
            memory_limit: r.gauge(
                "memory_limit_bytes",
                "Memory beyond which the system ends processes: the control group's limit, or all that the machine has, in bytes.",
            ),
            memory_used: r.gauge(
                "memory_used_bytes",
                "What counts against wasmwiz_memory_limit_bytes and can't be given up, of all processes there, in bytes.",
            ),
            disk_size: r.gauge_vec(
                "disk_size_bytes",
                "Size of the file system that holds a directory of the gateway's, in bytes.",
                &["directory"],
            ),
            disk_available: r.gauge_vec(
                "disk_available_bytes",
                "Space left in that file system, in bytes.",
                &["directory"],
            ),
            backup_watched: r.gauge(
                "backup_watched",
                "1 where metrics.backup_stamp names a file, else 0.",
            ),
            backup_made: r.gauge(
                "backup_last_success_timestamp_seconds",
                "When the last backup was made, as the file metrics.backup_stamp says, in seconds since the Unix epoch; 0 where it says nothing.",
            ),
        }
    }

    /// Looks at processors and memory.
    pub fn observe(&self) {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
        self.cpus.set(i64::try_from(cpus).unwrap_or(i64::MAX));
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let found = group(&own, Path::new(CGROUPS)).or_else(machine);
        if let Some(Memory { limit, used }) = found {
            self.memory_limit.set(limit);
            self.memory_used.set(used);
        }
    }

    /// Looks at the file system of a directory. Waits for the disk.
    pub fn observe_disk(&self, name: &str, directory: &Path) {
        // One that is not there yet has nothing to say.
        let Ok(found) = rustix::fs::statvfs(directory) else {
            return;
        };
        let bytes =
            |blocks: u64| i64::try_from(blocks.saturating_mul(found.f_frsize)).unwrap_or(i64::MAX);
        let size = self.disk_size.with_label_values(&[name]);
        size.set(bytes(found.f_blocks));
        let available = self.disk_available.with_label_values(&[name]);
        available.set(bytes(found.f_bavail));
    }

    /// Looks at the file that says when the last backup was made. Waits for the disk.
    pub fn observe_backup(&self, stamp: &Path) {
        self.backup_watched.set(1);
        let made = fs::read_to_string(stamp).ok();
        self.backup_made
            .set(made.and_then(|text| text.trim().parse().ok()).unwrap_or(0));
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Memory {
    limit: i64,
    used: i64,
}

/// The control group (version 2) with the nearest limit, from the process's own upwards.
fn group(own: &str, root: &Path) -> Option<Memory> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    root.join(path)
        .ancestors()
        .take_while(|directory| directory.starts_with(root))
        .find_map(|directory| {
            let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
            // Without a limit it says `max`.
            let limit = read("memory.max")?.trim().parse().ok()?;
            let current: i64 = read("memory.current")?.trim().parse().ok()?;
            // The system drops these pages of files before it ends anything.
            let cached = field(&read("memory.stat")?, "inactive_file").unwrap_or(0);
            let used = current.saturating_sub(cached);
            Some(Memory { limit, used })
        })
}

/// All that the machine has.
fn machine() -> Option<Memory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |name| Some(field(&text, name)?.saturating_mul(1024));
    let limit = bytes("MemTotal:")?;
    let used = limit.saturating_sub(bytes("MemAvailable:")?);
    Some(Memory { limit, used })
}

/// The number after a name, in text with one of them per line.
fn field(text: &str, name: &str) -> Option<i64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    lines.find_map(|mut words| {
        (words.next()? == name).then_some(())?;
        words.next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_limit_of_the_control_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("slice/service");
        fs::create_dir_all(&inner).unwrap();
        let write = |directory: &Path, max: &str| {
            fs::write(directory.join("memory.max"), max).unwrap();
            fs::write(directory.join("memory.current"), "1000\n").unwrap();
            fs::write(directory.join("memory.stat"), "anon 7\ninactive_file 300\n").unwrap();
        };
        let own = "1:name=systemd:/other\n0::/slice/service\n";
        assert_eq!(group(own, root.path()), None);
        write(&inner, "max\n");
        assert_eq!(group(own, root.path()), None);
        write(&root.path().join("slice"), "5000\n");
        let limited = |limit| Some(Memory { limit, used: 700 });
        assert_eq!(group(own, root.path()), limited(5000));
        write(&inner, "4000\n");
        assert_eq!(group(own, root.path()), limited(4000));
        assert_eq!(group("", root.path()), None);
    }

    #[test]
    fn the_machine_has_memory() {
        let Memory { limit, used } = machine().unwrap();
        assert!(used > 0 && used < limit);
    }
}
