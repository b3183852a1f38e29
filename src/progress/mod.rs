//! What has become of each request of each pod on this node: done, or waiting until when.
//!
//! It is what makes a status change of a pod cost nothing, and what `/readyz` and `jasm_requests_waiting` tell.

mod one_pod;
mod waiting;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kube::runtime::controller::Action;
use tokio::time::Instant;

use self::{
    one_pod::{Pod, State},
    waiting::{Reading, Waiting},
};
use crate::{
    delays::Delays,
    error::{Reason, Retry, SyncError},
    pod::{PodNamespace, PodView},
    request::{RequestError, SecretRequest},
    service_account::ServiceAccount,
    target::{Holds, Known, Outcome, Served},
    workload_annotations::Inherited,
};

/// One thing that a pod's annotation asks for, or the reason why it asks for nothing.
pub type Ask = Result<SecretRequest, RequestError>;

/// Which list of the node's pods ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// The one at the start.
    First,
    /// One after a watch that could not be resumed.
    Again,
}

/// An [`Ask`] whose time has come.
#[derive(Debug)]
pub struct Due {
    /// What is asked for.
    pub ask: Ask,
    /// Whether the pod was there before the agent.
    pub replayed: bool,
    /// When it took the place of another request of this pod for the same Secret.
    pub edited_at: Option<Timestamp>,
    /// How often it was tried before, in vain.
    pub failures: u32,
    /// It was served before, and the pod hangs all the same.
    pub hangs: bool,
    /// It was served before, and its copy is behind its master.
    pub left_behind: bool,
    /// When the agent was told of the pod.
    pub seen_at: Instant,
    /// Whether the pod was in the first list, however often it was looked at since.
    pub was_there: bool,
    /// The changes that were known when it became due.
    changes: u64,
}

/// What the node's pods ask for.
#[derive(Debug, Clone, Default)]
pub struct InUse {
    /// Every request that was tried.
    pub requests: Vec<Used>,
    /// Namespaces with a pod that may ask for more: it was not looked at yet, its workload or its annotation cannot be read, or
    /// one of its requests is tried for the first time.
    pub may_be_more: HashSet<PodNamespace>,
}

/// A request of a pod that is there.
#[derive(Debug, Clone)]
pub struct Used {
    /// The pod's.
    pub namespace: PodNamespace,
    /// What it asks for.
    pub request: SecretRequest,
    /// The object that it has; `None` while it waits.
    pub holds: Option<Holds>,
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the pod's owner is to be told (again).
    pub tell: bool,
    /// When it is tried again.
    pub retry_in: Duration,
    /// How often it failed so far.
    pub failures: u32,
}

/// Every pod of the node that asks for something, or may do so by its workload.
#[derive(Debug, Default)]
pub struct Progress {
    pods: Mutex<Pods>,
    inherits: bool,
}

/// A watch that gave nothing since it failed, and did not fail again for so long, works: it is tried again every minute at least.
const WATCH_WORKS: Duration = Duration::from_secs(300);

/// What is known of the annotation that a pod may inherit.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// Its workload was read; a pod is given one answer, whatever becomes of the workload later.
    Known(Option<Inherited>),
    /// It is to be read, no older than when the pod was first seen.
    Due {
        /// When that was.
        seen_at: Instant,
    },
    /// It could not be read, and it is too early for the next attempt.
    Later,
}

#[derive(Debug, Default)]
struct Pods {
    by_uid: HashMap<String, Pod>,
    /// Those of the list that is being read.
    listed: HashSet<String>,
    /// Whether one is being read.
    is_listing: bool,
    /// When the watch failed last, while it has given nothing since.
    failed_at: Option<Instant>,
    /// Those of the first list whose first attempt has not begun.
    unbegun: HashSet<String>,
    first_list_done: bool,
}

impl Pods {
    fn is_begun(&self) -> bool {
        self.first_list_done && self.unbegun.is_empty()
    }

