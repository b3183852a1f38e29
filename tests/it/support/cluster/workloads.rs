//! Workloads of a test, put together by hand: no controller runs that would make pods of them or take pods away.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::super::object;
use super::TestNamespace;

/// A workload that is there.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    api_version: &'static str,
    kind: String,
    name: String,
    uid: String,
}

impl Workload {
    /// What stands in the objects that it controls.
    pub(crate) fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.to_owned(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }
}

impl TestNamespace {
    /// Creates a workload of this kind: `Deployment`, `ReplicaSet`, `StatefulSet`, `DaemonSet`, `Job` or `CronJob`.
    pub(crate) async fn workload(&self, kind: &str, name: &str) -> Workload {
        self.owned_workload(kind, name, None).await
    }

    /// A Deployment with one ReplicaSet, which is what its pods name as their owner.
    pub(crate) async fn deployment(&self, name: &str) -> (Workload, Workload) {
        let deployment = self.workload("Deployment", name).await;
        let set = self.owned_workload("ReplicaSet", &format!("{name}-5d4f6c7b8"), Some(&deployment)).await;
        (deployment, set)
    }

    /// Creates a workload that another one controls.
    pub(crate) async fn owned_workload(&self, kind: &str, name: &str, owner: Option<&Workload>) -> Workload {
        let api_version = api_version(kind);
        let owners: Vec<_> = owner.iter().map(|owner| owner.reference()).collect();
        let json = json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {"name": name, "ownerReferences": owners},
            "spec": spec(kind, name),
        });
        let made = self.workloads(kind).create(&PostParams::default(), &object(json)).await;
        let made = made.unwrap_or_else(|error| panic!("no {kind} {name} in {}: {error}", self.name()));
        let uid = made.uid().expect("the API server gives each object a UID");
        Workload { api_version, kind: kind.to_owned(), name: name.to_owned(), uid }
    }

    /// Sets an annotation of a workload.
    pub(crate) async fn annotate_workload(&self, workload: &Workload, key: &str, value: &str) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {key: value}}}));
        let edited = self.workloads(&workload.kind).patch(&workload.name, &PatchParams::default(), &patch).await;
        let Workload { kind, name, .. } = workload;
        edited.unwrap_or_else(|error| panic!("cannot edit the {kind} {name} in {}: {error}", self.name()));
    }

    /// Deletes a workload as kubectl does: the garbage collector then deletes what it owned.
    pub(crate) async fn delete_workload(&self, workload: &Workload) {
        let deleted = self.workloads(&workload.kind).delete(&workload.name, &DeleteParams::background()).await;
        let Workload { kind, name, .. } = workload;
        deleted.unwrap_or_else(|error| panic!("cannot delete the {kind} {name} in {}: {error}", self.name()));
    }

    fn workloads(&self, kind: &str) -> Api<DynamicObject> {
        let (group, version) = api_version(kind).split_once('/').expect("workloads lie in named groups");
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.admin.clone(), self.name(), &resource)
    }
}

fn api_version(kind: &str) -> &'static str {
    match kind {
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => "apps/v1",
        "Job" | "CronJob" => "batch/v1",
        other => panic!("{other} is no workload"),
    }
}

/// The least that the API server takes.
fn spec(kind: &str, name: &str) -> Value {
    let labels = json!({"app": name});
    let mut template = json!({
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
    });
    if !matches!(kind, "Job" | "CronJob") {
        return json!({"selector": {"matchLabels": labels}, "template": template});
    }
    template["spec"]["restartPolicy"] = json!("Never");
    match kind {
        "Job" => json!({"template": template}),
        _ => json!({"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": template}}}),
    }
}
