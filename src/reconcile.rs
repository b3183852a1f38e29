//! What is done for a pod: the table of contents of the agent.

use std::{
    convert::Infallible,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use jiff::Timestamp;
use kube::runtime::controller::Action;
use tokio::time::Instant;

use crate::{
    annotations,
    changes::Changes,
    clock::{ApiClock, SeenClock},
    error::{Retry, SyncError, chain},
    limits::ByteBudget,
    mapping,
    pod::PodView,
    policy::{AdmittedRequest, Requester, RuleName},
    policy_file::PolicyFile,
    progress::{Ask, Due, Lookup, Progress},
    provider::{Asker, Identity, Registry},
    report::Reporter,
    request,
    target::{Asked, Outcome, Targets, Urgency, Value},
    workload_annotations::{Inherited, WorkloadAnnotations},
};

/// What the steps share.
pub struct Context {
    /// Who may have what.
    pub policy: Arc<PolicyFile>,
    /// The stores.
    pub registry: Arc<Registry>,
    /// What workloads ask for; `None` where that is switched off.
    pub workload_annotations: Option<WorkloadAnnotations>,
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
    /// The API server's clock.
    pub clock: Arc<ApiClock>,
    /// The bound on values between fetch and write.
    pub values: ByteBudget,
    /// How much older than its pod a value may be.
    pub freshness: Duration,
}

/// Serves what is due for a pod, and says when to look at it again. A pod that has what it asked for costs nothing.
///
/// # Errors
/// None: a request that fails waits for its own time, and holds up neither the pod's others nor other pods.
pub async fn reconcile(pod: Arc<PodView>, context: Arc<Context>) -> Result<Action, Infallible> {
    let (asks, from) = match pod.asks() {
        Some(own) => (context.read(own), Place::Pod),
        None => match context.inherited(&pod).await {
            Some(inherited) => {
                let asks = context
                    .read(&inherited.text)
                    .into_iter()
                    .map(|ask| ask.map_err(|error| inherited.says_where(error)));
                (asks.collect(), Place::Workload)
            }
            None => {
                context.progress.idle(&pod);
                return Ok(context.progress.next(&pod));
            }
        },
    };
    let due = context.progress.due(&pod, asks, context.changes.count(), context.clock.now());
    join_all(due.into_iter().map(|due| context.serve(&pod, due, from))).await;
    Ok(context.progress.next(&pod))
}

/// Where the annotation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Pod,
    Workload,
}

impl Context {
    /// What the pod's workload asks for, read once for each pod.
    async fn inherited(&self, pod: &PodView) -> Option<Inherited> {
        let reader = self.workload_annotations.as_ref().filter(|_| pod.may_inherit())?;
        let changes = self.changes.count();
        let seen_at = match self.progress.lookup(pod, changes) {
            Lookup::Known(known) => return known,
            Lookup::Later => return None,
            Lookup::Due { seen_at } => seen_at,
        };
        match reader.of(pod, seen_at).await {
            Ok(found) => {
                self.progress.found(pod, found.clone());
                found
            }
            Err(error) => {
                // Slowly: it concerns every pod of a workload in the cluster.
                let retry = if error.is_forbidden() { Retry::Denied } else { Retry::Transient };
                if self.progress.not_found_out(pod, retry, changes) {
                    let (pod, error) = (pod.name(), chain(&error));
                    tracing::warn!(pod, error, "whether a pod's workload asks for secrets is not known");
                }
                None
            }
        }
    }

    /// What an annotation asks for. The text is a stranger's, so that a parser that panics is an answer, too.
    fn read(&self, annotation: &str) -> Vec<Ask> {
        let parsed = catch_unwind(AssertUnwindSafe(|| request::parse(annotation, self.registry.catalogue())));
        match parsed {
            Ok(Ok(asks)) => asks,
            Ok(Err(error)) => vec![Err(error.into())],
            Err(_) => {
                self.reporter.panicked();
                vec![Err(annotations::invalid("is more than the agent's parser can take; write it more simply").into())]
            }
        }
    }

    /// Tries one request, and settles what has become of it.
    async fn serve(&self, pod: &PodView, due: Due, from: Place) {
        let started = Instant::now();
        let ask = due.ask.clone();
        let outcome = caught(self.sync(pod, &due, from), || {
            self.reporter.panicked();
            SyncError::Panicked { target: target_of(pod, &ask) }
        })
        .await;
        let took = started.elapsed();
        match outcome {
            Ok((outcome, rule)) => {
                let tell = self.progress.done(pod, due, outcome);
                self.reporter.served(pod, &ask, &rule, outcome, took, tell);
            }
            Err(error) => {
                let verdict = self.progress.failed(pod, due, &error);
                self.reporter.failed(pod, &ask, &error, took, verdict);
            }
        }
    }

