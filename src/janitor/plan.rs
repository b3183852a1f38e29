//! Which replicas and masters are to go, and why. Pure; from complete lists alone.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::{
    masters::Replica,
    request::{ObjectKind, SecretName},
    target::Stored,
};

/// Why something is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// The store said twice that there is no such secret.
    SourceGone,
    /// Somebody deleted the master, and no pod asks for it.
    MasterTaken,
}

impl Why {
    /// As it stands in logs, metrics and Events.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::SourceGone => "source_gone",
            Self::MasterTaken => "master_taken",
        }
    }
}

/// A replica that is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Orphan {
    pub(super) kind: ObjectKind,
    pub(super) namespace: String,
    pub(super) name: SecretName,
    /// The states in which nodes last wrote or found it; it goes in one of these, or not at all.
    pub(super) states: Vec<Stored>,
    pub(super) source: String,
    pub(super) why: Why,
}

/// A master as the list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) kind: ObjectKind,
    pub(super) name: SecretName,
    pub(super) stored: Stored,
    pub(super) source: String,
}

/// What a node said of its replicas.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeRecord {
    pub(super) replicas: Vec<Replica>,
    /// Its agent has not written for so long that the node is gone: what it said of its pods counts no more.
    pub(super) is_stale: bool,
}

/// Sources that replicas are made from and that have no master. Whether one was taken away, time has to tell.
pub(super) fn without_master(masters: &[Listed], records: &[NodeRecord]) -> BTreeSet<String> {
    let with_master: HashSet<&str> = masters.iter().map(|master| master.source.as_str()).collect();
    let known = records.iter().flat_map(|record| &record.replicas).filter(|replica| !replica.stored.uid.is_empty());
    known.map(|replica| replica.source.clone()).filter(|source| !with_master.contains(source.as_str())).collect()
}

/// How many replicas the records know of.
pub(super) fn known(records: &[NodeRecord]) -> usize {
    let all = records.iter().flat_map(|record| &record.replicas);
    all.map(|replica| (replica.kind, &replica.namespace, &replica.name)).collect::<BTreeSet<_>>().len()
}

/// The replicas whose source is `gone`, or whose master was `taken` and that no pod asks for. Where nodes disagree about a
/// replica's source, who saw it last is right.
pub(super) fn orphans(records: &[NodeRecord], gone: &HashSet<String>, taken: &HashSet<String>) -> Vec<Orphan> {
    let in_use: HashSet<(&str, &str)> = records
        .iter()
        .filter(|record| !record.is_stale)
        .flat_map(|record| &record.replicas)
        .filter(|replica| replica.in_use)
        .map(|replica| (replica.namespace.as_str(), replica.name.as_str()))
        .collect();
    let mut by_object: BTreeMap<_, Vec<&Replica>> = BTreeMap::new();
    for replica in records.iter().flat_map(|record| &record.replicas).filter(|one| !one.stored.uid.is_empty()) {
        by_object.entry((replica.kind, &replica.namespace, &replica.name)).or_default().push(replica);
    }
    let orphan = |((kind, namespace, name), seen): ((ObjectKind, &String, &String), Vec<&Replica>)| {
        let source = &seen.iter().max_by_key(|one| &one.at)?.source;
        let why = match (gone.contains(source), taken.contains(source)) {
            (true, _) => Why::SourceGone,
            (false, true) if !in_use.contains(&(namespace.as_str(), name.as_str())) => Why::MasterTaken,
            _ => return None,
        };
        let mut states: Vec<Stored> = Vec::new();
        for one in seen.iter().filter(|one| one.source == *source) {
            if !states.contains(&one.stored) {
                states.push(one.stored.clone());
            }
        }
        let name = SecretName::checked(name.clone())?;
        Some(Orphan { kind, namespace: namespace.clone(), name, states, source: source.clone(), why })
    };
    by_object.into_iter().filter_map(orphan).collect()
}

/// So many at once are no clean-up but a mistake: a fifth of all, and five in any case are allowed.
pub(super) fn is_a_wave(orphans: usize, known: usize) -> bool {
    orphans > 5.max(known / 5)
}

