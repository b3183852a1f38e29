//! What each node keeps in the masters' namespace about the replicas that it wrote and uses: one ConfigMap, which is the list of
//! who uses which source, and what a clean-up goes by.

use std::collections::{BTreeMap, BTreeSet, HashSet};

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
/// Replicas that nobody on the node uses are remembered up to so many, the newest.
const MAX_UNUSED: usize = 200;
/// Replicas that are remembered at all, the newest: far more than fit into a record.
const MAX_KNOWN: usize = 10_000;
/// The key of what a record says of itself; no replica's entry is called like that.
const ABOUT: &str = "about";

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

/// What a record says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// Namespaces with pods on the node of which it is not known what they ask for.
    pub may_be_more: BTreeSet<String>,
    /// What is in use did not fit.
    pub is_cut: bool,
}

/// One entry of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A replica.
    Replica(Replica),
    /// What it says of itself.
    About(About),
    /// Nothing that this release can read.
    Unreadable,
}

impl Entry {
    /// Reads an entry of a record's data.
    pub fn read(key: &str, text: &str) -> Self {
        match key {
            ABOUT => serde_json::from_str(text).map_or(Self::Unreadable, Self::About),
            _ => serde_json::from_str(text).map_or(Self::Unreadable, Self::Replica),
        }
    }
}

/// The replicas of one node.
#[derive(Debug, Default)]
pub struct Records {
    replicas: BTreeMap<Key, Replica>,
    about: About,
}

