//! A store that says how long it wants to be left alone is left alone so long, by all. Who gets no credentials for it, or such that
//! it refuses, leaves it alone for a moment: each source that he asks for would be another login. That is his trouble, and nobody
//! else's.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{FetchError, Identity, ProviderError};

/// After a login that gave nothing, or refused credentials; doubled by each further one.
const REFUSED: Duration = Duration::from_secs(1);
const REFUSED_LONGEST: Duration = Duration::from_secs(30);
/// However long it says.
const LONGEST: Duration = Duration::from_secs(300);
/// Those who wait come back within so long after it.
const SPREAD: Duration = Duration::from_secs(1);
/// Identities that are remembered to be refused.
const REMEMBERED: usize = 1024;

/// Until when one instance is left alone.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    by_all: Option<Pause>,
    refused: HashMap<Identity, (u32, Pause)>,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    error: Arc<ProviderError>,
}

impl Pause {
    fn stands(&self) -> Option<FetchError> {
        let stands = Instant::now() < self.until;
        stands.then(|| FetchError::waits(Arc::clone(&self.error), self.until + SPREAD.mul_f64(fastrand::f64())))
    }
}

impl Throttle {
    /// Why this identity may not ask now, and when to look again.
    pub(super) fn stands(&self, identity: &Identity) -> Option<FetchError> {
        let state = self.state();
        let own = || state.refused.get(identity).and_then(|(_, pause)| pause.stands());
        state.by_all.as_ref().and_then(Pause::stands).or_else(own)
    }

    /// Notes what the store answered this identity.
    pub(super) fn note<T>(&self, identity: &Identity, outcome: &Result<T, Arc<ProviderError>>) {
        let mut state = self.state();
        let now = Instant::now();
        match outcome {
            Ok(_) => drop(state.refused.remove(identity)),
            Err(error) => match **error {
                // Asked together with the one that was refused first.
                ProviderError::Credentials { .. } | ProviderError::Login { .. }
                    if state.refused.get(identity).is_some_and(|(_, pause)| now < pause.until) => {}
                ProviderError::Throttled { retry_after: Some(after), .. } => {
                    let until = now + after.min(LONGEST);
                    // One that was under way with a longer word says nothing new.
                    if state.by_all.as_ref().is_none_or(|before| before.until < until) {
                        state.by_all = Some(Pause { until, error: Arc::clone(error) });
                    }
                }
                ProviderError::Credentials { .. } | ProviderError::Login { .. } => {
                    let times = state.refused.get(identity).map_or(0, |(times, _)| *times) + 1;
                    let asked = match **error {
                        ProviderError::Login { retry_after, .. } => retry_after.unwrap_or_default().min(LONGEST),
                        _ => Duration::ZERO,
                    };
                    let pause = REFUSED.saturating_mul(1 << (times - 1).min(5)).min(REFUSED_LONGEST);
                    let until = now + pause.max(asked);
                    if state.refused.len() >= REMEMBERED {
                        state.refused.retain(|_, (_, pause)| now < pause.until);
                    }
                    state.refused.insert(identity.clone(), (times, Pause { until, error: Arc::clone(error) }));
                }
                ProviderError::Throttled { .. } | ProviderError::Unavailable { .. } => {}
                // The store knows who asks, and answers.
                _ => drop(state.refused.remove(identity)),
            },
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
        throttle.note(&Identity::Agent, &throttled(None));
        assert!(throttle.stands(&Identity::Agent).is_none(), "it did not say how long");
        throttle.note(&Identity::Agent, &throttled(Some(Duration::from_secs(7))));
        throttle.note(&Identity::Agent, &throttled(Some(Duration::from_secs(1))));
        tokio::time::advance(Duration::from_millis(6_900)).await;
        let again = throttle.stands(&Identity::Agent).expect("still").again_at().expect("a time");
        assert!(again.duration_since(Instant::now()) <= SPREAD + Duration::from_millis(200));
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(throttle.stands(&Identity::Agent).is_none());
        throttle.note(&Identity::Agent, &throttled(Some(Duration::from_secs(86_400))));
        tokio::time::advance(LONGEST + Duration::from_millis(1)).await;
        assert!(throttle.stands(&Identity::Agent).is_none(), "not for a day");
    }

    #[tokio::test(start_paused = true)]
    async fn refused_credentials_are_shown_again_ever_more_seldom_until_they_are_taken() {
        let throttle = Throttle::default();
        let refused = || {
            let provider = ProviderName::for_test("kv");
            Err::<(), _>(Arc::new(ProviderError::Credentials { provider, remedy: "x".into(), source: "x".into() }))
        };
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            throttle.note(&Identity::Agent, &refused());
            tokio::time::advance(Duration::from_secs(pause) - Duration::from_millis(1)).await;
            assert!(throttle.stands(&Identity::Agent).is_some(), "{pause} s");
            tokio::time::advance(Duration::from_millis(2)).await;
            assert!(throttle.stands(&Identity::Agent).is_none(), "{pause} s");
        }
        let other = Identity::ServiceAccount {
            namespace: crate::pod::PodNamespace::for_test("team-a"),
            name: "app".to_owned(),
            uid: "u-1".to_owned(),
            claims: String::new(),
        };
        throttle.note(&Identity::Agent, &refused());
        assert!(
            throttle.stands(&Identity::Agent).is_some() && throttle.stands(&other).is_none(),
            "it is nobody else's"
        );
        let absent = ProviderError::NotFound { provider: ProviderName::for_test("kv"), path: "a".into() };
        throttle.note(&Identity::Agent, &Err::<(), _>(Arc::new(absent)));
        throttle.note(&Identity::Agent, &refused());
        throttle.note(&Identity::Agent, &refused());
        tokio::time::advance(Duration::from_millis(1_001)).await;
        assert!(throttle.stands(&Identity::Agent).is_none(), "from the beginning, and two at once are one");
        let (provider, retry_after) = (ProviderName::for_test("kv"), Some(Duration::from_secs(60)));
        let busy = ProviderError::Login { provider, problem: "x", retry_after, source: "x".into() };
        throttle.note(&other, &Err::<(), _>(Arc::new(busy)));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(throttle.stands(&Identity::Agent).is_none() && throttle.stands(&other).is_some(), "as long as it says");
    }
}
