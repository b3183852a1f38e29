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
    phase: Phase,
    scheduled_at: Option<Timestamp>,
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

    /// What the pod asks for, or `None` where there is nothing for the agent to do: no annotation, a mirror pod,
    /// or a pod that is terminating or done.
    pub fn asks(&self) -> Option<&str> {
        let idle = self.phase == Phase::Done || self.metadata.deletion_timestamp.is_some();
        let annotations = self.metadata.annotations.as_ref()?;
        if idle || annotations.contains_key(MIRROR_ANNOTATION) {
            return None;
        }
        annotations.get(SYNC_ANNOTATION).map(String::as_str)
    }

    /// Whether its containers run already, so that it found its Secrets.
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
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
}

#[derive(Deserialize, Default)]
struct WireStatus {
    phase: Option<String>,
    #[serde(default)]
    conditions: Vec<WireCondition>,
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
        let scheduled = status
            .conditions
            .into_iter()
            .find(|condition| condition.kind == "PodScheduled" && condition.status == "True");
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
            phase: match status.phase.as_deref() {
                Some("Running") => Phase::Running,
                Some("Succeeded" | "Failed") => Phase::Done,
                _ => Phase::Pending,
            },
            scheduled_at: scheduled.and_then(|condition| condition.last_transition_time).map(|time| time.0),
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
