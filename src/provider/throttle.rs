//! A store that says how long it wants to be left alone is left alone so long, by all. One that refuses the agent's
//! credentials is left alone for a moment: each source that asks would be another login.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{FetchError, ProviderError};

/// After refused credentials, doubled by each further refusal.
const REFUSED: Duration = Duration::from_secs(1);
const REFUSED_LONGEST: Duration = Duration::from_secs(30);
/// However long it says.
const LONGEST: Duration = Duration::from_secs(300);
/// Those who wait come back within so long after it.
const SPREAD: Duration = Duration::from_secs(1);

/// Until when one instance is left alone.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    until: Option<(Instant, Arc<ProviderError>)>,
    refusals: u32,
}

impl Throttle {
    /// Why nobody may ask now, and when to look again.
    pub(super) fn stands(&self) -> Option<FetchError> {
        let state = self.state();
        let (until, error) = state.until.as_ref().filter(|(until, _)| Instant::now() < *until)?;
        Some(FetchError::waits(Arc::clone(error), *until + SPREAD.mul_f64(fastrand::f64())))
    }

    /// Notes what the store answered.
    pub(super) fn note<T>(&self, outcome: &Result<T, Arc<ProviderError>>) {
        let mut state = self.state();
        let pause = match outcome {
            Ok(_) => {
                state.refusals = 0;
                return;
            }
            Err(error) => match **error {
                ProviderError::Throttled { retry_after: Some(after), .. } => after.min(LONGEST),
                ProviderError::Credentials { .. } => {
                    state.refusals += 1;
                    REFUSED.saturating_mul(1 << (state.refusals - 1).min(5)).min(REFUSED_LONGEST)
                }
                _ => return,
            },
        };
        let until = Instant::now() + pause;
        // One that was under way with a longer word says nothing new.
        if let Err(error) = outcome
            && state.until.as_ref().is_none_or(|(before, _)| *before < until)
        {
            state.until = Some((until, Arc::clone(error)));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
            Err::<(), _>(Arc::new(ProviderError::Throttled { provider, retry_after, source: "x".into() }))
        };
        throttle.note(&throttled(None));
        assert!(throttle.stands().is_none(), "it did not say how long");
        throttle.note(&throttled(Some(Duration::from_secs(7))));
        throttle.note(&throttled(Some(Duration::from_secs(1))));
        tokio::time::advance(Duration::from_millis(6_900)).await;
        let again = throttle.stands().expect("still").again_at().expect("a time");
        assert!(again.duration_since(Instant::now()) <= SPREAD + Duration::from_millis(200));
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(throttle.stands().is_none());
        throttle.note(&throttled(Some(Duration::from_secs(86_400))));
        tokio::time::advance(LONGEST + Duration::from_millis(1)).await;
        assert!(throttle.stands().is_none(), "not for a day");
    }

    #[tokio::test(start_paused = true)]
    async fn refused_credentials_are_shown_again_ever_more_seldom_until_they_are_taken() {
        let throttle = Throttle::default();
        let refused = || {
            let provider = ProviderName::for_test("kv");
            Err::<(), _>(Arc::new(ProviderError::Credentials { provider, remedy: "x".into(), source: "x".into() }))
        };
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            throttle.note(&refused());
            tokio::time::advance(Duration::from_secs(pause) - Duration::from_millis(1)).await;
            assert!(throttle.stands().is_some(), "{pause} s");
            tokio::time::advance(Duration::from_millis(2)).await;
            assert!(throttle.stands().is_none(), "{pause} s");
        }
        throttle.note(&Ok(()));
        throttle.note(&refused());
        tokio::time::advance(Duration::from_millis(1_001)).await;
        assert!(throttle.stands().is_none(), "from the beginning");
    }
}
