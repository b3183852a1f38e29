//! Requests for one name each that go out together, for a store that takes several names at once.
//!
//! A batch goes out as soon as it is full; one that is not, when nothing else is under way.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, select};
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    time::timeout,
};

use super::{
    ProviderError,
    pace::{Pace, Turn},
};
use crate::secret_value::SecretPayload;

/// How long the first one waits for others.
const WINDOW: Duration = Duration::from_millis(5);
/// How long it waits for what is under way: longer than a call takes that does not hang.
const LONGEST: Duration = Duration::from_secs(1);

/// What became of one name.
pub(super) type Outcome = Result<SecretPayload, ProviderError>;
type Send = Box<dyn Fn(Batch, Turn) -> BoxFuture<'static, ()> + std::marker::Send + Sync>;

/// Why nobody was asked for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unasked {
    /// Its turn did not come in time.
    Late,
    /// The request was given up.
    GivenUp,
}

/// The names of one request, and who waits for them.
#[derive(Default)]
pub(super) struct Batch(Vec<(String, oneshot::Sender<Outcome>)>);

impl Batch {
    /// The names.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells each one what became of his name.
    pub(super) fn tell(self, outcome: impl Fn(&str) -> Outcome) {
        for (name, waits) in self.0 {
            // Nobody may wait any more.
            let _ = waits.send(outcome(&name));
        }
    }

    /// Two halves, without the names that nobody waits for any more.
    pub(super) fn halves(mut self) -> [Self; 2] {
        self.0.retain(|(_, waits)| !waits.is_closed());
        let half = self.0.split_off(self.0.len() / 2);
        [self, Self(half)]
    }
}

/// Collects names and sends them, `size` at a time and at the store's pace.
pub(super) struct Batches {
    size: usize,
    pace: Arc<Pace>,
    calls: usize,
    under_way: Arc<Semaphore>,
    send: Send,
    waiting: Mutex<Waiting>,
    full: Notify,
    landed: Notify,
}

#[derive(Default)]
struct Waiting {
    names: Vec<(String, oneshot::Sender<Outcome>)>,
    collecting: bool,
}

impl Batches {
    /// At most `calls` requests of `size` names each are under way.
    pub(super) fn new(size: usize, calls: usize, pace: Arc<Pace>, send: Send) -> Arc<Self> {
        let under_way = Arc::new(Semaphore::new(calls));
        let (waiting, full, landed) = (Mutex::default(), Notify::new(), Notify::new());
        Arc::new(Self { size, pace, calls, under_way, send, waiting, full, landed })
    }

    /// Asks for one name.
    ///
    /// # Errors
    /// Nobody was asked within `limit`, or the request was given up.
    pub(super) async fn ask(self: &Arc<Self>, name: &str, limit: Duration) -> Result<Outcome, Unasked> {
        let (tell, told) = oneshot::channel();
        let collect = {
            let mut waiting = self.waiting();
            waiting.names.push((name.to_owned(), tell));
            if waiting.names.len() >= self.size {
                self.full.notify_one();
            }
            !std::mem::replace(&mut waiting.collecting, true)
        };
        if collect {
            tokio::spawn(Arc::clone(self).collect());
        }
        timeout(limit, told).await.map_err(|_| Unasked::Late)?.map_err(|_| Unasked::GivenUp)
    }

    /// Does something else that counts among the requests that are under way.
    pub(super) async fn beside<T>(&self, work: impl Future<Output = T>) -> T {
        // Never closed.
        let place = self.under_way.acquire().await;
        let done = work.await;
        drop(place);
        self.landed.notify_one();
        done
    }

    /// Sends until nobody waits.
    async fn collect(self: Arc<Self>) {
        loop {
            self.gathered().await;
            // While these are waited for, more names come.
            let Ok(slot) = Arc::clone(&self.under_way).acquire_owned().await else { return };
            let turn = self.pace.turn().await;
            let Some(batch) = self.next() else { return };
            let batches = Arc::clone(&self);
            tokio::spawn(async move {
                (batches.send)(batch, turn).await;
                drop(slot);
                batches.landed.notify_one();
            });
        }
    }

    /// Returns when there is a reason to send.
    async fn gathered(&self) {
        if timeout(WINDOW, self.is_full()).await.is_err() {
            let _ = timeout(LONGEST, select(pin!(self.is_full()), pin!(self.is_idle()))).await;
        }
    }

    async fn is_full(&self) {
        while self.waiting().names.len() < self.size {
            self.full.notified().await;
        }
    }

