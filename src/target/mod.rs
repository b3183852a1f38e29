//! The write protocol: the only module that writes Secrets and ConfigMaps.
//!
//! probe -> decide -> value -> create or replace, and again from the probe when somebody was faster. The agent holds
//! `create` and `update` on Secrets and reads none: a probe is a dry-run `PUT` that an admission policy always refuses,
//! with the metadata of the Secret in its message.
//!
//! | Secret | calls |
//! |---|---|
//! | absent | probe, fetch, POST |
//! | fresh | probe |
//! | stale, or another source of ours | probe, fetch, PUT |
//! | made immutable | probe, fetch, probe with the value |
//! | a lost race | one more probe and write, at most five times |

mod admission;
mod api;
mod body;
mod error;
mod held;
mod masters;
mod records;
mod reply;
mod turns;

use std::{future::Future, pin::Pin, sync::Arc, task::Poll, time::Duration};

use futures::future::{MaybeDone, maybe_done, poll_fn};
use jiff::Timestamp;
use kube::Client;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

pub use admission::Admission;
pub use error::TargetError;
pub use held::{Asked, CopyOf, Known};
pub use masters::{Draft, Master, MasterStore, Place};
pub(crate) use records::RECORD;
pub use records::Record;
pub use reply::Stored;

use self::{
    api::{Home, Mode, Objects, Target},
    body::{ObjectBody, printable},
    held::{
        Decision, Held, Wish, across_identities, by_age, decide, differ_in_identity, from_short_lived,
        is_of_another_identity,
    },
    reply::{Reply, Verb},
    turns::{Seen, Turns},
};
use crate::{
    changes::Changes,
    clock::ApiClock,
    error::SyncError,
    limits::ByteBudget,
    mapping::SecretData,
    masters::MastersNamespace,
    metrics::Metrics,
    pod::PodView,
    policy::AdmittedRequest,
    request::{ObjectKind, SecretType},
    workload::{Workload, Workloads},
};

pub(crate) const SOURCE: &str = "jasm.codnod.io/source";
const SOURCE_PATH: &str = "jasm.codnod.io/source-path";
pub(crate) const SOURCE_VERSION: &str = "jasm.codnod.io/source-version";
pub(crate) const SYNCED_AT: &str = "jasm.codnod.io/synced-at";
pub(crate) const SYNCED_THROUGH: &str = "jasm.codnod.io/synced-through";
const SPEC_SINCE: &str = "jasm.codnod.io/spec-since";
const WORKLOAD: &str = "jasm.codnod.io/workload";
pub(crate) const NODE: &str = "jasm.codnod.io/node";
const PROBE: &str = "jasm.codnod.io/probe";
const WHOLE: &str = "jasm.codnod.io/whole";
/// The label on masters.
pub(crate) const SOURCE_KIND: &str = "jasm.codnod.io/source-kind";
const REPLICATED_FROM: &str = "jasm.codnod.io/replicated-from";
const LAST_REPLICATED: &str = "jasm.codnod.io/last-replicated";
const SOURCE_NAMESPACE: &str = "jasm.codnod.io/source-namespace";

/// The first try and five lost races.
const TRIES: usize = 6;
/// For a read behind a disputed name.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// What is to be in a Secret.
#[derive(Debug)]
pub struct Value {
    /// As what it is to be written.
    pub kind: ObjectKind,
    /// All keys of one version.
    pub data: SecretData,
    /// The store's id of that version.
    pub version: String,
    /// The newest pod that the agent had seen before it asked the store.
    pub seen_through: Timestamp,
    /// The share of the memory bound that the data takes.
    pub reserved: OwnedSemaphorePermit,
}

impl Value {
    fn known(&self) -> Known {
        Known { version: printable(&self.version), through: self.seen_through }
    }
}

/// How a request ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The Secret is new.
    Created,
    /// The Secret was replaced.
    Updated,
    /// It was there, new enough.
    Fresh,
    /// A newer pod of the same workload wants something else under this name.
    Superseded,
    /// The namespace goes, and the pod with it.
    NamespaceGone,
}

impl Outcome {
    /// As it stands in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Fresh => "fresh",
            Self::Superseded => "superseded",
            Self::NamespaceGone => "namespace_gone",
        }
    }
}

/// What a pod has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// How its request ended.
    pub outcome: Outcome,
    /// The object that it has, and in which state; `None` where it has none of ours.
    pub holds: Option<Holds>,
}

/// The object that serves a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holds {
    /// Its kind.
    pub kind: ObjectKind,
    /// Which object, and in which state.
    pub stored: Stored,
    /// Which value.
    pub known: Known,
}

impl Served {
    fn without(outcome: Outcome) -> Self {
        Self { outcome, holds: None }
    }
}

