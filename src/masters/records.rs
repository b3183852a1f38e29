//! What each node keeps in the masters' namespace about the replicas that it wrote and uses: one ConfigMap, which is the list of
//! who uses which source, and what a clean-up goes by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Masters;
use crate::{
    names::MAX_NAME_BYTES,
    progress::InUse,
    request::ObjectKind,
    target::{Holds, Stored},
};

/// The data key of a record.
pub const REPLICAS: &str = "replicas.json";
/// A ConfigMap holds 1 MiB; what does not fit is left out, first what nobody on the node uses and was written longest ago.
const MAX_BYTES: usize = 900 * 1024;

/// One replica as a node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    /// Secret or ConfigMap.
    pub kind: ObjectKind,
    /// The pods' namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which object, and in which state it was last written or found; both empty where this node never saw it.
    #[serde(flatten)]
    pub stored: Stored,
    /// The source that it is made from, as it stands on the master.
    pub source: String,
    /// The master's name, where it is known.
    pub master: String,
    /// When it was written or found, in RFC 3339.
    pub at: String,
    /// Whether a pod of this node asks for it.
    pub in_use: bool,
}

type Key = (String, String, ObjectKind);

/// The replicas of one node.
#[derive(Debug, Default)]
pub struct Records(BTreeMap<Key, Replica>);

impl Records {
    /// What an earlier agent of the node left; all of it counts as in use until it is known better.
    pub fn read(text: &str) -> Self {
        let replicas: Vec<Replica> = serde_json::from_str(text).unwrap_or_default();
        let keyed = |replica: Replica| ((replica.namespace.clone(), replica.name.clone(), replica.kind), replica);
        Self(replicas.into_iter().map(keyed).collect())
    }

    /// Takes in what the node's pods use now, and says of everything else that they do not.
    pub fn update(&mut self, in_use: &[InUse], masters: &Masters, now: &str) {
        for replica in self.0.values_mut() {
            replica.in_use = false;
        }
        for used in in_use {
            let source = used.request.remote.source_id();
            let namespace = used.namespace.as_str().to_owned();
            let name = used.request.secret_name.to_string();
            let master = masters.index().find(&source).map(|entry| entry.name.to_string()).unwrap_or_default();
            match &used.holds {
                Some(Holds { kind, stored, .. }) => {
                    let key = (namespace.clone(), name.clone(), *kind);
                    let at = match self.0.get(&key) {
                        Some(known) if known.stored == *stored && known.source == source => known.at.clone(),
                        _ => now.to_owned(),
                    };
                    let (kind, stored) = (*kind, stored.clone());
                    self.0.insert(key, Replica { kind, namespace, name, stored, source, master, at, in_use: true });
                }
                // It waits; of which kind the object is, nobody knows yet.
                None => self.asked_for(namespace, name, source, master, now),
            }
        }
    }

    fn asked_for(&mut self, namespace: String, name: String, source: String, master: String, now: &str) {
        let kinds = [ObjectKind::Secret, ObjectKind::ConfigMap].map(|kind| (namespace.clone(), name.clone(), kind));
        let known: Vec<_> = kinds.into_iter().filter(|key| self.0.contains_key(key)).collect();
        for key in &known {
            if let Some(replica) = self.0.get_mut(key) {
                replica.in_use = true;
            }
        }
        if known.is_empty() {
            let (kind, stored, at) = (ObjectKind::Secret, Stored::default(), now.to_owned());
            let key = (namespace.clone(), name.clone(), kind);
            self.0.insert(key, Replica { kind, namespace, name, stored, source, master, at, in_use: true });
        }
    }

    /// The text of the record, which fits into a ConfigMap.
    pub fn to_text(&mut self) -> String {
        // What nobody uses and was never written is of no use.
        self.0.retain(|_, replica| replica.in_use || !replica.stored.uid.is_empty());
        loop {
            // Texts and a boolean are always JSON.
            let text = serde_json::to_string(&self.0.values().collect::<Vec<_>>()).unwrap_or_default();
            if text.len() <= MAX_BYTES {
                return text;
            }
            let mut by_age: Vec<(bool, String, Key)> =
                self.0.iter().map(|(key, replica)| (replica.in_use, replica.at.clone(), key.clone())).collect();
            by_age.sort();
            for (_, _, key) in by_age.iter().take(by_age.len().div_ceil(10)) {
                self.0.remove(key);
            }
        }
    }
}

/// What a node's record is called.
pub fn record_name(node: &str) -> String {
    let whole = format!("replicas-{node}");
    // Node names are ASCII, and long ones differ at their beginning.
    whole[..whole.len().min(MAX_NAME_BYTES)].trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(name: &str, in_use: bool, at: &str) -> Replica {
        Replica {
            kind: ObjectKind::Secret,
            namespace: "team-a".into(),
            name: name.into(),
            stored: Stored { uid: "u".into(), resource_version: "7".into() },
            source: "v1:aws:a".into(),
            master: "sm-a".into(),
            at: at.into(),
            in_use,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_nonsense_is_empty() {
        let text = serde_json::to_string(&[replica("a", true, "1"), replica("b", false, "2")]).expect("JSON");
        assert!(text.contains(r#""uid":"u","resourceVersion":"7""#), "{text}");
        assert_eq!(Records::read(&text).to_text(), text);
        for broken in ["", "{}", "[{}]", "nonsense"] {
            assert_eq!(Records::read(broken).to_text(), "[]");
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_from_the_oldest_that_nobody_uses() {
        let long = "x".repeat(200);
        let all: Vec<Replica> = (0..4000)
            .map(|number| replica(&format!("{long}-{number:04}"), number % 2 == 0, &format!("{number:04}")))
            .collect();
        let mut records = Records::read(&serde_json::to_string(&all).expect("JSON"));
        let text = records.to_text();
        assert!(text.len() <= MAX_BYTES, "{}", text.len());
        let kept: Vec<Replica> = serde_json::from_str(&text).expect("JSON");
        let used = kept.iter().filter(|replica| replica.in_use).count();
        let unused: Vec<&Replica> = kept.iter().filter(|replica| !replica.in_use).collect();
        assert_eq!(used, 2000, "all that is in use");
        assert!(!unused.is_empty() && unused.iter().all(|replica| replica.at.as_str() > "0400"), "the newest");
    }
}