    /// What one pod has now, all others have that were served with the same object.
    fn share(&mut self, namespace: &PodNamespace, request: &SecretRequest, holds: &Holds) {
        let neighbours = self.by_uid.values_mut().filter(|pod| pod.namespace == *namespace);
        for (ask, state) in neighbours.flat_map(|pod| pod.asks.iter_mut()) {
            if let (Ok(other), State::Done(held @ Some(_))) = (ask, state)
                && other.secret_name == request.secret_name
                && held.as_ref().is_some_and(|held| held.kind == holds.kind)
            {
                // Under the name of one that asks for another source is not what that one was served with.
                *held = (other.remote == request.remote).then(|| holds.clone());
            }
        }
    }
}

impl Progress {
    /// With nothing known. `inherits`: whether pods are served by the annotations of their workloads.
    pub fn new(inherits: bool) -> Self {
        Self { inherits, ..Self::default() }
    }

    /// The watch on pods failed; it is tried again.
    pub fn watch_failed(&self) {
        self.pods().failed_at = Some(Instant::now());
    }

    /// It works: it gave something.
    pub fn watch_works(&self) {
        self.pods().failed_at = None;
    }

    /// Whether the node's pods are known: those of the first list have had their turn, and the watch did not fail lately.
    pub fn knows_pods(&self) -> bool {
        let pods = self.pods();
        let works = pods.failed_at.is_none_or(|at| at.elapsed() >= WATCH_WORKS);
        pods.is_begun() && !pods.is_listing && works
    }

    /// A list of all pods begins.
    pub fn list_began(&self) {
        let mut pods = self.pods();
        pods.listed.clear();
        pods.is_listing = true;
    }

    /// A pod of that list.
    pub fn listed(&self, pod: &PodView) {
        let mut pods = self.pods();
        pods.listed.insert(pod.uid().to_owned());
        if self.concerns(pod) {
            let replayed = !pods.first_list_done;
            if replayed {
                pods.unbegun.insert(pod.uid().to_owned());
            }
            pods.by_uid.entry(pod.uid().to_owned()).or_insert_with(|| Pod::new(pod.namespace(), replayed));
        }
    }

    /// A pod is new, or changed.
    pub fn applied(&self, pod: &PodView) {
        if self.concerns(pod) {
            self.pods().by_uid.entry(pod.uid().to_owned()).or_insert_with(|| Pod::new(pod.namespace(), false));
        }
    }

    fn concerns(&self, pod: &PodView) -> bool {
        pod.asks().is_some() || (self.inherits && pod.may_inherit())
    }

    /// That list is complete: what is not in it is gone.
    pub fn list_ended(&self) -> Listed {
        let pods = &mut *self.pods();
        let listed = std::mem::take(&mut pods.listed);
        pods.is_listing = false;
        for (uid, mut pod) in pods.by_uid.extract_if(|uid, _| !listed.contains(uid)) {
            pod.leave(&uid);
        }
        pods.unbegun.retain(|uid| listed.contains(uid));
        if std::mem::replace(&mut pods.first_list_done, true) { Listed::Again } else { Listed::First }
    }

    /// A pod asks for nothing (any more); it may do so again.
    pub fn idle(&self, view: &PodView) {
        let mut pods = self.pods();
        pods.unbegun.remove(view.uid());
        if let Some(pod) = pods.by_uid.get_mut(view.uid()) {
            pod.forget_all_but(&[], Timestamp::UNIX_EPOCH);
            pod.leave(view.uid());
            if !view.may_inherit() {
                pod.reading = None;
            }
            // What comes later than the first look is an edit.
            if pod.reading.is_none() {
                pod.replayed = false;
            }
        }
    }

    /// A pod is gone.
    pub fn forget(&self, uid: &str) {
        let mut pods = self.pods();
        if let Some(mut pod) = pods.by_uid.remove(uid) {
            pod.leave(uid);
        }
        pods.unbegun.remove(uid);
    }

