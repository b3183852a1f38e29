//! Pods of a test. No kubelet runs: a pod's status is what the test makes of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Binding, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::super::node::AgentNode;
use super::super::object;
use super::{STAYS, SYNC_ANNOTATION, TestNamespace, Workload};

/// A pod that is to be created.
#[must_use = "nothing is created before `create`"]
pub(crate) struct PodBuilder<'a> {
    namespace: &'a TestNamespace,
    name: String,
    node: Option<String>,
    service_account: Option<String>,
    annotations: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    owners: Vec<OwnerReference>,
    status: Option<Value>,
    restricted: bool,
}

impl PodBuilder<'_> {
    /// The node it is bound to; without one it waits for a scheduler that does not run.
    pub(crate) fn on(mut self, node: &AgentNode) -> Self {
        self.node = Some(node.name().to_owned());
        self
    }

    /// Asks for one secret of AWS Secrets Manager, in the form that most users write.
    pub(crate) fn asks(self, path: &str, secret_name: &str) -> Self {
        self.request(&json!({"provider": "aws-secretsmanager", "path": path, "secretName": secret_name}).to_string())
    }

    /// The text of the annotation with which a pod asks.
    pub(crate) fn request(self, text: &str) -> Self {
        self.annotation(SYNC_ANNOTATION, text)
    }

    /// Any other annotation.
    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A label.
    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A service account other than `default`; it has to be there.
    pub(crate) fn service_account(mut self, name: &str) -> Self {
        self.service_account = Some(name.to_owned());
        self
    }

    /// The controller that the pod belongs to.
    pub(crate) fn owned_by(mut self, owner: &Workload) -> Self {
        self.owners.push(owner.reference());
        self
    }

    /// The phase that it has before it is bound, as in `Succeeded`: the node's agent never sees it in another.
    pub(crate) fn phase(self, phase: &str) -> Self {
        self.status(json!({"phase": phase}))
    }

    /// Any status that it has before it is bound.
    pub(crate) fn status(mut self, status: Value) -> Self {
        self.status = Some(status);
        self
    }

    /// As the Pod Security level `restricted` wants it.
    pub(crate) fn restricted(mut self) -> Self {
        self.restricted = true;
        self
    }

    /// Creates the pod, in one request (but for a status, which takes three).
    pub(crate) async fn create(self) -> Pod {
        let node = if self.status.is_some() { None } else { self.node.clone() };
        let created: Pod = self.namespace.add(self.json(node.as_deref())).await;
        let Some(status) = self.status else { return created };
        let pod = self.namespace.set_status(&created, status).await;
        match self.node {
            Some(node) => self.namespace.bind_to(&pod, &node).await,
            None => pod,
        }
    }

    /// Creates a pod without a status, where the API server takes it.
    pub(crate) async fn try_create(self) -> Result<Pod, kube::Error> {
        assert!(self.status.is_none(), "a status is set behind the creation");
        let pods: Api<Pod> = self.namespace.api();
        pods.create(&PostParams::default(), &object(self.json(self.node.as_deref()))).await
    }

    fn json(&self, node: Option<&str>) -> Value {
        let mut pod = json!({
            "metadata": {
                "name": self.name,
                "annotations": self.annotations,
                "labels": self.labels,
                "ownerReferences": self.owners,
            },
            "spec": {"containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
        });
        for (field, value) in [("nodeName", node), ("serviceAccountName", self.service_account.as_deref())] {
            if let Some(value) = value {
                pod["spec"][field] = json!(value);
            }
        }
        if self.restricted {
            pod["spec"]["securityContext"] =
                json!({"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}});
            pod["spec"]["containers"][0]["securityContext"] =
                json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        }
        pod
    }
}

impl TestNamespace {
    /// A pod, to be created.
    pub(crate) fn pod(&self, name: &str) -> PodBuilder<'_> {
        PodBuilder {
            namespace: self,
            name: name.to_owned(),
            node: None,
            service_account: None,
            annotations: BTreeMap::new(),
            labels: BTreeMap::new(),
            owners: Vec::new(),
            status: None,
            restricted: false,
        }
    }

    async fn bind_to(&self, pod: &Pod, node: &str) -> Pod {
        let name = pod.name_any();
        let binding: Binding = object(json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": node}}));
        let pods: Api<Pod> = self.api();
        let bound: Result<Value, _> = pods.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        bound.unwrap_or_else(|error| panic!("cannot bind the pod {}/{name} to {node}: {error}", self.name()));
        pods.get(&name).await.unwrap_or_else(|error| panic!("cannot read the pod {}/{name}: {error}", self.name()))
    }

    /// Sets an annotation of a live pod.
    pub(crate) async fn annotate(&self, pod: &Pod, key: &str, value: &str) -> Pod {
        self.edit_pod(pod, json!({"metadata": {"annotations": {key: value}}})).await
    }

    /// Removes an annotation of a live pod.
    pub(crate) async fn remove_annotation(&self, pod: &Pod, key: &str) -> Pod {
        self.edit_pod(pod, json!({"metadata": {"annotations": {key: null}}})).await
    }

    async fn edit_pod(&self, pod: &Pod, patch: Value) -> Pod {
        let edited = self.api::<Pod>().patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        edited.unwrap_or_else(|error| panic!("cannot edit the pod {}/{}: {error}", self.name(), pod.name_any()))
    }

    /// Merges this into the pod's status, as a kubelet does.
    pub(crate) async fn set_status(&self, pod: &Pod, status: Value) -> Pod {
        let patch = Patch::Merge(json!({"status": status}));
        let set = self.api::<Pod>().patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
        set.unwrap_or_else(|error| {
            panic!("cannot set the status of the pod {}/{}: {error}", self.name(), pod.name_any())
        })
    }

    /// Sets the pod's phase.
    pub(crate) async fn set_phase(&self, pod: &Pod, phase: &str) -> Pod {
        self.set_status(pod, json!({"phase": phase})).await
    }

    /// Deletes a pod at once; its name is free afterwards.
    pub(crate) async fn delete_pod(&self, pod: &Pod) {
        self.delete_pod_within(pod, 0).await;
    }

    /// Begins to delete a pod, which then stays in that state: no kubelet ends it.
    pub(crate) async fn begin_delete_pod(&self, pod: &Pod) {
        // An unbound pod would go at once.
        self.edit_pod(pod, json!({"metadata": {"finalizers": [STAYS]}})).await;
        self.delete_pod_within(pod, 30).await;
    }

    async fn delete_pod_within(&self, pod: &Pod, seconds: u32) {
        let pods: Api<Pod> = self.api();
        let deleted = pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(seconds)).await;
        deleted.unwrap_or_else(|error| panic!("cannot delete the pod {}/{}: {error}", self.name(), pod.name_any()));
    }
}
