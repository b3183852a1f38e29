//! The bound on bytes held: payloads and request bodies, not only their number.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const KIB: usize = 1024;
/// Pools of 5 MiB: one for each instance, one for values and one for bodies. They are apart so that a write never waits for
/// a fetch that waits for a write, and no store for another.
const POOL_BYTES: usize = 5 * KIB * KIB;
/// The SDK holds the answer's body beside the value that is taken out of it.
const COPIES_OF_A_PAYLOAD: usize = 2;

/// A weighted semaphore, counted in KiB.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    pool: Arc<Semaphore>,
    copies: usize,
}

impl ByteBudget {
    /// For values on their way from one store: 5 MiB.
    pub fn for_payloads() -> Self {
        Self::new(COPIES_OF_A_PAYLOAD)
    }

    /// For values taken apart into keys, between fetch and write: 5 MiB.
    pub fn for_values() -> Self {
        Self::new(1)
    }

    /// For bodies on their way to the API server: 5 MiB.
    pub fn for_bodies() -> Self {
        Self::new(1)
    }

    fn new(copies: usize) -> Self {
        Self { pool: Arc::new(Semaphore::new(POOL_BYTES / KIB)), copies }
    }

    /// Waits until so many bytes may be held. A demand above the whole pool takes the whole pool.
    pub async fn reserve(&self, bytes: usize) -> OwnedSemaphorePermit {
        let permits = in_kib(bytes * self.copies).min(POOL_BYTES / KIB);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        match Arc::clone(&self.pool).acquire_many_owned(permits).await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the pool is never closed"),
        }
    }

    /// Gives back what turned out not to be needed, once the true size is known.
    pub fn shrink(reserved: &mut OwnedSemaphorePermit, bytes: usize) {
        let surplus = reserved.num_permits().saturating_sub(in_kib(bytes));
        drop(reserved.split(surplus));
    }
}

fn in_kib(bytes: usize) -> usize {
    bytes.div_ceil(KIB).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_its_bound_and_gives_back() {
        let budget = ByteBudget::for_bodies();
        let mut whole = budget.reserve(usize::MAX / 4).await;
        let wait = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(wait, budget.reserve(1)).await.is_err(), "nothing is left");
        ByteBudget::shrink(&mut whole, POOL_BYTES - 10 * KIB);
        assert_eq!(budget.reserve(10 * KIB).await.num_permits(), 10);
        drop(whole);
        assert_eq!(budget.pool.available_permits(), POOL_BYTES / KIB);
    }
}