/// Whether a replica that says it is made from `found` is made from this source, by whatever keys and format. Of an id that was
/// cut by a hash it cannot be told, and the answer is no.
pub(super) fn is_of(found: &str, source: &str) -> bool {
    let is_mapping = |more: &str| match source.contains('?') {
        true => more.starts_with('&'),
        false => more.starts_with('?') && !more.starts_with("?version=") && !more.starts_with("?sha256="),
    };
    found == source || found.strip_prefix(source).is_some_and(is_mapping)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(name: &str, source: &str, at: &str, in_use: bool) -> Replica {
        Replica {
            kind: ObjectKind::Secret,
            namespace: "team-a".into(),
            name: name.into(),
            stored: Stored { uid: format!("u-{name}"), resource_version: at.into() },
            source: source.into(),
            master: String::new(),
            at: at.into(),
            in_use,
        }
    }

    fn record(replicas: Vec<Replica>) -> NodeRecord {
        NodeRecord { replicas, is_stale: false }
    }

    fn set(sources: &[&str]) -> HashSet<String> {
        sources.iter().map(|source| (*source).to_owned()).collect()
    }

    fn found(records: &[NodeRecord], gone: &[&str], taken: &[&str]) -> Vec<(String, Why)> {
        let orphans = orphans(records, &set(gone), &set(taken));
        orphans.into_iter().map(|one| (one.name.to_string(), one.why)).collect()
    }

    #[test]
    fn what_is_gone_for_the_store_goes_also_where_pods_use_it() {
        let records = [record(vec![replica("a", "s", "1", true), replica("b", "t", "1", false)])];
        assert_eq!(found(&records, &["s"], &[]), [("a".to_owned(), Why::SourceGone)]);
        assert_eq!(found(&records, &[], &[]), []);
    }

    #[test]
    fn what_lost_its_master_goes_only_where_no_pod_of_any_node_asks() {
        let taken = |records: &[NodeRecord]| found(records, &[], &["s"]);
        let unused = record(vec![replica("a", "s", "1", false)]);
        assert_eq!(taken(std::slice::from_ref(&unused)), [("a".to_owned(), Why::MasterTaken)]);
        let used = record(vec![replica("a", "s", "0", true)]);
        assert_eq!(taken(&[unused.clone(), used.clone()]), []);
        let mut waits = used.clone();
        waits.replicas[0].stored = Stored::default();
        waits.replicas[0].source = "other".into();
        assert_eq!(taken(&[unused.clone(), waits]), [], "a pod waits for it, whatever it is to be made from");
        let gone = NodeRecord { is_stale: true, ..used };
        assert_eq!(taken(&[unused, gone]), [("a".to_owned(), Why::MasterTaken)], "of a node that is gone");
    }

    #[test]
    fn who_saw_a_replica_last_knows_its_source() {
        let old = record(vec![replica("a", "s", "1", false)]);
        let new = record(vec![replica("a", "t", "2", true)]);
        assert_eq!(found(&[old.clone(), new.clone()], &["s"], &["s"]), []);
        assert_eq!(found(&[old, new], &["t"], &[]), [("a".to_owned(), Why::SourceGone)]);
    }

    #[test]
    fn only_states_that_somebody_saw_count() {
        let mut never = replica("a", "s", "1", false);
        never.stored = Stored::default();
        assert_eq!(found(&[record(vec![never])], &["s"], &["s"]), []);
        let (one, two) = (replica("a", "s", "1", false), replica("a", "s", "2", false));
        let all =
            orphans(&[record(vec![one.clone()]), record(vec![two.clone(), one.clone()])], &set(&["s"]), &set(&[]));
        assert_eq!(all[0].states, [one.stored, two.stored]);
    }

    #[test]
    fn a_source_without_a_master_is_one_that_replicas_are_made_from() {
        let master = Listed {
            kind: ObjectKind::Secret,
            name: SecretName::for_test("sm-s"),
            stored: Stored::default(),
            source: "s".into(),
        };
        let mut waits = replica("c", "u", "1", true);
        waits.stored = Stored::default();
        let records = [record(vec![replica("a", "s", "1", true), replica("b", "t", "1", false), waits])];
        assert_eq!(without_master(&[master], &records), BTreeSet::from(["t".to_owned()]));
        assert_eq!(without_master(&[], &records).len(), 2);
    }

    #[test]
    fn many_at_once_are_a_wave() {
        for (orphans, known, wave) in [(5, 5, false), (6, 6, true), (6, 30, false), (20, 100, false), (21, 100, true)] {
            assert_eq!(is_a_wave(orphans, known), wave, "{orphans} of {known}");
        }
    }

    #[test]
    fn a_replica_is_of_a_source_by_whatever_keys() {
        for (found, source, want) in [
            ("v1:aws:/a", "v1:aws:/a", true),
            ("v1:aws:/a?keys=A", "v1:aws:/a", true),
            ("v1:aws:/a?version=x&keys=A", "v1:aws:/a?version=x", true),
            ("v1:aws:/ab", "v1:aws:/a", false),
            ("v1:aws:/a?version=x", "v1:aws:/a", false),
            ("v1:aws:/a?sha256=0", "v1:aws:/a", false),
            ("v1:aws:/a?version=xy", "v1:aws:/a?version=x", false),
            ("", "v1:aws:/a", false),
        ] {
            assert_eq!(is_of(found, source), want, "{found} {source}");
        }
    }
}
