//! The workload behind a pod: who holds a Secret's name when two specs ask for it, and whose annotation a pod inherits.
//!
//! RBAC: `get` on replicasets and jobs (to climb from pod to top controller) and on deployments, statefulsets,
//! daemonsets and cronjobs (to see whether a holder still exists). Metadata only, and only when two specs disagree;
//! without these rights ([`Workloads::by_names`]) names alone decide.

use std::fmt;

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, Client, Resource, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

use crate::{
    names::is_dns_subdomain,
    pod::{PodNamespace, PodView},
};

/// How bare pods and Jobs are written on a Secret: as one workload, of which the newest pod wins.
const SHORT_LIVED: &str = "pods-and-jobs";
/// A CronJob's Jobs are called after it and the minute they are due, counted since 1970: eight digits, from 2012 to 2084.
const CRON_SUFFIX_DIGITS: usize = 8;
const CRON_MINUTES: std::ops::Range<u32> = 22_000_000..60_000_000;

/// The top controller of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Workload {
    /// Something that lives on: Deployment, StatefulSet, DaemonSet, CronJob, or a controller of another kind.
    LongLived {
        /// API group, empty for the core group.
        group: String,
        /// Kind.
        kind: String,
        /// Name, in the pod's namespace.
        name: String,
    },
    /// Bare pods and Jobs of a namespace together.
    ShortLived,
}

/// The kinds that can have an annotation for their pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// apps
    Deployment,
    /// apps
    ReplicaSet,
    /// apps
    StatefulSet,
    /// apps
    DaemonSet,
    /// batch
    Job,
    /// batch
    CronJob,
}

impl Kind {
    pub(crate) fn of(group: &str, kind: &str) -> Option<Self> {
        Some(match (group, kind) {
            ("apps", "Deployment") => Self::Deployment,
            ("apps", "ReplicaSet") => Self::ReplicaSet,
            ("apps", "StatefulSet") => Self::StatefulSet,
            ("apps", "DaemonSet") => Self::DaemonSet,
            ("batch", "Job") => Self::Job,
            ("batch", "CronJob") => Self::CronJob,
            _ => return None,
        })
    }
}

/// Whose annotation a pod without one of its own has, as names tell: of a ReplicaSet with the Deployment controller's hash
/// the Deployment, then what the pod's owner reference says. Empty for a pod without a workload.
pub fn tops(pod: &PodView) -> Vec<(Kind, Workload)> {
    let Some(owner) = pod.controller().filter(|owner| is_dns_subdomain(&owner.name)).map(Workload::of_owner) else {
        return Vec::new();
    };
    let guess = Some(Workload::by_name(pod)).filter(|guess| guess.kind() == Some(Kind::Deployment) && *guess != owner);
    guess.into_iter().chain([owner]).filter_map(|workload| Some((workload.kind()?, workload))).collect()
}

