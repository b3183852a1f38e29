//! What shows that a source is gone, or that a master was taken away on purpose. Pure; by a clock that only goes forward.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

/// What a store said about a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// It has a value.
    There,
    /// There is no such secret: the store's own word, and nothing else.
    NotThere,
    /// Anything else: denied, throttled, down, in no state to be read.
    Nothing,
}

/// Since when something is suspected, without a word against it.
#[derive(Debug, Default)]
pub(super) struct Suspicions {
    since: HashMap<String, Instant>,
}

impl Suspicions {
    /// Takes note of one look; says whether two that are `apart` agree.
    pub(super) fn note(&mut self, what: &str, suspected: bool, apart: Duration) -> bool {
        if !suspected {
            self.since.remove(what);
            return false;
        }
        let now = Instant::now();
        let since = *self.since.entry(what.to_owned()).or_insert(now);
        now.duration_since(since) >= apart && now != since
    }

    /// Forgets what is not looked at any more.
    pub(super) fn keep_only(&mut self, looked_at: &HashSet<String>) {
        self.since.retain(|what, _| looked_at.contains(what));
    }
}

/// Instances of which one source at least was found in this round. An instance that has nothing at all is as likely the
/// wrong one: another region, an empty emulator, a store that was restored from nothing.
pub(super) fn believed(answers: &[(String, Said)]) -> HashSet<&str> {
    answers.iter().filter(|(_, said)| *said == Said::There).map(|(instance, _)| instance.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const APART: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn twice_and_far_enough_apart_and_nothing_else_between() {
        let mut suspicions = Suspicions::default();
        let mut look = |suspected| suspicions.note("a", suspected, APART);
        assert!(!look(true), "once");
        assert!(!look(true), "at once again");
        tokio::time::advance(Duration::from_secs(599)).await;
        assert!(!look(true), "too early");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(look(true));
        assert!(!look(false), "it is back");
        tokio::time::advance(APART).await;
        assert!(!look(true), "from the beginning");
        tokio::time::advance(APART).await;
        assert!(look(true));
        suspicions.keep_only(&HashSet::new());
        assert!(!suspicions.note("a", true, APART), "it was not looked at");
        assert!(!suspicions.note("b", true, Duration::ZERO), "never at the first look");
    }

    #[test]
    fn an_instance_that_has_nothing_is_not_believed() {
        let answers =
            [("full", Said::There), ("full", Said::NotThere), ("empty", Said::NotThere), ("down", Said::Nothing)];
        let answers = answers.map(|(instance, said)| (instance.to_owned(), said));
        assert_eq!(believed(&answers), HashSet::from(["full"]));
    }
}
