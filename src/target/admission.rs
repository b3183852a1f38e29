//! Whether the shipped admission policies are in force. Without them the agent writes nothing.
//!
//! Five dry-run writes, each of which exactly one policy must refuse, by name. They go to the agent's own namespace and
//! are sent with `dryRun=All`, so that they change nothing even where the policies are gone. Where pods' own identities are used, a
//! request for a token besides: without the policy on these, a thief of the agent's could have one of any account.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::{join, join_all};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    NODE, PROBE, SOURCE, TargetConfig,
    api::{AGENT, Objects},
    body::ObjectBody,
    error::TargetError,
    reply::{refused_by_rbac, refuses_tokens, refusing_policy},
};
use crate::{changes::Changes, metrics::Metrics, request::ObjectKind};

/// How the names of all shipped policies begin.
pub(super) const POLICY_PREFIX: &str = "jasm-agent-";
/// The policy that answers probes.
pub(super) const OWNERSHIP: &str = "jasm-agent-ownership";
const SHAPE: &str = "jasm-agent-shape";
const NODES: &str = "jasm-agent-node";
const NAMESPACES: &str = "jasm-agent-namespaces";
const MARKER: &str = "jasm-agent-marker";
/// That of `rbac/pod-identity`.
const TOKENS: &str = "jasm-pod-tokens";

/// The one name that the policies let pass in the agent's own namespace, in dry runs.
const CHECK: &str = "jasm-admission-check";
const CHECK_ELSEWHERE: &str = "jasm-admission-check-namespaces";
/// The source by which the marker policy takes the agent for anybody else.
const CHECK_AS_ANYBODY: &str = "v1:check:marker";
const NO_SUCH_NODE: &str = "jasm-no-such-node";

/// Between checks while all is well.
const PERIOD: Duration = Duration::from_secs(10 * 60);
/// A write that was refused for want of rights brings the next check forward, but not to before this.
const AFTER_REFUSAL: Duration = Duration::from_secs(10);
/// Between checks while it is not: from the first to the second, doubling.
const RECHECK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Not checked yet.
    Unknown,
    Enforced,
    Missing(&'static str),
    /// Never seen to be enforced, and the check itself fails: why, for the log.
    Unchecked(String),
    /// RBAC lets the agent write no Secret, not even in its own namespace.
    NoRights,
}

impl State {
    /// What a check fails with may differ each time; for those who wait it is the same.
    fn is_like(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Unchecked(_), Self::Unchecked(_))) || self == other
    }
}

/// Watches over the policies.
pub struct Admission {
    objects: Objects,
    kinds: &'static [ObjectKind],
    /// Whether it asks for tokens of pods' accounts.
    tokens: bool,
    own_namespace: String,
    node: String,
    state: watch::Sender<State>,
    /// The last check found that RBAC lets the agent write.
    has_rights: AtomicBool,
    doubt: Notify,
    checked_at: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
    changes: Arc<Changes>,
}

impl Admission {
    pub(super) fn new(
        objects: Objects,
        TargetConfig { node, own_namespace, kinds, tokens, .. }: TargetConfig,
        metrics: Arc<Metrics>,
        changes: Arc<Changes>,
    ) -> Self {
        metrics.admission_enforced(false);
        let (state, doubt) = (watch::Sender::new(State::Unknown), Notify::new());
        let has_rights = AtomicBool::new(true);
        let checked_at = Mutex::new(None);
        Self { objects, kinds, tokens, own_namespace, node, state, has_rights, doubt, checked_at, metrics, changes }
    }

    /// Whether every policy was in force when last checked.
    pub fn is_enforced(&self) -> bool {
        *self.state.borrow() == State::Enforced
    }

    /// Whether RBAC let the agent write Secrets when last checked.
    pub fn has_rights(&self) -> bool {
        self.has_rights.load(Ordering::Relaxed)
    }

    /// A write was refused for want of rights: perhaps in one namespace, perhaps everywhere.
    pub(super) fn doubt_rights(&self) {
        let checked_at = *self.checked_at.lock().unwrap_or_else(PoisonError::into_inner);
        if checked_at.is_none_or(|at| at.elapsed() >= AFTER_REFUSAL) {
            self.doubt.notify_one();
        }
    }

