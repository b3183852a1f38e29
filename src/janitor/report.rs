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
    plan::{Orphan, Why},
};
use crate::error::chain;

const TIMEOUT: Duration = Duration::from_secs(10);
/// `reportingController` of every Event.
const CONTROLLER: &str = "jasm.codnod.io/janitor";

/// Sends Events.
pub(super) struct Teller(Recorder);

impl Teller {
    pub(super) fn new(client: Client) -> Self {
        Self(Recorder::new(client, Reporter { controller: CONTROLLER.to_owned(), instance: None }))
    }

    /// A replica was deleted. That an Event cannot be sent holds nothing up.
    pub(super) async fn deleted(&self, orphan: &Orphan) {
        let because = match orphan.why {
            Why::SourceGone => "its source is gone at the store",
            Why::MasterTaken => "its master was deleted, and no pod asks for it",
        };
        let event = Event {
            type_: EventType::Normal,
            reason: "ReplicaDeleted".to_owned(),
            note: Some(format!("{} {} was deleted: {because} ({})", orphan.kind, orphan.name, orphan.source)),
            action: "Delete".to_owned(),
            secondary: None,
        };
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(orphan.kind.as_str().to_owned()),
            namespace: Some(orphan.namespace.clone()),
            name: Some(orphan.name.to_string()),
            uid: orphan.states.first().map(|state| state.uid.clone()),
            ..ObjectReference::default()
        };
        match tokio::time::timeout(TIMEOUT, self.0.publish(&event, &regarding)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = chain(&error), "an Event could not be sent"),
            Err(_) => tracing::debug!("an Event could not be sent in time"),
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
    let orphans = findings.orphans.iter().map(move |one| replica(one, "replica, goes".to_owned()));
    let stay = findings.kept.iter().map(move |(one, reason)| replica(one, format!("replica, stays: {reason}")));
    orphans.chain(stay).chain(masters)
}

/// What would go, and what looks like it and would not, as a table.
pub fn table(findings: &Findings) -> String {
    let mut rows = vec![["what", "source", "why", "outcome"].map(str::to_owned)];
    rows.extend(lines(findings));
    if rows.len() == 1 {
        return "nothing would go".to_owned();
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 4] = [width(0), width(1), width(2), width(3)];
    let line = |row: &[String; 4]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut text = rows.iter().map(line).collect::<Vec<_>>().join("\n");
    if findings.is_a_wave() {
        text.push_str("\nthat is too much at once: a janitor would delete none of it without --allow-waves");
    }
    text
}
