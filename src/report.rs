//! The one place that turns an outcome into a log line, a metric and an Event on the pod.
//!
//! RBAC: `create` and `patch` on events (events.k8s.io).
//!
//! Events are sent by a task of its own, one after another, so that no sync waits for them. The text of an Event comes
//! from our own errors' `Display`; what stores and the API server wrote stays in the log.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter as Source},
};
use tokio::sync::mpsc;

use crate::{
    error::{BoxError, Reason, Retry, SyncError, chain},
    metrics::Metrics,
    pod::PodView,
    policy::RuleName,
    progress::{Ask, Verdict},
    request::{KindWish, ObjectKind},
    target::{Outcome, Served},
};

/// `reportingController` of every Event.
const REPORTING_CONTROLLER: &str = "jasm.codnod.io/agent";
/// Many times what a full node asks for at once; what does not fit is counted and dropped.
const QUEUE: usize = 2048;
/// At most 50 Events a second.
const PAUSE: Duration = Duration::from_millis(20);
/// For one try.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Between the tries of one Event.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];
/// The API server's limit for a note is 1 kB.
const MAX_NOTE_BYTES: usize = 1000;

/// Where outcomes go.
#[derive(Debug, Clone)]
pub struct Reporter {
    metrics: Arc<Metrics>,
    queue: mpsc::Sender<(ObjectReference, Event)>,
}

/// Sends the Events; ends when every [`Reporter`] is gone and the queue is empty.
pub struct EventSender {
    recorder: Recorder,
    queue: mpsc::Receiver<(ObjectReference, Event)>,
    metrics: Arc<Metrics>,
}

impl Reporter {
    /// The reporter of the agent on `node`, and what sends its Events.
    pub fn new(client: Client, node: &str, metrics: Arc<Metrics>) -> (Self, EventSender) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let source = Source { controller: REPORTING_CONTROLLER.to_owned(), instance: Some(node.to_owned()) };
        let events = EventSender { recorder: Recorder::new(client, source), queue, metrics: Arc::clone(&metrics) };
        (Self { metrics, queue: sender }, events)
    }

    /// A request that `rule` admitted was served. `tell`: as what the pod's owner is to see it.
    pub fn served(
        &self,
        pod: &PodView,
        ask: &Ask,
        rule: &RuleName,
        served: &Served,
        took: Duration,
        tell: Option<&str>,
    ) {
        let (fields, outcome) = (Fields::of(ask), served.outcome);
        let kind = served.holds.as_ref().map_or(ObjectKind::Secret, |holds| holds.kind);
        self.metrics.sync(fields.provider, outcome.as_str(), Reason::SecretSyncSuccess, took.as_secs_f64());
        tracing::info!(
            outcome = outcome.as_str(),
            reason = Reason::SecretSyncSuccess.as_str(),
            duration_ms = millis(took),
            namespace = %pod.namespace(),
            pod = pod.name(),
            secret = fields.secret,
            provider = fields.provider,
            path = fields.path,
            rule = rule.number(),
            policy_file = rule.file(),
            "sync"
        );
        let said = match outcome {
            Outcome::Created => "was created",
            Outcome::Updated => "was updated",
            Outcome::Fresh => "is up to date",
            Outcome::Superseded => "follows another pod of the same workload, not this request",
            Outcome::NamespaceGone => return,
        };
        if let Some(action) = tell {
            let mut note = format!("{kind} {} {said} from {} {}", fields.secret, fields.provider, fields.path);
            if outcome == Outcome::Updated {
                // The kubelet did not wait for it: the Secret was there.
                note.push_str("; containers that started before keep the old value in their environment");
            }
            self.tell(pod, (kind, fields.secret), EventType::Normal, Reason::SecretSyncSuccess, action, note);
        }
    }

    /// A request failed.
    pub fn failed(&self, pod: &PodView, ask: &Ask, error: &SyncError, took: Duration, verdict: Verdict) {
        let (fields, reason) = (Fields::of(ask), error.reason());
        // What was not tried anew is no retry, and one line for each pod, or for each change of a policy, would be many.
        let nobody_was_asked = error.is_remembered() || error.retry() == Retry::OnChange;
        if nobody_was_asked && !verdict.tell {
            tracing::debug!(namespace = %pod.namespace(), pod = pod.name(), secret = fields.secret, "waits on");
            return;
        }
        self.metrics.sync(fields.provider, "failed", reason, took.as_secs_f64());
        tracing::warn!(
            outcome = "failed",
            reason = reason.as_str(),
            action = error.action(),
            duration_ms = millis(took),
            attempt = verdict.failures,
            retry_in_ms = millis(verdict.retry_in),
            namespace = %pod.namespace(),
            pod = pod.name(),
            secret = fields.secret,
            provider = fields.provider,
            path = fields.path,
            error = %chain(error),
            "sync"
        );
        if verdict.tell {
            self.tell(pod, (fields.kind, fields.secret), EventType::Warning, reason, error.action(), error.to_string());
        }
    }

    /// A bug was caught.
    pub fn panicked(&self) {
        self.metrics.panicked();
    }

    fn tell(
        &self,
        pod: &PodView,
        (kind, name): (ObjectKind, &str),
        type_: EventType,
        reason: Reason,
        action: &str,
        note: String,
    ) {
        let event = Event {
            type_,
            reason: reason.as_str().to_owned(),
            note: Some(shortened(note)),
            action: action.to_owned(),
            // The Recorder folds Events that agree in this, the reason and the action.
            secondary: (!name.is_empty()).then(|| ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some(kind.as_str().to_owned()),
                namespace: pod.metadata.namespace.clone(),
                name: Some(name.to_owned()),
                ..ObjectReference::default()
            }),
        };
        if self.queue.try_send((pod.reference(), event)).is_err() {
            self.metrics.event_dropped();
        }
    }
}

