//! Masters: read and written as they are, in a namespace of their own.
//!
//! RBAC: `get`, `create` and `update` on secrets and configmaps in the masters' namespace, by a Role there.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use tokio::sync::OwnedSemaphorePermit;
use zeroize::Zeroizing;

use super::{
    NODE, SOURCE, SOURCE_KIND, SOURCE_PATH, SOURCE_VERSION, SYNCED_AT, SYNCED_THROUGH, TargetError, WHOLE,
    api::{Home, MAX_OBJECT_BYTES, Mode, Objects, Target},
    body::{MARKER, ObjectBody, from_printable, printable},
    held::Known,
    reply::{Reply, Stored, Verb, classify_read},
};
use crate::{
    clock::ApiClock,
    limits::ByteBudget,
    masters::MastersNamespace,
    provider::{Fetched, Kind},
    request::{ObjectKind, RemoteRef, SecretName},
    secret_value::SecretPayload,
};

/// The data key of a master's value.
pub(super) const VALUE: &str = "value";
/// What is held for a master before its size is known.
const USUAL_BYTES: usize = 64 * 1024;

/// Reads and writes masters.
pub struct MasterStore {
    pub(super) objects: Objects,
    pub(super) namespace: MastersNamespace,
    pub(super) node: String,
    pub(super) clock: Arc<ApiClock>,
    payloads: ByteBudget,
    bodies: ByteBudget,
}

/// A master that was read.
#[derive(Debug)]
pub struct Master {
    /// In which state; an update replaces exactly that.
    pub stored: Stored,
    /// Which value it holds.
    pub known: Known,
    /// When the store was asked for it, by the API server's clock.
    pub asked_at: Timestamp,
    /// The value.
    pub payload: SecretPayload,
    /// The share of the memory bound that the value takes.
    pub reserved: OwnedSemaphorePermit,
}

/// Which master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A Secret, or a ConfigMap.
    pub kind: ObjectKind,
    /// Its name.
    pub name: SecretName,
}

/// What is to be in a master.
pub struct Draft<'a> {
    /// What it is of.
    pub remote: &'a RemoteRef,
    /// The kind of store.
    pub store: Kind,
    /// The value.
    pub fetched: &'a Fetched,
    /// When the store was asked for it, by the API server's clock.
    pub asked_at: Timestamp,
}

impl MasterStore {
    pub(super) fn new(objects: Objects, namespace: MastersNamespace, node: String, clock: Arc<ApiClock>) -> Self {
        let (payloads, bodies) = (ByteBudget::for_payloads(), ByteBudget::for_bodies());
        Self { objects, namespace, node, clock, payloads, bodies }
    }

    /// Now, by the API server's clock, in whole seconds.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A time that stands on a master. What lies ahead of the API server's clock was not written by an agent, and counts for
    /// nothing.
    pub fn believe(&self, time: Option<Timestamp>) -> Timestamp {
        self.clock.believe(time).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    fn target(&self, place: &Place) -> Target {
        Target { kind: place.kind, home: Home::Masters(self.namespace.clone()), name: place.name.clone() }
    }

    /// Reads a master of `source`; `None` where there is none.
    ///
    /// # Errors
    /// [`TargetError`], also where something else stands under that name.
    pub async fn read(&self, place: &Place, source: &str) -> Result<Option<Master>, TargetError> {
        let target = self.target(place);
        let mut reserved = self.payloads.reserve(USUAL_BYTES).await;
        let (code, body) = match self.objects.read(&target, USUAL_BYTES).await? {
            Some(answer) => answer,
            // Asked for again: a body that grows while others wait for memory would be bounded by nothing.
            None => {
                drop(reserved);
                reserved = self.payloads.reserve(MAX_OBJECT_BYTES).await;
                self.objects.read(&target, MAX_OBJECT_BYTES).await?.ok_or_else(|| unreadable(&target))?
            }
        };
        if code != 200 {
            return match classify_read(code, &body, &target.to_string()) {
                None => Ok(None),
                Some(error) => Err(self.explain(error)),
            };
        }
        let wire: Wire = serde_json::from_slice(&body).map_err(|_| unreadable(&target))?;
        let asked_at = self.believe(wire.annotation(SYNCED_AT).parse().ok());
        let (stored, known, payload) = wire.into_master(place.kind, source, &target)?;
        drop(body);
        ByteBudget::shrink(&mut reserved, payload.len());
        let through = self.believe(Some(known.through));
        Ok(Some(Master { stored, known: Known { through, ..known }, asked_at, payload, reserved }))
    }

    /// Creates a master, or replaces exactly the state that was read; gives the new state. `None`: somebody was faster.
    ///
    /// # Errors
    /// [`TargetError`]; what was there stays as it was.
    pub async fn write(
        &self,
        place: &Place,
        draft: &Draft<'_>,
        replacing: Option<&Stored>,
    ) -> Result<Option<(Stored, Known)>, TargetError> {
        let target = self.target(place);
        let verb = if replacing.is_some() { Verb::Update } else { Verb::Create };
        let Fetched { payload, seen_through, .. } = draft.fetched;
        let _reserved = self.bodies.reserve(ObjectBody::bytes_of(payload)).await;
        let mut body = ObjectBody::new(place.kind, target.namespace(), place.name.as_str())
            .label(SOURCE_KIND, draft.store.source_kind())
            .source(SOURCE, &draft.remote.source_id())
            .annotate(SOURCE_PATH, &draft.remote.path)
            .annotate(SOURCE_VERSION, payload.version())
            .annotate(SYNCED_AT, &draft.asked_at.to_string())
            .annotate(SYNCED_THROUGH, &seen_through.to_string())
            .annotate(NODE, &self.node)
            .value(payload)
            .replacing(replacing.map(|stored| stored.resource_version.as_str()));
        if payload.is_whole() {
            body = body.annotate(WHOLE, "true");
        }
        match self.objects.send(verb, Mode::Store, &target, body).await {
            Reply::Accepted(stored) => {
                Ok(Some((stored, Known { version: printable(payload.version()), through: *seen_through })))
            }
            Reply::Exists | Reply::Changed | Reply::Absent => Ok(None),
            Reply::NamespaceGone => Err(TargetError::NoMasters { namespace: self.namespace.to_string() }),
            Reply::Refused(error) => Err(self.explain(error)),
            Reply::Ours(_) => Err(unreadable(&target)),
        }
    }

    /// A right that is missing here is another one than in a pod's namespace.
    pub(super) fn explain(&self, error: TargetError) -> TargetError {
        match error {
            TargetError::Rbac { verb, resource } => {
                TargetError::MastersRbac { verb, resource, namespace: self.namespace.to_string() }
            }
            error => error,
        }
    }
}

fn unreadable(target: &Target) -> TargetError {
    TargetError::NoMaster { target: target.to_string() }
}

/// The parts of a master that are read.
#[derive(Deserialize)]
struct Wire {
    metadata: WireMeta,
    data: Option<WireData>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMeta {
    uid: String,
    resource_version: String,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct WireData {
    value: Option<Wiped>,
}

/// A text that is zeroized.
struct Wiped(Zeroizing<String>);

impl<'de> Deserialize<'de> for Wiped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.into()))
    }
}

