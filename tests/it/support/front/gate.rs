//! Gates: answers that are held back until the test lets them go.

use std::sync::Arc;

use tokio::sync::watch;

use super::super::wait::DEADLINE;
use super::Book;

/// Holds answers; opening it is final.
#[derive(Debug)]
pub(super) struct Barrier {
    held: watch::Sender<usize>,
    open: watch::Sender<bool>,
}

impl Barrier {
    fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Returns when the gate is open.
    pub(super) async fn pass(&self) {
        self.held.send_modify(|held| *held += 1);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

/// Holds back answers from [`super::Front::hold`] to [`Gate::release`], or until it is dropped.
#[must_use = "a gate that is dropped holds nothing"]
#[derive(Debug)]
pub(crate) struct Gate {
    book: Arc<Book>,
    key: String,
    barrier: Arc<Barrier>,
}

impl Gate {
    pub(super) fn shut(book: Arc<Book>, key: &str) -> Self {
        let barrier = Arc::new(Barrier { held: watch::Sender::new(0), open: watch::Sender::new(false) });
        let before = book.open().gates.insert(key.to_owned(), Arc::clone(&barrier));
        assert!(before.is_none_or(|gate| gate.is_open()), "answers about {key} are held already");
        Self { book, key: key.to_owned(), barrier }
    }

    /// How many answers came to the gate so far.
    pub(crate) fn count(&self) -> usize {
        *self.barrier.held.borrow()
    }

    /// Waits until `wanted` answers have come to the gate.
    pub(crate) async fn held(&self, wanted: usize) {
        let mut held = self.barrier.held.subscribe();
        if tokio::time::timeout(DEADLINE, held.wait_for(|held| *held >= wanted)).await.is_err() {
            panic!("waited {DEADLINE:?} for {wanted} held answers about {}; found {}", self.key, self.count());
        }
    }

    /// Sends all held answers, and holds no more.
    pub(crate) fn release(self) {}
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.barrier.open.send_replace(true);
        let mut entries = self.book.open();
        if entries.gates.get(&self.key).is_some_and(|gate| Arc::ptr_eq(gate, &self.barrier)) {
            entries.gates.remove(&self.key);
        }
    }
}
