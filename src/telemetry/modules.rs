//! Which modules the guests are of. A bounded number of modules has rows of its own at a time: those
//! that are ready to run and came first; a row leaves the page when its module is ready no more, and
//! all others share the row `other`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::counters::counter;
use super::guests::{Family, STATUSES};
use super::metrics::metrics;
use super::shard::Sharded;

/// Modules with rows of their own, at most.
const MODULES_MAX: usize = 100;
/// The place of all others.
const OTHER: usize = MODULES_MAX;
/// Characters of a module's SHA-256 that name it.
const NAME_CHARS: usize = 12;
const NANOSECONDS: f64 = 1e9;

/// A module's rows, held by whatever holds the module.
#[derive(Debug)]
pub struct ModuleRows {
    place: usize,
}

/// Where a module's guests are counted; only to be used while its [`ModuleRows`] are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModulePlace(usize);

/// What is counted of guests by module. Cheap to clone: clones count together.
#[derive(Clone)]
pub(super) struct ModuleMetrics {
    shared: Arc<Shared>,
}

struct Shared {
    guests: Family,
    cpu: Family,
    names: Mutex<Vec<Option<Name>>>,
    counts: Sharded<Places>,
}

struct Name {
    module: String,
    users: usize,
}

struct Places(Box<[Counts]>);

#[derive(Default)]
struct Counts {
    statuses: [AtomicU64; STATUSES.len()],
    cpu: AtomicU64,
}

impl Default for Places {
    fn default() -> Self {
        Places((0..=OTHER).map(|_| Counts::default()).collect())
    }
}

impl ModuleRows {
    /// The rows of a module, by its SHA-256 in hexadecimal.
    pub fn new(hash: &str) -> ModuleRows {
        metrics().modules.take(hash)
    }

    pub fn place(&self) -> ModulePlace {
        ModulePlace(self.place)
    }
}

impl Drop for ModuleRows {
    fn drop(&mut self) {
        metrics().modules.give_back(self.place);
    }
}

impl ModuleMetrics {
    pub(super) fn new(name: impl Fn(&str) -> String) -> prometheus::Result<ModuleMetrics> {
        Ok(ModuleMetrics {
            shared: Arc::new(Shared {
                guests: Family::new(
                    name("module_guests_total"),
                    "Guests by module (the first 12 digits of its SHA-256; `other` beyond 100 modules) and how they ended.",
                    &["module", "status"],
                )?,
                cpu: Family::new(
                    name("module_guest_cpu_seconds_total"),
                    "CPU time that a module's guests took, in seconds.",
                    &["module"],
                )?,
                names: Mutex::new((0..MODULES_MAX).map(|_| None).collect()),
                counts: Sharded::default(),
            }),
        })
    }

    /// `status` is the place in [`STATUSES`].
    pub(super) fn count(&self, place: ModulePlace, status: usize, cpu: Duration) {
        let Some(counts) = self.shared.counts.mine().0.get(place.0) else {
            return;
        };
        if let Some(count) = counts.statuses.get(status) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
        counts.cpu.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn take(&self, hash: &str) -> ModuleRows {
        let module: String = hash.chars().take(NAME_CHARS).collect();
        let mut names = self.names();
        let known = names.iter_mut().enumerate().find_map(|(place, name)| {
            let name = name.as_mut().filter(|name| name.module == module)?;
            name.users += 1;
            Some(place)
        });
        if let Some(place) = known {
            return ModuleRows { place };
        }
        let Some(place) = names.iter().position(Option::is_none) else {
            return ModuleRows { place: OTHER };
        };
        // What the module had that was here before.
        for counts in self.shared.counts.iter() {
            let counts = &counts.0[place];
            counts.cpu.store(0, Ordering::Relaxed);
            for status in &counts.statuses {
                status.store(0, Ordering::Relaxed);
            }
        }
        names[place] = Some(Name { module, users: 1 });
        ModuleRows { place }
    }

    fn give_back(&self, place: usize) {
        let mut names = self.names();
        let Some(name) = names.get_mut(place) else {
            return;
        };
        if let Some(known) = name {
            known.users -= 1;
            if known.users == 0 {
                *name = None;
            }
        }
    }

    fn names(&self) -> MutexGuard<'_, Vec<Option<Name>>> {
        let names = self.shared.names.lock();
        names.unwrap_or_else(PoisonError::into_inner)
    }

