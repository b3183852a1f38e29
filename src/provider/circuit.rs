//! One circuit for each instance: a store that is in trouble is not asked by every pod.
//!
//! Once several sources of several namespaces failed one after the other, none of these is asked for a while (backoff with jitter); then one
//! request goes through, and what becomes of it decides for all of them. A source that did not fail is asked as ever, and
//! any answer shows that the store is back. Each source has its own pauses besides (`setbacks`). Other instances are not
//! concerned at all.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Duration, Instant};

use super::{FetchError, FetchKey, ProviderError};
use crate::{delays::Delays, error::Retry, pod::PodNamespace};

/// Failures in a row after which the store counts as being in trouble, and of how many sources and namespaces they have
/// to be: neither one broken source nor one tenant is the store.
const FAILURES: usize = 5;
const SOURCES: usize = 3;
const NAMESPACES: usize = 2;
/// Sources that are remembered to have failed; further ones are asked as ever.
const REMEMBERED: usize = 1024;
/// How long others wait for the one request that tries, at most: longer than it can take.
const TRIAL: Duration = Duration::from_secs(12);
/// Those who wait come back within so long after the pause: the first one tries, the others see that.
const SPREAD: Duration = Duration::from_secs(1);

/// Whether a store is asked.
#[derive(Debug, Default)]
pub(super) struct Circuit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: usize,
    failed: HashSet<FetchKey>,
    /// Whose they were; no more than have to be.
    namespaces: HashSet<PodNamespace>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    error: Arc<ProviderError>,
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

/// A request that may be made. One that tries for others and is given up before its end makes way for the next.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    circuit: &'a Circuit,
    key: &'a FetchKey,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.circuit.state().open.as_mut().filter(|open| open.trial.as_ref() == Some(self.key)) {
            open.trial = None;
            open.until = Instant::now();
        }
    }
}

impl Circuit {
    /// Why this source may not be asked for now, and when to look again; asking changes nothing.
    pub(super) fn stands(&self, key: &FetchKey) -> Option<FetchError> {
        self.state().stands(key)
    }

    /// Begins a request about this source.
    ///
    /// # Errors
    /// As [`Circuit::stands`].
    pub(super) fn pass<'a>(&'a self, key: &'a FetchKey) -> Result<Pass<'a>, FetchError> {
        let mut state = self.state();
        if let Some(error) = state.stands(key) {
            return Err(error);
        }
        let State { failed, open, .. } = &mut *state;
        if let Some(open) = open.as_mut().filter(|_| failed.contains(key)) {
            open.until = Instant::now() + TRIAL;
            open.trial = Some(key.clone());
        }
        Ok(Pass { circuit: self, key })
    }