    async fn is_idle(&self) {
        while self.under_way.available_permits() < self.calls {
            self.landed.notified().await;
        }
    }

    /// The next names to ask for; `None` ends the collecting. A name stands once in a batch, and those that nobody waits
    /// for any more are left out.
    fn next(&self) -> Option<Batch> {
        let mut waiting = self.waiting();
        let (mut batch, mut rest) = (Vec::<(String, oneshot::Sender<Outcome>)>::new(), Vec::new());
        for (name, tell) in std::mem::take(&mut waiting.names) {
            if tell.is_closed() {
            } else if batch.len() < self.size && batch.iter().all(|(other, _)| *other != name) {
                batch.push((name, tell));
            } else {
                rest.push((name, tell));
            }
        }
        waiting.names = rest;
        waiting.collecting = !batch.is_empty();
        waiting.collecting.then_some(Batch(batch))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches").field("size", &self.size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::join_all};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(8);

    fn echoing(calls: &Arc<Mutex<Vec<usize>>>) -> Arc<Batches> {
        let calls = Arc::clone(calls);
        let send = move |batch: Batch, _: Turn| {
            calls.lock().expect("no panic").push(batch.len());
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                batch.tell(|name| Ok(SecretPayload::new(name.as_bytes().to_vec(), "1")));
            }
            .boxed()
        };
        Batches::new(10, 8, Arc::new(Pace::new(40)), Box::new(send))
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_at_once_are_ten_calls_and_each_gets_its_own() {
        let calls = Arc::default();
        let batches = echoing(&calls);
        let names: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        let got = join_all(names.iter().map(|name| batches.ask(name, LIMIT))).await;
        for (name, outcome) in names.iter().zip(got) {
            let payload = outcome.expect("told").expect("a value");
            assert_eq!(payload.expose(), name.as_bytes());
        }
        assert_eq!(*calls.lock().expect("no panic"), [10; 10]);
        assert!(batches.ask("later", LIMIT).await.is_ok(), "it collects again");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_come_one_after_the_other_wait_for_what_is_under_way() {
        let calls = Arc::default();
        let batches = echoing(&calls);
        let asked = (0..100).map(async |number: u64| {
            tokio::time::sleep(Duration::from_millis(number)).await;
            batches.ask(&number.to_string(), LIMIT).await.expect("told").expect("a value");
        });
        join_all(asked).await;
        let calls = calls.lock().expect("no panic");
        assert!(calls.len() <= 11, "{calls:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_that_hangs_holds_the_others_up_for_a_moment_only() {
        let send = |batch: Batch, _: Turn| {
            async move {
                if batch.names() == ["hangs"] {
                    futures::future::pending::<()>().await;
                }
                batch.tell(|_| Ok(SecretPayload::new(vec![], "1")));
            }
            .boxed()
        };
        let batches = Batches::new(10, 8, Arc::new(Pace::new(40)), Box::new(send));
        let hangs = tokio::spawn({
            let batches = Arc::clone(&batches);
            async move { batches.ask("hangs", LIMIT).await.is_err_and(|why| why == Unasked::Late) }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let started = tokio::time::Instant::now();
        assert!(batches.ask("a", LIMIT).await.is_ok());
        assert!(started.elapsed() < WINDOW + LONGEST + Duration::from_millis(10), "{:?}", started.elapsed());
        assert!(hangs.await.expect("no panic"), "it ends by its limit");
    }

    #[tokio::test(start_paused = true)]
    async fn who_left_is_not_asked_for_and_one_name_stands_once_in_a_call() {
        let calls = Arc::default();
        let batches = echoing(&calls);
        let left = tokio::time::timeout(Duration::from_millis(1), batches.ask("left", LIMIT));
        assert!(left.await.is_err());
        let (one, same) = tokio::join!(batches.ask("a", LIMIT), batches.ask("a", LIMIT));
        assert!(one.is_ok() && same.is_ok());
        assert_eq!(*calls.lock().expect("no panic"), [1, 1]);
        assert_eq!(batches.waiting().names.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_panics_tells_its_own_and_nobody_else() {
        let send = |batch: Batch, _: Turn| async move { panic!("planted {}", batch.len()) }.boxed();
        let batches = Batches::new(10, 8, Arc::new(Pace::new(40)), Box::new(send));
        for name in ["a", "b"] {
            let told = batches.ask(name, LIMIT).await;
            assert!(told.is_err_and(|why| why == Unasked::GivenUp), "{name}: and it goes on");
        }
    }
}
