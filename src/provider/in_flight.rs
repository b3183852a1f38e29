//! One fetch per key at a time. The only file that names `dashmap`; no guard of it lives across an `.await`.
//!
//! A flight belongs to all who wait for it: whoever is polled drives it, so that a waiter that is dropped leaves the
//! others running, and when the last one is dropped the fetch is cancelled. A flight that panics ends in an error.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use dashmap::{DashMap, Entry};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;

use super::{FetchError, Identity, ProviderError};
use crate::{request::RemoteRef, secret_value::SecretPayload};

/// What makes two fetches the same. The identity is part of it: a value is never shared across identities.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FetchKey {
    /// As whom the store is asked.
    pub identity: Identity,
    /// Instance, path and version.
    pub remote: RemoteRef,
}

/// A fetched value, shared by everybody who asked for it at that time.
#[derive(Debug)]
pub struct Fetched {
    /// The value.
    pub payload: SecretPayload,
    /// The newest pod reference time that the agent had seen before it asked: the value is no older.
    pub seen_through: Timestamp,
    /// The share of the memory bound that the value takes, given back with it.
    pub reserved: OwnedSemaphorePermit,
}

type Outcome<E> = Result<Arc<Fetched>, E>;
type Flight<E> = BoxFuture<'static, Outcome<E>>;
type Flights<E> = DashMap<FetchKey, Entered<E>>;

#[derive(Debug)]
struct Entered<E> {
    id: u64,
    seen_through: Timestamp,
    flight: Option<WeakShared<Flight<E>>>,
}

/// The fetches that are under way: from stores, or from masters.
#[derive(Debug)]
pub struct InFlight<E> {
    flights: Arc<Flights<E>>,
    last_id: AtomicU64,
}

impl<E> Default for InFlight<E> {
    fn default() -> Self {
        Self { flights: Arc::default(), last_id: AtomicU64::default() }
    }
}

enum Boarded<E> {
    /// A flight whose value is new enough.
    On(Shared<Flight<E>>),
    /// One that left before this pod was seen; the next one is for us.
    TooOld(Shared<Flight<E>>),
}

impl<E: Clone + From<FetchError> + Send + Sync + 'static> InFlight<E> {
    /// Joins the fetch of `key` if it began when a pod at least as new as `not_older_than` had been seen; else waits
    /// for that one to end and takes the one next flight. `start` gives a new fetch and what it has seen.
    ///
    /// # Errors
    /// What the fetch ended with, the same for all who shared it.
    pub async fn fetch(
        &self,
        key: &FetchKey,
        not_older_than: Timestamp,
        start: impl Fn() -> (Timestamp, Flight<E>),
    ) -> Outcome<E> {
        loop {
            match self.board(key, not_older_than, &start) {
                Boarded::On(flight) => return flight.await,
                Boarded::TooOld(flight) => {
                    // It promised a value for older pods only; what a master holds may be newer than that.
                    if let Ok(fetched) = flight.await
                        && fetched.seen_through >= not_older_than
                    {
                        return Ok(fetched);
                    }
                }
            }
        }
    }

    fn board(
        &self,
        key: &FetchKey,
        not_older_than: Timestamp,
        start: &impl Fn() -> (Timestamp, Flight<E>),
    ) -> Boarded<E> {
        match self.flights.entry(key.clone()) {
            Entry::Occupied(mut entry) => match entry.get().flight.as_ref().and_then(WeakShared::upgrade) {
                Some(flight) if entry.get().seen_through >= not_older_than => Boarded::On(flight),
                Some(flight) => Boarded::TooOld(flight),
                None => {
                    let (entered, flight) = self.depart(key, start);
                    entry.insert(entered);
                    Boarded::On(flight)
                }
            },
            Entry::Vacant(entry) => {
                let (entered, flight) = self.depart(key, start);
                entry.insert(entered);
                Boarded::On(flight)
            }
        }
    }

    fn depart(&self, key: &FetchKey, start: &impl Fn() -> (Timestamp, Flight<E>)) -> (Entered<E>, Shared<Flight<E>>) {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        let (seen_through, fetch) = start();
        let landing = Landing { flights: Arc::clone(&self.flights), key: key.clone(), id };
        let provider = key.remote.provider.clone();
        let path = key.remote.path.clone();
        let flight = async move {
            let _landing = landing;
            match AssertUnwindSafe(fetch).catch_unwind().await {
                Ok(outcome) => outcome,
                Err(_) => {
                    let problem = "the adapter panicked; the agent's log has the place";
                    let error = ProviderError::Invalid { provider, path, problem, source: None };
                    Err(FetchError::answered(Arc::new(error), None).into())
                }
            }
        }
        .boxed()
        .shared();
        let entered = Entered {
            id,
            seen_through,
            // Only a flight that has ended cannot be downgraded.
            flight: flight.downgrade(),
        };
        (entered, flight)
    }
}

/// Takes the flight out of the map when it ends in whatever way: done, panicked, or dropped by its last waiter.
struct Landing<E> {
    flights: Arc<Flights<E>>,
    key: FetchKey,
    id: u64,
}

impl<E> Drop for Landing<E> {
    fn drop(&mut self) {
        self.flights.remove_if(&self.key, |_, entered| entered.id == self.id);
    }
}