/// What is to be there for a pod.
#[derive(Debug, Clone)]
pub struct Want<'a> {
    /// What it asked for.
    pub admitted: &'a AdmittedRequest,
    /// The kind of object.
    pub kind: ObjectKind,
    /// Where it is a copy of a master.
    pub copy: Option<CopyOf>,
}

/// When the value may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A pod that is starting: together with the probe where that is likely to be of use.
    Starting,
    /// A pod that was there before the agent: only if the probe shows the need. What the agent saw since `seen_at`, when
    /// it was told of the pod, is as good as a probe of this pod's own.
    Replayed {
        /// When that was.
        seen_at: Instant,
    },
    /// Another attempt: only if the probe shows the need.
    Again,
}

/// Where and how Secrets are written.
pub struct Targets {
    workloads: Workloads,
    objects: Objects,
    admission: Arc<Admission>,
    clock: Arc<ApiClock>,
    bodies: ByteBudget,
    turns: Turns,
    node: String,
    freshness: Duration,
}

/// What `Targets` is made for.
#[derive(Debug)]
pub struct TargetConfig {
    /// The node whose name the writes carry.
    pub node: String,
    /// The agent's own namespace, where admission is checked.
    pub own_namespace: String,
    /// How much older than its pod a value may be.
    pub freshness: Duration,
    /// The kinds of objects that are written.
    pub kinds: &'static [ObjectKind],
    /// Whether the agent asks for tokens of pods' service accounts, for which there is a policy of its own.
    pub tokens: bool,
}

impl Targets {
    /// RBAC: `create` and `update` on secrets; see [`Workloads`] for the reads behind a disputed name.
    pub fn new(
        client: Client,
        workloads: Workloads,
        config: TargetConfig,
        clock: Arc<ApiClock>,
        metrics: Arc<Metrics>,
        changes: Arc<Changes>,
    ) -> Self {
        let (objects, node, freshness) = (Objects::new(client), config.node.clone(), config.freshness);
        let admission = Arc::new(Admission::new(objects.clone(), config, metrics, changes));
        let (bodies, turns) = (ByteBudget::for_bodies(), Turns::default());
        Self { workloads, objects, admission, clock, bodies, turns, node, freshness }
    }

    /// Where masters are read and written, by the same connections.
    pub fn masters(&self, namespace: MastersNamespace) -> MasterStore {
        MasterStore::new(self.objects.clone(), namespace, self.node.clone(), Arc::clone(&self.clock))
    }

    /// The watch over the admission policies.
    pub fn admission(&self) -> Arc<Admission> {
        Arc::clone(&self.admission)
    }

    /// Makes the pod's object hold what was admitted. `value` is asked for at most once, and only if it is needed.
    ///
    /// # Errors
    /// [`TargetError`], or whatever `value` ended with. What was there before stays as it was.
    pub async fn apply(
        &self,
        pod: &PodView,
        asked: Asked,
        want: &Want<'_>,
        urgency: Urgency,
        value: impl Future<Output = Result<Value, SyncError>>,
    ) -> Result<Served, SyncError> {
        self.admission.enforced().await?;
        let request = want.admitted.request();
        let target = Target { kind: want.kind, home: Home::Pod(pod.namespace()), name: request.secret_name.clone() };
        let (source, workload) = (want.admitted.source_id(), Workload::by_name(pod));
        let mut wish = Wish { source, asked, workload, copy: want.copy.clone() };
        let secret_type = request.template.secret_type;
        let (mut turn, alone) = self.turns.take(&target).await;
        let known_fresh = turn.as_ref().filter(|seen| is_known_fresh(seen, &wish, self.freshness));
        if let (Urgency::Replayed { seen_at }, Some(seen)) = (urgency, known_fresh)
            && seen.asked_at >= seen_at
        {
            return Ok(seen.serves(&target, Outcome::Fresh));
        }
        let early = urgency == Urgency::Starting && alone && self.freshness.is_zero() && known_fresh.is_none();
        let (mut value, mut ready) = (std::pin::pin!(maybe_done(value)), None);
        for _ in 0..TRIES {
            let asked_at = Instant::now();
            let meanwhile = (early && ready.is_none()).then_some(value.as_mut());
            let found = beside(self.probe(&target, secret_type), meanwhile).await?;
            let is_immutable = matches!(found, Found::Immutable);
            let held = match found {
                Found::Absent | Found::Immutable => None,
                Found::NamespaceGone => return Ok(Served::without(Outcome::NamespaceGone)),
                Found::Ours(held) => {
                    if let Some(outcome) = self.settle(pod, &target, &held, &mut wish).await? {
                        *turn = Seen::of(*held, asked_at);
                        return Ok(turn
                            .as_ref()
                            .filter(|_| outcome == Outcome::Fresh)
                            .map_or_else(|| Served::without(outcome), |seen| seen.serves(&target, outcome)));
                    }
                    Some(held)
                }
            };
            if ready.is_none() {
                value.as_mut().await;
                ready = value.as_mut().take_output().transpose()?;
            }
            let Some(ready) = &ready else { break };
            if is_immutable {
                return Ok(self.confirm(&target, secret_type, &wish, ready).await?);
            }
            if let Some((outcome, stored)) = self.write(&target, want.admitted, &wish, held.as_deref(), ready).await? {
                let seen = Seen { source: wish.source, known: ready.known(), stored, asked_at };
                let served = seen.serves(&target, outcome);
                *turn = Some(seen);
                return Ok(served);
            }
        }
        Err(TargetError::LostRace { target: target.to_string() }.into())
    }

