//! Sources that gave no value: asked again once for all pods that wait, not once for each.
//!
//! A secret that is not there, that the agent may not read, or about which the store does not answer, is asked for again
//! after a pause that grows, however many pods wait for it, and only while one does. A pod that is newer than the last
//! answer does not wait: it may be there because somebody mended the source.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{FetchError, FetchKey, ProviderError, ProviderName};
use crate::{delays::Delays, error::Retry};

/// They only save requests.
const REMEMBERED: usize = 1024;

/// The last answers that were none, by source.
#[derive(Debug, Default)]
pub(super) struct Setbacks(Mutex<HashMap<FetchKey, Setback>>);

#[derive(Debug)]
struct Setback {
    error: Arc<ProviderError>,
    retry: Retry,
    delays: Delays,
    seen_through: Timestamp,
    again_at: Instant,
}

impl Setbacks {
    /// The last answer, where it is too early to ask again for a pod of that age.
    pub(super) fn stands(&self, key: &FetchKey, not_older_than: Timestamp) -> Option<FetchError> {
        let setbacks = self.setbacks();
        let setback = setbacks.get(key).filter(|setback| setback.seen_through >= not_older_than)?;
        let early = Instant::now() < setback.again_at;
        early.then(|| FetchError::waits(Arc::clone(&setback.error), setback.again_at))
    }

    /// The store gave a value. Says whether it had given none before, so that others may wait.
    pub(super) fn clear(&self, key: &FetchKey) -> bool {
        self.setbacks().remove(key).is_some()
    }

    /// The store gave none. Says when it may be asked again. A newer pod that asked in between makes the others wait no
    /// longer, rather less: it is a sign that somebody works on it.
    pub(super) fn note(&self, key: &FetchKey, error: &Arc<ProviderError>, seen_through: Timestamp) -> Instant {
        let (retry, now) = (error.retry(), Instant::now());
        let mut setbacks = self.setbacks();
        let before = setbacks.remove(key).filter(|before| before.retry == retry);
        let (delays, again_at) = match before {
            Some(before) if now < before.again_at => {
                let soon = now + Delays::new(retry).next();
                (before.delays, before.again_at.min(soon))
            }
            before => {
                let mut delays = before.map_or_else(|| Delays::new(retry), |before| before.delays);
                let again_at = now + delays.next();
                (delays, again_at)
            }
        };
        make_room(&mut setbacks);
        let error = Arc::clone(error);
        setbacks.insert(key.clone(), Setback { error, retry, delays, seen_through, again_at });
        again_at
    }

    /// A store that was in trouble is back: whoever waited for that may ask.
    pub(super) fn store_is_back(&self, provider: &ProviderName) {
        let now = Instant::now();
        for (key, setback) in self.setbacks().iter_mut() {
            if key.remote.provider == *provider && setback.retry.is_trouble() {
                setback.again_at = now;
            }
        }
    }

    fn setbacks(&self) -> MutexGuard<'_, HashMap<FetchKey, Setback>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the one whose time comes first: it would be asked soonest anyway.
fn make_room(setbacks: &mut HashMap<FetchKey, Setback>) {
    if setbacks.len() < REMEMBERED {
        return;
    }
    let first = setbacks.iter().min_by_key(|(_, setback)| setback.again_at).map(|(key, _)| key.clone());
    if let Some(first) = first {
        setbacks.remove(&first);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        provider::{Identity, ProviderName},
        request::SecretRequest,
    };

    fn key(path: &str) -> FetchKey {
        FetchKey { identity: Identity::Agent, remote: SecretRequest::for_test("aws", path, "x").remote }
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn absent() -> Arc<ProviderError> {
        Arc::new(ProviderError::NotFound { provider: ProviderName::for_test("aws"), path: "a".into() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_is_asked_again_at_one_time_for_all_but_at_once_for_a_newer_pod() {
        let setbacks = Setbacks::default();
        let again_at = setbacks.note(&key("a"), &absent(), second(5));
        assert!(setbacks.stands(&key("a"), second(5)).is_some_and(|error| error.again_at() == Some(again_at)));
        assert!(setbacks.stands(&key("a"), second(6)).is_none(), "a newer pod");
        assert!(setbacks.stands(&key("b"), second(5)).is_none(), "another source");
        tokio::time::sleep_until(again_at).await;
        assert!(setbacks.stands(&key("a"), second(5)).is_none(), "its time has come");
        for pause in 2..8 {
            let again_at = setbacks.note(&key("a"), &absent(), second(5));
            let least = Duration::from_secs(15 << (pause - 1)).min(Duration::from_secs(300));
            assert!(again_at.duration_since(Instant::now()) >= least, "pause {pause} grows");
            let sooner = setbacks.note(&key("a"), &absent(), second(6));
            assert!(sooner <= again_at, "not by a newer pod in between");
            assert!(sooner <= Instant::now() + Duration::from_secs(30), "which shortens a long one");
            tokio::time::sleep_until(sooner).await;
        }
        assert!(setbacks.clear(&key("a")) && !setbacks.clear(&key("a")), "said once");
        assert!(setbacks.stands(&key("a"), second(5)).is_none(), "there was a value");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_back_ends_the_waits_for_it_and_memory_is_bounded() {
        let setbacks = Setbacks::default();
        let down =
            || Arc::new(ProviderError::Unavailable { provider: ProviderName::for_test("aws"), source: "x".into() });
        let late = (0..20).map(|_| setbacks.note(&key("down"), &down(), second(5))).last();
        assert!(late > Some(Instant::now()));
        setbacks.note(&key("absent"), &absent(), second(5));
        setbacks.store_is_back(&ProviderName::for_test("other"));
        setbacks.store_is_back(&ProviderName::for_test("aws"));
        assert!(setbacks.stands(&key("down"), second(5)).is_none(), "may ask");
        assert!(setbacks.stands(&key("absent"), second(5)).is_some(), "was answered");
        for number in 0..2 * REMEMBERED {
            setbacks.note(&key(&number.to_string()), &absent(), second(5));
        }
        assert_eq!(setbacks.setbacks().len(), REMEMBERED);
    }
}
