//! A scripted API server, for what a real one does too seldom: replies that panic, and watches that break.

use std::{convert::Infallible, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};

use crate::{
    changes::Changes,
    clock::ApiClock,
    config::Mode,
    error::BoxError,
    limits::ByteBudget,
    metrics::Metrics,
    pod::{PodView, SYNC_ANNOTATION},
    policy_file::PolicyFile,
    provider::{Registry, read_instances},
    reconcile::Context,
    report::Reporter,
    request::ObjectKind,
    service_account::ServiceAccounts,
    target::{TargetConfig, Targets},
    workload::Workloads,
};

/// What a scripted API server answers.
pub(crate) type Reply = Result<Response<UnsyncBoxBody<Bytes, Infallible>>, BoxError>;

/// An answer with this status and body.
pub(crate) fn reply(code: u16, body: impl BodyExt<Data = Bytes, Error = Infallible> + Send + 'static) -> Reply {
    Ok(Response::builder().status(code).body(body.boxed_unsync())?)
}

/// An answer with a JSON body.
pub(crate) fn json_reply(code: u16, body: &Value) -> Reply {
    reply(code, Full::new(Bytes::from(body.to_string())))
}

/// Secrets, all of them fresh, with every policy in force. The answer about `broken` panics while it is read.
pub(crate) async fn secrets(request: Request<Body>) -> Reply {
    let (probe, path) = (request.method() == "PUT", request.uri().path().to_owned());
    let sent: Value = serde_json::from_slice(&request.into_body().collect_bytes().await?)?;
    if path.ends_with("/secrets/broken") {
        let body = Full::new(Bytes::from_static(b"x")).map_frame(|frame| {
            assert!(frame.is_trailers(), "planted");
            frame
        });
        return reply(403, body);
    }
    let (annotations, labels) = (&sent["metadata"]["annotations"], &sent["metadata"]["labels"]);
    let (policy, said) = if probe {
        ("ownership", "jasm:probe rv=1 source=v1:aws:a through=1970-01-01T00:00:00Z since= workload= version=")
    } else if annotations["jasm.codnod.io/probe"] == "true" {
        ("ownership", "jasm:probe-on-create")
    } else if labels["jasm.codnod.io/check"] == "shape" {
        ("shape", "jasm:shape")
    } else if annotations["jasm.codnod.io/node"] == "jasm-no-such-node" {
        ("node", "jasm:node")
    } else if annotations["jasm.codnod.io/source"] == "v1:check:marker" {
        ("marker", "jasm:marker")
    } else {
        ("namespaces", "jasm:namespace")
    };
    let by = format!("ValidatingAdmissionPolicy 'jasm-agent-{policy}' with binding 'jasm-agent-{policy}'");
    let message = format!("secrets \"x\" is forbidden: {by} denied request: {said}");
    json_reply(403, &json!({"kind": "Status", "reason": "Forbidden", "code": 403, "message": message}))
}

/// A pod that asks for a Secret of its own name, on the wire.
pub(crate) fn pod_json(name: &str) -> Value {
    let request = json!({"provider": "aws", "path": "a", "secretName": name}).to_string();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
        "name": name, "namespace": "team-a", "uid": name, "resourceVersion": "7",
        "annotations": {SYNC_ANNOTATION: request},
    }})
}

/// The same as the agent sees it.
pub(crate) fn pod(name: &str) -> PodView {
    serde_json::from_value(pod_json(name)).expect("a pod")
}

/// Everything between watch and API server, with a policy that allows all.
pub(crate) struct Scene {
    pub(crate) context: Arc<Context>,
    pub(crate) metrics: Arc<Metrics>,
    folder: PathBuf,
}

impl Scene {
    pub(crate) async fn new(client: Client) -> Self {
        let folder = std::env::temp_dir().join(format!("jasm-scene-{:x}", fastrand::u64(..)));
        std::fs::create_dir(&folder).expect("a folder");
        let (policy, providers) = (folder.join("policy.yaml"), folder.join("providers.yaml"));
        let rule = "rules: [{namespaces: ['*'], serviceAccounts: ['*'], providers: ['*'], paths: ['**']}]";
        std::fs::write(&policy, rule).expect("a policy");
        std::fs::write(&providers, "providers: [{name: aws, kind: aws-secretsmanager, region: x}]").expect("providers");
        let (metrics, changes) = (Arc::new(Metrics::default()), Arc::new(Changes::default()));
        let instances = read_instances(&providers).expect("instances");
        let (reporter, _) = Reporter::new(client.clone(), "node-1", Arc::clone(&metrics));
        let target = TargetConfig {
            node: "node-1".into(),
            own_namespace: "jasm-system".into(),
            freshness: Duration::ZERO,
            kinds: &[ObjectKind::Secret],
            tokens: false,
        };
        let clock = Arc::new(ApiClock::default());
        let context = Context {
            policy: Arc::new(PolicyFile::load(&policy, Arc::clone(&metrics), Arc::clone(&changes)).expect("a policy")),
            registry: Arc::new(
                Registry::new(Mode::Direct, instances, Arc::clone(&metrics), Arc::clone(&changes))
                    .await
                    .expect("a registry"),
            ),
            masters: None,
            service_accounts: ServiceAccounts::new(client.clone(), "node-1", Arc::clone(&changes)),
            workload_annotations: None,
            targets: Targets::new(
                client,
                Workloads::by_names(),
                target,
                Arc::clone(&clock),
                Arc::clone(&metrics),
                Arc::clone(&changes),
            ),
            reporter,
            progress: Arc::default(),
            changes,
            seen: Arc::default(),
            clock,
            values: ByteBudget::for_values(),
            freshness: Duration::ZERO,
        };
        Self { context: Arc::new(context), metrics, folder }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
