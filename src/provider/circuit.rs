//! One circuit for each instance: a store that is in trouble is asked by one request at a time, not by every pod.
//!
//! After a few failures in a row nobody asks for a while (backoff with jitter); then one request goes through, and what
//! becomes of it decides for all. Other instances are not concerned.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Duration, Instant};

use super::{FetchError, ProviderError};
use crate::{delays::Delays, error::Retry};

/// Failures in a row after which the store counts as being in trouble. Fewer are chance: requests to one key fail alike.
const FAILURES: u32 = 5;
/// How long others wait for the one request that tries, at most; it ends by itself within 4 s.
const TRIAL: Duration = Duration::from_secs(5);

/// Whether a store is asked.
#[derive(Debug, Default)]
pub(super) struct Circuit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    error: Arc<ProviderError>,
    retry: Retry,
    delays: Delays,
    until: Instant,
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
    /// Whether a request may be made now.
    ///
    /// # Errors
    /// The store's last error, with when to look again: a request that comes back before that finds the same.
    pub(super) fn pass(&self) -> Result<(), FetchError> {
        let now = Instant::now();
        match &mut self.state().open {
            Some(open) if now < open.until => Err(FetchError::waits_for(Arc::clone(&open.error), open.until)),
            Some(open) => {
                // This one tries; the others wait for what becomes of it.
                open.until = now + TRIAL;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Notes what the store answered: an answer about one secret shows that the store works, also where it is "no".
    pub(super) fn note<T>(&self, outcome: &Result<T, Arc<ProviderError>>) -> Change {
        let mut state = self.state();
        let trouble =
            outcome.as_ref().err().filter(|error| matches!(error.retry(), Retry::Transient | Retry::Throttled));
        let Some(error) = trouble else {
            state.failures = 0;
            return if state.open.take().is_some() { Change::Closed } else { Change::None };
        };
        state.failures = state.failures.saturating_add(1);
        if state.failures < FAILURES {
            return Change::None;
        }
        let (retry, before) = (error.retry(), state.open.take());
        let change = if before.is_none() { Change::Opened } else { Change::None };
        let mut delays = match before {
            Some(before) if before.retry == retry => before.delays,
            _ => Delays::new(retry),
        };
        let until = Instant::now() + delays.next();
        state.open = Some(Open { error: Arc::clone(error), retry, delays, until });
        change
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::ProviderName;

    type Outcome = Result<(), Arc<ProviderError>>;

    fn down() -> Outcome {
        let provider = ProviderName::for_test("aws");
        Err(Arc::new(ProviderError::Unavailable { provider, source: "x".into() }))
    }

    fn absent() -> Outcome {
        Err(Arc::new(ProviderError::NotFound { provider: ProviderName::for_test("aws"), path: "a".into() }))
    }

    #[tokio::test(start_paused = true)]
    async fn after_five_failures_in_a_row_one_request_at_a_time_tries() {
        let circuit = Circuit::default();
        for _ in 1..FAILURES {
            assert_eq!(circuit.note(&down()), Change::None);
        }
        assert_eq!(circuit.note(&absent()), Change::None, "a no is an answer");
        for _ in 1..FAILURES {
            circuit.note(&down());
            assert!(circuit.pass().is_ok());
        }
        assert_eq!(circuit.note(&down()), Change::Opened);
        let until = circuit.pass().expect_err("nobody asks").again_at().expect("until when");
        tokio::time::sleep_until(until).await;
        assert!(circuit.pass().is_ok(), "one tries");
        assert!(circuit.pass().is_err(), "the others wait");
        assert_eq!(circuit.note(&down()), Change::None, "still in trouble");
        let until = circuit.pass().expect_err("nobody asks").again_at().expect("until when");
        tokio::time::sleep_until(until).await;
        assert!(circuit.pass().is_ok());
        assert_eq!(circuit.note(&Ok(())), Change::Closed);
        assert!(circuit.pass().is_ok() && circuit.pass().is_ok(), "all may ask");
        assert_eq!(circuit.note(&down()), Change::None, "counted anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_is_given_up_does_not_shut_the_store_for_good() {
        let circuit = Circuit::default();
        for _ in 0..FAILURES {
            circuit.note(&down());
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(circuit.pass().is_ok());
        tokio::time::advance(TRIAL).await;
        assert!(circuit.pass().is_ok(), "the next one tries");
    }
}
