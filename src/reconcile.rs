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
    error::SyncError,
    limits::ByteBudget,
    mapping,
    pod::PodView,
    policy::{AdmittedRequest, Requester},
    policy_file::PolicyFile,
    progress::{Ask, Due, Progress},
    provider::{Identity, Registry},
    report::Reporter,
    request,
    target::{Asked, Outcome, Targets, Urgency, Value},
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
    let Some(annotation) = pod.asks() else {
        context.progress.idle(pod.uid());
        return Ok(Action::await_change());
    };
    let asks = context.read(annotation);
    let due = context.progress.due(&pod, asks, context.changes.count(), context.clock.now());
    join_all(due.into_iter().map(|due| context.serve(&pod, due))).await;
    Ok(context.progress.next(&pod))
}

impl Context {
    /// What an annotation asks for. The text is a stranger's, so that a parser that panics is an answer, too.
    fn read(&self, annotation: &str) -> Vec<Ask> {
        let parsed = catch_unwind(AssertUnwindSafe(|| request::parse(annotation, self.registry.catalogue())));
        match parsed {
            Ok(Ok(requests)) => requests.into_iter().map(Ok).collect(),
            Ok(Err(error)) => vec![Err(error)],
            Err(_) => {
                self.reporter.panicked();
                vec![Err(annotations::invalid("is more than the agent's parser can take; write it more simply").into())]
            }
        }
    }

    /// Tries one request, and settles what has become of it.
    async fn serve(&self, pod: &PodView, due: Due) {
        let started = Instant::now();
        let ask = due.ask.clone();
        let outcome = caught(self.sync(pod, &due), || {
            self.reporter.panicked();
            SyncError::Panicked { target: target_of(pod, &ask) }
        })
        .await;
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
        let asked = Asked::by(pod.reference_time(), due.edited_at);
        self.seen.observe(asked.reference);
        let urgency = if due.replayed || due.failures > 0 { Urgency::Replayed } else { Urgency::Starting };
        let value = self.value(asked.reference, &admitted);
        self.targets.apply(pod, asked, &admitted, urgency, value).await
    }

