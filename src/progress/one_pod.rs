//! What has become of the requests of one pod.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Ask,
    waiting::{Reading, Waiting},
};
use crate::{
    pod::PodNamespace, request::SecretName, service_account::ServiceAccount, target::Holds,
    workload_annotations::Inherited,
};

/// When the Secrets of a pod that hangs are looked at again: since it began to hang, then since the last look.
pub(super) const HANG_LOOKS: [Duration; 3] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(300)];

/// Of a pod whose annotation is edited for ever.
const REMEMBERED_NAMES: usize = 64;

/// A pod that asks for something.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) namespace: PodNamespace,
    /// It was in the first list and was not looked at yet.
    pub(super) replayed: bool,
    /// It was in the first list.
    pub(super) was_there: bool,
    pub(super) seen_at: Instant,
    pub(super) inherited: Option<Option<Inherited>>,
    pub(super) reading: Option<Reading>,
    pub(super) asks: HashMap<Ask, State>,
    /// How many requests the annotation has; `None` until it was read.
    pub(super) wanted: Option<usize>,
    /// The Secrets that were ever asked for and worked on.
    pub(super) asked: HashSet<SecretName>,
    /// When requests came by an edit.
    pub(super) edited: HashMap<Ask, Timestamp>,
    pub(super) hang: Option<Hang>,
    /// As whom stores are asked for it, where not as the agent.
    pub(super) accounts: Vec<Arc<ServiceAccount>>,
}

/// A pod that does not start.
#[derive(Debug)]
pub(super) struct Hang {
    looks: usize,
    pub(super) next_at: Instant,
}

/// What has become of one request.
#[derive(Debug)]
pub(super) enum State {
    /// With the object that serves it, where there is one.
    Done(Option<Holds>),
    /// Its copy is behind its master.
    LeftBehind,
    Waiting(Waiting),
}

impl Pod {
    pub(super) fn new(namespace: PodNamespace, replayed: bool) -> Self {
        Self {
            namespace,
            replayed,
            was_there: replayed,
            seen_at: Instant::now(),
            inherited: None,
            reading: None,
            asks: HashMap::new(),
            wanted: None,
            asked: HashSet::new(),
            edited: HashMap::new(),
            hang: None,
            accounts: Vec::new(),
        }
    }

    /// A request for a Secret that this pod asked for before, in other words, counts from now on, not from the pod's
    /// creation: else the age rule would take it for one that came together with what it replaces.
    pub(super) fn forget_all_but(&mut self, asks: &[Ask], api_time: Timestamp) {
        for ask in asks.iter().filter(|ask| !self.asks.contains_key(ask)) {
            if ask.as_ref().is_ok_and(|request| self.asked.contains(&request.secret_name)) {
                self.edited.entry(ask.clone()).or_insert(api_time);
            }
        }
        self.wanted = Some(asks.iter().collect::<HashSet<_>>().len());
        self.asks.retain(|ask, _| asks.contains(ask));
        self.edited.retain(|ask, _| asks.contains(ask));
    }

    /// Whether it is time to look at the Secrets that were served.
    pub(super) fn looks_again(&mut self, hangs: bool, now: Instant) -> bool {
        if !hangs {
            self.hang = None;
            return false;
        }
        let hang = self.hang.get_or_insert(Hang { looks: 0, next_at: now + HANG_LOOKS[0] });
        if now < hang.next_at {
            return false;
        }
        hang.looks = (hang.looks + 1).min(HANG_LOOKS.len() - 1);
        hang.next_at = now + HANG_LOOKS[hang.looks];
        true
    }

    /// Stores are asked as this account for it, and no more as the one of the kind that it was before.
    pub(super) fn acts_as(&mut self, uid: &str, account: &Arc<ServiceAccount>) {
        let before = self.accounts.extract_if(.., |other| other.is_proven() == account.is_proven());
        for before in before.filter(|before| !Arc::ptr_eq(before, account)) {
            before.forget(uid);
        }
        self.accounts.push(Arc::clone(account));
    }

    /// No store is asked for it any more.
    pub(super) fn leave(&mut self, uid: &str) {
        for account in self.accounts.drain(..) {
            account.forget(uid);
        }
    }

    /// Whether all that it asks for is known: its workload and its annotation could be read, and each request was tried once.
    pub(super) fn is_known(&self) -> bool {
        self.reading.is_none() && self.wanted == Some(self.asks.len()) && self.asks.keys().all(Result::is_ok)
    }

    pub(super) fn settle(&mut self, ask: Ask, state: State) {
        if self.asked.len() < REMEMBERED_NAMES {
            self.asked.extend(ask.as_ref().ok().map(|request| request.secret_name.clone()));
        }
        self.asks.insert(ask, state);
    }
}
