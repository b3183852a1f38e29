//! As whom a store is asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{pod::PodNamespace, service_account::ServiceAccount};

/// As whom a store is asked. Part of every fetch's key and of what a Secret says of its source, so that no value crosses
/// identities.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The agent's own identity at the store.
    Agent,
    /// A service account.
    ServiceAccount {
        /// Its namespace.
        namespace: PodNamespace,
        /// Its name.
        name: String,
        /// What tells it from an earlier one of the same name; empty where the store only knows names.
        uid: String,
        /// What it says of itself to stores: another role is another try.
        claims: String,
    },
}

impl Identity {
    /// As it stands in a source id; `None` for the agent. The namespace is that of the Secret.
    pub fn in_source_id(&self) -> Option<String> {
        match self {
            Self::Agent => None,
            Self::ServiceAccount { name, uid, .. } if uid.is_empty() => Some(format!("name/{name}")),
            Self::ServiceAccount { uid, .. } => Some(format!("uid/{uid}")),
        }
    }
}

/// Who asks a store: an identity, and what proves it.
#[derive(Debug, Clone)]
pub enum Caller {
    /// The agent itself.
    Agent,
    /// A service account of pods on this node.
    ServiceAccount(Arc<ServiceAccount>),
}

impl Caller {
    /// Whether there may be a pod by whose token it can ask.
    pub(super) fn has_pods(&self) -> bool {
        matches!(self, Self::ServiceAccount(account) if account.has_pods())
    }

    /// The identity alone, which keeps nothing alive.
    pub fn identity(&self) -> Identity {
        match self {
            Self::Agent => Identity::Agent,
            Self::ServiceAccount(account) => Identity::ServiceAccount {
                namespace: account.namespace().clone(),
                name: account.name().to_owned(),
                uid: account.uid().to_owned(),
                claims: account.claims(),
            },
        }
    }
}

/// As whom an instance asks its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActsAs {
    /// As the agent, for all pods.
    #[default]
    Agent,
    /// As the agent, which says for whom.
    Named,
    /// As each pod's service account, by a token of it.
    Pod,
}

impl ActsAs {
    /// Whether this caller is of the kind.
    pub(super) fn is_by(self, caller: &Caller) -> bool {
        match (self, caller) {
            (Self::Agent, Caller::Agent) => true,
            (Self::Named, Caller::ServiceAccount(_)) => true,
            (Self::Pod, Caller::ServiceAccount(account)) => account.is_proven(),
            (Self::Agent, Caller::ServiceAccount(_)) | (Self::Named | Self::Pod, Caller::Agent) => false,
        }
    }
}

/// What is kept at a store for each service account: a session, credentials, a client. It must not hold the account itself: it
/// goes with the account's last pod on the node.
#[derive(Debug)]
pub(super) struct PerAccount<T>(Mutex<HashMap<Identity, Kept<T>>>);

#[derive(Debug)]
struct Kept<T> {
    of: Weak<ServiceAccount>,
    what: Arc<T>,
}

impl<T> Default for PerAccount<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> PerAccount<T> {
    /// What is kept for this account; made anew where the account has changed.
    pub(super) fn of(&self, account: &Arc<ServiceAccount>, make: impl FnOnce(Weak<ServiceAccount>) -> T) -> Arc<T> {
        let key = Caller::ServiceAccount(Arc::clone(account)).identity();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = all.get(&key).filter(|kept| kept.of.as_ptr() == Arc::as_ptr(account)) {
            return Arc::clone(&kept.what);
        }
        let weak = Arc::downgrade(account);
        let what = Arc::new(make(Weak::clone(&weak)));
        all.insert(key, Kept { of: weak, what: Arc::clone(&what) });
        what
    }

    /// Drops what is kept for accounts of which no pod is left; gives the number of the others.
    pub(super) fn drop_unused(&self) -> usize {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, kept| kept.of.strong_count() > 0);
        all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_for_an_account_is_its_own_and_goes_with_it() {
        let kept = PerAccount::default();
        let account = |name: &str| ServiceAccount::named(PodNamespace::for_test("team-a"), name);
        let (one, other) = (account("one"), account("other"));
        let (first, second) = (kept.of(&one, |_| 1), kept.of(&other, |_| 2));
        assert_eq!((*first, *second, *kept.of(&one, |_| 3)), (1, 2, 1));
        drop(one);
        assert_eq!(kept.drop_unused(), 1);
        assert_eq!(*kept.of(&account("one"), |_| 4), 4, "another one of the same name");
        assert_eq!(*kept.of(&other, |_| 5), 2);
    }
}
