//! Which replicas and masters are to go, and why. Pure; from complete lists alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry};

use crate::{
    masters::{RecordEntry, Replica},
    request::{ObjectKind, SecretName},
    target::Stored,
};

/// Why something is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Orphan {
    pub(super) kind: ObjectKind,
    pub(super) namespace: String,
    pub(super) name: SecretName,
    /// The states in which nodes last wrote or found it; it goes in one of these, or not at all.
    pub(super) states: Vec<Stored>,
    pub(super) source: String,
    pub(super) why: Why,
    /// Whether a pod asks for it.
    pub(super) in_use: bool,
}

/// A master as the list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) kind: ObjectKind,
    pub(super) name: SecretName,
    pub(super) stored: Stored,
    pub(super) source: String,
}

/// Which object: namespace, name and kind.
type Object = (String, String, ObjectKind);

/// What the nodes' records say: of replicas whose source is of interest, and of what pods ask for.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    seen: BTreeMap<Object, Seen>,
    /// Namespace and name of each object that a pod asks for; whether there is one.
    in_use: HashMap<(String, String), bool>,
    /// The sources of all replicas that there are.
    recorded: HashSet<String>,
    /// Namespaces in which pods may ask for more.
    may_be_more: HashSet<String>,
    /// Why nobody knows what all pods ask for.
    doubt: Option<String>,
}

#[derive(Debug)]
struct Seen {
    /// When it was last written or found, by whichever node.
    at: String,
    /// What it was made from then.
    source: String,
    /// The states in which nodes knew it, since it is made from that.
    states: Vec<Stored>,
}

impl Replicas {
    /// Takes in one entry of a node's record. Where nodes disagree about a replica's source, who saw it last is right.
    /// `counts`: whether what the node says of its pods counts.
    pub(super) fn add(&mut self, entry: RecordEntry, counts: bool, is_wanted: impl Fn(&str) -> bool) {
        match entry {
            RecordEntry::Replica(replica) => self.add_replica(replica, counts, is_wanted),
            RecordEntry::About(about) if counts => {
                self.may_be_more.extend(about.may_be_more);
                if about.is_cut {
                    self.doubt.get_or_insert_with(|| "a node's record holds not all that its pods ask for".to_owned());
                }
            }
            RecordEntry::Unreadable if counts => {
                self.doubt
                    .get_or_insert_with(|| "a node's record has an entry that this release cannot read".to_owned());
            }
            RecordEntry::About(_) | RecordEntry::Unreadable => {}
        }
    }

    fn add_replica(&mut self, replica: Replica, counts: bool, is_wanted: impl Fn(&str) -> bool) {
        let Replica { kind, namespace, name, stored, source, master: _, at, in_use } = replica;
        let is_there = !stored.uid.is_empty();
        if in_use && counts {
            *self.in_use.entry((namespace.clone(), name.clone())).or_default() |= is_there;
        }
        if is_there && !self.recorded.contains(&source) {
            self.recorded.insert(source.clone());
        }
        if !is_there || !is_wanted(&source) {
            return;
        }
        match self.seen.entry((namespace, name, kind)) {
            Entry::Vacant(entry) => {
                entry.insert(Seen { at, source, states: vec![stored] });
            }
            Entry::Occupied(mut entry) => {
                let seen = entry.get_mut();
                if seen.source != source && at > seen.at {
                    *seen = Seen { at, source, states: vec![stored] };
                } else if seen.source == source {
                    seen.at = at.max(std::mem::take(&mut seen.at));
                    if !seen.states.contains(&stored) {
                        seen.states.push(stored);
                    }
                }
            }
        }
    }

    /// Of which nodes there is a record that is up to date: it has to be so of each that is `selected`, and an agent that is `there`
    /// elsewhere shows that these are not all that run one.
    pub(super) fn heard_of(&mut self, heard: &HashSet<String>, selected: &HashSet<String>, there: &HashSet<String>) {
        let silent: Vec<&String> = selected.difference(heard).collect();
        let elsewhere = heard.iter().filter(|node| there.contains(*node) && !selected.contains(*node)).min();
        if selected.is_empty() {
            self.doubt = Some("no node has the labels of --nodes".to_owned());
        } else if let Some(one) = silent.iter().min() {
            self.doubt = Some(format!("of {} nodes, as {one}, there is no record that is up to date", silent.len()));
        } else if let Some(one) = elsewhere {
            self.doubt = Some(format!("node {one} runs an agent and has not the labels of --nodes"));
        }
    }

    /// The sources of all replicas that there are, wanted or not.
    pub(super) fn recorded(&self) -> &HashSet<String> {
        &self.recorded
    }

    /// Why nobody knows what all pods ask for.
    pub(super) fn doubt(&self) -> Option<&str> {
        self.doubt.as_deref()
    }

    /// The sources of what was recorded.
    pub(super) fn sources(&self) -> BTreeSet<&str> {
        self.seen.values().map(|seen| seen.source.as_str()).collect()
    }

