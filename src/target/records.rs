//! A node's record of replicas: a ConfigMap in the masters' namespace, of which the node's agent alone is the writer.
//!
//! RBAC: `get`, `create` and `update` on configmaps in the masters' namespace.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    NODE, SYNCED_AT, TargetError,
    api::{Home, MAX_OBJECT_BYTES, Mode, Target},
    body::ObjectBody,
    masters::MasterStore,
    reply::{Reply, Verb, classify_read},
};
use crate::{
    masters::record_name,
    request::{ObjectKind, SecretName},
};

/// The label on records.
pub(crate) const RECORD: &str = "jasm.codnod.io/record";

/// A record that was read.
#[derive(Debug, Default, Clone)]
pub struct Record {
    /// One entry for each replica.
    pub data: BTreeMap<String, String>,
    /// In which state it was.
    pub resource_version: String,
}

#[derive(Deserialize)]
struct Wire {
    metadata: super::Stored,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

impl MasterStore {
    fn record(&self) -> Option<Target> {
        let name = SecretName::checked(record_name(&self.node))?;
        Some(Target { kind: ObjectKind::ConfigMap, home: Home::Masters(self.namespace.clone()), name })
    }

    /// Reads this node's record; `None` where there is none.
    ///
    /// # Errors
    /// [`TargetError`].
    pub async fn read_record(&self) -> Result<Option<Record>, TargetError> {
        let Some(target) = self.record() else { return Ok(None) };
        let unreadable = || TargetError::NoMaster { target: target.to_string() };
        let (code, body) = self.objects.read(&target, MAX_OBJECT_BYTES).await?.ok_or_else(unreadable)?;
        if code != 200 {
            return classify_read(code, &body, &target.to_string()).map_or(Ok(None), |error| Err(self.explain(error)));
        }
        let wire: Wire = serde_json::from_slice(&body).map_err(|_| unreadable())?;
        Ok(Some(Record { data: wire.data, resource_version: wire.metadata.resource_version }))
    }

    /// Creates this node's record, or replaces the state that was read; gives the new state. `None`: somebody was faster.
    ///
    /// # Errors
    /// [`TargetError`].
    pub async fn write_record(
        &self,
        data: BTreeMap<String, String>,
        replacing: Option<&Record>,
    ) -> Result<Option<Record>, TargetError> {
        let Some(target) = self.record() else { return Ok(None) };
        let verb = if replacing.is_some() { Verb::Update } else { Verb::Create };
        let body = ObjectBody::new(target.kind, target.namespace(), target.name.as_str())
            .label(RECORD, "replicas")
            .annotate(NODE, &self.node)
            .annotate(SYNCED_AT, &self.clock.now().to_string())
            .texts(&data)
            .replacing(replacing.map(|record| record.resource_version.as_str()));
        match self.objects.send(verb, Mode::Store, &target, body).await {
            Reply::Accepted(stored) => Ok(Some(Record { data, resource_version: stored.resource_version })),
            Reply::Exists | Reply::Changed | Reply::Absent => Ok(None),
            Reply::NamespaceGone => Err(TargetError::NoMasters { namespace: self.namespace.to_string() }),
            Reply::Refused(error) => Err(self.explain(error)),
            Reply::Ours(_) => Err(TargetError::NoMaster { target: target.to_string() }),
        }
    }
}