    /// What is there, without a right to read.
    ///
    /// With the type that is wanted and its keys: the API server answers for others before any policy does.
    async fn probe(&self, target: &Target, secret_type: SecretType) -> Result<Found, TargetError> {
        let body = self.probe_body(target).placeholder(secret_type);
        match self.objects.send(Verb::Update, Mode::DryRun, target, body).await {
            Reply::Ours(held) => Ok(Found::Ours(Box::new(held.believed(&self.clock)))),
            Reply::Absent => Ok(Found::Absent),
            Reply::NamespaceGone => Ok(Found::NamespaceGone),
            Reply::Accepted(_) => Err(self.admission.probe_was_accepted()),
            Reply::Refused(TargetError::Immutable { .. }) => Ok(Found::Immutable),
            Reply::Refused(error) => Err(self.refused(error)),
            Reply::Exists | Reply::Changed => Err(TargetError::LostRace { target: target.to_string() }),
        }
    }

    /// The API server's answer; where rights are missing, it is looked at whether they are missing everywhere.
    fn refused(&self, error: TargetError) -> TargetError {
        if matches!(error, TargetError::Rbac { .. }) {
            self.admission.doubt_rights();
        }
        error
    }

    fn probe_body<'a>(&self, target: &'a Target) -> ObjectBody<'a> {
        ObjectBody::new(target.kind, target.namespace(), target.name.as_str())
            .annotate(PROBE, "true")
            .annotate(SOURCE, "v1:probe:probe")
            .annotate(NODE, &self.node)
    }

    /// Whether an immutable Secret, which nobody can change, is ours and holds the value: the API server lets a probe
    /// through to the policies only if its data is what is stored.
    async fn confirm(
        &self,
        target: &Target,
        secret_type: SecretType,
        wish: &Wish,
        value: &Value,
    ) -> Result<Served, TargetError> {
        let _reserved = self.bodies.reserve(ObjectBody::max_bytes(&value.data)).await;
        let body = self.probe_body(target).of_type(secret_type).data(&value.data).immutable();
        match self.objects.send(Verb::Update, Mode::DryRun, target, body).await {
            Reply::Ours(held) if held.source == wish.source => {
                let holds = Holds { kind: target.kind, stored: held.stored, known: value.known() };
                Ok(Served { outcome: Outcome::Fresh, holds: Some(holds) })
            }
            Reply::NamespaceGone => Ok(Served::without(Outcome::NamespaceGone)),
            Reply::Accepted(_) => Err(self.admission.probe_was_accepted()),
            Reply::Refused(error) => Err(self.refused(error)),
            Reply::Ours(_) => Err(TargetError::Immutable { target: target.to_string() }),
            Reply::Absent | Reply::Exists | Reply::Changed => Err(TargetError::LostRace { target: target.to_string() }),
        }
    }

    /// `Some` where nothing is to be written. Asks who the workloads are only where names alone would refuse the pod.
    async fn settle(
        &self,
        pod: &PodView,
        target: &Target,
        held: &Held,
        wish: &mut Wish,
    ) -> Result<Option<Outcome>, TargetError> {
        let decision = match decide(held, wish, self.freshness) {
            Decision::OtherWorkload(holder) => {
                wish.workload = in_time(self.workloads.verified(pod)).await?;
                if wish.workload == holder {
                    by_age(held, wish)
                } else if holder == Workload::ShortLived {
                    from_short_lived(held, wish)
                } else if in_time(self.workloads.exists(&pod.namespace(), &holder)).await? {
                    Decision::OtherWorkload(holder)
                } else {
                    Decision::TakeOver
                }
            }
            decision => decision,
        };
        let decision = match decision {
            Decision::TakeOver | Decision::Superseded | Decision::Tie if is_of_another_identity(held, wish) => {
                // Not by a name that looks like it.
                wish.workload = in_time(self.workloads.verified(pod)).await?;
                across_identities(decision, held, wish)
            }
            decision => decision,
        };
        let target = || target.to_string();
        match decision {
            Decision::Fresh => Ok(Some(Outcome::Fresh)),
            Decision::Superseded => Ok(Some(Outcome::Superseded)),
            Decision::Refresh | Decision::TakeOver if !held.others.is_empty() => {
                Err(TargetError::Decorated { target: target(), kinds: held.others.clone() })
            }
            Decision::Refresh | Decision::TakeOver => Ok(None),
            Decision::Tie => Err(TargetError::Tie { target: target() }),
            Decision::OtherWorkload(holder) => Err(TargetError::HeldByOther { target: target(), holder }),
            Decision::OtherIdentity => Err(TargetError::OtherIdentity { target: target() }),
            Decision::NewerRelease => Err(TargetError::NewerRelease { target: target() }),
        }
    }

    /// Creates, or replaces exactly what the probe saw. `None`: somebody was faster.
    async fn write(
        &self,
        target: &Target,
        admitted: &AdmittedRequest,
        wish: &Wish,
        held: Option<&Held>,
        value: &Value,
    ) -> Result<Option<(Outcome, Stored)>, TargetError> {
        let same_source = held.filter(|held| held.source == wish.source);
        let same_spec =
            held.filter(|held| held.source == wish.source || differ_in_identity(&held.source, &wish.source));
        let since =
            same_spec.and_then(|held| held.spec_since).map_or(wish.asked.since, |since| since.max(wish.asked.since));
        let workload = same_source.and_then(|held| held.workload.as_ref()).unwrap_or(&wish.workload);
        let verb = if held.is_some() { Verb::Update } else { Verb::Create };
        let _reserved = self.bodies.reserve(ObjectBody::max_bytes(&value.data)).await;
        let now = self.clock.now().to_string();
        let body = ObjectBody::new(target.kind, target.namespace(), target.name.as_str())
            .of_type(admitted.request().template.secret_type)
            .source(SOURCE, &wish.source)
            .annotate(SOURCE_PATH, &admitted.request().remote.path)
            .annotate(SOURCE_VERSION, &value.version)
            .annotate(SYNCED_AT, &now)
            .annotate(SYNCED_THROUGH, &value.seen_through.to_string())
            .annotate(SPEC_SINCE, &since.to_string())
            .annotate(WORKLOAD, &workload.to_string())
            .annotate(NODE, &self.node)
            .data(&value.data)
            .replacing(held.map(|held| held.stored.resource_version.as_str()));
        let body = match &wish.copy {
            None => body,
            Some(copy) => body
                .label(REPLICATED_FROM, copy.namespace.as_str())
                .label(SOURCE, copy.source_kind)
                .annotate(LAST_REPLICATED, &now)
                .annotate(SOURCE_NAMESPACE, copy.namespace.as_str()),
        };
        match self.objects.send(verb, Mode::Store, target, body).await {
            Reply::Accepted(stored) if verb == Verb::Create => Ok(Some((Outcome::Created, stored))),
            Reply::Accepted(stored) => Ok(Some((Outcome::Updated, stored))),
            Reply::Exists | Reply::Changed | Reply::Absent => Ok(None),
            Reply::NamespaceGone => Ok(Some((Outcome::NamespaceGone, Stored::default()))),
            Reply::Refused(error) => Err(self.refused(error)),
            // Only a probe is answered like this.
            Reply::Ours(_) => Err(TargetError::Unreadable { target: target.to_string() }),
        }
    }
}