    /// The value, no older than the pod (or its edit): fetched, then mapped.
    async fn value(&self, reference: Timestamp, admitted: &AdmittedRequest) -> Result<Value, SyncError> {
        let not_older_than = reference.checked_sub(self.freshness).unwrap_or(reference);
        let fetched = self.registry.fetch(admitted, Identity::Agent, not_older_than, &self.seen).await?;
        let reserved = self.values.reserve(mapping::memory_of(&fetched.payload)).await;
        let data = mapping::map(&fetched.payload).map_err(|problem| SyncError::Mapping {
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
    use std::path::PathBuf;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
    use kube::{Client, client::Body};
    use serde_json::json;

    use super::*;
    use crate::{error::BoxError, metrics::Metrics, provider::read_instances, target::TargetConfig};

    /// An API server whose policies are in force and on which every Secret is fresh; its reply about `broken` panics
    /// while it is read.
    fn api() -> Client {
        let service = tower::service_fn(|request: Request<Body>| async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let sent = request.into_body().collect_bytes().await?;
            let sent: serde_json::Value = serde_json::from_slice(&sent)?;
            if path.ends_with("/secrets/broken") {
                let body = Full::new(Bytes::from_static(b"x")).map_frame(|frame| {
                    assert!(frame.is_trailers(), "planted");
                    frame
                });
                return reply(body);
            }
            let (policy, said) = match (method.as_str(), &sent["metadata"]) {
                ("PUT", _) => (
                    "ownership",
                    "jasm:probe rv=1 source=v1:aws:a through=1970-01-01T00:00:00Z since= workload= version=",
                ),
                (_, meta) if meta["annotations"]["jasm.codnod.io/probe"] == "true" => {
                    ("ownership", "jasm:probe-on-create")
                }
                (_, meta) if meta["labels"]["jasm.codnod.io/check"] == "shape" => ("shape", "jasm:shape"),
                (_, meta) if meta["annotations"]["jasm.codnod.io/node"] == "jasm-no-such-node" => ("node", "jasm:node"),
                _ => ("namespaces", "jasm:namespace"),
            };
            let message = format!(
                "secrets \"x\" is forbidden: ValidatingAdmissionPolicy 'jasm-agent-{policy}' with binding 'jasm-agent-{policy}' denied request: {said}"
            );
            let status = json!({"kind": "Status", "reason": "Forbidden", "code": 403, "message": message});
            reply(Full::new(Bytes::from(status.to_string())))
        });
        Client::new(service, "jasm-system")
    }

    fn reply(
        body: impl BodyExt<Data = Bytes, Error = Infallible> + Send + 'static,
    ) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, BoxError> {
        Ok(Response::builder().status(403).body(body.boxed_unsync())?)
    }

    struct Files(PathBuf);

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    async fn context() -> (Arc<Context>, Arc<Metrics>, Files) {
        let files = Files(std::env::temp_dir().join(format!("jasm-reconcile-{:x}", fastrand::u64(..))));
        std::fs::create_dir(&files.0).expect("a folder");
        let (policy, providers) = (files.0.join("policy.yaml"), files.0.join("providers.yaml"));
        let rule = "rules: [{namespaces: ['*'], serviceAccounts: ['*'], providers: ['*'], paths: ['**']}]";
        std::fs::write(&policy, rule).expect("a policy");
        std::fs::write(&providers, "providers: [{name: aws, kind: aws-secretsmanager, region: x}]").expect("providers");
        let (metrics, changes) = (Arc::new(Metrics::default()), Arc::new(Changes::default()));
        let registry = Registry::new(read_instances(&providers).expect("instances"), Arc::clone(&metrics)).await;
        let (reporter, _) = Reporter::new(api(), "node-1", Arc::clone(&metrics));
        let target =
            TargetConfig { node: "node-1".into(), own_namespace: "jasm-system".into(), freshness: Duration::ZERO };
        let clock = Arc::new(ApiClock::default());
        let context = Context {
            clock: Arc::clone(&clock),
            values: ByteBudget::for_values(),
            policy: Arc::new(PolicyFile::load(&policy, Arc::clone(&metrics), Arc::clone(&changes)).expect("a policy")),
            registry: Arc::new(registry.expect("a registry")),
            targets: Targets::new(api(), target, clock, Arc::clone(&metrics), Arc::clone(&changes)),
            reporter,
            progress: Arc::default(),
            changes,
            seen: SeenClock::default(),
            freshness: Duration::ZERO,
        };
        (Arc::new(context), metrics, files)
    }

    fn pod(secret: &str) -> Arc<PodView> {
        let request = json!({"provider": "aws", "path": "a", "secretName": secret}).to_string();
        let pod = json!({"metadata": {
            "name": secret, "namespace": "team-a", "uid": secret, "annotations": {crate::pod::SYNC_ANNOTATION: request},
        }});
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[tokio::test]
    async fn a_panic_stays_with_its_pod() {
        let (context, metrics, _files) = context().await;
        let admission = context.targets.admission();
        for name in ["broken", "fine"] {
            context.progress.applied(&pod(name));
        }
        let both = async {
            let broken = reconcile(pod("broken"), Arc::clone(&context)).await;
            let fine = reconcile(pod("fine"), Arc::clone(&context)).await;
            (broken, fine)
        };
        let (broken, fine) = tokio::select! {
            outcomes = both => outcomes,
            () = admission.watch() => unreachable!("it never ends"),
        };
        assert_ne!(broken.expect("infallible"), Action::await_change(), "it is tried again later");
        assert_eq!(fine.expect("infallible"), Action::await_change(), "done");
        let metrics = metrics.render();
        for want in [
            "jasm_panics_total 1",
            r#"jasm_syncs_total{provider="aws",result="failed",reason="SecretWriteFailed"} 1"#,
            r#"jasm_syncs_total{provider="aws",result="fresh",reason="SecretSyncSuccess"} 1"#,
        ] {
            assert!(metrics.contains(want), "{want} is not in\n{metrics}");
        }
    }
}
