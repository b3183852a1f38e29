//! What is done for a pod: the table of contents of the agent.

use std::{
    convert::Infallible,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use kube::runtime::controller::Action;
use tokio::time::Instant;

use crate::{
    annotations,
    changes::Changes,
    clock::{ApiClock, SeenClock},
    error::{Retry, SyncError, chain},
    limits::ByteBudget,
    mapping,
    masters::Masters,
    pod::PodView,
    policy::{AdmittedRequest, Requester, RuleName},
    policy_file::PolicyFile,
    progress::{Ask, Due, Lookup, Progress},
    provider::{ActsAs, Asker, Caller, FetchError, Fetched, Kind, ProviderError, Registry},
    report::Reporter,
    request::{self, KindWish, ObjectKind},
    service_account::ServiceAccounts,
    target::{Asked, Served, Targets, Urgency, Value, Want},
    workload_annotations::{Inherited, WorkloadAnnotations},
};

/// How old what is known of a pod's account may be when the pod asks for something for the first time.
const ACCOUNT_HOLDS: Duration = Duration::from_secs(60);

/// What the steps share.
pub struct Context {
    /// Who may have what.
    pub policy: Arc<PolicyFile>,
    /// The stores.
    pub registry: Arc<Registry>,
    /// The masters, in central mode.
    pub masters: Option<Arc<Masters>>,
    /// What workloads ask for; `None` where that is switched off.
    pub workload_annotations: Option<WorkloadAnnotations>,
    /// The pods' service accounts, for stores that are asked as these.
    pub service_accounts: ServiceAccounts,
    /// The Secrets.
    pub targets: Targets,
    /// Where outcomes go.
    pub reporter: Reporter,
    /// What was done and what waits.
    pub progress: Arc<Progress>,
    /// What wakes those who wait for a change.
    pub changes: Arc<Changes>,
    /// The newest pod seen.
    pub seen: Arc<SeenClock>,
    /// The API server's clock.
    pub clock: Arc<ApiClock>,
    /// The bound on values between fetch and write.
    pub values: ByteBudget,
    /// How much older than its pod a value may be.
    pub freshness: Duration,
}

/// Serves what is due for a pod, and says when to look at it again. A pod that has what it asked for costs nothing.
///
/// # Errors
/// None: a request that fails waits for its own time, and holds up neither the pod's others nor other pods.
pub async fn reconcile(pod: Arc<PodView>, context: Arc<Context>) -> Result<Action, Infallible> {
    let (asks, from) = match pod.asks() {
        Some(own) => (context.read(own), Place::Pod),
        None => match context.inherited(&pod).await {
            Some(inherited) => {
                let asks = context
                    .read(&inherited.text)
                    .into_iter()
                    .map(|ask| ask.map_err(|error| inherited.says_where(error)));
                (asks.collect(), Place::Workload)
            }
            None => {
                context.progress.idle(&pod);
                return Ok(context.progress.next(&pod));
            }
        },
    };
    let due = context.progress.due(&pod, asks, context.changes.count(), context.clock.now());
    join_all(due.into_iter().map(|due| context.serve(&pod, due, from))).await;
    Ok(context.progress.next(&pod))
}

/// Where the annotation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Pod,
    Workload,
}

impl Context {
    /// What the pod's workload asks for, read once for each pod.
    async fn inherited(&self, pod: &PodView) -> Option<Inherited> {
        let reader = self.workload_annotations.as_ref().filter(|_| pod.may_inherit())?;
        let changes = self.changes.count();
        let seen_at = match self.progress.lookup(pod, changes) {
            Lookup::Known(known) => return known,
            Lookup::Later => return None,
            Lookup::Due { seen_at } => seen_at,
        };
        match reader.of(pod, seen_at).await {
            Ok(found) => {
                self.progress.found(pod, found.clone());
                found
            }
            Err(error) => {
                // Slowly: it concerns every pod of a workload in the cluster.
                let retry = if error.is_forbidden() { Retry::Denied } else { Retry::Transient };
                if self.progress.not_found_out(pod, retry, changes) {
                    let (pod, error) = (pod.name(), chain(&error));
                    tracing::warn!(pod, error, "whether a pod's workload asks for secrets is not known");
                }
                None
            }
        }
    }

    /// What an annotation asks for. The text is a stranger's, so that a parser that panics is an answer, too.
    fn read(&self, annotation: &str) -> Vec<Ask> {
        let parsed = catch_unwind(AssertUnwindSafe(|| request::parse(annotation, self.registry.catalogue())));
        match parsed {
            Ok(Ok(asks)) => asks,
            Ok(Err(error)) => vec![Err(error.into())],
            Err(_) => {
                self.reporter.panicked();
                vec![Err(annotations::invalid("is more than the agent's parser can take; write it more simply").into())]
            }
        }
    }