#[cfg(test)]
impl<E> InFlight<E> {
    fn len(&self) -> usize {
        self.flights.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Duration};

    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::provider::ProviderName;

    fn key(path: &str) -> FetchKey {
        FetchKey {
            identity: Identity::Agent,
            remote: RemoteRef {
                provider: ProviderName::for_test("aws-secretsmanager"),
                path: path.to_owned(),
                version: None,
            },
        }
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// A store that counts, answers after `delay`, and panics where asked to.
    struct Store {
        calls: Arc<AtomicUsize>,
        delay: Duration,
        panics: bool,
    }

    impl Store {
        fn new(panics: bool) -> Self {
            Self { calls: Arc::default(), delay: Duration::from_secs(1), panics }
        }

        fn calls(&self) -> usize {
            self.calls.load(Ordering::Relaxed)
        }

        fn start(&self, seen_through: Timestamp) -> impl Fn() -> (Timestamp, Flight<FetchError>) + use<> {
            let (calls, delay, panics) = (Arc::clone(&self.calls), self.delay, self.panics);
            move || {
                let calls = Arc::clone(&calls);
                let fetch = async move {
                    let call = calls.fetch_add(1, Ordering::Relaxed) + 1;
                    tokio::time::sleep(delay).await;
                    assert!(!panics, "planted");
                    let reserved = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a permit");
                    let payload = SecretPayload::new(vec![], call.to_string());
                    Ok(Arc::new(Fetched { payload, seen_through, reserved }))
                };
                (seen_through, fetch.boxed())
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn twenty_at_once_are_one_call() {
        let (flights, store) = (InFlight::default(), Store::new(false));
        let key = key("a");
        let got = join_all((0..20).map(|_| flights.fetch(&key, second(5), store.start(second(5))))).await;
        assert!(got.iter().all(|outcome| outcome.as_ref().is_ok_and(|value| value.payload.version() == "1")));
        assert_eq!((store.calls(), flights.len()), (1, 0), "one call, nothing left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_pod_waits_for_the_one_next_flight() {
        let (flights, store) = (InFlight::default(), Store::new(false));
        let key = key("a");
        let old = flights.fetch(&key, second(5), store.start(second(5)));
        let newer = join_all((0..5).map(|_| flights.fetch(&key, second(6), store.start(second(7)))));
        let (old, newer) = tokio::join!(old, newer);
        assert_eq!(old.expect("old").payload.version(), "1");
        assert!(newer.iter().all(|outcome| outcome.as_ref().is_ok_and(|value| value.payload.version() == "2")));
        assert_eq!(store.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_that_turns_out_newer_than_it_was_promised_is_taken() {
        let (flights, store) = (InFlight::<FetchError>::default(), Store::new(false));
        let key = key("a");
        // As from a master: promised for 5, and of 9.
        let start = || {
            let (_, fetch) = store.start(second(9))();
            (second(5), fetch)
        };
        let (old, newer) = tokio::join!(flights.fetch(&key, second(5), start), flights.fetch(&key, second(8), start));
        assert_eq!(old.expect("old").payload.version(), newer.expect("newer").payload.version());
        assert_eq!(store.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn other_paths_do_not_share() {
        let (flights, store) = (InFlight::default(), Store::new(false));
        let (a, b) = (key("a"), key("b"));
        let _ = tokio::join!(
            flights.fetch(&a, second(5), store.start(second(5))),
            flights.fetch(&b, second(5), store.start(second(5)))
        );
        assert_eq!(store.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_aborted_leader_leaves_its_followers_running() {
        let (flights, store) = (Arc::new(InFlight::default()), Store::new(false));
        let fetch = |flights: Arc<InFlight<FetchError>>| {
            let start = store.start(second(5));
            tokio::spawn(async move { flights.fetch(&key("a"), second(5), start).await })
        };
        let (leader, follower) = (fetch(Arc::clone(&flights)), fetch(Arc::clone(&flights)));
        tokio::time::sleep(Duration::from_millis(10)).await;
        leader.abort();
        assert!(follower.await.expect("not aborted").is_ok());
        assert_eq!((store.calls(), flights.len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_waiter_to_leave_cancels_and_leaves_no_entry() {
        let (flights, store) = (InFlight::default(), Store::new(false));
        let key = key("a");
        let waiting = flights.fetch(&key, second(5), store.start(second(5)));
        assert!(tokio::time::timeout(Duration::from_millis(10), waiting).await.is_err());
        assert_eq!(flights.len(), 0);
        assert!(flights.fetch(&key, second(5), store.start(second(5))).await.is_ok());
        assert_eq!(store.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_an_error_for_all_and_the_next_fetch_starts_afresh() {
        let (flights, bad) = (InFlight::default(), Store::new(true));
        let key = key("a");
        let got = join_all((0..3).map(|_| flights.fetch(&key, second(5), bad.start(second(5))))).await;
        assert!(got.iter().all(Result::is_err));
        assert_eq!(flights.len(), 0);
        let good = Store::new(false);
        assert!(flights.fetch(&key, second(5), good.start(second(5))).await.is_ok());
    }
}
