//! One circuit for each instance: a store that is in trouble is not asked by every pod.
//!
//! Once several sources failed one after the other, none of these is asked for a while (backoff with jitter); then one
//! request goes through, and what becomes of it decides for all of them. A source that did not fail is asked as ever, so
//! that a few broken ones are nobody else's trouble. Other instances are not concerned at all.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Duration, Instant};

use super::{FetchError, FetchKey, ProviderError};
use crate::{delays::Delays, error::Retry};

/// Failures in a row after which the store counts as being in trouble, and how many sources they have to be of.
const FAILURES: usize = 5;
const SOURCES: usize = 3;
/// Sources that are remembered to have failed; further ones are asked as ever.
const REMEMBERED: usize = 1024;
/// How long others wait for the one request that tries, at most: it takes at most two operations of 4 s each.
const TRIAL: Duration = Duration::from_secs(10);

/// Whether a store is asked.
#[derive(Debug, Default)]
pub(super) struct Circuit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: usize,
    failed: HashSet<FetchKey>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    error: Arc<ProviderError>,
    retry: Retry,
    delays: Delays,
    until: Instant,
    /// The one that tries.
    trial: Option<FetchKey>,
}

/// What an answer did to the circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing of note.
    None,
    /// The store is in trouble, from now on.
    Opened,
    /// It is back.
    Closed,
}

impl Circuit {
    /// Whether this source may be asked for now. A yes is kept for it: asked twice, the answer is the same.
    ///
    /// # Errors
    /// The store's last error, with when to look again: a request that comes back before that finds the same.
    pub(super) fn pass(&self, key: &FetchKey) -> Result<(), FetchError> {
        let now = Instant::now();
        let State { failed, open, .. } = &mut *self.state();
        let Some(open) = open else { return Ok(()) };
        if open.trial.as_ref() == Some(key) || !failed.contains(key) {
            return Ok(());
        }
        if now < open.until {
            return Err(FetchError::waits(Arc::clone(&open.error), open.until));
        }
        open.until = now + TRIAL;
        open.trial = Some(key.clone());
        Ok(())
    }

    /// Notes what the store answered: an answer about one source shows that the store works, also where it is "no".
    pub(super) fn note<T>(&self, key: &FetchKey, outcome: &Result<T, Arc<ProviderError>>) -> Change {
        let mut state = self.state();
        let trouble =
            outcome.as_ref().err().filter(|error| matches!(error.retry(), Retry::Transient | Retry::Throttled));
        match trouble {
            Some(error) => state.failed(key, error),
            None => state.answered(key),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// While the circuit is open, only one of those that failed can tell that the store is back.
    fn answered(&mut self, key: &FetchKey) -> Change {
        let change = match &self.open {
            Some(_) if !self.failed.contains(key) => return Change::None,
            Some(_) => Change::Closed,
            None => Change::None,
        };
        *self = Self::default();
        change
    }

    fn failed(&mut self, key: &FetchKey, error: &Arc<ProviderError>) -> Change {
        self.failures = self.failures.saturating_add(1);
        if self.failed.len() < REMEMBERED {
            self.failed.insert(key.clone());
        }
        match &mut self.open {
            Some(open) if open.trial.as_ref() == Some(key) => {
                open.fail_again(error);
                Change::None
            }
            // Asked before it opened, or for the first time since.
            Some(_) => Change::None,
            None if self.failures >= FAILURES && self.failed.len() >= SOURCES => {
                let retry = error.retry();
                let mut delays = Delays::new(retry);
                let until = Instant::now() + delays.next();
                self.open = Some(Open { error: Arc::clone(error), retry, delays, until, trial: None });
                Change::Opened
            }
            None => Change::None,
        }
    }
}

impl Open {
    fn fail_again(&mut self, error: &Arc<ProviderError>) {
        if self.retry != error.retry() {
            self.retry = error.retry();
            self.delays = Delays::new(self.retry);
        }
        self.error = Arc::clone(error);
        self.until = Instant::now() + self.delays.next();
        self.trial = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        provider::{Identity, ProviderName},
        request::SecretRequest,
    };

    type Outcome = Result<(), Arc<ProviderError>>;

    fn key(path: &str) -> FetchKey {
        FetchKey { identity: Identity::Agent, remote: SecretRequest::for_test("aws", path, "x").remote }
    }

    fn down() -> Outcome {
        let provider = ProviderName::for_test("aws");
        Err(Arc::new(ProviderError::Unavailable { provider, source: "x".into() }))
    }

    fn absent() -> Outcome {
        Err(Arc::new(ProviderError::NotFound { provider: ProviderName::for_test("aws"), path: "a".into() }))
    }

    /// Five failures of three sources.
    fn opened() -> Circuit {
        let circuit = Circuit::default();
        for path in ["a", "b", "c", "a"] {
            assert_eq!(circuit.note(&key(path), &down()), Change::None);
        }
        assert_eq!(circuit.note(&key("b"), &down()), Change::Opened);
        circuit
    }

    fn until(circuit: &Circuit, path: &str) -> Instant {
        circuit.pass(&key(path)).expect_err("nobody asks").again_at().expect("until when")
    }

    #[tokio::test(start_paused = true)]
    async fn once_several_sources_failed_one_request_at_a_time_tries_for_them() {
        let circuit = opened();
        tokio::time::sleep_until(until(&circuit, "a")).await;
        assert!(circuit.pass(&key("a")).is_ok(), "one tries");
        assert!(circuit.pass(&key("a")).is_ok(), "and has its turn until it is over");
        assert!(circuit.pass(&key("b")).is_err(), "the others wait");
        assert_eq!(circuit.note(&key("a"), &down()), Change::None, "still in trouble");
        tokio::time::sleep_until(until(&circuit, "a")).await;
        assert!(circuit.pass(&key("b")).is_ok());
        assert_eq!(circuit.note(&key("b"), &Ok(())), Change::Closed);
        assert!(["a", "b", "c"].iter().all(|path| circuit.pass(&key(path)).is_ok()), "all may ask");
        assert_eq!(circuit.note(&key("a"), &down()), Change::None, "counted anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_broken_sources_are_nobody_elses_trouble() {
        let circuit = Circuit::default();
        for _ in 0..100 {
            assert_eq!(circuit.note(&key("broken"), &down()), Change::None, "one source is not the store");
        }
        let circuit = opened();
        assert!(circuit.pass(&key("good")).is_ok(), "also while the circuit is open");
        assert_eq!(circuit.note(&key("good"), &Ok(())), Change::None);
        assert!(circuit.pass(&key("a")).is_err(), "which does not let the broken ones go on at once");
        assert_eq!(circuit.note(&key("a"), &absent()), Change::Closed, "a no about one of them is an answer");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_were_under_way_when_it_opened_do_not_lengthen_the_pause() {
        let circuit = opened();
        for number in 0..40 {
            circuit.note(&key(&number.to_string()), &down());
        }
        let pause = until(&circuit, "a").duration_since(Instant::now());
        assert!(pause <= Duration::from_millis(200), "{pause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_is_given_up_does_not_shut_the_store_for_good() {
        let circuit = opened();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(circuit.pass(&key("a")).is_ok());
        tokio::time::advance(TRIAL).await;
        assert!(circuit.pass(&key("b")).is_ok(), "the next one tries");
    }
}