    /// Tries one request, and settles what has become of it.
    async fn serve(&self, pod: &PodView, due: Due, from: Place) {
        let started = Instant::now();
        let ask = due.ask.clone();
        let outcome = caught(self.sync(pod, &due, from), || {
            self.reporter.panicked();
            SyncError::Panicked { target: target_of(pod, &ask) }
        })
        .await;
        let took = started.elapsed();
        match outcome {
            Ok((served, rule)) => {
                // What its master brought is told by itself: folded into what came before, it would have the older note.
                let action = if due.left_behind { "Follow" } else { "Sync" };
                let tell = self.progress.done(pod, due, &served);
                self.reporter.served(pod, &ask, &rule, &served, took, tell.then_some(action));
                // Only now: what its master told meanwhile found nothing that was served.
                if let (Some(masters), Ok(request), Some(holds)) = (&self.masters, &ask, &served.holds) {
                    masters.index().check_copy(&request.remote.source_id(), &holds.known);
                }
            }
            Err(error) => {
                let verdict = self.progress.failed(pod, due, &error);
                self.reporter.failed(pod, &ask, &error, took, verdict);
            }
        }
    }

    /// The steps: request, policy, value (if it is needed), write. Also tells which rule admitted it.
    async fn sync(&self, pod: &PodView, due: &Due, from: Place) -> Result<(Served, RuleName), SyncError> {
        let request = due.ask.clone()?;
        let admitted = self.policy.current().admit(request, &Requester::of(pod))?;
        let admitted = self.as_its_caller(admitted, pod, due).await?;
        tracing::debug!(namespace = %pod.namespace(), pod = pod.name(), rule = %admitted.rule(), "admitted");
        let mut asked = Asked::by(pod.reference_time(), due.edited_at);
        // A workload that was edited since does not change what its running pods were given.
        asked.gives_way = from == Place::Workload && due.was_there && pod.is_running();
        self.seen.observe(asked.reference);
        let urgency = match due {
            Due { hangs: true, .. } | Due { left_behind: true, .. } | Due { failures: 1.., .. } => Urgency::Again,
            Due { replayed: true, edited_at: None, seen_at, .. } => Urgency::Replayed { seen_at: *seen_at },
            _ => Urgency::Starting,
        };
        if urgency == Urgency::Again
            && due.failures > 0
            && let Some(error) = self.registry.stands_in_the_way(&admitted, asked.reference)
        {
            return Err(error.into());
        }
        let work = Work { pod, asked, admitted: &admitted, urgency };
        let served = match self.known_kind(&admitted) {
            None => {
                // Let go of before the turn on the object is waited for: who has that may wait for memory.
                let kind = self.value(&work).await?.kind;
                self.write(&work, kind, self.value_as(&work, kind)).await
            }
            Some(kind) => match self.write(&work, kind, self.value_as(&work, kind)).await {
                // The store holds it under another type than it did.
                Err(SyncError::OtherKind { kind, .. }) => self.write(&work, kind, self.value_as(&work, kind)).await,
                served => served,
            },
        };
        Ok((served?, admitted.rule().clone()))
    }

    /// Who asks the store: the agent, or the pod's service account. It is known before anything that is there is looked at, since
    /// what another one was given is not this pod's.
    async fn as_its_caller(
        &self,
        admitted: AdmittedRequest,
        pod: &PodView,
        due: &Due,
    ) -> Result<AdmittedRequest, SyncError> {
        let provider = &admitted.request().remote.provider;
        let account = match self.registry.acts_as(provider) {
            ActsAs::Agent => return Ok(admitted),
            ActsAs::Named => self.service_accounts.named(pod).await,
            ActsAs::Pod => {
                let is_first = due.failures == 0 && !due.hangs && due.edited_at.is_none();
                // It may have been mended since; but first whatever was known then has to have had its time.
                if let Some(known) = self.progress.account(pod).filter(|_| due.failures > 0)
                    && self.service_accounts.is_current(&known).await
                {
                    let known = admitted.clone().by(Caller::ServiceAccount(known));
                    if let Some(error) = self.registry.stands_in_the_way(&known, pod.reference_time()) {
                        return Err(error.into());
                    }
                }
                let now = Instant::now();
                let since = if is_first { due.seen_at.max(now.checked_sub(ACCOUNT_HOLDS).unwrap_or(now)) } else { now };
                let found = self.service_accounts.of(pod, due.seen_at, since).await;
                found.map_err(|error| {
                    let error = ProviderError::of_token(provider.clone(), &error);
                    SyncError::Provider(FetchError::answered(Arc::new(error), None))
                })?
            }
        };
        self.progress.acts_as(pod, &account);
        Ok(admitted.by(Caller::ServiceAccount(account)))
    }

    /// As what it is written, where that is known without its value.
    fn known_kind(&self, admitted: &AdmittedRequest) -> Option<ObjectKind> {
        let request = admitted.request();
        match (request.kind, &self.masters) {
            (KindWish::ConfigMap, _) => Some(ObjectKind::ConfigMap),
            (KindWish::Auto, Some(masters)) if self.store(admitted).is_some_and(Kind::may_be_plain) => {
                masters.kind_of(&request.remote)
            }
            _ => Some(ObjectKind::Secret),
        }
    }

