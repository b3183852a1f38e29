//! A request that failed, and how long it waits; a workload that could not be read.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::{Due, Verdict, one_pod::State};
use crate::{
    delays::{Delays, TELL_AGAIN},
    error::{Reason, Retry, SyncError},
};

/// A request that failed.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) reason: Reason,
    pub(super) retry: Retry,
    /// A change of the agent's surroundings ends the wait.
    ends_with_a_change: bool,
    pub(super) delays: Delays,
    pub(super) failures: u32,
    pub(super) changes: u64,
    pub(super) next_at: Instant,
    /// When the pod's owner was told of each kind of failure.
    told: BTreeMap<&'static str, Instant>,
}

impl Waiting {
    pub(super) fn is_due(&self, now: Instant, changes: u64) -> bool {
        now >= self.next_at || (self.ends_with_a_change && changes != self.changes)
    }

    pub(super) fn after(before: Option<State>, due: &Due, error: &SyncError, now: Instant) -> (Self, Verdict) {
        let (action, retry) = (error.action(), error.retry());
        let before = match before {
            Some(State::Waiting(waiting)) => Some(waiting),
            Some(State::Done(_) | State::LeftBehind) | None => None,
        };
        let (mut delays, mut told) = match before {
            Some(before) if before.retry == retry => (before.delays, before.told),
            before => (Delays::new(retry), before.map(|before| before.told).unwrap_or_default()),
        };
        let tell = told.get(action).is_none_or(|told_at| now >= *told_at + TELL_AGAIN);
        if tell {
            told.insert(action, now);
        }
        let retry_in = match error.again_at() {
            Some(at) => at.saturating_duration_since(now),
            None => delays.next(),
        };
        // What stands from before was no attempt.
        let failures = due.failures.saturating_add(u32::from(!error.is_remembered())).max(1);
        let verdict = Verdict { tell, retry_in, failures };
        let waiting = Self {
            reason: error.reason(),
            retry,
            ends_with_a_change: error.ends_with_a_change(),
            delays,
            failures,
            changes: due.changes,
            next_at: now + retry_in,
            told,
        };
        (waiting, verdict)
    }
}

/// A workload that could not be read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) retry: Retry,
    pub(super) delays: Delays,
    pub(super) changes: u64,
    pub(super) next_at: Instant,
}