impl Replica {
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
        let replica = |(key, text): (&String, &String)| match Entry::read(key, text) {
            Entry::Replica(replica) => Some((replica.key(), replica)),
            Entry::About(_) | Entry::Unreadable => None,
        };
        Self { replicas: data.iter().filter_map(replica).collect(), about: About::default() }
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
                    let at = match self.replicas.get(&key) {
                        Some(known) if known.stored == *stored && known.source == source => known.at.clone(),
                        _ => now.to_owned(),
                    };
                    let (kind, stored) = (*kind, stored.clone());
                    self.replicas
                        .insert(key, Replica { kind, namespace, name, stored, source, master, at, in_use: true });
                }
                // It waits; of which kind the object is, nobody knows yet.
                None => self.asked_for(namespace, name, source, master, now),
            }
        }
    }

    fn release(&mut self, may_be_more: &HashSet<PodNamespace>) {
        self.about.may_be_more = may_be_more.iter().map(ToString::to_string).collect();
        for replica in self.replicas.values_mut() {
            replica.in_use &= self.about.may_be_more.contains(&replica.namespace);
        }
    }

    fn asked_for(&mut self, namespace: String, name: String, source: String, master: String, now: &str) {
        let kinds = [ObjectKind::Secret, ObjectKind::ConfigMap].map(|kind| (namespace.clone(), name.clone(), kind));
        let known: Vec<_> = kinds.into_iter().filter(|key| self.replicas.contains_key(key)).collect();
        for key in &known {
            if let Some(replica) = self.replicas.get_mut(key) {
                replica.in_use = true;
            }
        }
        if known.is_empty() {
            let (kind, stored, at) = (ObjectKind::Secret, Stored::default(), now.to_owned());
            let key = (namespace.clone(), name.clone(), kind);
            self.replicas.insert(key, Replica { kind, namespace, name, stored, source, master, at, in_use: true });
        }
    }

    /// The data of the record, which fits into a ConfigMap.
    pub fn to_data(&mut self) -> BTreeMap<String, String> {
        // What nobody uses and was never written is of no use.
        self.replicas.retain(|_, replica| replica.in_use || !replica.stored.uid.is_empty());
        let unused = self.replicas.values().filter(|replica| !replica.in_use).count();
        self.forget_oldest(unused.saturating_sub(MAX_UNUSED));
        self.forget_oldest(self.replicas.len().saturating_sub(MAX_KNOWN));
        // Texts and booleans are always JSON.
        let entry = |replica: &Replica| (replica.entry(), serde_json::to_string(replica).unwrap_or_default());
        let size = |(key, text): &(String, String)| key.len() + text.len();
        let mut entries: Vec<(bool, &String, (String, String))> =
            self.replicas.values().map(|replica| (replica.in_use, &replica.at, entry(replica))).collect();
        // First those that nobody uses go, and the oldest of each; all stay known here, or each time others would be left out.
        entries.sort();
        let mut left: usize = entries.iter().map(|(_, _, entry)| size(entry)).sum();
        // The longer of both.
        self.about.is_cut = false;
        let most = MAX_BYTES - ABOUT.len() - serde_json::to_string(&self.about).unwrap_or_default().len();
        let first = entries.iter().position(|(_, _, entry)| {
            let fits = left <= most;
            left -= size(entry);
            fits
        });
        let first = first.unwrap_or(entries.len());
        self.about.is_cut = entries.iter().take(first).any(|(in_use, _, _)| *in_use);
        let mut data: BTreeMap<String, String> = entries.into_iter().skip(first).map(|(_, _, entry)| entry).collect();
        if self.about != About::default() {
            data.insert(ABOUT.to_owned(), serde_json::to_string(&self.about).unwrap_or_default());
        }
        data
    }

    /// First those that nobody uses.
    fn forget_oldest(&mut self, count: usize) {
        let mut by_age: Vec<(bool, String, Key)> =
            self.replicas.values().map(|replica| (replica.in_use, replica.at.clone(), replica.key())).collect();
        by_age.sort();
        for (_, _, key) in by_age.iter().take(count) {
            self.replicas.remove(key);
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
        let in_use = |records: &Records| records.replicas.values().map(|replica| replica.in_use).collect::<Vec<_>>();
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
        let in_use_of = |data: &BTreeMap<String, String>| {
            let read = data.iter().map(|(key, text)| Entry::read(key, text));
            read.filter(|entry| matches!(entry, Entry::Replica(replica) if replica.in_use)).count()
        };
        let size =
            |data: &BTreeMap<String, String>| data.iter().map(|(key, text)| key.len() + text.len()).sum::<usize>();
        // (all of them, of which nobody uses the first so many)
        for (all, unused, is_cut) in [(500, 300, false), (1300, 100, false), (3000, 10, true)] {
            let all: Vec<Replica> =
                (0..all).map(|number| replica(&named(number), number >= unused, &format!("{number:04}"))).collect();
            let mut records = Records::read(&written(&all));
            let data = records.to_data();
            assert!(size(&data) <= MAX_BYTES && records.to_data() == data, "the same each time");
            let about = data.get(ABOUT).map(|text| Entry::read(ABOUT, text));
            let want = is_cut.then(|| Entry::About(About { is_cut: true, ..About::default() }));
            assert_eq!(about, want, "{} of which {unused} are unused", all.len());
            let (kept, used) = (data.len() - usize::from(is_cut), in_use_of(&data));
            assert_eq!(used == all.len() - unused, !is_cut, "all that is in use, where it fits");
            assert!(kept - used <= MAX_UNUSED, "{}", kept - used);
        }
        let all: Vec<Replica> =
            (0..300).map(|number| replica(&named(number), false, &format!("{number:04}"))).collect();
        let data = Records::read(&written(&all)).to_data();
        assert!(
            data.len() == MAX_UNUSED && data.keys().all(|key| *key >= format!("Secret.team-a.{}", named(100))),
            "the newest"
        );
    }

    #[test]
    fn where_more_may_be_asked_for_is_written_down() {
        let mut records = Records::default();
        assert_eq!(records.to_data(), BTreeMap::new());
        records.release(&HashSet::from([PodNamespace::for_test("team-a")]));
        let data = records.to_data();
        let about = About { may_be_more: BTreeSet::from(["team-a".to_owned()]), is_cut: false };
        assert_eq!(data.iter().map(|(key, text)| Entry::read(key, text)).collect::<Vec<_>>(), [Entry::About(about)]);
        assert_eq!(Entry::read("Secret.a.b", "{}"), Entry::Unreadable);
    }
}
