//! Central mode: one master for each source, and replicas where pods ask for them.

mod flow;
mod modes;
mod parameters;
mod races;
mod records;
mod trouble;

use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::support::agent::{Agent, AgentBuilder};
/// All tests of a run share the masters' namespace, each with paths of its own.
use crate::support::audit::MASTERS_NAMESPACE as MASTERS;
use crate::support::audit::{requests, tally};
use crate::support::cluster::{PodBuilder, TestNamespace};
use crate::support::node::AgentNode;
use crate::support::scene::{ALLOW_ALL, Scene};
use crate::support::surroundings::Surroundings;
use crate::support::unique;
use crate::support::wait::eventually;

/// The annotation by which a test finds the masters of its paths.
const SOURCE_PATH: &str = "jasm.codnod.io/source-path";
/// So that seconds which pass during a test make no value too old.
const FRESH: &str = "10m";

/// An administrator's access to the masters' namespace.
async fn masters<K>() -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(Surroundings::central().await.admin().await, MASTERS)
}

/// The masters of a path, of one kind.
async fn masters_of<K>(path: &str) -> Vec<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let all = masters::<K>().await.list(&ListParams::default()).await.expect("a list of masters");
    let of_path = |master: &K| master.annotations().get(SOURCE_PATH).is_some_and(|it| it == path);
    all.items.into_iter().filter(of_path).collect()
}

/// The one master of a path, which is a Secret.
async fn master_of(path: &str) -> Secret {
    let mut found = masters_of::<Secret>(path).await;
    let names: Vec<String> = found.iter().map(|master| master.name_any()).collect();
    assert_eq!(names.len(), 1, "masters of {path}: {names:?}");
    found.remove(0)
}

/// An agent on another node, of the same store.
struct Second {
    builder: AgentBuilder,
    agent: Agent,
}

impl Second {
    async fn start(scene: &Scene, change: impl FnOnce(AgentBuilder) -> AgentBuilder) -> Self {
        let node = AgentNode::create(scene.surroundings).await;
        let builder = AgentBuilder::on(node, scene.surroundings, &scene.store).policy(ALLOW_ALL);
        let builder = change(builder.env("JASM_MODE", "central"));
        let mut agent = builder.spawn();
        agent.ready().await;
        Self { builder, agent }
    }

    fn pod<'a>(&self, namespace: &'a TestNamespace, name: &str) -> PodBuilder<'a> {
        namespace.pod(name).on(self.builder.node())
    }
}

/// What the agent on this node asked the API server about Secrets and ConfigMaps, by namespace; records aside.
async fn calls(scene: &Scene, node: &AgentNode, namespace: &str) -> BTreeMap<String, usize> {
    let all = requests(scene.surroundings, node.name()).await;
    let about = |resource: &str| matches!(resource, "secrets" | "configmaps");
    let is_record =
        |uri: &str, name: &str| uri.contains("/configmaps") && (name.starts_with("replicas-") || name.is_empty());
    let asked = all.iter().filter(|request| {
        let watches = matches!(request.verb.as_str(), "list" | "watch");
        about(&request.resource)
            && request.namespace == namespace
            && !watches
            && !is_record(&request.uri, &request.name)
    });
    tally(asked)
}

/// Waits for a ConfigMap.
async fn wait_for_config_map(namespace: &TestNamespace, name: &str) -> ConfigMap {
    eventually(&format!("the ConfigMap {}/{name}", namespace.name()), async || {
        let found = namespace.api::<ConfigMap>().get_opt(name).await.map_err(|error| error.to_string())?;
        found.ok_or_else(|| "that it is not there".to_owned())
    })
    .await
}

/// Returns when the audit log has all that was answered before.
async fn settled(scene: &Scene) {
    requests(scene.surroundings, scene.builder.node().name()).await;
}

/// A secret under a new name that does not end as if in a hash, so that its master is called after it alone.
async fn seed(scene: &Scene, prefix: &str, text: &str) -> String {
    let path = format!("{}-x", unique(prefix));
    scene.store.put(&path, text).await;
    path
}