impl EventSender {
    /// Sends until nobody reports any more.
    pub async fn run(mut self) {
        while let Some((pod, event)) = self.queue.recv().await {
            if let Err(error) = self.send(&event, &pod).await {
                self.metrics.event_dropped();
                // A namespace or pod that is gone takes no Event, and nobody would look for it.
                tracing::debug!(error = %chain(&*error), reason = event.reason, "an Event could not be sent");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl EventSender {
    async fn send(&self, event: &Event, pod: &ObjectReference) -> Result<(), BoxError> {
        let mut pauses = RETRY_PAUSES.iter();
        loop {
            let outcome = match tokio::time::timeout(SEND_TIMEOUT, self.recorder.publish(event, pod)).await {
                Ok(Ok(())) => return Ok(()),
                // Refused for good.
                Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) && status.code != 429 => {
                    return Err(kube::Error::Api(status).into());
                }
                Ok(Err(error)) => BoxError::from(error),
                Err(elapsed) => elapsed.into(),
            };
            match pauses.next() {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => return Err(outcome),
            }
        }
    }
}

/// What a log line, a metric and an Event say of a request; empty where the annotation could not be read.
struct Fields<'a> {
    provider: &'a str,
    path: &'a str,
    secret: &'a str,
    kind: ObjectKind,
}

impl<'a> Fields<'a> {
    fn of(ask: &'a Ask) -> Self {
        match ask {
            Ok(request) => Self {
                provider: request.remote.provider.as_str(),
                path: &request.remote.path,
                secret: request.secret_name.as_str(),
                kind: match request.kind {
                    KindWish::ConfigMap => ObjectKind::ConfigMap,
                    KindWish::Auto | KindWish::Secret => ObjectKind::Secret,
                },
            },
            Err(_) => Self { provider: "", path: "", secret: "", kind: ObjectKind::Secret },
        }
    }
}

/// A number in JSON, which 128 bits would not be.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn shortened(mut note: String) -> String {
    if note.len() > MAX_NOTE_BYTES {
        note.truncate(note.floor_char_boundary(MAX_NOTE_BYTES));
        note.push_str("...");
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_fits_the_api_servers_limit() {
        assert_eq!(shortened("short".into()), "short");
        let long = shortened("\u{e9}".repeat(2000));
        assert!(long.len() <= 1024 && long.ends_with("..."), "{}", long.len());
    }
}
