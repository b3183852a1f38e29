//! How long a failed request waits, by class of error: exponential, with jitter. Pure, but for chance.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

use crate::error::Retry;

/// A pod that waits is told again after so long, whatever the reason.
pub(crate) const TELL_AGAIN: Duration = Duration::from_secs(30 * 60);

/// The pauses between attempts, by class of error.
pub(crate) struct Delays {
    steps: Box<dyn Iterator<Item = Duration> + Send>,
    least: f64,
}

impl Delays {
    /// The pauses for one class.
    pub(crate) fn new(retry: Retry) -> Self {
        let seconds = Duration::from_secs_f64;
        let doubling = |from: f64, to: f64| {
            let builder =
                ExponentialBuilder::new().with_factor(2.0).with_min_delay(seconds(from)).with_max_delay(seconds(to));
            Box::new(builder.without_max_times().build())
        };
        // Full jitter where a store or the API server is in trouble, half where somebody has to act first.
        let (steps, least): (Box<dyn Iterator<Item = Duration> + Send>, f64) = match retry {
            Retry::Transient => (doubling(0.2, 30.0), 0.0),
            Retry::Rights => (doubling(1.0, 600.0), 0.5),
            Retry::Absent => (doubling(30.0, 600.0), 0.5),
            Retry::Denied => (doubling(300.0, 1800.0), 0.5),
            Retry::Foreign => (doubling(300.0, 300.0), 0.5),
            // Not for the change, which comes by itself, but to tell the pod's owner again.
            Retry::OnChange => (Box::new(std::iter::repeat(TELL_AGAIN)), 1.0),
            Retry::Held => {
                let steps = [5.0, 15.0, 30.0].into_iter().chain(std::iter::repeat(60.0));
                (Box::new(steps.map(Duration::from_secs_f64)), 1.0)
            }
        };
        Self { steps, least }
    }

    /// The next pause, with its jitter.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.steps.next().unwrap_or(TELL_AGAIN);
        step.mul_f64(self.least + (1.0 - self.least) * fastrand::f64())
    }
}

impl std::fmt::Debug for Delays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delays").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transient_trouble_is_retried_with_full_jitter_up_to_30_seconds() {
        let mut delays = Delays::new(Retry::Transient);
        for attempt in 0..20 {
            let most = Duration::from_millis(200 * (1 << attempt.min(10))).min(Duration::from_secs(30));
            let delay = delays.next();
            assert!(delay <= most, "attempt {attempt}: {delay:?} of {most:?}");
        }
        let held: Vec<u64> = std::iter::repeat_with({
            let mut delays = Delays::new(Retry::Held);
            move || delays.next().as_secs()
        })
        .take(5)
        .collect();
        assert_eq!(held, [5, 15, 30, 60, 60]);
        for (retry, least, most) in [(Retry::Absent, 15, 600), (Retry::Denied, 150, 1800), (Retry::Foreign, 150, 300)] {
            let mut delays = Delays::new(retry);
            for _ in 0..20 {
                let delay = delays.next().as_secs();
                assert!((least..=most).contains(&delay), "{retry:?}: {delay}");
            }
        }
    }
}
