//! Metrics of guests. They end in microseconds, on all threads at once, so each thread counts for
//! itself, and the page adds them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Metric, MetricFamily, MetricType};
use prometheus::{Opts, proto};

use super::counters::counter;
use super::metrics::LATENCY_BUCKETS;
use super::modules::{ModuleMetrics, ModulePlace};
use super::shard::Sharded;

/// How a guest may end, or not begin: the values of the label `status`.
pub(super) const STATUSES: [&str; 9] = [
    "success",
    "execution_error",
    "time_limit_exceeded",
    "memory_limit_exceeded",
    "stack_limit_exceeded",
    "table_limit_exceeded",
    "output_limit_exceeded",
    "cancelled",
    "rejected",
];
/// 64 KiB to 1 GiB.
const MEMORY_BUCKETS: [f64; 8] = [
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
];
const NANOSECONDS: f64 = 1e9;

/// What is counted of guests. Cheap to clone: clones count together.
#[derive(Clone)]
pub struct GuestMetrics {
    counts: Arc<Sharded<Counts>>,
    families: Arc<[Family; 5]>,
    modules: ModuleMetrics,
}

#[derive(Default)]
struct Counts {
    statuses: [AtomicU64; STATUSES.len()],
    wall: Observed<{ LATENCY_BUCKETS.len() + 1 }>,
    cpu: Observed<{ LATENCY_BUCKETS.len() + 1 }>,
    queued: Observed<{ LATENCY_BUCKETS.len() + 1 }>,
    memory: Observed<{ MEMORY_BUCKETS.len() + 1 }>,
}

/// A histogram's buckets, the last without a bound, and the sum in whole units.
struct Observed<const N: usize> {
    buckets: [AtomicU64; N],
    sum: AtomicU64,
}

impl<const N: usize> Default for Observed<N> {
    fn default() -> Self {
        Observed {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
        }
    }
}

impl<const N: usize> Observed<N> {
    fn observe(&self, value: u64, units: f64, bounds: &[f64]) {
        let bucket = bounds.partition_point(|bound| *bound * units < value as f64);
        self.buckets[bucket.min(N - 1)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }
}

impl GuestMetrics {
    /// `name` makes a metric's name of its own part.
    ///
    /// # Errors
    /// If a name is not valid.
    pub(super) fn new(
        name: impl Fn(&str) -> String,
        modules: ModuleMetrics,
    ) -> prometheus::Result<GuestMetrics> {
        let family = |own, help, labels: &[&str]| Family::new(name(own), help, labels);
        Ok(GuestMetrics {
            counts: Arc::default(),
            modules,
            families: Arc::new([
                family("guests_total", "Guests by how they ended.", &["status"])?,
                family(
                    "guest_duration_seconds",
                    "Wall-clock time of a guest, in seconds.",
                    &[],
                )?,
                family("guest_cpu_seconds", "CPU time of a guest, in seconds.", &[])?,
                family(
                    "guest_queue_seconds",
                    "Time a guest waited for a thread, in seconds.",
                    &[],
                )?,
                family(
                    "guest_memory_peak_bytes",
                    "Largest linear memory of a guest, in bytes.",
                    &[],
                )?,
            ]),
        })
    }

    /// One guest's end, with the status of the usage record.
    pub fn ended(
        &self,
        module: ModulePlace,
        status: &str,
        wall: Duration,
        cpu: Duration,
        queued: Duration,
        memory_peak_bytes: u64,
    ) {
        self.status(module, status, cpu);
        let counts = self.counts.mine();
        for (observed, time) in [
            (&counts.wall, wall),
            (&counts.cpu, cpu),
            (&counts.queued, queued),
        ] {
            let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            observed.observe(nanoseconds, NANOSECONDS, &LATENCY_BUCKETS);
        }
        counts
            .memory
            .observe(memory_peak_bytes, 1.0, &MEMORY_BUCKETS);
    }

    /// A guest that was not started because every place was taken.
    pub fn rejected(&self, module: ModulePlace) {
        self.status(module, "rejected", Duration::ZERO);
    }

    /// A guest whose caller went away before it ended.
    pub fn cancelled(&self, module: ModulePlace) {
        self.status(module, "cancelled", Duration::ZERO);
    }

    fn status(&self, module: ModulePlace, status: &str, cpu: Duration) {
        let at = STATUSES.iter().position(|known| *known == status);
        debug_assert!(at.is_some(), "an unknown status: {status}");
        if let Some(at) = at {
            self.counts.mine().statuses[at].fetch_add(1, Ordering::Relaxed);
            self.modules.count(module, at, cpu);
        }
    }

    fn statuses(&self) -> Vec<Metric> {
        let counted = STATUSES.iter().enumerate().map(|(at, status)| {
            let count: u64 = self
                .counts
                .iter()
                .map(|counts| counts.statuses[at].load(Ordering::Relaxed))
                .sum();
            counter(&[("status", status)], count as f64)
        });
        counted.collect()
    }

