//! A store, an agent that asks it and a namespace, with the steps that cases are made of.

use std::collections::BTreeMap;
use std::sync::Mutex;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use serde_json::{Value, json};

use super::Subject;
use crate::support::agent::{Agent, AgentBuilder};
use crate::support::canary::{Canary, random_values};
use crate::support::cluster::TestNamespace;
use crate::support::scene::ALLOW_ALL;
use crate::support::store::Store;
use crate::support::surroundings::Surroundings;
use crate::support::unique;
use crate::support::wait::eventually;

pub(super) struct Bench {
    pub(super) subject: Box<dyn Subject>,
    pub(super) namespace: TestNamespace,
    builder: AgentBuilder,
    agent: Agent,
    /// All values that were ever put: they must not stand anywhere but in Secrets.
    values: Mutex<Vec<String>>,
}

impl Bench {
    pub(super) async fn set(subject: Box<dyn Subject>) -> Self {
        let surroundings = match subject.by_pods() {
            true => Surroundings::pod_identity().await,
            false => Surroundings::get().await,
        };
        // Not asked; an agent's builder wants one.
        let nobody = Store::start(surroundings).await;
        let builder = AgentBuilder::new(surroundings, &nobody).await.policy(ALLOW_ALL).log_level("trace");
        let builder = subject.set_up(builder).await;
        let mut agent = builder.spawn();
        agent.ready().await;
        let namespace = TestNamespace::create(surroundings).await;
        subject.let_in(&namespace).await;
        Self { subject, namespace, builder, agent, values: Mutex::default() }
    }

    /// A value that stands nowhere else.
    pub(super) fn value(&self) -> String {
        let value = random_values(1).remove(0);
        self.values.lock().expect("no panic while it is held").push(value.clone());
        value
    }

    /// A new secret `{"K": VALUE}`, and the value.
    pub(super) async fn seed(&self) -> (String, String) {
        let (path, value) = (self.subject.path(), self.value());
        self.subject.put(&path, &json!({"K": value})).await;
        (path, value)
    }

    /// A pod that asks for a path by a Secret that nobody used.
    pub(super) async fn ask(&self, path: &str) -> (Pod, String) {
        self.ask_with(path, json!({})).await
    }

    /// The same with more fields in the annotation.
    pub(super) async fn ask_with(&self, path: &str, more: Value) -> (Pod, String) {
        let name = unique("case");
        (self.ask_into(&name, path, more).await, name)
    }

    /// The same by a Secret of this name.
    pub(super) async fn ask_into(&self, secret: &str, path: &str, more: Value) -> Pod {
        let mut request = json!({"provider": self.subject.kind(), "path": path, "secretName": secret});
        for fields in [self.subject.fields(), more] {
            for (field, value) in fields.as_object().into_iter().flatten() {
                request[field] = value.clone();
            }
        }
        self.namespace.pod(&unique("case")).on(self.builder.node()).request(&request.to_string()).create().await
    }

    /// Waits until a Secret is `{"K": VALUE}`.
    pub(super) async fn wait_for(&self, secret: &str, value: &str) -> Secret {
        self.namespace.wait_for_data(secret, [("K", value)]).await
    }

    /// What a pod is told about a fetch that failed.
    pub(super) async fn failure(&self, pod: &Pod) -> String {
        self.namespace.wait_for_event(pod, "SecretFetchFailed").await.note.unwrap_or_default()
    }

    /// The same, which has to say this.
    pub(super) async fn wait_for_failure(&self, pod: &Pod, wanted: &str) {
        eventually(&format!("an Event that says {wanted:?}"), async || {
            let events = self.namespace.events(pod).await;
            let notes: Vec<String> = events.into_iter().filter_map(|event| event.note).collect();
            if notes.iter().any(|note| note.contains(wanted)) { Ok(()) } else { Err(format!("{notes:?}")) }
        })
        .await;
    }

    /// Removes a pod, so that nobody waits for what it asked.
    pub(super) async fn gone(&self, pod: &Pod) {
        self.namespace.delete_pod(pod).await;
    }

    /// Pods that come now are newer than all that came before: times of the API server have whole seconds.
    pub(super) async fn next_second(&self) {
        let next = Timestamp::now().as_second() + 1;
        eventually("the next second", async || match Timestamp::now().as_second() {
            now if now >= next => Ok(()),
            now => Err(format!("second {now} of {next}")),
        })
        .await;
    }

    /// No value stands in the agent's log, at its most talkative, nor in an Event, nor among the metrics.
    pub(super) async fn assert_no_value_anywhere(&self) {
        let values = self.values.lock().expect("no panic while it is held").clone();
        assert!(values.len() > 10, "values were put");
        let canary = Canary::new(values);
        canary.assert_absent("the log", self.agent.text());
        canary.assert_absent("/metrics", self.agent.get("/metrics").await.text());
        let events: BTreeMap<_, _> =
            self.namespace.all_events().await.into_iter().map(|event| (event.metadata.name, event.note)).collect();
        canary.assert_absent("the Events", format!("{events:?}"));
    }
}
