//! What shows that a source is gone, or that a master was taken away on purpose. Pure; by a clock that only goes forward.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::plan::is_a_wave;
use crate::{provider::Presence, target::Stored};

/// What is suspected, since when, and with which masters in between: one that was written shows that somebody got a value.
#[derive(Debug, Default)]
pub(super) struct Suspicions(HashMap<String, (Instant, Vec<Stored>)>);

impl Suspicions {
    /// Takes note of one look, as of `at`; says whether two that are `apart` agree, with nothing else seen between them.
    pub(super) fn note(&mut self, what: &str, suspected: Option<Instant>, masters: &[Stored], apart: Duration) -> bool {
        let Some(at) = suspected else {
            self.clear(what);
            return false;
        };
        match self.0.get(what) {
            Some((since, before)) if before == masters => at.duration_since(*since) >= apart && at != *since,
            _ => {
                self.0.insert(what.to_owned(), (at, masters.to_vec()));
                false
            }
        }
    }

    /// Something spoke against it.
    pub(super) fn clear(&mut self, what: &str) {
        self.0.remove(what);
    }

    /// Forgets what is not looked at any more.
    pub(super) fn keep_only(&mut self, looked_at: &HashSet<&str>) {
        self.0.retain(|what, _| looked_at.contains(what.as_str()));
    }
}

/// What was said of one source.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) instance: String,
    pub(super) said: Presence,
    pub(super) at: Instant,
    /// Whether replicas of it are on record: else nothing would go.
    pub(super) is_recorded: bool,
}

impl Answer {
    pub(super) fn is_absent(&self) -> bool {
        self.said == Presence::Absent && self.is_recorded
    }
}

/// What an instance said of all its sources in one round.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) there: usize,
    /// Those of which something would go.
    pub(super) absent: usize,
    /// With those of which nothing is on record: masters that stay.
    pub(super) all_absent: usize,
}

impl Said {
    /// Whether its word counts: one source at least was found, and no more than a fifth of them (or five) are absent; with those of
    /// which nothing is on record, no more than were found. One that lacks nearly everything is as likely the wrong one: another
    /// region or account, an empty copy, a store that was restored from nothing. `allowed`: how many are absent does not matter.
    pub(super) fn is_believed(self, allowed: bool) -> bool {
        let is_whole = !is_a_wave(self.absent, self.there + self.absent) && self.all_absent <= self.there.max(5);
        self.there > 0 && (allowed || is_whole)
    }

    /// Whether that keeps something from going.
    pub(super) fn is_doubted(self, allowed: bool) -> bool {
        self.absent > 0 && !self.is_believed(allowed)
    }
}

/// What each instance said.
pub(super) fn said_by(answers: &[Answer]) -> BTreeMap<&str, Said> {
    let mut by_instance: BTreeMap<&str, Said> = BTreeMap::new();
    for answer in answers {
        let said = by_instance.entry(&answer.instance).or_default();
        said.there += usize::from(answer.said == Presence::There);
        said.absent += usize::from(answer.is_absent());
        said.all_absent += usize::from(answer.said == Presence::Absent);
    }
    by_instance
}

#[cfg(test)]
mod tests {
    use super::*;

    const APART: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn twice_and_far_enough_apart_and_nothing_else_between() {
        let mut suspicions = Suspicions::default();
        let mut look = |suspected: bool| suspicions.note("a", suspected.then(Instant::now), &[], APART);
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
        assert!(!suspicions.note("a", Some(Instant::now()), &[], APART), "it was not looked at");
        assert!(!suspicions.note("b", Some(Instant::now()), &[], Duration::ZERO), "never at the first look");
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_that_was_written_meanwhile_is_a_word_against_it() {
        let mut suspicions = Suspicions::default();
        let state = |version: &str| [Stored { uid: "u".into(), resource_version: version.into() }];
        let mut look = |version: &str| suspicions.note("a", Some(Instant::now()), &state(version), APART);
        assert!(!look("1"));
        tokio::time::advance(APART).await;
        assert!(!look("2"), "from the beginning");
        tokio::time::advance(APART).await;
        assert!(look("2"));
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_was_said_counts_and_not_when_it_was_noted() {
        let mut suspicions = Suspicions::default();
        let first = Instant::now();
        tokio::time::advance(APART).await;
        let second = Instant::now() - Duration::from_secs(1);
        assert!(!suspicions.note("a", Some(first), &[], APART));
        assert!(!suspicions.note("a", Some(second), &[], APART), "too early by a second");
        suspicions.clear("a");
        assert!(!suspicions.note("a", Some(Instant::now() + APART), &[], APART), "something spoke against it");
    }

    #[tokio::test]
    async fn an_instance_that_lacks_nearly_everything_is_not_believed() {
        let of = |instance: &str, said: Presence, is_recorded: bool, count: usize| {
            vec![Answer { instance: instance.to_owned(), said, at: Instant::now(), is_recorded }; count]
        };
        let (there, absent) = (Presence::There, Presence::Absent);
        let answers = [
            of("full", there, true, 1),
            of("full", absent, true, 5),
            of("empty", absent, true, 1),
            of("other", Presence::Unknown, true, 3),
            of("wrong", there, true, 20),
            of("wrong", absent, true, 6),
            of("left-over", there, true, 20),
            of("left-over", absent, true, 5),
            of("left-over", absent, false, 15),
            of("elsewhere", there, true, 10),
            of("elsewhere", absent, true, 1),
            of("elsewhere", absent, false, 10),
            of("unused", absent, false, 7),
        ]
        .concat();
        let doubted = |allowed: bool| {
            let said = said_by(&answers).into_iter().filter(|(_, said)| said.is_doubted(allowed));
            said.map(|(instance, _)| instance).collect::<Vec<_>>()
        };
        assert_eq!(doubted(false), ["elsewhere", "empty", "wrong"]);
        assert_eq!(doubted(true), ["empty"], "never an empty one");
    }
}
