//! What the tests of a run share: a control plane with the project's own manifests on it.

use std::ops::Deref;
use std::sync::OnceLock;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

pub(crate) use super::audit::MASTERS_NAMESPACE;
use super::control_plane::ControlPlane;
use super::node::{AGENT_NAMESPACE, AgentNode, agents_secret};
use super::{object, say, wait};

/// How long the API server may take to put admission policies into force.
const POLICIES_LIMIT: Duration = Duration::from_secs(60);

type Shared = OnceLock<Result<Surroundings, String>>;

/// The manifests of the default mode, those of central mode, and those with the right to pods' tokens.
const DIRECT: &str = "rbac";
const CENTRAL: &str = "tests/layers/central-rights";
const POD_IDENTITY: &str = "tests/layers/pod-identity";

/// A control plane with `rbac/` applied and its admission policies in force.
#[derive(Debug)]
pub(crate) struct Surroundings(ControlPlane);

impl Surroundings {
    /// The surroundings that all tests of the run share; whoever asks first starts them.
    ///
    /// # Panics
    /// When they did not start, in every test that asks, with the same message.
    pub(crate) async fn get() -> &'static Self {
        static SHARED: Shared = Shared::new();
        Self::shared(&SHARED, DIRECT).await
    }

    /// The same with the component `central` in place: other rights, and policies that also look at ConfigMaps.
    pub(crate) async fn central() -> &'static Self {
        static SHARED: Shared = Shared::new();
        Self::shared(&SHARED, CENTRAL).await
    }

    /// The same with the component `pod-identity` in place.
    pub(crate) async fn pod_identity() -> &'static Self {
        static SHARED: Shared = Shared::new();
        Self::shared(&SHARED, POD_IDENTITY).await
    }

    async fn shared(shared: &'static Shared, manifests: &'static str) -> &'static Self {
        // On a thread of its own: a test that gives up must not cut short what the others wait for.
        let shared = tokio::task::spawn_blocking(|| shared.get_or_init(|| Self::start(manifests))).await;
        match shared.expect("starting the surroundings panicked; its message is above") {
            Ok(surroundings) => surroundings,
            Err(message) => panic!("the test surroundings did not start: {message}"),
        }
    }

    /// Surroundings for one test alone, which may break them. They end when this is dropped.
    pub(crate) async fn own() -> Self {
        let started = tokio::task::spawn_blocking(|| Self::start(DIRECT)).await;
        started.expect("starting surroundings panicked; its message is above").unwrap_or_else(|message| {
            panic!("the test's own surroundings did not start: {message}");
        })
    }

    /// Blocks until everything is there.
    fn start(manifests: &str) -> Result<Self, String> {
        let control_plane = ControlPlane::start()?;
        say(&format!("applying {manifests} and waiting for its admission policies"));
        control_plane.kubectl(&["apply", "--filename", "daemonset/base/namespace.yaml"])?;
        control_plane.kubectl(&["apply", "--kustomize", manifests])?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("no async runtime: {error}"))?;
        runtime.block_on(policies_in_force(&control_plane))?;
        Ok(Self(control_plane))
    }
}

impl Deref for Surroundings {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        &self.0
    }
}

/// Waits until each policy refuses, by its name, a dry-run write that only it can refuse.
async fn policies_in_force(control_plane: &ControlPlane) -> Result<(), String> {
    let node = AgentNode::create(control_plane).await;
    let secrets: Api<Secret> = Api::namespaced(node.client(control_plane).await, AGENT_NAMESPACE);
    for (policy, check) in checks(node.name()) {
        let secret: Secret = object(check);
        wait::try_within(POLICIES_LIMIT, &format!("a refusal by {policy}"), async || {
            match secrets.create(&PostParams { dry_run: true, ..PostParams::default() }, &secret).await {
                Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains(policy) => Ok(()),
                Err(error) => Err(format!("another refusal: {error}")),
                Ok(_) => Err("that the write was accepted".to_owned()),
            }
        })
        .await?;
    }
    Ok(())
}

/// One write for each policy, valid but for what that policy watches.
pub(crate) fn checks(node: &str) -> [(&'static str, Value); 5] {
    let valid = agents_secret(node, "jasm-admission-check");
    let mut probe = valid.clone();
    probe["metadata"]["annotations"]["jasm.codnod.io/probe"] = json!("true");
    let mut by_anybody = valid.clone();
    by_anybody["metadata"]["annotations"]["jasm.codnod.io/source"] = json!("v1:check:marker");
    let mut misshapen = valid;
    misshapen["metadata"]["labels"]["jasm.codnod.io/check"] = json!("shape");
    [
        ("jasm-agent-ownership", probe),
        ("jasm-agent-shape", misshapen),
        ("jasm-agent-node", agents_secret("jasm-no-such-node", "jasm-admission-check")),
        ("jasm-agent-namespaces", agents_secret(node, "jasm-admission-check-namespaces")),
        ("jasm-agent-marker", by_anybody),
    ]
}
