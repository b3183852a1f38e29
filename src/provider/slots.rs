//! How many requests to one store are under way, and how many of them for one namespace.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::pod::PodNamespace;

/// The slots of one instance.
#[derive(Debug)]
pub(super) struct Slots {
    all: Arc<Semaphore>,
    /// Half of all: a tenant that makes pods in a loop leaves room for the others, and since no more of its requests than
    /// this wait in the common line either, nobody stands behind all of them.
    per_namespace: usize,
    by_namespace: Mutex<HashMap<PodNamespace, Arc<Semaphore>>>,
}

/// Given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _in_namespace: Option<OwnedSemaphorePermit>,
    _in_all: Option<OwnedSemaphorePermit>,
}

impl Slots {
    /// So many at a time.
    pub(super) fn new(all: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), per_namespace: (all / 2).max(1), by_namespace: Mutex::default() }
    }

    /// Waits for a slot.
    pub(super) async fn take(&self, namespace: &PodNamespace) -> Slot {
        // The semaphores are never closed.
        let in_namespace = self.of(namespace).acquire_owned().await.ok();
        Slot { _in_namespace: in_namespace, _in_all: Arc::clone(&self.all).acquire_owned().await.ok() }
    }

    fn of(&self, namespace: &PodNamespace) -> Arc<Semaphore> {
        let mut all = self.by_namespace.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds or waits for.
        all.retain(|_, slots| Arc::strong_count(slots) > 1);
        let new = || Arc::new(Semaphore::new(self.per_namespace));
        Arc::clone(all.entry(namespace.clone()).or_insert_with(new))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const ALL: usize = 16;
    const PER_NAMESPACE: usize = 8;

    #[tokio::test]
    async fn one_namespace_never_takes_all_and_gives_back_what_it_took() {
        let slots = Slots::new(ALL);
        let (greedy, other) = (PodNamespace::for_test("greedy"), PodNamespace::for_test("other"));
        let mut taken: Vec<Slot> = Vec::new();
        while let Some(slot) = slots.take(&greedy).now_or_never() {
            taken.push(slot);
        }
        assert_eq!(taken.len(), PER_NAMESPACE);
        let held: Vec<_> = std::iter::from_fn(|| slots.take(&other).now_or_never()).collect();
        assert_eq!(held.len(), ALL - PER_NAMESPACE, "the rest is for others");
        drop(held);
        taken.pop();
        assert!(slots.take(&greedy).now_or_never().is_some());
        drop(taken);
        let _ = slots.take(&other).await;
        assert_eq!(slots.by_namespace.lock().expect("no panic").len(), 1, "who holds nothing is forgotten");
    }

    #[tokio::test]
    async fn who_waits_behind_a_greedy_namespace_is_next() {
        let slots = Arc::new(Slots::new(ALL));
        let greedy = PodNamespace::for_test("greedy");
        let filler: Vec<_> = (0..2).map(|n| PodNamespace::for_test(&format!("n{n}"))).collect();
        let mut held = Vec::new();
        for namespace in filler.iter().cycle().take(ALL) {
            held.push(slots.take(namespace).await);
        }
        let mut line: Vec<_> = (0..100).map(|_| Box::pin(slots.take(&greedy))).collect();
        for waiting in &mut line {
            assert!(futures::poll!(waiting).is_pending());
        }
        let other = PodNamespace::for_test("other");
        let mut waiting = Box::pin(slots.take(&other));
        assert!(futures::poll!(&mut waiting).is_pending());
        held.truncate(ALL - PER_NAMESPACE - 1);
        assert!(futures::poll!(&mut waiting).is_ready(), "behind {PER_NAMESPACE} of the greedy one's, not behind 100");
    }
}
