//! How long things took: a histogram of fixed size, exact where it is cheap and within 6.25 % elsewhere.
//!
//! Recording is a few instructions without floats, so that it can be done for each job under the pool's lock; a
//! snapshot is a copy of 2.3 KiB. Each power of two is divided into eight buckets of the same width, as HdrHistogram does
//! it with three bits of precision: an eighth of its lower end is the most that a bucket is wide, and who answers with its
//! middle is off by half of that at most.

use std::fmt;
use std::time::Duration;

/// Below this power of two (in nanoseconds: 1.024 µs) all is one bucket.
const FIRST: u32 = 10;
/// From this power of two on (19.5 hours) all is the last bucket.
const END: u32 = 46;
/// A power of two is divided into two to the power of this.
const BITS: u32 = 3;
const BUCKETS: usize = 1 + ((END - FIRST) << BITS) as usize;

/// How long things took, as a distribution.
///
/// Count, mean, minimum and maximum are exact. Quantiles are within 6.25 % (below 1.024 µs, within half of that; beyond 19
/// hours, only known to be between that and the maximum).
///
/// ```
/// use errback::Histogram;
/// use std::time::Duration;
///
/// let mut latency = Histogram::default();
/// for ms in 1..=100 {
///     latency.record(Duration::from_millis(ms));
/// }
/// assert_eq!(latency.count(), 100);
/// assert_eq!(latency.mean(), Some(Duration::from_micros(50_500)));
/// let median = latency.quantile(0.5).expect("it is not empty");
/// assert!(median.abs_diff(Duration::from_millis(50)) < Duration::from_millis(4));
/// assert_eq!(latency.quantile(1.0), Some(Duration::from_millis(100)));
/// println!("{latency}"); // n=100 p50=48.2ms p90=88.1ms p99=96.5ms max=100.0ms
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    count: u64,
    /// Of all values, in nanoseconds.
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            buckets: [0; BUCKETS],
            count: 0,
            sum: 0,
            min: u64::MAX,
            max: 0,
        }
    }
}

impl Histogram {
    /// Counts a value. (More than 584 years count as so many.)
    pub fn record(&mut self, value: Duration) {
        self.record_many(value, 1);
    }

    /// Adds the same value so many times.
    pub(super) fn record_many(&mut self, value: Duration, count: u64) {
        if count == 0 {
            return;
        }
        let nanos = value
            .as_secs()
            .saturating_mul(1_000_000_000)
            .saturating_add(value.subsec_nanos().into());
        self.buckets[bucket_of(nanos)] += count;
        self.count += count;
        self.sum += u128::from(nanos) * u128::from(count);
        self.min = self.min.min(nanos);
        self.max = self.max.max(nanos);
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest value; `None` when there is none.
    pub fn min(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_nanos(self.min))
    }

    /// The largest value; `None` when there is none.
    pub fn max(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_nanos(self.max))
    }

    /// The mean; `None` when there are no values.
    pub fn mean(&self) -> Option<Duration> {
        let mean = self.sum.checked_div(u128::from(self.count))?;
        // It is no larger than the largest value.
        Some(Duration::from_nanos(mean as u64))
    }

    /// The value that a share `q` of all values (from 0 to 1) does not exceed: 0.5 is the median, 0.99 what one in a hundred
    /// exceeds. `None` when there are no values, or `q` is no such share.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 || !(0.0..=1.0).contains(&q) {
            return None;
        }
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count);
        if rank == self.count {
            return self.max();
        }
        let mut below = 0;
        let bucket = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        let nanos = middle_of(bucket).clamp(self.min, self.max);
        Some(Duration::from_nanos(nanos))
    }
}

/// `n=1200 p50=1.1ms p90=3.9ms p99=12.6ms max=31.0ms`; `n=0` when there are no values.
impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n={}", self.count)?;
        for (name, q) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)] {
            if let Some(value) = self.quantile(q) {
                write!(f, " {name}={value:.1?}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Histogram({self})")
    }
}

/// The highest bit says which power of two, the three bits below it which eighth of that.
fn bucket_of(nanos: u64) -> usize {
    if nanos >> FIRST == 0 {
        return 0;
    }
    let power = nanos.ilog2();
    let eighth = (nanos >> (power - BITS)) & ((1 << BITS) - 1);
    let bucket = 1 + (((power - FIRST) as usize) << BITS) + eighth as usize;
    bucket.min(BUCKETS - 1)
}

