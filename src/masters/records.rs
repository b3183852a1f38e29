//! What each node keeps in the masters' namespace about the replicas that it wrote and uses: one ConfigMap, which is the list of
//! who uses which source, and what a clean-up goes by.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use sha2::{Digest, Sha256};

use super::Masters;
use crate::{
    names::{MAX_DATA_KEY_BYTES, MAX_NAME_BYTES},
    pod::PodNamespace,
    progress::InUse,
    request::ObjectKind,
    target::{Holds, Stored},
};

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

impl Replica {
    /// Reads one entry of a record.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone(), self.kind)
    }

    /// Its entry's key: `Secret.team-a.app`, and where that is too long for one, a hash in place of its end.
    fn entry(&self) -> String {
        let whole = format!("{}.{}.{}", self.kind, self.namespace, self.name);
        match whole.len() <= MAX_DATA_KEY_BYTES {
            true => whole,
            // All of it is ASCII.
            false => format!("{}-{:.8x}", &whole[..MAX_DATA_KEY_BYTES - 17], Sha256::digest(&whole)),
        }
    }
}

impl Records {
    /// What an earlier agent of the node left; all of it stands until it is known better.
    pub fn read(data: &BTreeMap<String, String>) -> Self {
        Self(data.values().filter_map(|text| Replica::read(text)).map(|replica| (replica.key(), replica)).collect())
    }

    /// Takes in what the node's pods use now, and says of everything else that they do not; but for namespaces in which more may
    /// be asked for than is known: what was in use there stays so.
    pub fn update(&mut self, in_use: &InUse, masters: &Masters, now: &str) {
        self.release(&in_use.may_be_more);
        for used in &in_use.requests {
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

    fn release(&mut self, may_be_more: &HashSet<PodNamespace>) {
        let may_be_more: HashSet<&str> = may_be_more.iter().map(PodNamespace::as_str).collect();
        for replica in self.0.values_mut() {
            replica.in_use &= may_be_more.contains(replica.namespace.as_str());
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

    /// The data of the record, which fits into a ConfigMap.
    pub fn to_data(&mut self) -> BTreeMap<String, String> {
        // What nobody uses and was never written is of no use.
        self.0.retain(|_, replica| replica.in_use || !replica.stored.uid.is_empty());
        loop {
            // Texts and a boolean are always JSON.
            let entry = |replica: &Replica| (replica.entry(), serde_json::to_string(replica).unwrap_or_default());
            let data: BTreeMap<String, String> = self.0.values().map(entry).collect();
            if data.iter().map(|(key, text)| key.len() + text.len()).sum::<usize>() <= MAX_BYTES {
                return data;
            }
            let mut by_age: Vec<(bool, String, Key)> =
                self.0.values().map(|replica| (replica.in_use, replica.at.clone(), replica.key())).collect();
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

    fn written(replicas: &[Replica]) -> BTreeMap<String, String> {
        replicas.iter().map(|one| (one.entry(), serde_json::to_string(one).expect("JSON"))).collect()
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_nonsense_is_left_out() {
        let data = written(&[replica("a", true, "1"), replica("b", false, "2")]);
        assert!(data["Secret.team-a.a"].contains(r#""uid":"u","resourceVersion":"7""#), "{data:?}");
        assert_eq!(Records::read(&data).to_data(), data);
        let mut more = data.clone();
        more.extend(["", "{}", "nonsense"].map(|text| (format!("x{text}"), text.to_owned())));
        assert_eq!(Records::read(&more).to_data(), data);
    }

    #[test]
    fn what_was_in_use_stays_so_where_more_may_be_asked_for() {
        let mut records = Records::read(&written(&[replica("a", true, "1"), replica("b", false, "1")]));
        let in_use = |records: &Records| records.0.values().map(|replica| replica.in_use).collect::<Vec<_>>();
        records.release(&HashSet::from([PodNamespace::for_test("team-a"), PodNamespace::for_test("team-b")]));
        assert_eq!(in_use(&records), [true, false]);
        records.release(&HashSet::from([PodNamespace::for_test("team-b")]));
        assert_eq!(in_use(&records), [false, false]);
    }

    #[test]
    fn keys_of_long_names_fit_and_differ() {
        let long = |end: &str| replica(&format!("{}{end}", "x".repeat(252)), true, "1").entry();
        let (one, other) = (long("a"), long("b"));
        assert!(one.len() <= MAX_DATA_KEY_BYTES && one != other && crate::names::is_data_key(&one), "{one}");
    }

    #[test]
    fn what_does_not_fit_is_left_out_from_the_oldest_that_nobody_uses() {
        let long = "x".repeat(200);
        let named = |number: usize| format!("{long}-{number:04}");
        let all: Vec<Replica> =
            (0..3000).map(|number| replica(&named(number), number % 2 == 0, &format!("{number:04}"))).collect();
        let data = Records::read(&written(&all)).to_data();
        assert!(data.iter().map(|(key, text)| key.len() + text.len()).sum::<usize>() <= MAX_BYTES);
        let kept: Vec<Replica> = data.values().filter_map(|text| Replica::read(text)).collect();
        let unused: Vec<&Replica> = kept.iter().filter(|replica| !replica.in_use).collect();
        assert_eq!(kept.len() - unused.len(), 1500, "all that is in use");
        assert!(!unused.is_empty() && unused.iter().all(|replica| replica.at.as_str() > "0200"), "the newest");
    }
}
