//! A counter with one label of known values, which each thread counts for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, LabelPair, Metric, MetricFamily, MetricType};

use super::guests::Family;
use super::shard::Sharded;

/// Counts by `N` values. Cheap to clone: clones count together.
#[derive(Clone)]
pub(super) struct Counters<const N: usize> {
    shared: Arc<Shared<N>>,
}

struct Shared<const N: usize> {
    family: Family,
    label: &'static str,
    values: [&'static str; N],
    counts: Sharded<Counts<N>>,
}

struct Counts<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Counts(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl<const N: usize> Counters<N> {
    pub(super) fn new(
        name: String,
        help: &str,
        label: &'static str,
        values: [&'static str; N],
    ) -> prometheus::Result<Counters<N>> {
        Ok(Counters {
            shared: Arc::new(Shared {
                family: Family::new(name, help, &[label])?,
                label,
                values,
                counts: Sharded::default(),
            }),
        })
    }

    /// Counts one with the value at this place.
    pub(super) fn inc(&self, at: usize) {
        if let Some(count) = self.shared.counts.mine().0.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<const N: usize> Collector for Counters<N> {
    fn desc(&self) -> Vec<&Desc> {
        vec![self.shared.family.desc()]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let rows = self.shared.values.iter().enumerate().map(|(at, value)| {
            let counts = self.shared.counts.iter();
            let count: u64 = counts.map(|c| c.0[at].load(Ordering::Relaxed)).sum();
            counter(&[(self.shared.label, value)], count as f64)
        });
        vec![self.shared.family.of(MetricType::COUNTER, rows.collect())]
    }
}

/// One row of a counter. Labels come in the order of their names.
pub(super) fn counter(labels: &[(&str, &str)], value: f64) -> Metric {
    let labels = labels.iter().map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    });
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(labels.collect());
    metric.set_counter(counter);
    metric
}