impl Workload {
    /// Its name; bare pods and Jobs together have none.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::LongLived { name, .. } => Some(name),
            Self::ShortLived => None,
        }
    }

    /// Its kind, where that can have an annotation for its pods.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::LongLived { group, kind, .. } => Kind::of(group, kind),
            Self::ShortLived => None,
        }
    }

    pub(crate) fn long_lived(group: &str, kind: &str, name: &str) -> Self {
        Self::LongLived { group: group.to_owned(), kind: kind.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn of_owner(owner: &OwnerReference) -> Self {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        Self::long_lived(group, &owner.kind, &owner.name)
    }

    /// The workload by names alone, without a request: a Deployment by its template hash, a CronJob by its Job's
    /// suffix. [`verified`] tells the truth where it matters.
    pub fn by_name(pod: &PodView) -> Self {
        let Some(owner) = pod.controller() else {
            return Self::ShortLived;
        };
        match (owner.kind.as_str(), owner.name.rsplit_once('-')) {
            ("ReplicaSet", Some((name, hash))) if pod.template_hash() == Some(hash) => {
                Self::long_lived("apps", "Deployment", name)
            }
            ("Job", Some((name, minute))) if is_minute(minute) => Self::long_lived("batch", "CronJob", name),
            ("Job", _) => Self::ShortLived,
            _ => Self::of_owner(owner),
        }
    }

    /// Reads what stands on a Secret; `None` where it was altered.
    pub fn parse(text: &str) -> Option<Self> {
        if text == SHORT_LIVED {
            return Some(Self::ShortLived);
        }
        let mut parts = text.splitn(3, '/');
        let (group, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        (!kind.is_empty() && is_dns_subdomain(name)).then(|| Self::long_lived(group, kind, name))
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LongLived { group, kind, name } => write!(f, "{group}/{kind}/{name}"),
            Self::ShortLived => f.write_str(SHORT_LIVED),
        }
    }
}

fn is_minute(text: &str) -> bool {
    text.len() == CRON_SUFFIX_DIGITS && text.parse().is_ok_and(|minute: u32| CRON_MINUTES.contains(&minute))
}

/// Reads workloads, where the agent may.
pub struct Workloads {
    client: Option<Client>,
}

impl Workloads {
    /// By the API server's word where names are not enough.
    pub fn read_by(client: Client) -> Self {
        Self { client: Some(client) }
    }

    /// By names alone: a holder counts as existing.
    pub fn by_names() -> Self {
        Self { client: None }
    }

    /// The top controller of a pod, each hop by `controller: true`. At most one request.
    ///
    /// # Errors
    /// The API server's, where the owner could not be read. An owner that is gone counts as itself.
    pub async fn verified(&self, pod: &PodView) -> Result<Workload, kube::Error> {
        let Some(client) = &self.client else {
            return Ok(Workload::by_name(pod));
        };
        let Some(owner) = pod.controller() else {
            return Ok(Workload::ShortLived);
        };
        let (namespace, name) = (pod.namespace(), owner.name.as_str());
        // An owner reference may hold any text, and a name becomes part of a URL.
        if !is_dns_subdomain(name) {
            return Ok(Workload::of_owner(owner));
        }
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let parent = metadata_of(client, &namespace, Kind::ReplicaSet, name).await?.and_then(controller);
                Ok(parent.as_ref().map_or_else(|| Workload::of_owner(owner), Workload::of_owner))
            }
            "Job" => {
                let parent = metadata_of(client, &namespace, Kind::Job, name).await?.and_then(controller);
                Ok(parent.as_ref().map_or(Workload::ShortLived, Workload::of_owner))
            }
            _ => Ok(Workload::of_owner(owner)),
        }
    }

    /// Whether a holder still exists. A kind that the agent has no right to read counts as existing. At most one request.
    ///
    /// # Errors
    /// The API server's, other than "not found".
    pub async fn exists(&self, namespace: &PodNamespace, workload: &Workload) -> Result<bool, kube::Error> {
        let (Some(client), Workload::LongLived { group, kind, name }) = (&self.client, workload) else {
            return Ok(true);
        };
        match Kind::of(group, kind) {
            Some(Kind::Job) | None => Ok(true),
            Some(kind) => Ok(metadata_of(client, namespace, kind, name).await?.is_some()),
        }
    }
}

/// The metadata of one workload, or `None` where it is not there.
pub(crate) async fn metadata_of(
    client: &Client,
    namespace: &PodNamespace,
    kind: Kind,
    name: &str,
) -> kube::Result<Option<ObjectMeta>> {
    match kind {
        Kind::Deployment => metadata::<Deployment>(client, namespace, name).await,
        Kind::ReplicaSet => metadata::<ReplicaSet>(client, namespace, name).await,
        Kind::StatefulSet => metadata::<StatefulSet>(client, namespace, name).await,
        Kind::DaemonSet => metadata::<DaemonSet>(client, namespace, name).await,
        Kind::Job => metadata::<Job>(client, namespace, name).await,
        Kind::CronJob => metadata::<CronJob>(client, namespace, name).await,
    }
}

/// The owner that controls an object.
pub(crate) fn controller(meta: ObjectMeta) -> Option<OwnerReference> {
    meta.owner_references.into_iter().flatten().find(|owner| owner.controller == Some(true))
}