enum Found {
    Ours(Box<Held>),
    Absent,
    /// Ours or not, it cannot be told.
    Immutable,
    NamespaceGone,
}

type PinnedValue<'a, V> = Pin<&'a mut MaybeDone<V>>;

/// Waits for `probe` and, beside it, gets on with the value.
async fn beside<T, V: Future>(probe: impl Future<Output = T>, mut value: Option<PinnedValue<'_, V>>) -> T {
    let mut probe = std::pin::pin!(probe);
    poll_fn(|context| {
        if let Some(value) = &mut value {
            // It keeps its output until it is asked for.
            let _: Poll<()> = value.as_mut().poll(context);
        }
        probe.as_mut().poll(context)
    })
    .await
}

fn is_known_fresh(seen: &Seen, wish: &Wish, freshness: Duration) -> bool {
    seen.source == wish.source && wish.is_met_by(&seen.known, freshness)
}

/// Bounds a read behind a disputed name, which others wait for.
async fn in_time<T>(read: impl Future<Output = kube::Result<T>>) -> Result<T, TargetError> {
    match tokio::time::timeout(READ_TIMEOUT, read).await {
        Ok(outcome) => outcome.map_err(unread),
        Err(elapsed) => Err(TargetError::Unreachable { source: elapsed.into() }),
    }
}

/// A read behind a disputed name failed.
fn unread(error: kube::Error) -> TargetError {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            TargetError::Rbac { verb: "get".to_owned(), resource: "the pod's workload".to_owned() }
        }
        error => TargetError::Unreachable { source: error.into() },
    }
}
