//! What is known of every master: where it stands, and which value it holds. Never a value.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    request::{ObjectKind, SecretName},
    target::Known,
};

/// A master by its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name.
    pub name: SecretName,
    /// Which value it holds.
    pub known: Known,
    /// How late this state of it is.
    pub revision: u64,
}

/// All masters by their source. A source whose type changed at the store has two.
#[derive(Debug, Default)]
pub struct Index {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    by_source: HashMap<String, BTreeMap<ObjectKind, Entry>>,
    by_name: HashMap<(ObjectKind, SecretName), String>,
    /// Those whose copies are to be looked at.
    changed: HashSet<String>,
    /// Kinds of which all were listed once.
    listed: HashSet<ObjectKind>,
}

impl Index {
    /// The master of a source; of two the newer.
    pub fn find(&self, source: &str) -> Option<Entry> {
        let inner = self.inner();
        // Of two that are equally new, the Secret: the last one that is not greater wins.
        inner.by_source.get(source)?.values().rev().max_by_key(|entry| entry.known.through).cloned()
    }

    /// Takes note of a master. Its latest state counts, whichever value it has: somebody may have put an earlier one back.
    pub fn learn(&self, source: &str, entry: Entry) {
        let mut inner = self.inner();
        let before = inner.by_source.get(source).and_then(|all| all.get(&entry.kind));
        if before.is_some_and(|before| before.revision > entry.revision) {
            // Told late: what this agent did itself is newer.
            return;
        }
        let is_news = before.is_none_or(|before| before.known.version != entry.known.version);
        inner.by_name.insert((entry.kind, entry.name.clone()), source.to_owned());
        inner.by_source.entry(source.to_owned()).or_default().insert(entry.kind, entry);
        if is_news {
            self.announce(&mut inner, source);
        }
    }

    /// A master is gone; its copies stay.
    pub fn forget(&self, kind: ObjectKind, name: &SecretName) {
        let mut inner = self.inner();
        let Some(source) = inner.by_name.remove(&(kind, name.clone())) else { return };
        if let Some(all) = inner.by_source.get_mut(&source) {
            all.remove(&kind);
            if all.is_empty() {
                inner.by_source.remove(&source);
            }
        }
    }

    /// What is not in a complete list of a kind is gone.
    pub fn keep_only(&self, kind: ObjectKind, listed: &HashSet<SecretName>) {
        let gone: Vec<SecretName> = {
            let inner = self.inner();
            let of_kind = inner.by_name.keys().filter(|(of, name)| *of == kind && !listed.contains(name));
            of_kind.map(|(_, name)| name.clone()).collect()
        };
        for name in gone {
            self.forget(kind, &name);
        }
    }

    /// All of a kind were told of once.
    pub fn is_listed(&self, kind: ObjectKind) {
        self.inner().listed.insert(kind);
    }

    /// Whether a source that is not in it has no master.
    pub fn is_complete(&self) -> bool {
        self.inner().listed.len() == 2
    }

    /// A copy was written or found: whether its master has gone on meanwhile is looked at.
    pub fn check_copy(&self, source: &str, copy: &Known) {
        if self.find(source).is_some_and(|master| copy.is_behind(&master.known)) {
            self.announce(&mut self.inner(), source);
        }
    }

    /// Waits for masters whose copies are to be looked at.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes those masters.
    pub fn take_changed(&self) -> HashMap<String, Known> {
        let changed = std::mem::take(&mut self.inner().changed);
        changed
            .into_iter()
            .filter_map(|source| Some((self.find(&source)?.known, source)))
            .map(|(k, s)| (s, k))
            .collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.inner().by_name.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn announce(&self, inner: &mut Inner, source: &str) {
        inner.changed.insert(source.to_owned());
        self.changed.notify_one();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use jiff::Timestamp;

    use super::*;

    fn known(version: &str, second: i64) -> Known {
        Known { version: version.into(), through: Timestamp::from_second(second).expect("a time") }
    }

    fn entry(kind: ObjectKind, version: &str, second: i64) -> Entry {
        let revision = second.try_into().expect("no time before 1970");
        Entry { kind, name: SecretName::for_test("sm-a"), known: known(version, second), revision }
    }

    #[test]
    fn a_new_version_is_news_and_a_new_time_is_not() {
        let index = Index::default();
        for (case, version, second, want) in [
            ("seen first", "1", 100, true),
            ("fetched again", "1", 101, false),
            ("changed", "2", 102, true),
            ("told late", "1", 100, false),
            ("changed within a second", "3", 102, true),
        ] {
            index.learn("v1:aws:a", entry(ObjectKind::Secret, version, second));
            assert_eq!(index.changed().now_or_never().is_some(), want, "case: {case}");
            assert_eq!(index.take_changed().is_empty(), !want, "case: {case}");
        }
        assert_eq!(index.find("v1:aws:a").map(|entry| entry.known), Some(known("3", 102)));
        let restored = Entry { known: known("1", 50), ..entry(ObjectKind::Secret, "", 103) };
        index.learn("v1:aws:a", restored.clone());
        assert_eq!(index.find("v1:aws:a"), Some(restored), "an earlier value that somebody put back");
    }

    #[test]
    fn of_two_the_newer_counts_and_the_secret_where_both_are() {
        let index = Index::default();
        index.learn("s", entry(ObjectKind::ConfigMap, "1", 100));
        index.learn("s", entry(ObjectKind::Secret, "2", 100));
        let kind = || index.find("s").map(|entry| entry.kind);
        assert_eq!(kind(), Some(ObjectKind::Secret));
        index.learn("s", entry(ObjectKind::ConfigMap, "3", 101));
        assert_eq!(kind(), Some(ObjectKind::ConfigMap));
        index.forget(ObjectKind::ConfigMap, &SecretName::for_test("sm-a"));
        assert_eq!((kind(), index.len()), (Some(ObjectKind::Secret), 1));
        index.keep_only(ObjectKind::ConfigMap, &HashSet::new());
        assert_eq!(index.len(), 1, "a list of the other kind");
        index.keep_only(ObjectKind::Secret, &HashSet::new());
        assert!(index.is_empty() && index.find("s").is_none());
    }

    #[test]
    fn a_copy_that_was_written_while_its_master_went_on_is_looked_at() {
        let index = Index::default();
        index.learn("s", entry(ObjectKind::Secret, "2", 100));
        index.take_changed();
        for (case, copy, want) in [
            ("same", known("2", 100), false),
            ("older", known("1", 99), true),
            ("same second", known("1", 100), true),
            ("newer: the index is late", known("3", 101), false),
        ] {
            index.check_copy("s", &copy);
            assert_eq!(!index.take_changed().is_empty(), want, "case: {case}");
        }
    }
}