async fn metadata<K>(client: &Client, namespace: &PodNamespace, name: &str) -> Result<Option<ObjectMeta>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace.as_str());
    Ok(api.get_metadata_opt(name).await?.map(|object| object.metadata))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(owner: Option<(&str, &str, &str)>, hash: Option<&str>) -> PodView {
        let owners: Vec<_> = owner
            .map(|(version, kind, name)| json!({"apiVersion": version, "kind": kind, "name": name, "uid": "u", "controller": true}))
            .into_iter()
            .collect();
        let mut labels = json!({});
        if let Some(hash) = hash {
            labels["pod-template-hash"] = json!(hash);
        }
        serde_json::from_value(json!({"metadata": {"name": "p", "ownerReferences": owners, "labels": labels}}))
            .expect("a pod")
    }

    /// Name, owner, template hash, and whose annotation counts.
    type Case<'a> = (&'a str, Option<(&'a str, &'a str, &'a str)>, Option<&'a str>, &'a [&'a str]);

    #[test]
    fn the_owner_of_the_annotation_is_the_top_and_then_the_owner() {
        let cases: &[Case<'_>] = &[
            ("bare pod", None, None, &[]),
            (
                "Deployment",
                Some(("apps/v1", "ReplicaSet", "web-5d9c7b")),
                Some("5d9c7b"),
                &["apps/Deployment/web", "apps/ReplicaSet/web-5d9c7b"],
            ),
            ("bare ReplicaSet", Some(("apps/v1", "ReplicaSet", "web")), None, &["apps/ReplicaSet/web"]),
            ("StatefulSet", Some(("apps/v1", "StatefulSet", "db")), None, &["apps/StatefulSet/db"]),
            ("DaemonSet", Some(("apps/v1", "DaemonSet", "log")), None, &["apps/DaemonSet/log"]),
            ("Job", Some(("batch/v1", "Job", "migrate")), None, &["batch/Job/migrate"]),
            ("CronJob", Some(("batch/v1", "Job", "backup-29384720")), None, &["batch/Job/backup-29384720"]),
            ("another controller", Some(("kafka.io/v1", "Broker", "b")), None, &[]),
            ("the same kind of another group", Some(("x.io/v1", "Deployment", "b")), None, &[]),
            ("a name for another URL", Some(("apps/v1", "StatefulSet", "../x")), None, &[]),
        ];
        for (case, owner, hash, want) in cases {
            let tops: Vec<String> = tops(&pod(*owner, *hash)).iter().map(|(_, top)| top.to_string()).collect();
            assert_eq!(tops, *want, "case: {case}");
        }
    }

    #[test]
    fn names_tell_the_workload_without_a_request() {
        let cases = [
            ("bare pod", None, None, "pods-and-jobs"),
            ("Deployment", Some(("apps/v1", "ReplicaSet", "web-5d9c7b")), Some("5d9c7b"), "apps/Deployment/web"),
            ("bare ReplicaSet", Some(("apps/v1", "ReplicaSet", "web-x")), None, "apps/ReplicaSet/web-x"),
            ("StatefulSet", Some(("apps/v1", "StatefulSet", "db")), None, "apps/StatefulSet/db"),
            ("DaemonSet", Some(("apps/v1", "DaemonSet", "log")), None, "apps/DaemonSet/log"),
            ("Job", Some(("batch/v1", "Job", "migrate")), None, "pods-and-jobs"),
            ("Job with a short number", Some(("batch/v1", "Job", "migrate-12")), None, "pods-and-jobs"),
            ("CronJob", Some(("batch/v1", "Job", "backup-29384720")), None, "batch/CronJob/backup"),
            ("Job with a number of that length", Some(("batch/v1", "Job", "migrate-12345678")), None, "pods-and-jobs"),
            ("other controller", Some(("kafka.io/v1", "Broker", "b")), None, "kafka.io/Broker/b"),
            ("core group", Some(("v1", "ReplicationController", "rc")), None, "/ReplicationController/rc"),
        ];
        for (case, owner, hash, want) in cases {
            let got = Workload::by_name(&pod(owner, hash));
            assert_eq!(got.to_string(), want, "case: {case}");
            assert_eq!(Workload::parse(want), Some(got), "case: {case}, read back");
        }
        for altered in
            ["", "x", "a/b", "a//c", "apps/Deployment/x/status", "apps/Deployment/?limit=1", "apps/Deployment/../x"]
        {
            assert_eq!(Workload::parse(altered), None, "{altered:?}");
        }
    }
}