fn middle_of(bucket: usize) -> u64 {
    let Some(bucket) = bucket.checked_sub(1) else {
        return 1 << (FIRST - 1);
    };
    let power = FIRST + (bucket >> BITS) as u32;
    let eighth = (bucket & ((1 << BITS) - 1)) as u64;
    let width = 1 << (power - BITS);
    (1 << power) + eighth * width + width / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn histogram(values: impl IntoIterator<Item = Duration>) -> Histogram {
        let mut histogram = Histogram::default();
        values.into_iter().for_each(|value| histogram.record(value));
        histogram
    }

    #[test]
    fn an_empty_one_knows_nothing() {
        let empty = Histogram::default();
        assert_eq!(empty.count(), 0);
        assert_eq!((empty.min(), empty.max(), empty.mean()), (None, None, None));
        assert_eq!(empty.quantile(0.5), None);
        assert_eq!(empty.to_string(), "n=0");
    }

    #[test]
    fn one_value_is_all_quantiles() {
        let value = Duration::from_micros(1234);
        let one = histogram([value]);
        for q in [0.0, 0.5, 0.99, 1.0] {
            assert_eq!(one.quantile(q), Some(value));
        }
        for q in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(one.quantile(q), None);
        }
        assert_eq!(
            format!("{one}"),
            "n=1 p50=1.2ms p90=1.2ms p99=1.2ms max=1.2ms"
        );
        assert_eq!(format!("{one:?}"), format!("Histogram({one})"));
    }

    #[test]
    fn no_duration_is_too_short_or_too_long() {
        let extremes = histogram([Duration::ZERO, Duration::MAX, Duration::from_secs(1 << 17)]);
        assert_eq!(extremes.min(), Some(Duration::ZERO));
        assert_eq!(extremes.max(), Some(Duration::from_nanos(u64::MAX)));
        assert!(extremes.quantile(0.5) >= Some(Duration::from_nanos(1 << (END - 1))));
        let many = histogram([Duration::MAX; 3]);
        assert_eq!(many.mean(), many.max());
    }

    #[test]
    fn buckets_follow_one_another_without_a_gap() {
        let mut bounds = vec![0, (1 << FIRST) - 1];
        for power in FIRST..END {
            let width = 1_u64 << (power - BITS);
            let lower = |eighth| (1 << power) + eighth * width;
            bounds.extend((0..8).flat_map(|eighth| [lower(eighth), lower(eighth) + width - 1]));
        }
        for (bucket, bounds) in bounds.chunks(2).enumerate() {
            assert_eq!(bucket_of(bounds[0]), bucket);
            assert_eq!(bucket_of(bounds[1]), bucket);
            assert_eq!(bucket_of(middle_of(bucket)), bucket);
        }
        assert_eq!(bounds.len(), 2 * BUCKETS);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_list(
            mut nanos in prop::collection::vec(
                (0_u32..END).prop_flat_map(|power| (1_u64 << power)..(2 << power)),
                1..200,
            ),
            q in 0.0..=1.0_f64,
        ) {
            let histogram = histogram(nanos.iter().copied().map(Duration::from_nanos));
            nanos.sort_unstable();
            prop_assert_eq!(histogram.count(), nanos.len() as u64);
            prop_assert_eq!(histogram.min(), Some(Duration::from_nanos(nanos[0])));
            prop_assert_eq!(histogram.max(), nanos.last().copied().map(Duration::from_nanos));
            let sum: u128 = nanos.iter().copied().map(u128::from).sum();
            let mean = Duration::from_nanos((sum / nanos.len() as u128) as u64);
            prop_assert_eq!(histogram.mean(), Some(mean));
            let rank = ((q * nanos.len() as f64).ceil() as usize).max(1);
            let exact = nanos[rank - 1];
            let found = histogram.quantile(q).expect("a value").as_nanos() as u64;
            prop_assert!(
                found.abs_diff(exact) <= (exact / 16).max(1 << (FIRST - 1)),
                "{found} for {exact}"
            );
        }

        #[test]
        fn a_larger_share_is_no_smaller_value(
            millis in prop::collection::vec(0_u64..100_000, 1..50),
            mut shares in prop::array::uniform2(0.0..=1.0_f64),
        ) {
            let histogram = histogram(millis.into_iter().map(Duration::from_millis));
            shares.sort_by(f64::total_cmp);
            prop_assert!(histogram.quantile(shares[0]) <= histogram.quantile(shares[1]));
            prop_assert!(histogram.min() <= histogram.quantile(shares[0]));
            prop_assert!(histogram.quantile(shares[1]) <= histogram.max());
        }
    }
}
