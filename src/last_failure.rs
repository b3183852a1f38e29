//! The failure of something that several wait for: for a moment it is the answer to all of them, so that not each one tries
//! once more what has failed just now.

use tokio::time::Instant;

/// The last failure, with its time; nothing after a success.
#[derive(Debug)]
pub(crate) struct LastFailure<E>(Option<(Instant, E)>);

impl<E> Default for LastFailure<E> {
    fn default() -> Self {
        Self(None)
    }
}

impl<E: Clone> LastFailure<E> {
    /// The failure, where it is no older than that.
    pub(crate) fn within(&self, moment: std::time::Duration) -> Option<E> {
        self.0.as_ref().filter(|(at, _)| at.elapsed() < moment).map(|(_, failure)| failure.clone())
    }

    /// Notes how it ended now.
    pub(crate) fn note(&mut self, failure: Option<E>) {
        self.0 = failure.map(|failure| (Instant::now(), failure));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_stands_for_a_moment_or_until_a_success() {
        let (mut last, moment) = (LastFailure::default(), Duration::from_millis(500));
        assert_eq!(last.within(moment), None);
        last.note(Some("x"));
        tokio::time::advance(Duration::from_millis(499)).await;
        assert_eq!(last.within(moment), Some("x"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(last.within(moment), None);
        last.note(Some("y"));
        last.note(None);
        assert_eq!(last.within(moment), None);
    }
}
