//! What a workload asks for on behalf of its pods: the annotation on a Deployment, StatefulSet, DaemonSet, ReplicaSet, Job
//! or CronJob, for pods that have none of their own.
//!
//! RBAC: `get` on these kinds; metadata only. One request for each workload and not for each pod: an answer serves every
//! pod that was seen before it was asked for. So a pod never gets an answer older than itself, and a roll-out right after
//! an edit finds the edit.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use tokio::time::Instant;

use crate::{
    annotations::{MAX_ANNOTATION_BYTES, invalid},
    names::is_dns_subdomain,
    pod::{PodNamespace, PodView, SYNC_ANNOTATION},
    request::RequestError,
    workload::{Kind, Workload, controller, metadata_of, tops},
};

/// How long an answer is kept: it is for pods that were seen before, which ask at once.
const KEPT: Duration = Duration::from_secs(60);
/// For one read, which pods wait for.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// An annotation of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// Its text.
    pub text: Arc<str>,
    /// Whose it is.
    pub workload: Workload,
}

impl Inherited {
    /// A mistake in an annotation that does not stand on the pod says where it does.
    pub fn says_where(&self, error: RequestError) -> RequestError {
        match error {
            RequestError::Annotation(error) => invalid(format!("(of {}) {}", self.workload, error.problem)).into(),
            error => error,
        }
    }
}

/// The workload could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The API server's answer.
    #[error("{workload} in namespace {namespace} could not be read; the agent retries with backoff")]
    Refused {
        /// Where.
        namespace: PodNamespace,
        /// Which.
        workload: Workload,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
    /// None.
    #[error(
        "the API server did not answer about the workloads in namespace {namespace}; the agent retries with backoff"
    )]
    Unanswered {
        /// Where.
        namespace: PodNamespace,
    },
}

impl ReadError {
    /// Whether the agent lacks the right, which somebody has to grant.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == 403))
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<Answer>>>;

/// Reads annotations of workloads.
pub struct WorkloadAnnotations {
    client: Client,
    slots: Mutex<HashMap<(PodNamespace, Workload), Slot>>,
}

#[derive(Debug, Clone)]
struct Answer {
    asked_at: Instant,
    annotation: Option<Inherited>,
}

fn is_recent(answer: &Option<Answer>) -> bool {
    answer.as_ref().is_some_and(|answer| answer.asked_at.elapsed() < KEPT)
}

/// What the parser refuses for its length is not kept whole.
fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_ANNOTATION_BYTES + 1)]
}

fn cron_job_of(job: ObjectMeta) -> Option<Workload> {
    let owner = controller(job).filter(|owner| owner.kind == "CronJob" && is_dns_subdomain(&owner.name))?;
    Some(Workload::of_owner(&owner))
}

impl WorkloadAnnotations {
    /// A reader without any answer yet.
    pub fn new(client: Client) -> Self {
        Self { client, slots: Mutex::default() }
    }

    /// What the workload of a pod asks for, no older than `seen_at`, when the watch told of the pod. Those who ask about
    /// one workload wait for each other.
    ///
    /// # Errors
    /// [`ReadError`]: whether the pod asks for anything is not known then.
    pub async fn of(&self, pod: &PodView, seen_at: Instant) -> Result<Option<Inherited>, ReadError> {
        let candidates = tops(pod);
        // By the owner that the pod names: two of one guessed name may have different tops.
        let Some((_, owner)) = candidates.last() else {
            return Ok(None);
        };
        let namespace = pod.namespace();
        let slot = self.slot(&namespace, owner);
        let mut answer = slot.lock().await;
        if let Some(answer) = answer.as_ref().filter(|answer| answer.asked_at >= seen_at) {
            return Ok(answer.annotation.clone());
        }
        let asked_at = Instant::now();
        let read = self.read(&namespace, candidates);
        let annotation = tokio::time::timeout(READ_TIMEOUT, read)
            .await
            .unwrap_or_else(|_| Err(ReadError::Unanswered { namespace: namespace.clone() }))?;
        *answer = Some(Answer { asked_at, annotation: annotation.clone() });
        Ok(annotation)
    }

    /// The first of these that exists is the one: a Deployment's name is only guessed. A Job tells its CronJob itself.
    async fn read(
        &self,
        namespace: &PodNamespace,
        candidates: Vec<(Kind, Workload)>,
    ) -> Result<Option<Inherited>, ReadError> {
        let mut candidates = VecDeque::from(candidates);
        while let Some((kind, workload)) = candidates.pop_front() {
            let Some(name) = workload.name() else { continue };
            match metadata_of(&self.client, namespace, kind, name).await {
                Ok(None) => {}
                Ok(Some(mut meta)) => {
                    let text = meta.annotations.as_mut().and_then(|all| all.remove(SYNC_ANNOTATION));
                    if let Some(cron_job) = (kind == Kind::Job).then(|| cron_job_of(meta)).flatten() {
                        candidates.push_back((Kind::CronJob, cron_job));
                        continue;
                    }
                    return Ok(text.map(|text| Inherited { text: bounded(&text).into(), workload }));
                }
                Err(source) => {
                    let (namespace, source) = (namespace.clone(), Box::new(source));
                    return Err(ReadError::Refused { namespace, workload, source });
                }
            }
        }
        Ok(None)
    }

    fn slot(&self, namespace: &PodNamespace, workload: &Workload) -> Slot {
        let mut slots = self.slots();
        slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|answer| is_recent(&answer)));
        Arc::clone(slots.entry((namespace.clone(), workload.clone())).or_default())
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<(PodNamespace, Workload), Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
