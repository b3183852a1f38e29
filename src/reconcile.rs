//! What is done for a pod: the table of contents of the agent.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, future::join_all};
use kube::runtime::controller::Action;
use tokio::time::Instant;

use crate::{
    changes::Changes,
    clock::SeenClock,
    error::SyncError,
    mapping,
    pod::PodView,
    policy::{AdmittedRequest, Requester},
    policy_file::PolicyFile,
    progress::{Ask, Due, Progress},
    provider::{Identity, Registry},
    report::Reporter,
    request,
    target::{Outcome, Targets, Urgency, Value},
};

/// What the steps share.
pub struct Context {
    /// Who may have what.
    pub policy: Arc<PolicyFile>,
    /// The stores.
    pub registry: Arc<Registry>,
    /// The Secrets.
    pub targets: Targets,
    /// Where outcomes go.
    pub reporter: Reporter,
    /// What was done and what waits.
    pub progress: Arc<Progress>,
    /// What wakes those who wait for a change.
    pub changes: Arc<Changes>,
    /// The newest pod seen.
    pub seen: SeenClock,
    /// How much older than its pod a value may be.
    pub freshness: Duration,
}

/// Serves what is due for a pod, and says when to look at it again. A pod that has what it asked for costs nothing.
///
/// # Errors
/// None: a request that fails waits for its own time, and holds up neither the pod's others nor other pods.
pub async fn reconcile(pod: Arc<PodView>, context: Arc<Context>) -> Result<Action, Infallible> {
    let Some(annotation) = pod.asks() else {
        context.progress.forget(pod.uid());
        return Ok(Action::await_change());
    };
    let asks = match request::parse(annotation, context.registry.catalogue()) {
        Ok(requests) => requests.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    };
    let due = context.progress.due(&pod, asks, context.changes.count());
    join_all(due.into_iter().map(|due| context.serve(&pod, due))).await;
    Ok(context.progress.next(&pod))
}

impl Context {
    /// Tries one request, and settles what has become of it.
    async fn serve(&self, pod: &PodView, due: Due) {
        let started = Instant::now();
        let ask = due.ask.clone();
        let outcome = match AssertUnwindSafe(self.sync(pod, &due)).catch_unwind().await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.reporter.panicked();
                Err(SyncError::Panicked { target: target_of(pod, &ask) })
            }
        };
        let took = started.elapsed();
        match outcome {
            Ok(outcome) => {
                let tell = self.progress.done(pod, due);
                self.reporter.served(pod, &ask, outcome, took, tell);
            }
            Err(error) => {
                let verdict = self.progress.failed(pod, due, &error);
                self.reporter.failed(pod, &ask, &error, took, verdict);
            }
        }
    }

    /// The steps: request, policy, value (if it is needed), write.
    async fn sync(&self, pod: &PodView, due: &Due) -> Result<Outcome, SyncError> {
        let request = due.ask.clone()?;
        let admitted = self.policy.current().admit(request, &Requester::of(pod))?;
        let urgency = if due.replayed || due.failures > 0 { Urgency::Replayed } else { Urgency::Starting };
        let value = self.value(pod, &admitted);
        self.targets.apply(pod, &admitted, urgency, value).await
    }

    /// The value, no older than the pod: fetched, then mapped.
    async fn value(&self, pod: &PodView, admitted: &AdmittedRequest) -> Result<Value, SyncError> {
        let reference = pod.reference_time();
        let not_older_than = reference.checked_sub(self.freshness).unwrap_or(reference);
        let fetched = self.registry.fetch(admitted, Identity::Agent, not_older_than, &self.seen).await?;
        let data = mapping::map(&fetched.payload).map_err(|problem| SyncError::Mapping {
            provider: admitted.request().remote.provider.clone(),
            path: admitted.request().remote.path.clone(),
            problem,
        })?;
        let version = fetched.payload.version().to_owned();
        Ok(Value { data, version, seen_through: fetched.seen_through })
    }
}

fn target_of(pod: &PodView, ask: &Ask) -> String {
    match ask {
        Ok(request) => format!("Secret {}/{}", pod.namespace(), request.secret_name),
        Err(_) => format!("pod {}/{}", pod.namespace(), pod.name()),
    }
}