impl Wire {
    fn annotation(&self, name: &str) -> &str {
        self.metadata.annotations.get(name).map(String::as_str).unwrap_or_default()
    }

    fn into_master(
        self,
        kind: ObjectKind,
        source: &str,
        target: &Target,
    ) -> Result<(Stored, Known, SecretPayload), TargetError> {
        let Self { metadata, data } = self;
        let annotation = |name| metadata.annotations.get(name).map(String::as_str).unwrap_or_default();
        if metadata.labels.get(MARKER.0).map(String::as_str) != Some(MARKER.1) {
            return Err(TargetError::NotOurs { target: target.to_string() });
        }
        let value = data.and_then(|data| data.value).ok_or_else(|| unreadable(target))?;
        if annotation(SOURCE) != source {
            return Err(unreadable(target));
        }
        let bytes = match kind {
            ObjectKind::Secret => STANDARD.decode(value.0.as_bytes()).map_err(|_| unreadable(target))?,
            ObjectKind::ConfigMap => value.0.as_bytes().to_vec(),
        };
        let version = annotation(SOURCE_VERSION);
        let payload = match annotation(WHOLE) {
            "true" => SecretPayload::whole(bytes, from_printable(version)),
            _ => SecretPayload::new(bytes, from_printable(version)),
        };
        let through = annotation(SYNCED_THROUGH).parse().unwrap_or(Timestamp::UNIX_EPOCH);
        let known = Known { version: version.to_owned(), through };
        let stored = Stored { uid: metadata.uid, resource_version: metadata.resource_version };
        Ok((stored, known, payload.plain(kind == ObjectKind::ConfigMap)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(change: impl FnOnce(&mut serde_json::Value)) -> Result<(Stored, Known, SecretPayload), TargetError> {
        let mut object = json!({
            "metadata": {
                "uid": "u", "resourceVersion": "7", "labels": {"jasm.codnod.io/managed-by": "jasm"},
                "annotations": {
                    SOURCE: "v1:aws:a", SOURCE_VERSION: "2%20of%203", SYNCED_THROUGH: "1970-01-01T00:01:40Z",
                },
            },
            "data": {"value": "aHVudGVyMg=="},
        });
        change(&mut object);
        let wire: Wire = serde_json::from_value(object).expect("an object");
        let home = Home::Masters(MastersNamespace::checked("jasm-masters").expect("a name"));
        let target = Target { kind: ObjectKind::Secret, home, name: SecretName::for_test("sm-a") };
        wire.into_master(ObjectKind::Secret, "v1:aws:a", &target)
    }

    #[test]
    fn a_master_gives_back_what_was_put_in() {
        let (stored, known, payload) = read(|_| {}).expect("a master");
        assert_eq!((payload.expose(), payload.version()), (&b"hunter2"[..], "2 of 3"));
        assert_eq!((stored.resource_version.as_str(), known.version.as_str()), ("7", "2%20of%203"));
        assert_eq!((known.through.as_second(), payload.is_whole(), payload.is_plain()), (100, false, false));
        let (_, _, whole) = read(|object| object["metadata"]["annotations"][WHOLE] = json!("true")).expect("a master");
        assert!(whole.is_whole());
    }

    #[test]
    fn what_is_no_master_of_this_source_is_never_taken_for_one() {
        type Change = fn(&mut serde_json::Value);
        let cases: &[(&str, Change)] = &[
            ("no marker", |object| object["metadata"]["labels"] = json!({})),
            ("another source", |object| object["metadata"]["annotations"][SOURCE] = json!("v1:aws:b")),
            ("no source", |object| object["metadata"]["annotations"] = json!({})),
            ("no data", |object| object["data"] = json!(null)),
            ("another key", |object| object["data"] = json!({"other": "eA=="})),
            ("no base64", |object| object["data"]["value"] = json!("hunter2!")),
        ];
        for (case, change) in cases {
            let error = read(change).expect_err(case).to_string();
            assert!(error.contains("Secret jasm-masters/sm-a") && !error.contains("hunter2"), "case: {case}: {error}");
        }
    }
}
