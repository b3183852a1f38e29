//! The pod of a case, in the state that the case asks for before the agent can see its annotation.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use super::case::Case;
use crate::support::cluster::{PodBuilder, SYNC_ANNOTATION, TestNamespace};
use crate::support::node::AgentNode;

/// The file `NAME.pod`; all of it may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct State {
    phase: Option<String>,
    /// Beside the one of the case.
    annotations: BTreeMap<String, String>,
    service_account: Option<String>,
    /// Its deletion has begun.
    deleting: bool,
    node: Place,
    /// The annotation is taken away after the first Event.
    removed: bool,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Place {
    /// The node of the agent.
    #[default]
    Own,
    /// A node without an agent.
    Other,
    /// Not bound.
    None,
}

/// What becomes of the annotation after the first Event.
pub(super) enum Edit<'a> {
    To(&'a str),
    Removal,
}

impl State {
    /// # Panics
    /// When the file is none.
    pub(super) fn of(case: &Case) -> Self {
        let text = case.pod.as_deref().unwrap_or("{}");
        serde_yaml::from_str(text).unwrap_or_else(|error| panic!("cannot read {}.pod: {error}", case.name))
    }

    /// Makes the pod. The error is the API server's, which may refuse the annotation.
    pub(super) async fn create(
        &self,
        case: &Case,
        namespace: &TestNamespace,
        own: &AgentNode,
        other: &AgentNode,
    ) -> Result<Pod, kube::Error> {
        if let Some(account) = &self.service_account {
            namespace.service_account(account).await;
        }
        let pod = self.builder(namespace, own, other);
        if self.deleting {
            return Ok(self.create_terminating(case, namespace, pod).await);
        }
        let pod = case.text.iter().fold(pod, |pod, text| pod.request(text));
        match &self.phase {
            Some(phase) => Ok(pod.phase(phase).create().await),
            None => pod.try_create().await,
        }
    }

    /// A pod that is being deleted cannot be bound: it is bound, and seen, before it has the annotation.
    async fn create_terminating(&self, case: &Case, namespace: &TestNamespace, pod: PodBuilder<'_>) -> Pod {
        let pod = pod.create().await;
        if let Some(phase) = &self.phase {
            namespace.set_phase(&pod, phase).await;
        }
        namespace.begin_delete_pod(&pod).await;
        namespace.annotate(&pod, SYNC_ANNOTATION, case.text.as_deref().unwrap_or_default()).await
    }

    fn builder<'a>(&self, namespace: &'a TestNamespace, own: &AgentNode, other: &AgentNode) -> PodBuilder<'a> {
        let mut pod = namespace.pod("corpus");
        pod = match self.node {
            Place::Own => pod.on(own),
            Place::Other => pod.on(other),
            Place::None => pod,
        };
        if let Some(account) = &self.service_account {
            pod = pod.service_account(account);
        }
        self.annotations.iter().fold(pod, |pod, (key, value)| pod.annotation(key, value))
    }

    /// What is edited.
    pub(super) fn edit<'a>(&self, case: &'a Case) -> Option<Edit<'a>> {
        case.then.as_deref().map(Edit::To).or(self.removed.then_some(Edit::Removal))
    }
}

impl Edit<'_> {
    pub(super) async fn apply(&self, namespace: &TestNamespace, pod: &Pod) {
        match self {
            Self::To(text) => namespace.annotate(pod, SYNC_ANNOTATION, text).await,
            Self::Removal => namespace.remove_annotation(pod, SYNC_ANNOTATION).await,
        };
    }
}
