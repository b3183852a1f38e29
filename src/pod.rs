//! `PodView`: the few fields of a Pod that the agent reads.
//!
//! A full `Pod` costs several times the memory (measured: 4 MB more at 110 pods); everything that no step reads is dropped
//! while decoding, managed fields and foreign annotations first.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// The annotation in which a pod asks for secrets.
pub const SYNC_ANNOTATION: &str = "jasm.codnod.io/secret-sync";
/// Set by the kubelet on the API server's copy of a static pod; such a pod cannot use Secrets.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Set by the Deployment controller; lets the Deployment's name be told from the ReplicaSet's without a request.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// Why a container waits whose environment names a Secret that is not there.
const CONFIG_ERROR: &str = "CreateContainerConfigError";
/// The condition that is false until a pod's volumes and sandbox are there.
const READY_TO_START: &str = "PodReadyToStartContainers";

/// The namespace of a pod, and so of every Secret written for it.
///
/// Only [`PodView::namespace`] makes one, so that no request can name another namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodNamespace(String);

impl PodNamespace {
    /// The name as the API server knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For tables in tests of the pure layers.
    #[cfg(test)]
    pub fn for_test(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl fmt::Display for PodNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Our view of a Pod.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Name, namespace, uid, times, our annotations, the template hash and the controlling owner; nothing else.
    pub metadata: ObjectMeta,
    /// The pod's service account (`default` where the API server did not fill it in).
    pub service_account: String,
    node: Option<String>,
    phase: Phase,
    scheduled_at: Option<Timestamp>,
    hangs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Phase {
    #[default]
    Pending,
    Running,
    Done,
}

impl PodView {
    /// The namespace that the pod lives in.
    pub fn namespace(&self) -> PodNamespace {
        PodNamespace(self.metadata.namespace.clone().unwrap_or_default())
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The pod's UID: what tells it from an earlier pod of the same name.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The node that it is bound to.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// What the pod itself asks for, or `None` where there is nothing for the agent to do: no annotation, a mirror pod,
    /// or a pod that is terminating or done.
    pub fn asks(&self) -> Option<&str> {
        self.annotations_in_use().and_then(|annotations| annotations.get(SYNC_ANNOTATION)).map(String::as_str)
    }

    /// Whether the pod has what its workload asks for: it has a workload, and no annotation of its own. Not in `kube-*`,
    /// where the agent may write nothing.
    pub fn may_inherit(&self) -> bool {
        let own =
            self.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(SYNC_ANNOTATION));
        let protected = self.metadata.namespace.as_deref().is_none_or(|namespace| namespace.starts_with("kube-"));
        self.annotations_in_use().is_some() && !own && !protected && self.controller().is_some()
    }

    /// `None` for a pod that needs no Secret any more, or cannot use one.
    fn annotations_in_use(&self) -> Option<&BTreeMap<String, String>> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let annotations = self.metadata.annotations.as_ref().unwrap_or(&NONE);
        let idle = self.phase == Phase::Done || self.metadata.deletion_timestamp.is_some();
        (!idle && !annotations.contains_key(MIRROR_ANNOTATION)).then_some(annotations)
    }

    /// Whether its containers run already, so that it found its Secrets.
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Whether it looks as if its containers could not start for want of something, as a Secret that somebody deleted:
    /// a container waits for its configuration, or the pod for its volumes. Each pod does for a moment.
    pub fn hangs(&self) -> bool {
        self.hangs
    }

    /// The later of the pod's creation and its scheduling, both by the API server's clock, in whole seconds.
    ///
    /// A value fetched for this pod must not be older.
    pub fn reference_time(&self) -> Timestamp {
        let created = self.metadata.creation_timestamp.as_ref().map(|time| time.0);
        created.max(self.scheduled_at).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The owner that controls this pod, if one does.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.metadata.owner_references.as_ref()?.first()
    }

    /// The Deployment controller's hash, where the pod carries one.
    pub fn template_hash(&self) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(TEMPLATE_HASH_LABEL).map(String::as_str)
    }