    /// Whether the first list is done and work on each of its pods has begun.
    pub fn is_ready(&self) -> bool {
        self.pods().is_begun()
    }

    /// What is known of the annotation that a pod without its own may inherit. A pod that is gone inherits nothing.
    /// A change of the agent's surroundings ends the wait for the next attempt.
    pub fn lookup(&self, pod: &PodView, changes: u64) -> Lookup {
        let mut pods = self.pods();
        // An API server that does not answer about a workload is no reason not to serve other pods.
        pods.unbegun.remove(pod.uid());
        match pods.by_uid.get(pod.uid()) {
            Some(Pod { inherited: Some(known), .. }) => Lookup::Known(known.clone()),
            Some(Pod { reading: Some(reading), .. })
                if Instant::now() < reading.next_at && reading.changes == changes =>
            {
                Lookup::Later
            }
            Some(pod) => Lookup::Due { seen_at: pod.seen_at },
            None => Lookup::Known(None),
        }
    }

    /// A pod's workload was read.
    pub fn found(&self, pod: &PodView, inherited: Option<Inherited>) {
        if let Some(pod) = self.pods().by_uid.get_mut(pod.uid()) {
            pod.inherited = Some(inherited);
            pod.reading = None;
        }
    }

    /// A pod's workload could not be read. Says whether that is new.
    pub fn not_found_out(&self, pod: &PodView, retry: Retry, changes: u64) -> bool {
        let mut pods = self.pods();
        let Some(pod) = pods.by_uid.get_mut(pod.uid()) else { return false };
        let before = pod.reading.take().filter(|reading| reading.retry == retry);
        let is_new = before.is_none();
        let mut delays = before.map_or_else(|| Delays::new(retry), |reading| reading.delays);
        let next_at = Instant::now() + delays.next();
        pod.reading = Some(Reading { retry, delays, changes, next_at });
        is_new
    }

    /// Takes what the pod asks for now, forgets what it no longer asks for, and gives what is to be worked on.
    /// `api_time`: now, by the API server's clock. A pod that is gone, or was never seen, gets nothing.
    pub fn due(&self, view: &PodView, asks: Vec<Ask>, changes: u64, api_time: Timestamp) -> Vec<Due> {
        let now = Instant::now();
        let mut pods = self.pods();
        pods.unbegun.remove(view.uid());
        let Some(pod) = pods.by_uid.get_mut(view.uid()) else {
            return Vec::new();
        };
        pod.forget_all_but(&asks, api_time);
        pod.reading = None;
        let looks_again = pod.looks_again(view.hangs(), now);
        // What comes later than the first look is an edit.
        let (replayed, seen_at, was_there) = (std::mem::take(&mut pod.replayed), pod.seen_at, pod.was_there);
        asks.into_iter()
            .filter_map(|ask| {
                let (failures, hangs, left_behind) = match pod.asks.get(&ask) {
                    None => (0, false, false),
                    Some(State::Waiting(waiting)) if waiting.is_due(now, changes) => (waiting.failures, false, false),
                    Some(State::LeftBehind) => (0, false, true),
                    Some(State::Done(_)) if looks_again => (0, true, false),
                    Some(_) => return None,
                };
                let edited_at = pod.edited.get(&ask).copied();
                Some(Due { ask, replayed, edited_at, failures, hangs, left_behind, seen_at, was_there, changes })
            })
            .collect()
    }

    /// A store is asked as this account for the pod: what it gives for it is kept no longer than the pod is there.
    pub fn acts_as(&self, view: &PodView, account: &Arc<ServiceAccount>) {
        if let Some(pod) = self.pods().by_uid.get_mut(view.uid()) {
            pod.acts_as(view.uid(), account);
        }
    }