    /// The replicas whose source is `gone`, or whose master was `taken` and that no pod asks for.
    pub(super) fn orphans(&self, gone: &HashSet<String>, taken: &HashSet<String>) -> Vec<Orphan> {
        let orphan = |(object, seen): (&Object, &Seen)| {
            let is_unused = !self.is_used(object) && !self.may_be_more.contains(&object.0) && self.doubt.is_none();
            match (gone.contains(&seen.source), taken.contains(&seen.source)) {
                (true, _) => self.orphan(object, seen, Why::SourceGone),
                (false, true) if is_unused => self.orphan(object, seen, Why::MasterTaken),
                _ => None,
            }
        };
        self.seen.iter().filter_map(orphan).collect()
    }

    /// Replicas of these sources, whose masters are missing, that a pod asks for.
    pub(super) fn used(&self, missing: &BTreeSet<&str>) -> Vec<Orphan> {
        let is_one = |(object, seen): &(&Object, &Seen)| self.is_used(object) && missing.contains(seen.source.as_str());
        let used = self.seen.iter().filter(is_one);
        used.filter_map(|(object, seen)| self.orphan(object, seen, Why::MasterTaken)).collect()
    }

    fn is_used(&self, (namespace, name, _): &Object) -> bool {
        self.in_use.contains_key(&(namespace.clone(), name.clone()))
    }

    fn orphan(&self, object: &Object, seen: &Seen, why: Why) -> Option<Orphan> {
        let (namespace, name, kind) = object.clone();
        let (states, source) = (seen.states.clone(), seen.source.clone());
        let in_use = self.is_used(object);
        Some(Orphan { kind, namespace, name: SecretName::checked(name)?, states, source, why, in_use })
    }

    /// How many of those that there are pods ask for, of all nodes.
    pub(super) fn in_use(&self) -> usize {
        self.in_use.values().filter(|is_there| **is_there).count()
    }
}

/// So many at once are no clean-up but a mistake: a fifth of all, and five in any case are allowed.
pub(super) fn is_a_wave(orphans: usize, known: usize) -> bool {
    orphans > 5.max(known / 5)
}

/// What a replica's own word says of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is made from that.
    This,
    /// It is made from another.
    Another,
    /// What it says was cut by a hash.
    Unclear,
}

