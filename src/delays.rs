//! How long a failed request waits, by class of error: exponential, with jitter. Pure, but for chance.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

use crate::error::Retry;

/// A pod that waits is told again after so long, whatever the reason.
pub(crate) const TELL_AGAIN: Duration = Duration::from_secs(30 * 60);

/// How many attempts are made at short pauses: with 2.5 s between them on average, for about two minutes.
const SOON: usize = 50;

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
            // The pods that wait have a kubelet that looks again only after 10 s and more: what the agent adds to that
            // is to stay small. Later the outage is a long one, and a whole cluster asks.
            Retry::Transient => (Box::new(doubling(0.2, 5.0).take(SOON).chain(doubling(10.0, 30.0))), 0.0),
            Retry::Throttled => (doubling(0.2, 30.0), 0.0),
            Retry::Rights => (doubling(1.0, 30.0), 0.5),
            Retry::Absent => (doubling(30.0, 600.0), 0.5),
            Retry::Denied => (doubling(600.0, 1800.0), 0.5),
            Retry::Foreign => (doubling(300.0, 300.0), 0.8),
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
    fn trouble_is_retried_with_full_jitter_by_its_class() {
        let most = |retry, attempt: usize| {
            let most_of_many = (0..200).map(|_| {
                let mut delays = Delays::new(retry);
                (0..attempt).map(|_| delays.next()).last().unwrap_or_default()
            });
            most_of_many.max().unwrap_or_default().as_secs_f64()
        };
        // The longest of 200 pauses is close under the bound of its step.
        for (retry, attempt, bound) in [
            (Retry::Transient, 1, 0.2),
            (Retry::Transient, 3, 0.8),
            (Retry::Transient, 20, 5.0),
            (Retry::Transient, 60, 30.0),
            (Retry::Throttled, 1, 0.2),
            (Retry::Throttled, 20, 30.0),
        ] {
            let found = most(retry, attempt);
            assert!(found <= bound && found > bound * 0.8, "{retry:?}, attempt {attempt}: {found} of {bound}");
        }
        let held: Vec<u64> = std::iter::repeat_with({
            let mut delays = Delays::new(Retry::Held);
            move || delays.next().as_secs()
        })
        .take(5)
        .collect();
        assert_eq!(held, [5, 15, 30, 60, 60]);
        for (retry, least, most) in [(Retry::Absent, 15, 600), (Retry::Denied, 300, 1800), (Retry::Foreign, 240, 300)] {
            let mut delays = Delays::new(retry);
            for _ in 0..20 {
                let delay = delays.next().as_secs();
                assert!((least..=most).contains(&delay), "{retry:?}: {delay}");
            }
        }
    }
}