    /// The account that proves itself to stores for the pod, as it was read last.
    pub fn account(&self, pod: &PodView) -> Option<Arc<ServiceAccount>> {
        let pods = self.pods();
        let accounts = &pods.by_uid.get(pod.uid())?.accounts;
        accounts.iter().find(|account| account.is_proven()).cloned()
    }

    /// A request was served. Says whether the pod's owner is to be told.
    pub fn done(&self, pod: &PodView, due: Due, served: &Served) -> bool {
        // A pod that runs was told by the agent before this one, or had what it needs all along.
        let knows = due.replayed && due.failures == 0 && pod.is_running();
        let nothing_new = (due.hangs || due.left_behind) && served.outcome == Outcome::Fresh;
        let mut pods = self.pods();
        if let (Ok(request), Some(holds)) = (&due.ask, &served.holds) {
            pods.share(&pod.namespace(), request, holds);
        }
        if let Some(pod) = pods.by_uid.get_mut(pod.uid()) {
            pod.settle(due.ask, State::Done(served.holds.clone()));
        }
        !knows && !nothing_new
    }

    /// A request failed.
    pub fn failed(&self, pod: &PodView, due: Due, error: &SyncError) -> Verdict {
        let now = Instant::now();
        let mut pods = self.pods();
        let before = pods.by_uid.get_mut(pod.uid()).and_then(|pod| pod.asks.remove(&due.ask));
        let (waiting, verdict) = Waiting::after(before, &due, error, now);
        // A pod that vanished meanwhile is not brought back.
        if let Some(pod) = pods.by_uid.get_mut(pod.uid()) {
            pod.settle(due.ask, State::Waiting(waiting));
        }
        verdict
    }

    /// What the pods of this node ask for, and have.
    pub fn in_use(&self) -> InUse {
        let pods = self.pods();
        let of_pod = |pod: &Pod| {
            let namespace = pod.namespace.clone();
            let asks = pod.asks.iter().filter_map(move |(ask, state)| {
                let holds = match state {
                    State::Done(holds) => holds.clone(),
                    State::LeftBehind | State::Waiting(_) => None,
                };
                Some(Used { namespace: namespace.clone(), request: ask.clone().ok()?, holds })
            });
            asks.collect::<Vec<_>>()
        };
        let unknown = pods.by_uid.values().filter(|pod| !pod.is_known()).map(|pod| pod.namespace.clone());
        InUse { may_be_more: unknown.collect(), requests: pods.by_uid.values().flat_map(of_pod).collect() }
    }

    /// Makes requests due again that were served with a value which `is_behind`; says how many.
    pub fn left_behind(&self, is_behind: impl Fn(&SecretRequest, &Known) -> bool) -> usize {
        let mut pods = self.pods();
        let asks = pods.by_uid.values_mut().flat_map(|pod| pod.asks.iter_mut());
        let behind = asks.filter(|(ask, state)| match (ask, state) {
            (Ok(request), State::Done(Some(holds))) => is_behind(request, &holds.known),
            _ => false,
        });
        behind.map(|(_, state)| *state = State::LeftBehind).count()
    }

    /// When the pod is to be looked at again.
    pub fn next(&self, pod: &PodView) -> Action {
        let pods = self.pods();
        let pod = pods.by_uid.get(pod.uid());
        let hang = pod.and_then(|pod| pod.hang.as_ref());
        let next = pod.into_iter().flat_map(|pod| pod.asks.values()).filter_map(|state| match state {
            State::Done(_) => hang.map(|hang| hang.next_at),
            State::Waiting(waiting) => Some(waiting.next_at),
            // Whoever left it behind announces that.
            State::LeftBehind => None,
        });
        let reading = pod.and_then(|pod| pod.reading.as_ref()).map(|reading| reading.next_at);
        next.chain(reading)
            .min()
            .map_or_else(Action::await_change, |at| Action::requeue(at.saturating_duration_since(Instant::now())))
    }

