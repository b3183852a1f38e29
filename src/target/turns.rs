//! Work on one Secret is done by one task at a time inside the agent.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::OwnedMutexGuard, time::Instant};

use super::{
    Holds, Outcome, Served,
    api::Target,
    held::{Held, Known},
    reply::Stored,
};

/// Above so many, those that nobody uses are forgotten; they only save fetches.
const REMEMBERED: usize = 1024;

/// What the agent last saw to be in a Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) source: String,
    pub(super) known: Known,
    pub(super) stored: Stored,
    /// When the agent asked.
    pub(super) asked_at: Instant,
}

impl Seen {
    /// What a probe told, where that says how new it is.
    pub(super) fn of(held: Held, asked_at: Instant) -> Option<Self> {
        let known = held.known()?;
        Some(Self { source: held.source, known, stored: held.stored, asked_at })
    }

    /// What it means for a pod that wants it.
    pub(super) fn serves(&self, target: &Target, outcome: Outcome) -> Served {
        let holds = Holds { kind: target.kind, stored: self.stored.clone(), known: self.known.clone() };
        Served { outcome, holds: Some(holds).filter(|_| outcome != Outcome::NamespaceGone) }
    }
}

/// Who works on a Secret writes down what he found.
pub(super) type Turn = OwnedMutexGuard<Option<Seen>>;

/// A lock for each Secret that is or was worked on.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<Target, Arc<tokio::sync::Mutex<Option<Seen>>>>>);

impl Turns {
    /// Waits for the turn on a Secret. Says too whether nobody else had it, so that nothing is learnt by waiting.
    pub(super) async fn take(&self, target: &Target) -> (Turn, bool) {
        let slot = self.slot(target);
        match Arc::clone(&slot).try_lock_owned() {
            Ok(turn) => (turn, true),
            Err(_) => (slot.lock_owned().await, false),
        }
    }

    fn slot(&self, target: &Target) -> Arc<tokio::sync::Mutex<Option<Seen>>> {
        let mut slots = self.slots();
        if slots.len() >= REMEMBERED {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(slots.entry(target.clone()).or_default())
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Target, Arc<tokio::sync::Mutex<Option<Seen>>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        pod::PodNamespace,
        request::{ObjectKind, SecretName},
        target::api::Home,
    };

    fn target(name: &str) -> Target {
        let home = Home::Pod(PodNamespace::for_test("ns"));
        Target { kind: ObjectKind::Secret, home, name: SecretName::for_test(name) }
    }

    #[tokio::test]
    async fn one_at_a_time_and_others_are_not_held_up() {
        let turns = Arc::new(Turns::default());
        let (mut first, alone) = turns.take(&target("a")).await;
        assert!(alone);
        assert!(turns.take(&target("b")).await.1, "another Secret");
        let waiting = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move {
                let (turn, alone) = turns.take(&target("a")).await;
                (turn.clone(), alone)
            }
        });
        tokio::task::yield_now().await;
        let known = Known { version: "v".into(), through: Timestamp::UNIX_EPOCH };
        let seen = Seen { source: "v1:a".into(), known, stored: Stored::default(), asked_at: Instant::now() };
        *first = Some(seen.clone());
        drop(first);
        assert_eq!(waiting.await.expect("a turn"), (Some(seen), false));
    }

    #[tokio::test]
    async fn what_nobody_uses_is_forgotten() {
        let turns = Turns::default();
        let (_held, _) = turns.take(&target("held")).await;
        for number in 0..2 * REMEMBERED {
            drop(turns.take(&target(&format!("t{number}"))).await);
        }
        assert!(turns.slots().len() <= REMEMBERED + 1);
        assert!(turns.slots().contains_key(&target("held")));
    }
}
