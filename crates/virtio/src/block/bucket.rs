//! Rate limits: a token bucket for requests and one for bytes.

use std::time::{Duration, Instant};

use backend::RateLimit;

/// The two buckets of a limited disk. A request may start while none is overdrawn, and then takes
/// what it needs: its size need not be known before, and requests larger than a bucket get through.
#[derive(Debug)]
pub(super) struct Bucket {
    operations: Option<Tokens>,
    bytes: Option<Tokens>,
}

#[derive(Debug)]
struct Tokens {
    /// Tokens in a second.
    rate: f64,
    most: f64,
    /// Below 0 when overdrawn.
    left: f64,
    filled: Instant,
}

impl Tokens {
    fn new(rate: Option<u64>, burst: Duration, now: Instant) -> Option<Self> {
        let rate = rate? as f64;
        let most = rate * burst.as_secs_f64();
        Some(Self { rate, most, left: most, filled: now })
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = self.most.min(self.left + passed * self.rate);
        self.filled = now;
    }

    /// The time until it is not overdrawn.
    fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        // A rate is at least 1 and a request at most some MiB: this is no more than some months.
        Duration::from_secs_f64((-self.left / self.rate).max(0.0))
    }
}

impl Bucket {
    /// Full buckets, if there is a limit at all.
    pub(super) fn new(limit: RateLimit, now: Instant) -> Option<Self> {
        let operations = Tokens::new(limit.operations, limit.burst, now);
        let bytes = Tokens::new(limit.bytes, limit.burst, now);
        (operations.is_some() || bytes.is_some()).then_some(Self { operations, bytes })
    }

    /// When the next request may start, if not now.
    pub(super) fn ready_at(&mut self, now: Instant) -> Option<Instant> {
        let both = [&mut self.operations, &mut self.bytes];
        let wait = both.into_iter().flatten().map(|tokens| tokens.wait(now)).max()?;
        (!wait.is_zero()).then(|| now + wait)
    }

    /// A request of so many bytes starts.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) {
        for (tokens, taken) in [(&mut self.operations, 1), (&mut self.bytes, bytes)] {
            if let Some(tokens) = tokens {
                tokens.fill(now);
                tokens.left -= taken as f64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn without_a_limit_there_is_no_bucket() {
        assert!(Bucket::new(RateLimit::default(), Instant::now()).is_none());
    }

    #[test]
    fn requests_come_at_the_rate_after_the_burst() {
        let start = Instant::now();
        let limit = RateLimit { operations: Some(10), bytes: None, burst: 2 * SECOND };
        let mut bucket = Bucket::new(limit, start).unwrap();
        let (mut now, mut started) = (start, 0);
        while now < start + 10 * SECOND {
            match bucket.ready_at(now) {
                Some(at) => now = at,
                None => {
                    bucket.take(4096, now);
                    started += 1;
                }
            }
        }
        assert!((119..=122).contains(&started), "{started}: 20 and 10 in each second");
    }

    #[test]
    fn a_large_request_is_paid_off() {
        let start = Instant::now();
        let limit = RateLimit { operations: None, bytes: Some(1000), burst: SECOND };
        let mut bucket = Bucket::new(limit, start).unwrap();
        bucket.take(5000, start);
        let ready = bucket.ready_at(start).expect("overdrawn") - start;
        assert!((3.9..4.1).contains(&ready.as_secs_f64()), "{ready:?}");
        assert_eq!(bucket.ready_at(start + 5 * SECOND), None);
    }
}
