//! One janitor at a time: a Lease in the masters' namespace.
//!
//! RBAC there: `get`, `create` and `update` on leases (coordination.k8s.io).

use std::{
    sync::Mutex,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::Instant;

use crate::error::{BoxError, chain};

const NAME: &str = "jasm-janitor";
/// After so long without a renewal another one may take it.
const DURATION: Duration = Duration::from_secs(60);
/// Between renewals, and between looks at somebody else's.
const PAUSE: Duration = Duration::from_secs(10);
/// The holder stops so long before another one may begin: clocks of two machines pass at nearly the same pace.
const MARGIN: Duration = Duration::from_secs(20);

/// Whether this janitor is the one that works.
pub(super) struct Election {
    leases: Api<Lease>,
    me: String,
    renewed_at: Mutex<Option<(Instant, SystemTime)>>,
}

/// Somebody else's lease, as it was first seen: whether it has run out, the passing of time here tells, and no clock.
struct Seen {
    version: Option<String>,
    at: Instant,
}

impl Election {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        let me = format!("jasm-janitor-{:016x}", fastrand::u64(..));
        Self { leases: Api::namespaced(client, namespace), me, renewed_at: Mutex::new(None) }
    }

    /// Whether nobody else may be at work now. To be asked before each deletion.
    pub(super) fn is_mine(&self) -> bool {
        let renewed_at = *self.renewed_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        renewed_at.is_some_and(|(at, by_the_wall)| holds(at, by_the_wall))
    }

    /// Takes the lease when it is free, and renews it. Never ends.
    pub(super) async fn run(&self) {
        let mut seen = None;
        loop {
            let started = (Instant::now(), SystemTime::now());
            let tried = tokio::time::timeout(PAUSE, self.try_once(&mut seen)).await;
            match tried.map_err(BoxError::from).and_then(|tried| tried.map_err(BoxError::from)) {
                Ok(true) => {
                    let mut renewed = self.renewed_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if renewed.replace(started).is_none() {
                        tracing::info!(lease = NAME, "this janitor is the one that works");
                    }
                }
                Ok(false) => self.give_up(),
                Err(error) => {
                    tracing::warn!(error = chain(&*error), "the lease could not be renewed; it is tried again")
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn give_up(&self) {
        let mut renewed = self.renewed_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if renewed.take().is_some() {
            tracing::warn!(lease = NAME, "another janitor has the lease: this one stops");
        }
    }

    /// Says whether the lease is this janitor's.
    async fn try_once(&self, seen: &mut Option<Seen>) -> kube::Result<bool> {
        let Some(found) = self.leases.get_opt(NAME).await? else {
            return taken(self.leases.create(&PostParams::default(), &self.lease(None)).await);
        };
        let version = found.metadata.resource_version.clone();
        let holder = found.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if holder != Some(self.me.as_str()) && holder.is_some_and(|holder| !holder.is_empty()) {
            let first = match seen.take() {
                Some(first) if first.version == version => first,
                _ => Seen { version: version.clone(), at: Instant::now() },
            };
            let has_run_out = first.at.elapsed() >= DURATION;
            *seen = Some(first);
            if !has_run_out {
                return Ok(false);
            }
        }
        taken(self.leases.replace(NAME, &PostParams::default(), &self.lease(version)).await)
    }

    fn lease(&self, resource_version: Option<String>) -> Lease {
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), resource_version, ..ObjectMeta::default() };
        let spec = LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }
}

/// Of two clocks one stands still while the machine sleeps; the other may be set: forward, which ends a lease early, or back, when
/// the first one counts.
fn holds(renewed_at: Instant, by_the_wall: SystemTime) -> bool {
    renewed_at.elapsed().max(by_the_wall.elapsed().unwrap_or_default()) < DURATION - MARGIN
}

/// A conflict means that somebody else was faster.
fn taken(outcome: kube::Result<Lease>) -> kube::Result<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_held_by_the_clock_that_went_further() {
        let (at, wall, hour) = (Instant::now(), SystemTime::now(), Duration::from_secs(60 * 60));
        assert!(holds(at, wall));
        assert!(!holds(at, wall - hour), "the machine slept, or its clock was set forward");
        assert!(holds(at, wall + hour), "its clock was set back");
        tokio::time::advance(DURATION - MARGIN).await;
        assert!(!holds(at, wall) && !holds(at, wall + hour), "time has passed");
    }
}
