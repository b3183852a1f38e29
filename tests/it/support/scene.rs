//! What most tests begin with: a store, a node whose agent is ready, and a namespace.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use super::agent::{Agent, AgentBuilder};
use super::audit::{requests, tally};
use super::cluster::{PodBuilder, TestNamespace};
use super::node::AgentNode;
use super::store::Store;
use super::surroundings::Surroundings;
use super::wait::eventually;

/// What the README shows for a cluster of one tenant.
pub(crate) const ALLOW_ALL: &str = r#"rules:
  - namespaces: ["*"]
    serviceAccounts: ["*"]
    providers: ["*"]
    paths: ["**"]
"#;

/// Where the agent writes how new a value is.
const SYNCED_THROUGH: &str = "jasm.codnod.io/synced-through";

/// The first agent of a test and what it works with.
pub(crate) struct Scene {
    pub(crate) surroundings: &'static Surroundings,
    pub(crate) namespace: TestNamespace,
    pub(crate) builder: AgentBuilder,
    pub(crate) agent: Agent,
    /// Last, so that it outlives the agent.
    pub(crate) store: Store,
}

impl Scene {
    /// An agent whose policy allows all, with the defaults of every flag.
    pub(crate) async fn set() -> Self {
        Self::set_with(|builder| builder).await
    }

    /// The same with changes.
    pub(crate) async fn set_with(change: impl FnOnce(AgentBuilder) -> AgentBuilder) -> Self {
        Self::set_with_store(|builder, _| change(builder)).await
    }

    /// The same with a store that is set up before the agent starts.
    pub(crate) async fn set_with_store(change: impl FnOnce(AgentBuilder, &Store) -> AgentBuilder) -> Self {
        Self::set_on(AgentNode::create(Surroundings::get().await).await, change).await
    }

    /// An agent in central mode, with the rights and policies of that mode. Its masters' namespace is shared by all tests.
    pub(crate) async fn central(change: impl FnOnce(AgentBuilder) -> AgentBuilder) -> Self {
        let surroundings = Surroundings::central().await;
        let node = AgentNode::create(surroundings).await;
        Self::set_in(surroundings, node, |builder, _| change(builder.env("JASM_MODE", "central"))).await
    }

    /// An agent that may ask for tokens of pods' service accounts.
    pub(crate) async fn pod_identity(change: impl FnOnce(AgentBuilder, &Store) -> AgentBuilder) -> Self {
        let surroundings = Surroundings::pod_identity().await;
        Self::set_in(surroundings, AgentNode::create(surroundings).await, change).await
    }

    /// The same on a node that was there before.
    pub(crate) async fn set_on(node: AgentNode, change: impl FnOnce(AgentBuilder, &Store) -> AgentBuilder) -> Self {
        Self::set_in(Surroundings::get().await, node, change).await
    }

    async fn set_in(
        surroundings: &'static Surroundings,
        node: AgentNode,
        change: impl FnOnce(AgentBuilder, &Store) -> AgentBuilder,
    ) -> Self {
        let store = Store::start(surroundings).await;
        let builder = change(AgentBuilder::on(node, surroundings, &store).policy(ALLOW_ALL), &store);
        let mut agent = builder.spawn();
        agent.ready().await;
        let namespace = TestNamespace::create(surroundings).await;
        Self { surroundings, namespace, builder, agent, store }
    }

    /// A pod on the agent's node.
    pub(crate) fn pod(&self, name: &str) -> PodBuilder<'_> {
        self.namespace.pod(name).on(self.builder.node())
    }

    /// The requests that the agent made in the test's namespace so far, Events aside: they are sent behind the work.
    pub(crate) async fn calls(&self) -> BTreeMap<String, usize> {
        let all = requests(self.surroundings, self.builder.node().name()).await;
        tally(all.iter().filter(|request| request.namespace == self.namespace.name() && request.resource != "events"))
    }

    /// Waits until the agent made exactly these.
    pub(crate) async fn wait_for_calls<const N: usize>(&self, wanted: [(&str, usize); N]) {
        let wanted = calls(wanted);
        eventually(&format!("the requests {wanted:?}"), async || {
            let found = self.calls().await;
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }

    /// Syncs a pod of its own, so that all that the agent saw before has been worked on.
    pub(crate) async fn settle(&self) {
        let path = self.store.seed("settle", r#"{"settled":"yes"}"#).await;
        let elsewhere = TestNamespace::create(self.surroundings).await;
        elsewhere.pod("settle").on(self.builder.node()).asks(&path, "settle").create().await;
        elsewhere.wait_for_secret("settle").await;
    }

    /// The digest of the policy in force, by the agent's metric.
    pub(crate) async fn policy_digest(&self) -> String {
        let metrics = self.agent.get("/metrics").await.text();
        let line = metrics.lines().find(|line| line.starts_with("jasm_policy_info{"));
        line.unwrap_or_else(|| panic!("no jasm_policy_info in {metrics}")).to_owned()
    }

    /// Waits until `/metrics` has such a line.
    pub(crate) async fn wait_for_metric(&self, wanted: &str) {
        eventually(&format!("the metric {wanted}"), async || {
            let metrics = self.agent.get("/metrics").await.text();
            if metrics.lines().any(|line| line.starts_with(wanted)) { Ok(()) } else { Err(metrics) }
        })
        .await;
    }

    /// Waits until the agent's log has such a line.
    pub(crate) async fn wait_for_log(&self, awaited: &str, matches: impl Fn(&Value) -> bool) -> Value {
        eventually(awaited, async || {
            self.agent.log().into_iter().find(|line| matches(line)).ok_or_else(|| self.agent.tail())
        })
        .await
    }
}

/// Requests by kind, as [`Scene::calls`] gives them.
pub(crate) fn calls<const N: usize>(wanted: [(&str, usize); N]) -> BTreeMap<String, usize> {
    wanted.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect()
}

/// Waits until a pod created now is newer than the Secret's value: times of the API server have whole seconds.
pub(crate) async fn later_than(secret: &Secret) {
    let through: Timestamp = annotation(secret, SYNCED_THROUGH).parse().expect("a time stands on the Secret");
    let next = through.as_second() + 1;
    eventually("the next second", async || match Timestamp::now().as_second() {
        now if now >= next => Ok(()),
        now => Err(format!("second {now} of {next}")),
    })
    .await;
}

/// An annotation of a Secret; empty where it is not there.
pub(crate) fn annotation<'a>(secret: &'a Secret, key: &str) -> &'a str {
    secret.metadata.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str).unwrap_or_default()
}
