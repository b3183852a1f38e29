//! A store that says how long it wants to be left alone is left alone so long, by all.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{FetchError, ProviderError};

/// However long it says.
const LONGEST: Duration = Duration::from_secs(300);
/// Those who wait come back within so long after it.
const SPREAD: Duration = Duration::from_secs(1);

/// Until when one instance is left alone.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<Option<(Instant, Arc<ProviderError>)>>);

impl Throttle {
    /// Why nobody may ask now, and when to look again.
    pub(super) fn stands(&self) -> Option<FetchError> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, error) = state.as_ref().filter(|(until, _)| Instant::now() < *until)?;
        Some(FetchError::waits(Arc::clone(error), *until + SPREAD.mul_f64(fastrand::f64())))
    }

    /// Notes what the store answered.
    pub(super) fn note(&self, error: &Arc<ProviderError>) {
        if let ProviderError::Throttled { retry_after: Some(after), .. } = **error {
            let until = Instant::now() + after.min(LONGEST);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((until, Arc::clone(error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::ProviderName;

    #[tokio::test(start_paused = true)]
    async fn it_is_left_alone_as_long_as_it_says_and_not_for_ever() {
        let throttle = Throttle::default();
        let throttled = |retry_after| {
            let provider = ProviderName::for_test("kv");
            Arc::new(ProviderError::Throttled { provider, retry_after, source: "x".into() })
        };
        throttle.note(&throttled(None));
        assert!(throttle.stands().is_none(), "it did not say how long");
        throttle.note(&throttled(Some(Duration::from_secs(7))));
        tokio::time::advance(Duration::from_millis(6_900)).await;
        let again = throttle.stands().expect("still").again_at().expect("a time");
        assert!(again.duration_since(Instant::now()) <= SPREAD + Duration::from_millis(200));
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(throttle.stands().is_none());
        throttle.note(&throttled(Some(Duration::from_secs(86_400))));
        tokio::time::advance(LONGEST + Duration::from_millis(1)).await;
        assert!(throttle.stands().is_none(), "not for a day");
    }
}