    fn histogram<const N: usize>(
        &self,
        of: fn(&Counts) -> &Observed<N>,
        units: f64,
        bounds: &[f64],
    ) -> Vec<Metric> {
        let mut histogram = proto::Histogram::default();
        let (mut buckets, mut cumulative, mut sum) = (Vec::new(), 0, 0.0);
        for at in 0..N {
            cumulative += self
                .counts
                .iter()
                .map(|counts| of(counts).buckets[at].load(Ordering::Relaxed))
                .sum::<u64>();
            // The last, without a bound, is the count of all.
            if let Some(bound) = bounds.get(at) {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound);
                bucket.set_cumulative_count(cumulative);
                buckets.push(bucket);
            }
        }
        for counts in self.counts.iter() {
            sum += of(counts).sum.load(Ordering::Relaxed) as f64 / units;
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(cumulative);
        histogram.set_sample_sum(sum);
        let mut metric = Metric::from_label(Vec::new());
        metric.set_histogram(histogram);
        vec![metric]
    }
}

impl Collector for GuestMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().map(|family| &family.desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let [statuses, wall, cpu, queued, memory] = &*self.families;
        vec![
            statuses.of(MetricType::COUNTER, self.statuses()),
            wall.of(
                MetricType::HISTOGRAM,
                self.histogram(|counts| &counts.wall, NANOSECONDS, &LATENCY_BUCKETS),
            ),
            cpu.of(
                MetricType::HISTOGRAM,
                self.histogram(|counts| &counts.cpu, NANOSECONDS, &LATENCY_BUCKETS),
            ),
            queued.of(
                MetricType::HISTOGRAM,
                self.histogram(|counts| &counts.queued, NANOSECONDS, &LATENCY_BUCKETS),
            ),
            memory.of(
                MetricType::HISTOGRAM,
                self.histogram(|counts| &counts.memory, 1.0, &MEMORY_BUCKETS),
            ),
        ]
    }
}

/// A metric's name and help.
pub(super) struct Family {
    desc: Desc,
}

impl Family {
    pub(super) fn new(name: String, help: &str, labels: &[&str]) -> prometheus::Result<Family> {
        use prometheus::core::Describer;
        let labels = labels.iter().map(|label| (*label).to_owned());
        let opts = Opts::new(name, help).variable_labels(labels.collect());
        Ok(Family {
            desc: opts.describe()?,
        })
    }

    pub(super) fn desc(&self) -> &Desc {
        &self.desc
    }

    pub(super) fn of(&self, field_type: MetricType, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(field_type);
        family.set_metric(metrics);
        family
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, Registry, TextEncoder};

    use super::super::modules::ModuleRows;
    use super::*;

    #[test]
    fn threads_count_apart_and_the_page_adds_them_up() {
        let name = |name: &str| format!("test_{name}");
        let guests = GuestMetrics::new(name, ModuleMetrics::new(name).unwrap()).unwrap();
        let rows = ModuleRows::new("a test's");
        let registry = Registry::new();
        registry.register(Box::new(guests.clone())).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let (wall, cpu) = (Duration::from_micros(50), Duration::from_micros(40));
                    guests.ended(rows.place(), "success", wall, cpu, Duration::ZERO, 65_536);
                    let wall = Duration::from_secs(100);
                    guests.ended(
                        rows.place(),
                        "time_limit_exceeded",
                        wall,
                        cpu,
                        Duration::from_millis(1),
                        1 << 32,
                    );
                    guests.rejected(rows.place());
                });
            }
        });
        let mut page = Vec::new();
        TextEncoder::new()
            .encode(&registry.gather(), &mut page)
            .unwrap();
        let page = String::from_utf8(page).unwrap();
        for line in [
            "# TYPE test_guests_total counter",
            r#"test_guests_total{status="success"} 4"#,
            r#"test_guests_total{status="time_limit_exceeded"} 4"#,
            r#"test_guests_total{status="rejected"} 4"#,
            r#"test_guests_total{status="cancelled"} 0"#,
            "# TYPE test_guest_duration_seconds histogram",
            r#"test_guest_duration_seconds_bucket{le="0.0001"} 4"#,
            r#"test_guest_duration_seconds_bucket{le="60"} 4"#,
            r#"test_guest_duration_seconds_bucket{le="+Inf"} 8"#,
            "test_guest_duration_seconds_count 8",
            "test_guest_duration_seconds_sum 400.0002",
            r#"test_guest_queue_seconds_bucket{le="0.001"} 8"#,
            r#"test_guest_memory_peak_bytes_bucket{le="65536"} 4"#,
            r#"test_guest_memory_peak_bytes_bucket{le="1073741824"} 4"#,
            "test_guest_memory_peak_bytes_count 8",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
