//! Times by the API server's clock. Of the node's own clock only the passing of time counts.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use jiff::{SignedDuration, Timestamp};

/// How far ahead of the API server a time on a Secret may lie before it is taken for tampered with.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(5);

/// The newest pod reference time that this agent has seen, in whole seconds. Only grows.
#[derive(Debug, Default)]
pub struct SeenClock(AtomicI64);

impl SeenClock {
    /// Takes note of a pod.
    pub fn observe(&self, reference_time: Timestamp) {
        self.0.fetch_max(reference_time.as_second(), Ordering::Relaxed);
    }

    /// The newest so far.
    pub fn newest(&self) -> Timestamp {
        from_second(self.0.load(Ordering::Relaxed))
    }
}

/// The API server's clock: its last `Date` header, and the time since. 1970 until the first reply.
#[derive(Debug, Default)]
pub struct ApiClock(Mutex<Option<(Timestamp, Instant)>>);

impl ApiClock {
    /// Takes note of a reply's header; what cannot be read is ignored.
    pub fn observe(&self, date: &str) {
        if let Ok(date) = jiff::fmt::rfc2822::parse(date) {
            *self.last() = Some((date.timestamp(), Instant::now()));
        }
    }

    /// What the API server would say now, in whole seconds.
    pub fn now(&self) -> Timestamp {
        let Some((date, at)) = *self.last() else {
            return Timestamp::UNIX_EPOCH;
        };
        let elapsed = at.elapsed().as_secs();
        from_second(date.as_second().saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX)))
    }

    /// A time that stands on a Secret, or `None` where it lies ahead of the API server's clock and so is not ours.
    pub fn believe(&self, time: Option<Timestamp>) -> Option<Timestamp> {
        time.filter(|time| *time <= self.now() + TOLERANCE)
    }

    fn last(&self) -> MutexGuard<'_, Option<(Timestamp, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn from_second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_pod_counts() {
        let seen = SeenClock::default();
        for second in [5, 9, 7] {
            seen.observe(from_second(second));
        }
        assert_eq!(seen.newest(), from_second(9));
    }

    #[test]
    fn a_time_ahead_of_the_api_server_is_not_believed() {
        let clock = ApiClock::default();
        clock.observe("Thu, 01 Jan 1970 00:01:40 GMT");
        clock.observe("nonsense");
        assert_eq!(clock.now(), from_second(100));
        for (second, believed) in [(99, true), (105, true), (106, false)] {
            assert_eq!(clock.believe(Some(from_second(second))).is_some(), believed, "{second}");
        }
    }
}
