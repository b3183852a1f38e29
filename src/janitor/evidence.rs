//! What shows that a source is gone, or that a master was taken away on purpose. Pure; by a clock that only goes forward.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::{provider::Presence, target::Stored};

/// What is suspected, since when, and with which masters in between: one that was written shows that somebody got a value.
#[derive(Debug, Default)]
pub(super) struct Suspicions(HashMap<String, (Instant, Vec<Stored>)>);

impl Suspicions {
    /// Takes note of one look; says whether two that are `apart` agree, with nothing else seen between them.
    pub(super) fn note(&mut self, what: &str, suspected: bool, masters: &[Stored], apart: Duration) -> bool {
        if !suspected {
            self.0.remove(what);
            return false;
        }
        let now = Instant::now();
        match self.0.get(what) {
            Some((since, before)) if before == masters => now.duration_since(*since) >= apart && now != *since,
            _ => {
                self.0.insert(what.to_owned(), (now, masters.to_vec()));
                false
            }
        }
    }

    /// Forgets what is not looked at any more.
    pub(super) fn keep_only(&mut self, looked_at: &HashSet<&str>) {
        self.0.retain(|what, _| looked_at.contains(what.as_str()));
    }
}

/// Instances of which one source at least was found in this round. An instance that has nothing at all is as likely the
/// wrong one: another region, an empty emulator, a store that was restored from nothing.
pub(super) fn believed(answers: &[(String, Presence)]) -> HashSet<&str> {
    answers.iter().filter(|(_, said)| *said == Presence::There).map(|(instance, _)| instance.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const APART: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn twice_and_far_enough_apart_and_nothing_else_between() {
        let mut suspicions = Suspicions::default();
        let mut look = |suspected| suspicions.note("a", suspected, &[], APART);
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
        assert!(!suspicions.note("a", true, &[], APART), "it was not looked at");
        assert!(!suspicions.note("b", true, &[], Duration::ZERO), "never at the first look");
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_that_was_written_meanwhile_is_a_word_against_it() {
        let mut suspicions = Suspicions::default();
        let state = |version: &str| [Stored { uid: "u".into(), resource_version: version.into() }];
        let mut look = |version: &str| suspicions.note("a", true, &state(version), APART);
        assert!(!look("1"));
        tokio::time::advance(APART).await;
        assert!(!look("2"), "from the beginning");
        tokio::time::advance(APART).await;
        assert!(look("2"));
    }

    #[test]
    fn an_instance_that_has_nothing_is_not_believed() {
        let answers = [
            ("full", Presence::There),
            ("full", Presence::Absent),
            ("empty", Presence::Absent),
            ("other", Presence::Unknown),
        ];
        let answers = answers.map(|(instance, said)| (instance.to_owned(), said));
        assert_eq!(believed(&answers), HashSet::from(["full"]));
    }
}