    fn store(&self, admitted: &AdmittedRequest) -> Option<Kind> {
        self.registry.catalogue().get(admitted.request().remote.provider.as_str()).map(|(_, kind)| kind)
    }

    async fn write(
        &self,
        work: &Work<'_>,
        kind: ObjectKind,
        value: impl Future<Output = Result<Value, SyncError>>,
    ) -> Result<Served, SyncError> {
        let Work { pod, asked, admitted, urgency } = *work;
        let copy = match (&self.masters, self.store(admitted)) {
            (Some(masters), Some(store)) => Some(masters.copy_of(&pod.namespace(), admitted, store)?),
            _ => None,
        };
        self.targets.apply(pod, asked, &Want { admitted, kind, copy }, urgency, value).await
    }

    /// The value, where it is still of that kind.
    async fn value_as(&self, work: &Work<'_>, kind: ObjectKind) -> Result<Value, SyncError> {
        let value = self.value(work).await?;
        match value.kind == kind {
            true => Ok(value),
            false => Err(SyncError::OtherKind { path: work.admitted.request().remote.path.clone(), kind: value.kind }),
        }
    }

    /// From the store, or by way of its master.
    async fn fetch(&self, work: &Work<'_>) -> Result<Arc<Fetched>, SyncError> {
        let Work { pod, asked, admitted, .. } = *work;
        let asker = Asker { namespace: pod.namespace(), reference: asked.reference, freshness: self.freshness };
        match (&self.masters, self.store(admitted)) {
            (Some(masters), Some(store)) => masters.fetch(admitted, store, &asker).await,
            _ => {
                if let Caller::ServiceAccount(account) = admitted.caller() {
                    account.asked_by(pod);
                }
                Ok(self.registry.fetch(admitted, &asker, &self.seen).await?)
            }
        }
    }

    /// The value, no older than the pod (or its edit): fetched, then mapped.
    async fn value(&self, work: &Work<'_>) -> Result<Value, SyncError> {
        let (admitted, fetched) = (work.admitted, self.fetch(work).await?);
        let template = &admitted.request().template;
        let kind = match (admitted.request().kind, fetched.payload.is_plain()) {
            (KindWish::ConfigMap, false) => {
                return Err(SyncError::NotPlain { path: admitted.request().remote.path.clone() });
            }
            (KindWish::Secret, _) | (_, false) => ObjectKind::Secret,
            _ if self.masters.is_none() => ObjectKind::Secret,
            _ => ObjectKind::ConfigMap,
        };
        let reserved = self.values.reserve(mapping::memory_of(template, &fetched.payload)).await;
        let data = mapping::map(template, &fetched.payload).map_err(|problem| SyncError::Mapping {
            provider: admitted.request().remote.provider.clone(),
            path: admitted.request().remote.path.clone(),
            problem,
        })?;
        let version = fetched.payload.version().to_owned();
        Ok(Value { kind, data, version, seen_through: fetched.seen_through, reserved })
    }
}

/// One request on its way to its object.
#[derive(Clone, Copy)]
struct Work<'a> {
    pod: &'a PodView,
    asked: Asked,
    admitted: &'a AdmittedRequest,
    urgency: Urgency,
}

/// Turns a panic into an error, so that it stays where it happened.
async fn caught<T>(
    work: impl Future<Output = Result<T, SyncError>>,
    panicked: impl FnOnce() -> SyncError,
) -> Result<T, SyncError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err(panicked()))
}

fn target_of(pod: &PodView, ask: &Ask) -> String {
    match ask {
        Ok(request) => format!("Secret {}/{}", pod.namespace(), request.secret_name),
        Err(_) => format!("pod {}/{}", pod.namespace(), pod.name()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::Client;

    use super::*;
    use crate::fake_api::{self, Scene};

    #[tokio::test]
    async fn a_panic_stays_with_its_pod() {
        let scene = Scene::new(Client::new(tower::service_fn(fake_api::secrets), "jasm-system")).await;
        let admission = scene.context.targets.admission();
        let pods = ["broken", "fine"].map(|name| Arc::new(fake_api::pod(name)));
        let both = async {
            let mut outcomes = Vec::new();
            for pod in pods {
                scene.context.progress.applied(&pod);
                outcomes.push(reconcile(pod, Arc::clone(&scene.context)).await.expect("infallible"));
            }
            outcomes
        };
        let outcomes = tokio::select! {
            outcomes = both => outcomes,
            () = admission.watch() => unreachable!("it never ends"),
        };
        assert_ne!(outcomes[0], Action::await_change(), "it is tried again later");
        assert_eq!(outcomes[1], Action::await_change(), "done");
        let metrics = scene.metrics.render();
        for want in [
            "jasm_panics_total 1",
            r#"jasm_syncs_total{provider="aws",result="failed",reason="SecretWriteFailed"} 1"#,
            r#"jasm_syncs_total{provider="aws",result="fresh",reason="SecretSyncSuccess"} 1"#,
        ] {
            assert!(metrics.contains(want), "{want} is not in\n{metrics}");
        }
    }
}