/// Whether a replica that says it is made from `found` is made from this source, by whatever keys and format.
pub(super) fn origin(found: &str, source: &str) -> Origin {
    let (base, has_version) = source.split_once('?').map_or((source, false), |(base, _)| (base, true));
    if found.strip_prefix(base).is_some_and(|more| more.starts_with("?sha256=")) {
        return Origin::Unclear;
    }
    let is_mapping = |more: &str| match has_version {
        true => more.starts_with('&'),
        // Of another version, or of another identity, which is another source.
        false => more.starts_with('?') && !more.starts_with("?version=") && !more.starts_with("?as="),
    };
    match found == source || found.strip_prefix(source).is_some_and(is_mapping) {
        true => Origin::This,
        false => Origin::Another,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masters::About;

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

    fn all(replicas: &[Replica]) -> Replicas {
        let mut all = Replicas::default();
        replicas.iter().for_each(|replica| all.add(RecordEntry::Replica(replica.clone()), true, |_| true));
        all
    }

    fn set(sources: &[&str]) -> HashSet<String> {
        sources.iter().map(|source| (*source).to_owned()).collect()
    }

    fn found(replicas: &Replicas, gone: &[&str], taken: &[&str]) -> Vec<(String, Why)> {
        let orphans = replicas.orphans(&set(gone), &set(taken));
        orphans.into_iter().map(|one| (one.name.to_string(), one.why)).collect()
    }

    #[test]
    fn what_is_gone_for_the_store_goes_also_where_pods_use_it() {
        let replicas = all(&[replica("a", "s", "1", true), replica("b", "t", "1", false)]);
        assert_eq!(found(&replicas, &["s"], &[]), [("a".to_owned(), Why::SourceGone)]);
        assert_eq!(found(&replicas, &[], &[]), []);
        assert!(replicas.orphans(&set(&["s"]), &set(&[]))[0].in_use && replicas.in_use() == 1);
    }

    #[test]
    fn what_lost_its_master_goes_only_where_no_pod_of_any_node_asks() {
        let taken = |replicas: &Replicas| found(replicas, &[], &["s"]);
        let (unused, used) = (replica("a", "s", "1", false), replica("a", "s", "0", true));
        let orphan = [("a".to_owned(), Why::MasterTaken)];
        assert_eq!(taken(&all(std::slice::from_ref(&unused))), orphan);
        assert_eq!(taken(&all(&[unused.clone(), used.clone()])), []);
        let waits = Replica { stored: Stored::default(), source: "other".into(), ..used.clone() };
        assert_eq!(taken(&all(&[unused.clone(), waits])), [], "a pod waits for it, whatever it is to be made from");
        let mut gone = all(&[unused]);
        gone.add(RecordEntry::Replica(used), false, |_| true);
        assert_eq!(taken(&gone), orphan, "of a node that is gone");
    }

    #[test]
    fn while_nobody_knows_what_pods_ask_for_nothing_counts_as_unused() {
        let unused = replica("a", "s", "1", false);
        let orphan = [("a".to_owned(), Why::MasterTaken)];
        let with = |entry: RecordEntry, counts: bool| {
            let mut all = all(std::slice::from_ref(&unused));
            all.add(entry, counts, |_| true);
            found(&all, &[], &["s"])
        };
        let more = |namespace: &str| About { may_be_more: BTreeSet::from([namespace.to_owned()]), is_cut: false };
        assert_eq!(with(RecordEntry::About(more("team-a")), true), []);
        assert_eq!(with(RecordEntry::About(more("team-b")), true), orphan, "another namespace");
        assert_eq!(with(RecordEntry::About(more("team-a")), false), orphan, "of a node that is gone");
        assert_eq!(with(RecordEntry::About(About { is_cut: true, ..About::default() }), true), []);
        assert_eq!(with(RecordEntry::Unreadable, true), []);
        assert_eq!(with(RecordEntry::Unreadable, false), orphan, "of a node that is gone");
        let mut silent = all(std::slice::from_ref(&unused));
        silent.heard_of(&set(&[]), &set(&["node-1"]), &set(&["node-1"]));
        assert_eq!(found(&silent, &[], &["s"]), []);
        assert!(silent.doubt().is_some_and(|doubt| doubt.contains("1 nodes, as node-1")));
        for (selected, there, doubted) in
            [(&["node-1"][..], &["node-1", "node-2"][..], true), (&["node-1"], &["node-1"], false), (&[], &[], true)]
        {
            let mut heard = all(std::slice::from_ref(&unused));
            heard.heard_of(&set(&["node-1", "node-2"]), &set(selected), &set(there));
            assert_eq!(heard.doubt().is_some(), doubted, "{selected:?} of {there:?}");
        }
        assert_eq!(found(&silent, &["s"], &[]), [("a".to_owned(), Why::SourceGone)], "whoever asks for it");
    }

    #[test]
    fn who_saw_a_replica_last_knows_its_source() {
        let (old, new) = (replica("a", "s", "1", false), replica("a", "t", "2", true));
        for both in [all(&[old.clone(), new.clone()]), all(&[new, old])] {
            assert_eq!(found(&both, &["s"], &["s"]), []);
            assert_eq!(found(&both, &["t"], &[]), [("a".to_owned(), Why::SourceGone)]);
            let orphans = both.orphans(&set(&["t"]), &set(&[]));
            assert_eq!(orphans[0].states.len(), 1, "states from before count no more");
        }
    }

    #[test]
    fn only_states_that_somebody_saw_count() {
        let never = Replica { stored: Stored::default(), ..replica("a", "s", "1", false) };
        assert_eq!(found(&all(&[never]), &["s"], &["s"]), []);
        let (one, two) = (replica("a", "s", "1", false), replica("a", "s", "2", false));
        let both = all(&[one.clone(), two.clone(), one.clone()]);
        assert_eq!(both.orphans(&set(&["s"]), &set(&[]))[0].states, [one.stored, two.stored]);
    }

    #[test]
    fn only_sources_of_interest_are_kept_and_what_is_in_use_of_all() {
        let mut replicas = Replicas::default();
        for (name, source, in_use) in [("a", "s", true), ("b", "t", true), ("c", "s", false)] {
            replicas.add(RecordEntry::Replica(replica(name, source, "1", in_use)), true, |source| source == "s");
        }
        assert_eq!((replicas.sources(), replicas.in_use()), (BTreeSet::from(["s"]), 2));
        let used = replicas.used(&BTreeSet::from(["s", "t"]));
        assert_eq!(used.iter().map(|one| (one.name.as_str(), one.in_use)).collect::<Vec<_>>(), [("a", true)]);
    }

    #[test]
    fn many_at_once_are_a_wave() {
        for (orphans, known, wave) in [(5, 5, false), (6, 6, true), (6, 30, false), (20, 100, false), (21, 100, true)] {
            assert_eq!(is_a_wave(orphans, known), wave, "{orphans} of {known}");
        }
    }

    #[test]
    fn a_replica_is_of_a_source_by_whatever_keys() {
        use Origin::{Another, This, Unclear};
        for (found, source, want) in [
            ("v1:aws:/a", "v1:aws:/a", This),
            ("v1:aws:/a?keys=A", "v1:aws:/a", This),
            ("v1:aws:/a?version=x&keys=A", "v1:aws:/a?version=x", This),
            ("v1:aws:/ab", "v1:aws:/a", Another),
            ("v1:aws:/a?version=x", "v1:aws:/a", Another),
            ("v1:aws:/a?as=uid/x", "v1:aws:/a", Another),
            ("v1:aws:/a?sha256=0", "v1:aws:/a", Unclear),
            ("v1:aws:/a?sha256=0", "v1:aws:/a?version=x", Unclear),
            ("v1:aws:/ab?sha256=0", "v1:aws:/a", Another),
            ("v1:aws:/a?version=xy", "v1:aws:/a?version=x", Another),
            ("", "v1:aws:/a", Another),
        ] {
            assert_eq!(origin(found, source), want, "{found} {source}");
        }
    }
}