    fn sum(&self, place: usize, of: impl Fn(&Counts) -> &AtomicU64) -> u64 {
        let counts = self.shared.counts.iter();
        counts
            .map(|places| of(&places.0[place]).load(Ordering::Relaxed))
            .sum()
    }
}

impl Collector for ModuleMetrics {
    fn desc(&self) -> Vec<&Desc> {
        vec![self.shared.guests.desc(), self.shared.cpu.desc()]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let names = self.names();
        let named = names.iter().enumerate().filter_map(|(place, name)| {
            let name = name.as_ref()?;
            Some((place, name.module.as_str()))
        });
        let (mut guests, mut cpu) = (Vec::new(), Vec::new());
        for (place, module) in named.chain([(OTHER, "other")]) {
            for (at, status) in STATUSES.iter().enumerate() {
                let count = self.sum(place, |counts| &counts.statuses[at]);
                // Most never happen, and a row for each would make a long page.
                if count > 0 || place == OTHER {
                    let labels = [("module", module), ("status", *status)];
                    guests.push(counter(&labels, count as f64));
                }
            }
            let nanoseconds = self.sum(place, |counts| &counts.cpu);
            cpu.push(counter(
                &[("module", module)],
                nanoseconds as f64 / NANOSECONDS,
            ));
        }
        vec![
            self.shared.guests.of(MetricType::COUNTER, guests),
            self.shared.cpu.of(MetricType::COUNTER, cpu),
        ]
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, Registry, TextEncoder};

    use super::*;

    fn page(of: &ModuleMetrics) -> String {
        let registry = Registry::new();
        registry.register(Box::new(of.clone())).unwrap();
        let mut page = Vec::new();
        TextEncoder::new()
            .encode(&registry.gather(), &mut page)
            .unwrap();
        String::from_utf8(page).unwrap()
    }

    fn modules() -> ModuleMetrics {
        ModuleMetrics::new(|name| format!("test_{name}")).unwrap()
    }

    /// Takes rows without giving them back by themselves: those of [`metrics`] would get them.
    fn take(of: &ModuleMetrics, hash: &str) -> usize {
        let rows = std::mem::ManuallyDrop::new(of.take(hash));
        rows.place
    }

    #[test]
    fn a_module_counts_as_long_as_anybody_holds_it() {
        let modules = modules();
        let place = take(&modules, "0123456789abcdef");
        assert_eq!(take(&modules, "0123456789abcdef"), place);
        modules.count(ModulePlace(place), 0, Duration::from_millis(1500));
        let row = r#"test_module_guests_total{module="0123456789ab",status="success"} 1"#;
        assert!(page(&modules).contains(row), "{}", page(&modules));
        assert!(
            page(&modules)
                .contains(r#"test_module_guest_cpu_seconds_total{module="0123456789ab"} 1.5"#)
        );
        modules.give_back(place);
        assert!(page(&modules).contains(row));
        modules.give_back(place);
        assert!(!page(&modules).contains("0123456789ab"));
        // The next one begins at nothing.
        assert_eq!(take(&modules, "fedcba9876543210"), place);
        assert!(
            page(&modules)
                .contains(r#"test_module_guest_cpu_seconds_total{module="fedcba987654"} 0"#)
        );
    }

    #[test]
    fn however_many_modules_there_are_the_page_stays_short() {
        let modules = modules();
        for module in 0..5 * MODULES_MAX {
            let place = take(&modules, &format!("{module:064}").split_off(52));
            modules.count(ModulePlace(place), 1, Duration::ZERO);
        }
        let page = page(&modules);
        let rows = page
            .lines()
            .filter(|l| l.starts_with("test_module_guests_total"));
        assert_eq!(rows.count(), MODULES_MAX + STATUSES.len());
        let others = 4 * MODULES_MAX;
        let row = r#"test_module_guests_total{module="other",status="execution_error"}"#;
        assert!(page.contains(&format!("{row} {others}")), "{page}");
    }
}