    /// The steps: request, policy, value (if it is needed), write. Also tells which rule admitted it.
    async fn sync(&self, pod: &PodView, due: &Due, from: Place) -> Result<(Outcome, RuleName), SyncError> {
        let request = due.ask.clone()?;
        let admitted = self.policy.current().admit(request, &Requester::of(pod))?;
        tracing::debug!(namespace = %pod.namespace(), pod = pod.name(), rule = %admitted.rule(), "admitted");
        let mut asked = Asked::by(pod.reference_time(), due.edited_at);
        // A workload that was edited since does not change what its running pods were given.
        asked.gives_way = from == Place::Workload && due.was_there && pod.is_running();
        self.seen.observe(asked.reference);
        let urgency = match due {
            Due { hangs: true, .. } | Due { failures: 1.., .. } => Urgency::Again,
            Due { replayed: true, edited_at: None, seen_at, .. } => Urgency::Replayed { seen_at: *seen_at },
            _ => Urgency::Starting,
        };
        if urgency == Urgency::Again
            && !due.hangs
            && let Some(error) = self.registry.stands_in_the_way(&admitted, Identity::Agent, asked.reference)
        {
            return Err(error.into());
        }
        let value = self.value(pod, asked.reference, &admitted);
        let outcome = self.targets.apply(pod, asked, &admitted, urgency, value).await?;
        Ok((outcome, admitted.rule().clone()))
    }

    /// The value, no older than the pod (or its edit): fetched, then mapped.
    async fn value(&self, pod: &PodView, reference: Timestamp, admitted: &AdmittedRequest) -> Result<Value, SyncError> {
        let asker = Asker { namespace: pod.namespace(), reference, freshness: self.freshness };
        let fetched = self.registry.fetch(admitted, Identity::Agent, &asker, &self.seen).await?;
        let template = &admitted.request().template;
        let reserved = self.values.reserve(mapping::memory_of(template, &fetched.payload)).await;
        let data = mapping::map(template, &fetched.payload).map_err(|problem| SyncError::Mapping {
            provider: admitted.request().remote.provider.clone(),
            path: admitted.request().remote.path.clone(),
            problem,
        })?;
        let version = fetched.payload.version().to_owned();
        Ok(Value { data, version, seen_through: fetched.seen_through, reserved })
    }
}

/// Turns a panic into an error, so that it stays where it happened.
async fn caught<T>(
    work: impl Future<Output = Result<T, SyncError>>,
    panicked: impl FnOnce() -> SyncError,
) -> Result<T, SyncError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err(panicked()))
}

fn target_of(pod: &PodView, ask: &Ask) -> String {
    match ask {
        Ok(request) => format!("Secret {}/{}", pod.namespace(), request.secret_name),
        Err(_) => format!("pod {}/{}", pod.namespace(), pod.name()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::Client;

    use super::*;
    use crate::fake_api::{self, Scene};

    #[tokio::test]
    async fn a_panic_stays_with_its_pod() {
        let scene = Scene::new(Client::new(tower::service_fn(fake_api::secrets), "jasm-system")).await;
        let admission = scene.context.targets.admission();
        let pods = ["broken", "fine"].map(|name| Arc::new(fake_api::pod(name)));
        let both = async {
            let mut outcomes = Vec::new();
            for pod in pods {
                scene.context.progress.applied(&pod);
                outcomes.push(reconcile(pod, Arc::clone(&scene.context)).await.expect("infallible"));
            }
            outcomes
        };
        let outcomes = tokio::select! {
            outcomes = both => outcomes,
            () = admission.watch() => unreachable!("it never ends"),
        };
        assert_ne!(outcomes[0], Action::await_change(), "it is tried again later");
        assert_eq!(outcomes[1], Action::await_change(), "done");
        let metrics = scene.metrics.render();
        for want in [
            "jasm_panics_total 1",
            r#"jasm_syncs_total{provider="aws",result="failed",reason="SecretWriteFailed"} 1"#,
            r#"jasm_syncs_total{provider="aws",result="fresh",reason="SecretSyncSuccess"} 1"#,
        ] {
            assert!(metrics.contains(want), "{want} is not in\n{metrics}");
        }
    }
}