    /// What Events point at.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: self.metadata.name.clone(),
            namespace: self.metadata.namespace.clone(),
            uid: self.metadata.uid.clone(),
            ..ObjectReference::default()
        }
    }
}

impl Resource for PodView {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de> Deserialize<'de> for PodView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Wire::deserialize(deserializer).map(Self::from)
    }
}

/// What is read off the wire; serde skips every other field without keeping it.
#[derive(Deserialize)]
struct Wire {
    metadata: WireMeta,
    #[serde(default)]
    spec: WireSpec,
    #[serde(default)]
    status: WireStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct WireMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    owner_references: Vec<OwnerReference>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct WireSpec {
    service_account_name: Option<String>,
    node_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct WireStatus {
    phase: Option<String>,
    #[serde(default)]
    conditions: Vec<WireCondition>,
    #[serde(default)]
    container_statuses: Vec<WireContainer>,
    #[serde(default)]
    init_container_statuses: Vec<WireContainer>,
}

#[derive(Deserialize)]
struct WireContainer {
    #[serde(default)]
    state: WireState,
}

#[derive(Deserialize, Default)]
struct WireState {
    waiting: Option<WireWaiting>,
}

#[derive(Deserialize)]
struct WireWaiting {
    reason: Option<String>,
}

impl WireStatus {
    fn has(&self, kind: &str, status: &str) -> Option<&WireCondition> {
        self.conditions.iter().find(|condition| condition.kind == kind && condition.status == status)
    }

    fn hangs(&self) -> bool {
        let mut containers = self.container_statuses.iter().chain(&self.init_container_statuses);
        let reasons = |container: &WireContainer| container.state.waiting.as_ref().and_then(|it| it.reason.clone());
        containers.any(|container| reasons(container).as_deref() == Some(CONFIG_ERROR))
            || self.has(READY_TO_START, "False").is_some()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    last_transition_time: Option<Time>,
}

impl From<Wire> for PodView {
    fn from(wire: Wire) -> Self {
        let Wire { metadata: mut meta, spec, status } = wire;
        meta.annotations.retain(|key, _| key == SYNC_ANNOTATION || key == MIRROR_ANNOTATION);
        meta.labels.retain(|key, _| key == TEMPLATE_HASH_LABEL);
        meta.owner_references.retain(|owner| owner.controller == Some(true));
        let scheduled_at =
            status.has("PodScheduled", "True").and_then(|condition| condition.last_transition_time.as_ref());
        Self {
            metadata: ObjectMeta {
                name: meta.name,
                namespace: meta.namespace,
                uid: meta.uid,
                resource_version: meta.resource_version,
                creation_timestamp: meta.creation_timestamp,
                deletion_timestamp: meta.deletion_timestamp,
                annotations: Some(meta.annotations).filter(|map| !map.is_empty()),
                labels: Some(meta.labels).filter(|map| !map.is_empty()),
                owner_references: Some(meta.owner_references).filter(|list| !list.is_empty()),
                ..ObjectMeta::default()
            },
            service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
            node: spec.node_name,
            phase: match status.phase.as_deref() {
                Some("Running") => Phase::Running,
                Some("Succeeded" | "Failed") => Phase::Done,
                _ => Phase::Pending,
            },
            scheduled_at: scheduled_at.map(|time| time.0),
            hangs: status.hangs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(change: impl FnOnce(&mut serde_json::Value)) -> PodView {
        let mut value = json!({
            "metadata": {
                "name": "web-1", "namespace": "team-a", "uid": "u-1",
                "creationTimestamp": "2026-01-01T00:00:05Z",
                "annotations": {SYNC_ANNOTATION: "provider: x", "other": "dropped"},
                "labels": {"app": "web", "pod-template-hash": "5d9c"},
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {"nodeName": "node-1", "serviceAccountName": "web"},
            "status": {"phase": "Pending"},
        });
        change(&mut value);
        serde_json::from_value(value).expect("a pod")
    }

    #[test]
    fn keeps_only_what_the_steps_read() {
        let pod = pod(|_| {});
        assert_eq!(pod.asks(), Some("provider: x"));
        assert_eq!(pod.metadata.annotations.as_ref().map(BTreeMap::len), Some(1));
        assert_eq!(pod.metadata.labels.as_ref().map(BTreeMap::len), Some(1));
        assert!(pod.metadata.managed_fields.is_none());
        assert_eq!(pod.service_account, "web");
    }

    #[test]
    fn pods_that_cannot_use_a_secret_ask_for_nothing() {
        type Change = fn(&mut serde_json::Value);
        let cases: &[(&str, Change)] = &[
            ("no annotation", |pod| pod["metadata"]["annotations"] = json!({"a": "b"})),
            ("no annotations at all", |pod| pod["metadata"]["annotations"] = json!({})),
            ("terminating", |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:06Z")),
            ("succeeded", |pod| pod["status"]["phase"] = json!("Succeeded")),
            ("failed", |pod| pod["status"]["phase"] = json!("Failed")),
            ("mirror", |pod| pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x")),
        ];
        for (case, change) in cases {
            assert_eq!(pod(change).asks(), None, "case: {case}");
        }
    }

    #[test]
    fn a_pod_of_a_workload_inherits_unless_it_asks_itself() {
        type Change = fn(&mut serde_json::Value);
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]);
        let cases: &[(&str, Change, bool)] = &[
            ("of a workload", |_| {}, true),
            ("one that asks", |pod| pod["metadata"]["annotations"] = json!({SYNC_ANNOTATION: ""}), false),
            ("bare", |pod| pod["metadata"]["ownerReferences"] = json!([]), false),
            ("not controlled", |pod| pod["metadata"]["ownerReferences"][0]["controller"] = json!(false), false),
            ("done", |pod| pod["status"]["phase"] = json!("Failed"), false),
            ("terminating", |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:06Z"), false),
            ("in a namespace of the cluster's", |pod| pod["metadata"]["namespace"] = json!("kube-system"), false),
        ];
        for (case, change, want) in cases {
            let pod = pod(|pod| {
                pod["metadata"]["annotations"] = json!({});
                pod["metadata"]["ownerReferences"] = owner.clone();
                change(pod);
            });
            assert_eq!(pod.may_inherit(), *want, "case: {case}");
        }
    }

    #[test]
    fn a_pod_hangs_while_its_containers_or_volumes_wait() {
        let with = |status: serde_json::Value| pod(|pod| pod["status"] = status).hangs();
        let waiting = |reason: &str| json!([{"name": "a", "state": {"waiting": {"reason": reason}}}]);
        let condition = |status: &str| json!({"conditions": [{"type": "PodReadyToStartContainers", "status": status}]});
        let cases = [
            ("new", json!({}), false),
            ("config", json!({"containerStatuses": waiting("CreateContainerConfigError")}), true),
            ("init", json!({"initContainerStatuses": waiting("CreateContainerConfigError")}), true),
            ("image", json!({"containerStatuses": waiting("ImagePullBackOff")}), false),
            ("runs", json!({"containerStatuses": [{"name": "a", "state": {"running": {}}}]}), false),
            ("volumes", condition("False"), true),
            ("sandbox", condition("True"), false),
        ];
        for (case, status, want) in cases {
            assert_eq!(with(status), want, "case: {case}");
        }
    }

    #[test]
    fn reference_time_is_the_later_of_creation_and_scheduling() {
        let at = |second: u32| -> Timestamp { format!("2026-01-01T00:00:{second:02}Z").parse().expect("a time") };
        let scheduled = |second: u32, status: &str| {
            pod(|pod| {
                pod["status"]["conditions"] =
                    json!([{"type": "PodScheduled", "status": status, "lastTransitionTime": at(second).to_string()}]);
            })
        };
        assert_eq!(pod(|_| {}).reference_time(), at(5), "created, not yet scheduled");
        assert_eq!(scheduled(9, "True").reference_time(), at(9), "scheduled later");
        assert_eq!(scheduled(2, "True").reference_time(), at(5), "a clock that stepped back");
        assert_eq!(scheduled(9, "False").reference_time(), at(5), "not scheduled");
    }
}