    /// How many requests wait, by reason.
    pub fn waiting(&self) -> BTreeMap<Reason, i64> {
        let mut counts = BTreeMap::new();
        for state in self.pods().by_uid.values().flat_map(|pod| pod.asks.values()) {
            if let State::Waiting(waiting) = state {
                *counts.entry(waiting.reason).or_default() += 1;
            }
        }
        counts
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{one_pod::HANG_LOOKS, *};
    use crate::{
        delays::TELL_AGAIN,
        request::ObjectKind,
        target::{Stored, TargetError},
    };

    fn pod(uid: &str, phase: &str) -> PodView {
        serde_json::from_value(json!({
            "metadata": {"name": uid, "uid": uid, "annotations": {crate::pod::SYNC_ANNOTATION: "x"}},
            "status": {"phase": phase},
        }))
        .expect("a pod")
    }

    fn ask(name: &str) -> Ask {
        Ok(SecretRequest::for_test("aws", "a", name))
    }

    fn served(outcome: Outcome) -> Served {
        Served { outcome, holds: None }
    }

    fn quota() -> SyncError {
        TargetError::Quota { target: "ns/a".into() }.into()
    }

    fn admission() -> SyncError {
        TargetError::AdmissionMissing { policy: "p" }.into()
    }

    fn busy() -> SyncError {
        TargetError::Unauthenticated.into()
    }

    /// What was taken before.
    fn late_due() -> Due {
        let seen_at = Instant::now();
        Due {
            ask: ask("a"),
            replayed: false,
            edited_at: None,
            failures: 0,
            hangs: false,
            left_behind: false,
            seen_at,
            was_there: false,
            changes: 0,
        }
    }

    fn take(progress: &Progress, pod: &PodView, asks: Vec<Ask>, changes: u64) -> Vec<Due> {
        progress.due(pod, asks, changes, Timestamp::UNIX_EPOCH)
    }

    /// A node with one live pod.
    fn with(pod: &PodView) -> Progress {
        let progress = Progress::default();
        progress.applied(pod);
        progress
    }

    /// Takes what is due, which has to be one thing.
    fn one(progress: &Progress, pod: &PodView, changes: u64) -> Due {
        let mut due = take(progress, pod, vec![ask("a")], changes);
        assert_eq!(due.len(), 1, "one request is due");
        due.remove(0)
    }

    /// Else a node's record would tell an older state, as of whichever pod is looked at last.
    #[tokio::test(start_paused = true)]
    async fn pods_that_share_an_object_have_it_in_the_state_in_which_it_was_last_seen() {
        let progress = Progress::default();
        let served = |version: &str, name: &str| Served {
            outcome: Outcome::Updated,
            holds: Some(Holds {
                kind: ObjectKind::Secret,
                stored: Stored { uid: name.into(), resource_version: version.into() },
                known: Known { version: version.into(), through: Timestamp::UNIX_EPOCH },
            }),
        };
        for (uid, name, version) in [("one", "a", "1"), ("other", "b", "1"), ("two", "a", "2")] {
            let pod = pod(uid, "Pending");
            progress.applied(&pod);
            let due = take(&progress, &pod, vec![ask(name)], 0).remove(0);
            progress.done(&pod, due, &served(version, name));
        }
        let held = progress.in_use().requests.into_iter().filter_map(|used| used.holds);
        let mut held: Vec<_> = held.map(|holds| (holds.stored.uid, holds.stored.resource_version)).collect();
        held.sort();
        let want = [("a", "2"), ("a", "2"), ("b", "1")].map(|(uid, version)| (uid.to_owned(), version.to_owned()));
        assert_eq!(held, want);
        assert_eq!(progress.left_behind(|_, known| known.version == "1"), 1, "the other one alone");
        // A pod that asks for another source takes the name over: what the others were served with is not there any more.
        let (pod, ask) = (pod("three", "Pending"), Ok(SecretRequest::for_test("aws", "other", "a")));
        progress.applied(&pod);
        let due = take(&progress, &pod, vec![ask], 0).remove(0);
        progress.done(&pod, due, &served("3", "a"));
        let of_a = progress.in_use().requests.into_iter().filter(|used| used.request.secret_name.as_str() == "a");
        let mut of_a: Vec<_> = of_a.map(|used| (used.request.remote.path, used.holds.is_some())).collect();
        of_a.sort();
        assert_eq!(of_a, [("a", false), ("a", false), ("other", true)].map(|(path, held)| (path.to_owned(), held)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_is_never_due_again_and_an_edit_is_new() {
        let pod = pod("u", "Pending");
        let progress = with(&pod);
        let due = one(&progress, &pod, 0);
        assert!(progress.done(&pod, due, &served(Outcome::Created)), "a new pod is told");
        assert!(take(&progress, &pod, vec![ask("a")], 7).is_empty(), "also after changes");
        assert_eq!(progress.next(&pod), Action::await_change());
        let both = take(&progress, &pod, vec![ask("a"), ask("b")], 0);
        assert_eq!(both.into_iter().map(|due| due.ask).collect::<Vec<_>>(), [ask("b")]);
        assert!(take(&progress, &pod, vec![ask("b")], 0).len() == 1, "not settled yet");
        assert_eq!(one(&progress, &pod, 0).ask, ask("a"), "what was taken out and put back is new");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_due_at_its_time_and_early_looks_cost_nothing() {
        let pod = pod("u", "Pending");
        let progress = with(&pod);
        let due = one(&progress, &pod, 0);
        let verdict = progress.failed(&pod, due, &quota());
        assert!(verdict.tell && verdict.retry_in >= Duration::from_secs(15), "{verdict:?}");
        assert!(take(&progress, &pod, vec![ask("a")], 0).is_empty(), "a status change meanwhile");
        assert!(take(&progress, &pod, vec![ask("a")], 1).is_empty(), "a changed policy has nothing to do with it");
        assert_eq!(progress.next(&pod), Action::requeue(verdict.retry_in));
        tokio::time::advance(verdict.retry_in).await;
        assert_eq!(one(&progress, &pod, 0).failures, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_change_is_due_with_the_change() {
        let pod = pod("u", "Pending");
        let progress = with(&pod);
        let due = one(&progress, &pod, 3);
        progress.failed(&pod, due, &admission());
        assert!(take(&progress, &pod, vec![ask("a")], 3).is_empty());
        assert_eq!(one(&progress, &pod, 4).failures, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_when_it_is_new_or_different_or_half_an_hour_old() {
        let pod = pod("u", "Pending");
        let progress = with(&pod);
        let fail = |error: &SyncError| {
            let due = late_due();
            progress.failed(&pod, due, error).tell
        };
        take(&progress, &pod, vec![ask("a")], 0);
        assert!(fail(&quota()), "new");
        assert!(!fail(&quota()), "the same");
        assert!(fail(&busy()), "different");
        assert!(!fail(&quota()) && !fail(&busy()), "in turns");
        tokio::time::advance(TELL_AGAIN - Duration::from_secs(1)).await;
        assert!(!fail(&busy()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(fail(&busy()), "half an hour later");
    }

    #[tokio::test(start_paused = true)]
    async fn ready_once_the_first_list_is_done_and_each_of_its_pods_was_begun() {
        let progress = Progress::default();
        let (web, gone) = (pod("web", "Pending"), pod("gone", "Pending"));
        assert!(!progress.is_ready(), "no list yet");
        progress.list_began();
        progress.listed(&web);
        progress.listed(&gone);
        progress.list_ended();
        assert!(!progress.is_ready(), "two pods were not begun");
        take(&progress, &web, vec![ask("a")], 0);
        progress.forget(gone.uid());
        assert!(progress.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_pod_that_was_there_before_the_agent_is_told_only_after_a_failure() {
        for (phase, tell) in [("Running", false), ("Pending", true)] {
            let (progress, pod) = (Progress::default(), pod("u", phase));
            progress.list_began();
            progress.listed(&pod);
            progress.list_ended();
            let due = one(&progress, &pod, 0);
            assert!(due.replayed);
            assert_eq!(progress.done(&pod, due, &served(Outcome::Created)), tell, "{phase}");
        }
    }

    /// What the node's record says of its pods must not be told anew meanwhile.
    #[tokio::test(start_paused = true)]
    async fn pods_are_not_known_while_the_watch_fails_or_lists() {
        let progress = Progress::default();
        let known = || progress.knows_pods();
        progress.list_began();
        assert!(!known());
        progress.list_ended();
        assert!(known());
        progress.watch_failed();
        assert!(!known());
        progress.watch_works();
        assert!(known());
        progress.watch_failed();
        tokio::time::advance(WATCH_WORKS).await;
        assert!(known(), "it failed no more");
        progress.list_began();
        assert!(!known(), "a list that does not end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_not_in_a_new_list_is_forgotten() {
        let pod = pod("u", "Pending");
        let progress = with(&pod);
        let due = one(&progress, &pod, 0);
        progress.failed(&pod, due, &quota());
        assert_eq!(progress.waiting(), BTreeMap::from([(Reason::SecretWriteFailed, 1)]));
        progress.list_began();
        progress.list_ended();
        assert_eq!(progress.waiting(), BTreeMap::new());
        let late = late_due();
        progress.failed(&pod, late, &quota());
        assert_eq!(progress.waiting(), BTreeMap::new(), "work that ends late brings nothing back");
    }

    #[tokio::test(start_paused = true)]
    async fn an_edit_that_keeps_the_secrets_name_counts_from_the_edit() {
        let pod = pod("u", "Pending");
        let progress = with(&pod);
        let first = one(&progress, &pod, 0);
        assert_eq!(first.edited_at, None, "as the pod was created");
        progress.done(&pod, first, &served(Outcome::Created));
        let elsewhere = |path: &str| {
            ask("a").map(|mut request| {
                request.remote.path = path.into();
                request
            })
        };
        let at = Timestamp::from_second(500).expect("a time");
        let edited = progress.due(&pod, vec![elsewhere("b"), ask("other")], 0, at);
        assert_eq!(edited.iter().map(|due| due.edited_at).collect::<Vec<_>>(), [Some(at), None]);
        for due in edited {
            progress.failed(&pod, due, &busy());
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        let later = Timestamp::from_second(600).expect("a time");
        let again = progress.due(&pod, vec![elsewhere("b")], 0, later);
        assert_eq!(again.iter().map(|due| due.edited_at).collect::<Vec<_>>(), [Some(at)], "also when it is retried");
    }

    #[tokio::test(start_paused = true)]
    async fn a_served_pod_that_hangs_is_looked_at_again_and_more_and_more_seldom() {
        let starting = pod("u", "Pending");
        let hanging: PodView = serde_json::from_value(json!({
            "metadata": {"name": "u", "uid": "u", "annotations": {crate::pod::SYNC_ANNOTATION: "x"}},
            "status": {"conditions": [{"type": "PodReadyToStartContainers", "status": "False"}]},
        }))
        .expect("a pod");
        let progress = with(&starting);
        let due = one(&progress, &starting, 0);
        progress.done(&starting, due, &served(Outcome::Created));
        for (look, seconds) in [5, 30, 300, 300].into_iter().enumerate() {
            assert!(take(&progress, &hanging, vec![ask("a")], 0).is_empty(), "look {look}, too early");
            assert_eq!(progress.next(&hanging), Action::requeue(Duration::from_secs(seconds)), "look {look}");
            tokio::time::advance(Duration::from_secs(seconds)).await;
            let due = one(&progress, &hanging, 0);
            assert!(due.hangs);
            assert!(!progress.done(&hanging, due, &served(Outcome::Fresh)), "nobody is told that nothing was done");
        }
        assert!(take(&progress, &starting, vec![ask("a")], 0).is_empty(), "it started");
        assert_eq!(progress.next(&starting), Action::await_change());
        assert!(take(&progress, &hanging, vec![ask("a")], 0).is_empty(), "anew from 5 s");
        tokio::time::advance(HANG_LOOKS[0]).await;
        let due = one(&progress, &hanging, 0);
        assert!(progress.done(&hanging, due, &served(Outcome::Created)), "a Secret that came back is told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_that_could_not_be_read_is_waited_for_only_while_the_pod_may_inherit() {
        let inheriting = |phase: &str, annotations: serde_json::Value| -> PodView {
            let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "j", "controller": true});
            serde_json::from_value(json!({
                "metadata": {"name": "u", "uid": "u", "namespace": "a", "annotations": annotations, "ownerReferences": [owner]},
                "status": {"phase": phase},
            }))
            .expect("a pod")
        };
        let pod = inheriting("Pending", json!({}));
        let progress = Progress::new(true);
        progress.applied(&pod);
        assert!(matches!(progress.lookup(&pod, 0), Lookup::Due { .. }));
        assert!(progress.not_found_out(&pod, Retry::Denied, 0), "new");
        assert!(matches!(progress.lookup(&pod, 0), Lookup::Later));
        assert!(matches!(progress.lookup(&pod, 1), Lookup::Due { .. }), "something changed");
        progress.idle(&pod);
        assert_ne!(progress.next(&pod), Action::await_change(), "it is looked at again");
        for later in
            [inheriting("Succeeded", json!({})), inheriting("Pending", json!({crate::pod::SYNC_ANNOTATION: "x"}))]
        {
            progress.not_found_out(&pod, Retry::Denied, 0);
            match later.asks() {
                None => progress.idle(&later),
                Some(_) => drop(take(&progress, &later, vec![ask("a")], 0)),
            }
            tokio::time::advance(Duration::from_secs(7200)).await;
            assert_eq!(progress.next(&later), Action::await_change(), "nothing is left to wait for");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_namespace_asks_for_is_known_once_all_of_it_was_read_and_tried() {
        let pod = pod("u", "Pending");
        let progress = with(&pod);
        let unknown = || progress.in_use().may_be_more == HashSet::from([pod.namespace()]);
        assert!(unknown(), "it was not looked at");
        let mut due = progress.due(&pod, vec![ask("a"), ask("b")], 0, Timestamp::UNIX_EPOCH);
        assert!(unknown(), "nothing was tried");
        progress.failed(&pod, due.remove(0), &quota());
        assert!(unknown(), "one of two was not tried");
        progress.done(&pod, due.remove(0), &served(Outcome::Created));
        assert!(!unknown());
        assert_eq!(progress.in_use().requests.len(), 2, "also what waits");
        progress.not_found_out(&pod, Retry::Denied, 0);
        assert!(unknown(), "its workload cannot be read");
        let broken: Ask = Err(crate::annotations::invalid("is broken").into());
        for due in progress.due(&pod, vec![ask("a"), broken], 0, Timestamp::UNIX_EPOCH) {
            progress.failed(&pod, due, &quota());
        }
        assert!(unknown(), "an entry that cannot be read may mean anything");
        assert!(take(&progress, &pod, vec![ask("a")], 0).is_empty());
        assert!(!unknown(), "it was edited");
        progress.idle(&pod);
        assert!(!unknown() && progress.in_use().requests.is_empty(), "it asks for nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_gone_gets_nothing_and_leaves_nothing() {
        let pod = pod("u", "Pending");
        let progress = with(&pod);
        progress.forget(pod.uid());
        assert!(take(&progress, &pod, vec![ask("a")], 0).is_empty());
        assert_eq!(progress.next(&pod), Action::await_change());
    }
}
