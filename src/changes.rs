//! Tells every request that waits for a change (of policy, of admission) to look again.

use futures::{Stream, stream};
use tokio::sync::watch;

/// Counts changes; each one makes the controller go through all pods of the node.
#[derive(Debug)]
pub struct Changes(watch::Sender<u64>);

impl Default for Changes {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Changes {
    /// Something changed that requests may wait for.
    pub fn announce(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// The number of changes so far.
    pub fn count(&self) -> u64 {
        *self.0.borrow()
    }

    /// One item for each change from now on; those that come together may be one item.
    pub fn stream(&self) -> impl Stream<Item = ()> + Send + Sync + 'static {
        stream::unfold(self.0.subscribe(), |mut receiver| async move {
            receiver.changed().await.ok()?;
            Some(((), receiver))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn each_change_wakes_and_silence_does_not() {
        let changes = Changes::default();
        changes.announce();
        let mut stream = std::pin::pin!(changes.stream());
        assert_eq!(stream.next().now_or_never(), None, "what was before counts as known");
        changes.announce();
        assert_eq!(stream.next().await, Some(()));
        assert_eq!((stream.next().now_or_never(), changes.count()), (None, 2));
    }
}
