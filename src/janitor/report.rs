//! What the janitor tells: an Event in the namespace for each replica that went, and a table of what would go.
//!
//! RBAC: `create` and `patch` on events (events.k8s.io).

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::{
    Findings,
    plan::{Listed, Orphan, Why},
};
use crate::{error::chain, request::ObjectKind, target::Stored};

const TIMEOUT: Duration = Duration::from_secs(10);
/// `reportingController` of every Event.
const CONTROLLER: &str = "jasm.codnod.io/janitor";

/// Sends Events.
pub(super) struct Teller(Recorder);

impl Teller {
    pub(super) fn new(client: Client) -> Self {
        Self(Recorder::new(client, Reporter { controller: CONTROLLER.to_owned(), instance: None }))
    }

    /// A replica was deleted.
    pub(super) async fn deleted(&self, orphan: &Orphan, state: &Stored) {
        let because = match orphan.why {
            Why::SourceGone => "its source is gone at the store",
            Why::MasterTaken => "its master was deleted, and no pod asks for it",
        };
        let note = format!("{} {} was deleted: {because} ({})", orphan.kind, orphan.name, orphan.source);
        let object = (orphan.kind, orphan.namespace.as_str(), orphan.name.as_str(), state);
        self.tell("ReplicaDeleted", note, object).await;
    }

    /// A master was deleted.
    pub(super) async fn master_deleted(&self, namespace: &str, master: &Listed) {
        let note = format!("its source is gone at the store, and its replicas are gone ({})", master.source);
        let object = (master.kind, namespace, master.name.as_str(), &master.stored);
        self.tell("MasterDeleted", format!("{} {} was deleted: {note}", master.kind, master.name), object).await;
    }

    /// That an Event cannot be sent holds nothing up.
    async fn tell(&self, reason: &str, note: String, object: (ObjectKind, &str, &str, &Stored)) {
        let (kind, namespace, name, state) = object;
        let event = Event {
            type_: EventType::Normal,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Delete".to_owned(),
            secondary: None,
        };
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.as_str().to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(state.uid.clone()),
            ..ObjectReference::default()
        };
        match tokio::time::timeout(TIMEOUT, self.0.publish(&event, &regarding)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(namespace, name, error = chain(&error), "an Event could not be sent"),
            Err(_) => tracing::warn!(namespace, name, "an Event could not be sent in time"),
        }
    }
}

/// One line for each: what would go or stay, and why.
fn lines(findings: &Findings) -> impl Iterator<Item = [String; 4]> {
    let replica = |one: &Orphan, outcome: String| {
        [
            format!("{} {}/{}", one.kind, one.namespace, one.name),
            one.source.clone(),
            one.why.as_str().to_owned(),
            outcome,
        ]
    };
    let kept = findings.kept_sources();
    let masters = findings.masters.iter().map(move |one| {
        let outcome =
            if kept.contains(one.source.as_str()) { "master, stays: a replica stays" } else { "master, goes" };
        let why = Why::SourceGone.as_str().to_owned();
        [format!("{} {}", one.kind, one.name), one.source.clone(), why, outcome.to_owned()]
    });
    let orphans = findings.orphans.iter().map(move |(one, _)| replica(one, "replica, goes".to_owned()));
    let stay = findings.kept.iter().map(move |(one, reason)| replica(one, format!("replica, stays: {reason}")));
    orphans.chain(stay).chain(masters)
}

/// What would go, and what looks like it and would not, as a table.
pub fn table(findings: &Findings) -> String {
    let mut rows = vec![["what", "source", "why", "outcome"].map(str::to_owned)];
    rows.extend(lines(findings));
    let notes: Vec<&String> = findings.not_believed.iter().chain(&findings.unanswered).collect();
    if rows.len() == 1 && findings.doubt.is_none() && notes.is_empty() {
        return "nothing would go".to_owned();
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 4] = [width(0), width(1), width(2), width(3)];
    let line = |row: &[String; 4]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut text = rows.iter().map(line).collect::<Vec<_>>().join("\n");
    for note in notes {
        text.push_str(&format!("\n{note}"));
    }
    if let Some(doubt) = &findings.doubt {
        text.push_str(&format!("\nreplicas whose masters are missing stay: {doubt}"));
    }
    if findings.is_a_wave() {
        text.push_str("\nthat is too much at once: a janitor would delete none of it without --allow-waves");
    }
    text
}