    /// Checks now, every 10 minutes, and every few seconds while something is wrong. Never ends.
    pub async fn watch(&self) {
        let mut pause = RECHECK.0;
        loop {
            let found = self.check().await;
            *self.checked_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            match found {
                State::Enforced | State::Missing(_) => self.note_rights(true),
                State::NoRights => self.note_rights(false),
                // It says nothing about them.
                State::Unknown | State::Unchecked(_) => {}
            }
            self.enter(found);
            if self.is_enforced() && self.has_rights() {
                pause = RECHECK.0;
                let _ = tokio::time::timeout(PERIOD, self.doubt.notified()).await;
            } else {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RECHECK.1);
            }
        }
    }

    /// Waits for the first check, and says whether writes are allowed.
    pub(super) async fn enforced(&self) -> Result<(), TargetError> {
        let mut state = self.state.subscribe();
        let known = state.wait_for(|state| *state != State::Unknown).await;
        match known.as_deref() {
            Ok(State::Enforced) => Ok(()),
            Ok(State::Missing(policy)) => Err(TargetError::AdmissionMissing { policy }),
            Ok(State::NoRights) => Err(TargetError::Rbac { verb: "create".to_owned(), resource: "secrets".to_owned() }),
            Ok(State::Unchecked(why)) => Err(TargetError::AdmissionUnchecked { source: why.clone().into() }),
            // Unknown was waited for, and the sender lives as long as we do.
            Ok(State::Unknown) | Err(_) => Err(TargetError::AdmissionUnchecked { source: "no check has ended".into() }),
        }
    }

    /// A probe was accepted: the ownership policy is gone, whatever the last check said.
    pub(super) fn probe_was_accepted(&self) -> TargetError {
        self.enter(State::Missing(OWNERSHIP));
        self.doubt.notify_one();
        TargetError::AdmissionMissing { policy: OWNERSHIP }
    }

    /// Who waits for rights looks again when they are back.
    fn note_rights(&self, has_rights: bool) {
        match (self.has_rights.swap(has_rights, Ordering::Relaxed), has_rights) {
            (true, false) => tracing::error!(
                "the agent may not write Secrets, also in its own namespace: apply the ClusterRole jasm-agent and its binding (rbac/)"
            ),
            (false, true) => {
                tracing::info!("the agent may write Secrets again");
                self.changes.announce();
            }
            _ => {}
        }
    }

    fn enter(&self, found: State) {
        let enforced_before = self.is_enforced();
        // A check that fails says nothing about the policies; the writes would fail the same way.
        if enforced_before && matches!(found, State::Unchecked(_) | State::NoRights) {
            tracing::warn!(state = ?found, "the admission policies could not be checked; the last check stands");
            return;
        }
        let changed = self.state.send_if_modified(|state| !std::mem::replace(state, found.clone()).is_like(&found));
        self.metrics.admission_enforced(self.is_enforced());
        if !changed {
            return;
        }
        match &found {
            State::Enforced => tracing::info!("all admission policies are in force"),
            State::Missing(policy) => tracing::error!(
                policy,
                "an admission policy is not in force: the agent writes nothing until it is back; apply rbac/ (policy and binding)"
            ),
            State::Unknown | State::Unchecked(_) | State::NoRights => {
                tracing::error!(state = ?found, "the admission policies could not be checked: the agent writes nothing");
            }
        }
        self.changes.announce();
    }

    async fn check(&self) -> State {
        let checks = self.kinds.iter().flat_map(|kind| self.checks_of(*kind));
        let (mut verdicts, of_tokens) =
            join(join_all(checks.map(|(policy, body)| self.verdict(policy, body))), self.of_tokens()).await;
        verdicts.push(of_tokens);
        let first = |wanted: fn(&State) -> bool| verdicts.iter().find(|state| wanted(state));
        let worst = first(|state| matches!(state, State::Missing(_)))
            .or_else(|| first(|state| *state == State::NoRights))
            .or_else(|| first(|state| *state != State::Enforced));
        worst.cloned().unwrap_or(State::Enforced)
    }

    /// A write for each policy, which it alone refuses.
    fn checks_of(&self, kind: ObjectKind) -> [(&'static str, ObjectBody<'_>); 5] {
        let valid = |name| {
            let body = ObjectBody::new(kind, &self.own_namespace, name);
            body.annotate(SOURCE, "v1:check:check").annotate(NODE, &self.node)
        };
        [
            (OWNERSHIP, valid(CHECK).annotate(PROBE, "true")),
            (SHAPE, valid(CHECK).label("jasm.codnod.io/check", "shape")),
            (NODES, valid(CHECK).annotate(NODE, NO_SUCH_NODE)),
            (NAMESPACES, valid(CHECK_ELSEWHERE)),
            (MARKER, valid(CHECK).annotate(SOURCE, CHECK_AS_ANYBODY)),
        ]
    }

    async fn of_tokens(&self) -> State {
        if !self.tokens {
            return State::Enforced;
        }
        match self.objects.check_tokens(&self.own_namespace).await {
            Ok((200..300, _)) => State::Missing(TOKENS),
            Ok((403, status)) if refuses_tokens(TOKENS, AGENT, &status) => State::Enforced,
            // Its pods are told, but where it is bound in their namespaces alone.
            Ok((403, status)) if refused_by_rbac(&status).is_some() => {
                tracing::warn!(
                    "whether {TOKENS} is in force cannot be seen without a right to ask for a token of the agent's own account: \
                     apply rbac/pod-identity"
                );
                State::Enforced
            }
            Ok((code, status)) => State::Unchecked(format!("the check of {TOKENS} got HTTP {code}: {}", status.said())),
            Err(error) => State::Unchecked(crate::error::chain(&error)),
        }
    }

    async fn verdict(&self, policy: &'static str, body: ObjectBody<'_>) -> State {
        match self.objects.check(&self.own_namespace, body).await {
            Ok((200..300, _)) => State::Missing(policy),
            Ok((403, status)) if refusing_policy(&status) == Some(policy) => State::Enforced,
            Ok((403, status)) if refused_by_rbac(&status).is_some() => State::NoRights,
            Ok((code, status)) => State::Unchecked(format!("the check of {policy} got HTTP {code}: {}", status.said())),
            Err(error) => State::Unchecked(crate::error::chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use http::Request;
    use kube::{Client, client::Body};

    use super::*;
    use crate::fake_api::{self, json_reply};

    /// An API server whose policies are there, until they are not.
    fn watched(missing: &Arc<AtomicBool>) -> (Arc<Admission>, Arc<Changes>) {
        let missing = Arc::clone(missing);
        let server = tower::service_fn(move |request: Request<Body>| {
            let missing = missing.load(Ordering::Relaxed);
            async move {
                match missing {
                    true => json_reply(201, &serde_json::json!({"kind": "Secret"})),
                    false => fake_api::secrets(request).await,
                }
            }
        });
        let (changes, objects) = (Arc::new(Changes::default()), Objects::new(Client::new(server, "jasm-system")));
        let config = TargetConfig {
            node: "node-1".into(),
            own_namespace: "jasm-system".into(),
            freshness: Duration::ZERO,
            kinds: &[ObjectKind::Secret],
            tokens: false,
        };
        let admission = Admission::new(objects, config, Arc::default(), Arc::clone(&changes));
        (Arc::new(admission), changes)
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_vanishes_is_noticed_at_the_next_check_and_its_return_within_seconds() {
        let missing = Arc::new(AtomicBool::new(false));
        let (admission, changes) = watched(&missing);
        let watching = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.watch().await }
        });
        admission.enforced().await.expect("in force");
        missing.store(true, Ordering::Relaxed);
        let known = changes.count();
        tokio::time::sleep(PERIOD - Duration::from_secs(1)).await;
        assert!(admission.is_enforced() && changes.count() == known, "nobody has looked yet");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!admission.is_enforced() && changes.count() > known, "who waits is told");
        assert!(matches!(admission.enforced().await, Err(TargetError::AdmissionMissing { .. })));
        missing.store(false, Ordering::Relaxed);
        let known = changes.count();
        tokio::time::sleep(RECHECK.1 + Duration::from_secs(1)).await;
        assert!(admission.is_enforced() && changes.count() > known, "and told again");
        watching.abort();
    }
}
