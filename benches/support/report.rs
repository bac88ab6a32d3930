//! Figures as lines of text: a name, a value and its unit, with tabs between. The programs for
//! other runtimes (`benches/peers/`) write the same, so that one script can set them side by side.

#![allow(dead_code, reason = "no program uses all of it")]

use std::time::Duration;

/// Prints one figure.
pub fn figure(name: &str, value: f64, unit: &str) {
    println!("{name}\t{value:.3}\t{unit}");
}

/// Times of the same thing, done again and again.
pub struct Samples(Vec<Duration>);

impl Samples {
    pub fn new(mut times: Vec<Duration>) -> Samples {
        assert!(!times.is_empty(), "nothing was measured");
        times.sort_unstable();
        Samples(times)
    }

    /// The time that `share` of them did not go beyond; 0.5 is the median.
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.0.len() - 1;
        self.0[(last as f64 * share).round() as usize]
    }

    pub fn mean(&self) -> Duration {
        self.0.iter().sum::<Duration>() / self.0.len() as u32
    }

    pub fn max(&self) -> Duration {
        self.0[self.0.len() - 1]
    }

    /// Median, 99th percentile and mean in microseconds.
    pub fn print_us(&self, name: &str) {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        figure(&format!("{name} p50"), us(self.quantile(0.5)), "us");
        figure(&format!("{name} p99"), us(self.quantile(0.99)), "us");
        figure(&format!("{name} mean"), us(self.mean()), "us");
    }

    /// Median, 99th percentile and maximum in milliseconds.
    pub fn print_ms(&self, name: &str) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        figure(&format!("{name} p50"), ms(self.quantile(0.5)), "ms");
        figure(&format!("{name} p99"), ms(self.quantile(0.99)), "ms");
        figure(&format!("{name} max"), ms(self.max()), "ms");
    }
}