    /// Notes what the store answered for a pod of `namespace`. No connection, no answer in time and 5xx are failures. Any
    /// other answer about one source shows that the store works, also where it is "no"; that it asks for patience, or
    /// refuses credentials, says nothing either way.
    pub(super) fn note<T>(
        &self,
        key: &FetchKey,
        namespace: &PodNamespace,
        outcome: &Result<T, Arc<ProviderError>>,
    ) -> Change {
        let mut state = self.state();
        match outcome {
            Err(error) if error.retry() == Retry::Transient => state.failed(key, namespace, error),
            Err(error) if error.retry() == Retry::Throttled => Change::None,
            _ if std::mem::take(&mut *state).open.is_some() => Change::Closed,
            _ => Change::None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_the_store(&self) -> bool {
        self.failures >= FAILURES && self.failed.len() >= SOURCES && self.namespaces.len() >= NAMESPACES
    }

    fn stands(&self, key: &FetchKey) -> Option<FetchError> {
        let open = self.open.as_ref().filter(|open| Instant::now() < open.until && self.failed.contains(key))?;
        Some(FetchError::waits(Arc::clone(&open.error), open.until + SPREAD.mul_f64(fastrand::f64())))
    }

    fn failed(&mut self, key: &FetchKey, namespace: &PodNamespace, error: &Arc<ProviderError>) -> Change {
        self.failures = self.failures.saturating_add(1);
        if self.failed.len() < REMEMBERED {
            self.failed.insert(key.clone());
        }
        if self.namespaces.len() < NAMESPACES {
            self.namespaces.insert(namespace.clone());
        }
        let is_the_store = self.is_the_store();
        match &mut self.open {
            Some(open) if open.trial.as_ref() == Some(key) => {
                open.fail_again(error);
                Change::None
            }
            // Asked before it opened, or for the first time since.
            Some(_) => Change::None,
            None if is_the_store => {
                let mut delays = Delays::new(Retry::Transient);
                let until = Instant::now() + delays.next();
                self.open = Some(Open { error: Arc::clone(error), delays, until, trial: None });
                Change::Opened
            }
            None => Change::None,
        }
    }
}

impl Open {
    fn fail_again(&mut self, error: &Arc<ProviderError>) {
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

    fn team(name: &str) -> PodNamespace {
        PodNamespace::for_test(name)
    }

    fn throttled() -> Outcome {
        let provider = ProviderName::for_test("aws");
        Err(Arc::new(ProviderError::Throttled { provider, retry_after: None, source: "x".into() }))
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
            assert_eq!(circuit.note(&key(path), &team("one"), &down()), Change::None);
        }
        assert_eq!(circuit.note(&key("b"), &team("other"), &down()), Change::Opened);
        circuit
    }

    fn until(circuit: &Circuit, path: &str) -> Instant {
        circuit.stands(&key(path)).expect("nobody asks").again_at().expect("until when")
    }

    #[tokio::test(start_paused = true)]
    async fn once_several_sources_failed_one_request_at_a_time_tries_for_them() {
        let circuit = opened();
        let (a, b) = (key("a"), key("b"));
        tokio::time::sleep_until(until(&circuit, "a")).await;
        let trial = circuit.pass(&a).expect("one tries");
        assert!(circuit.pass(&b).is_err(), "the others wait");
        assert_eq!(circuit.note(&a, &team("one"), &down()), Change::None, "still in trouble");
        drop(trial);
        tokio::time::sleep_until(until(&circuit, "a")).await;
        let trial = circuit.pass(&b).expect("the next one tries");
        assert_eq!(circuit.note(&b, &team("one"), &Ok(())), Change::Closed);
        drop(trial);
        assert!(["a", "b", "c"].iter().all(|path| circuit.stands(&key(path)).is_none()), "all may ask");
        assert_eq!(circuit.note(&a, &team("one"), &down()), Change::None, "counted anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_broken_sources_are_nobody_elses_trouble() {
        let circuit = Circuit::default();
        for _ in 0..100 {
            assert_eq!(
                circuit.note(&key("broken"), &team("one"), &down()),
                Change::None,
                "one source is not the store"
            );
        }
        for path in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(circuit.note(&key(path), &team("one"), &down()), Change::None, "one tenant is not the store");
        }
        let circuit = Circuit::default();
        for number in 0..100 {
            let (path, team) = (number.to_string(), team(&number.to_string()));
            assert_eq!(
                circuit.note(&key(&path), &team, &throttled()),
                Change::None,
                "it asks for patience, and answers"
            );
        }
        let circuit = opened();
        assert_eq!(
            circuit.note(&key("a"), &team("one"), &throttled()),
            Change::None,
            "which is no sign of health either"
        );
        assert!(circuit.stands(&key("b")).is_some(), "still open");
        assert!(circuit.pass(&key("good")).is_ok(), "also while the circuit is open");
        assert_eq!(circuit.note(&key("good"), &team("one"), &absent()), Change::Closed, "a no is an answer");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_were_under_way_when_it_opened_do_not_lengthen_the_pause() {
        let circuit = opened();
        for number in 0..40 {
            circuit.note(&key(&number.to_string()), &team("one"), &down());
        }
        let pause = until(&circuit, "a").duration_since(Instant::now());
        assert!(pause <= Duration::from_millis(200) + SPREAD, "{pause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_takes_nobodys_turn_and_a_trial_that_is_given_up_makes_way() {
        let circuit = opened();
        let (a, b) = (key("a"), key("b"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(circuit.stands(&a).is_none() && circuit.stands(&b).is_none(), "a look is no trial");
        drop(circuit.pass(&a).expect("one tries"));
        let trial = circuit.pass(&b).expect("and was given up before an answer");
        tokio::time::advance(TRIAL).await;
        assert!(circuit.pass(&a).is_ok(), "one that hangs does not shut the store for good");
        drop(trial);
    }
}
