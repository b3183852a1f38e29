//! Central mode: one master for each source, in a namespace of their own, and copies where pods ask for them.
//!
//! ```text
//! watch -> request -> policy -> fresh? -> master (in_flight) -> mapping -> write -> report
//!                                           | fresh: its value
//!                                           | else:  provider (in_flight) -> write the master
//! ```
//!
//! A master holds its source's value as it is; what a pod gets is made from it by the same mapping as from a store's answer.
//! That there is a master admits nobody: policy has admitted each request before it comes here.

mod index;
mod name;
mod records;
mod watch;

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::FutureExt;
use jiff::Timestamp;
use kube::Client;

pub use index::{Entry, Index};
pub use name::name;
pub use records::{About, Entry as RecordEntry, Records, Replica, record_name};

use crate::{
    annotations::quoted,
    clock::SeenClock,
    error::SyncError,
    names::is_dns_label,
    pod::PodNamespace,
    policy::AdmittedRequest,
    progress::InUse,
    provider::{Asker, FetchError, FetchKey, Fetched, Identity, InFlight, Kind, Registry},
    request::{ObjectKind, RemoteRef},
    target::{CopyOf, Draft, Known, Master, MasterStore, Place, Stored, TargetError},
};

/// The first try and five lost races.
const TRIES: usize = 6;

/// The namespace of masters: neither the agent's own, whose files hold the stores' credentials, nor `kube-*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MastersNamespace(Arc<str>);

impl MastersNamespace {
    /// A namespace's name that is not protected.
    pub fn checked(name: &str) -> Option<Self> {
        (is_dns_label(name) && !name.starts_with("kube-")).then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MastersNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why there is no value from a master.
#[derive(Debug, Clone)]
pub enum MasterError {
    /// The store.
    Fetch(FetchError),
    /// The API server.
    Target(Arc<TargetError>),
}

impl From<FetchError> for MasterError {
    fn from(error: FetchError) -> Self {
        Self::Fetch(error)
    }
}

impl From<TargetError> for MasterError {
    fn from(error: TargetError) -> Self {
        Self::Target(Arc::new(error))
    }
}

impl From<MasterError> for SyncError {
    fn from(error: MasterError) -> Self {
        match error {
            MasterError::Fetch(error) => Self::Provider(error),
            MasterError::Target(error) => Self::Master(error),
        }
    }
}

/// The masters.
pub struct Masters {
    namespace: MastersNamespace,
    client: Client,
    store: MasterStore,
    index: Index,
    flights: InFlight<MasterError>,
    registry: Arc<Registry>,
    seen: Arc<SeenClock>,
}

impl Masters {
    /// RBAC, by a Role in the masters' namespace: `get`, `list`, `watch`, `create` and `update` on secrets and configmaps.
    pub fn new(
        namespace: MastersNamespace,
        client: Client,
        store: MasterStore,
        registry: Arc<Registry>,
        seen: Arc<SeenClock>,
    ) -> Arc<Self> {
        let (index, flights) = (Index::default(), InFlight::default());
        Arc::new(Self { namespace, client, store, index, flights, registry, seen })
    }

    /// Where masters stand.
    pub fn namespace(&self) -> &MastersNamespace {
        &self.namespace
    }

    /// What is known of them.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// What a copy in `namespace` says of the master of what was admitted.
    ///
    /// # Errors
    /// Where that is the masters' own namespace, in which there are no copies.
    pub fn copy_of(
        &self,
        namespace: &PodNamespace,
        admitted: &AdmittedRequest,
        kind: Kind,
    ) -> Result<CopyOf, TargetError> {
        let request = admitted.request();
        if namespace.as_str() == self.namespace.as_str() {
            let target = format!("Secret {namespace}/{}", request.secret_name);
            return Err(TargetError::NamespaceClosed { target, said: "masters are in this namespace".to_owned() });
        }
        let known = self.index.find(&request.remote.source_id()).map(|master| master.known);
        let has_no_master = known.is_none() && self.index.is_complete();
        Ok(CopyOf { namespace: self.namespace.clone(), source_kind: kind.source_kind(), known, has_no_master })
    }

    /// As what the value of a source was written last; `None` where no master of it is known.
    pub fn kind_of(&self, remote: &RemoteRef) -> Option<ObjectKind> {
        self.index.find(&remote.source_id()).map(|master| master.kind)
    }

    /// The value of what was admitted, no older than its pod: the master's, or where that is too old the store's, which is
    /// in the master then.
    ///
    /// # Errors
    /// What the store said, or why the master could not be read or written; what was there stays.
    pub async fn fetch(
        self: &Arc<Self>,
        admitted: &AdmittedRequest,
        kind: Kind,
        asker: &Asker,
    ) -> Result<Arc<Fetched>, SyncError> {
        let key = FetchKey { identity: Identity::Agent, remote: admitted.request().remote.clone() };
        let not_older_than = asker.not_older_than();
        let start = || {
            let masters = Arc::clone(self);
            let ask = Ask { admitted: admitted.clone(), kind, asker: asker.clone() };
            (not_older_than, async move { masters.serve(ask).await }.boxed())
        };
        Ok(self.flights.fetch(&key, not_older_than, start).await?)
    }

    /// How many of these requests each master serves in each namespace.
    pub fn count(&self, in_use: &InUse) -> BTreeMap<(String, String), i64> {
        let mut counts = BTreeMap::new();
        for used in in_use.requests.iter().filter(|used| used.holds.is_some()) {
            if let Some(master) = self.index.find(&used.request.remote.source_id()) {
                *counts.entry((used.namespace.to_string(), master.name.to_string())).or_default() += 1;
            }
        }
        counts
    }

    async fn serve(&self, ask: Ask) -> Result<Arc<Fetched>, MasterError> {
        let source = ask.remote().source_id();
        let found = match self.look_up(&ask, &source).await? {
            Some((_, master)) if master.known.through >= ask.asker.not_older_than() => return Ok(fetched(master)),
            // Its value is let go of before the store's is there.
            found => found.map(|(place, master)| (place, master.stored)),
        };
        let asked_at = self.store.now();
        let value = self.registry.fetch(&ask.admitted, &ask.asker, &self.seen).await?;
        self.keep(&ask, &source, Answer { value, asked_at }, found).await
    }

    /// The master where the watch saw it, or where it must be; one at a time, since each takes memory.
    async fn look_up(&self, ask: &Ask, source: &str) -> Result<Option<(Place, Master)>, MasterError> {
        let places = match self.index.find(source) {
            Some(Entry { kind, name, .. }) => vec![Place { kind, name }],
            None => ask.places(),
        };
        for place in places {
            if let Some(master) = self.store.read(&place, source).await? {
                self.learn(source, &place, &master.stored, &master.known);
                return Ok(Some((place, master)));
            }
        }
        Ok(None)
    }

    /// Puts a store's value into the master; gives what is in it in the end, which somebody else may have put there.
    async fn keep(
        &self,
        ask: &Ask,
        source: &str,
        answer: Answer,
        found: Option<(Place, Stored)>,
    ) -> Result<Arc<Fetched>, MasterError> {
        let Answer { value, asked_at } = answer;
        let place = ask.place_of(&value)?;
        let draft = Draft { remote: ask.remote(), store: ask.kind, fetched: &value, asked_at };
        let same_place = |(other, stored): (Place, Stored)| (other == place).then_some(stored);
        let mut replacing = found.and_then(same_place);
        for _ in 0..TRIES {
            if let Some((stored, known)) = self.store.write(&place, &draft, replacing.as_ref()).await? {
                self.learn(source, &place, &stored, &known);
                return Ok(value);
            }
            replacing = match self.store.read(&place, source).await? {
                // A value that was asked for later is no older than what this node had seen, whatever its writer had.
                Some(mut master) if master.known.through >= value.seen_through || master.asked_at > asked_at => {
                    self.learn(source, &place, &master.stored, &master.known);
                    master.known.through = master.known.through.max(value.seen_through);
                    return Ok(fetched(master));
                }
                found => found.map(|master| master.stored),
            };
        }
        Err(TargetError::LostRace { target: format!("{} {}/{}", place.kind, self.namespace, place.name) }.into())
    }

    fn learn(&self, source: &str, place: &Place, stored: &Stored, known: &Known) {
        let Place { kind, name } = place.clone();
        // Where the reply did not tell, the watch will.
        if let Some(revision) = stored.revision() {
            self.index.learn(source, Entry { kind, name, known: known.clone(), revision });
        }
    }
}

fn fetched(master: Master) -> Arc<Fetched> {
    let Master { known, payload, reserved, .. } = master;
    Arc::new(Fetched { payload, seen_through: known.through, reserved })
}

/// What a store gave.
struct Answer {
    value: Arc<Fetched>,
    /// When it was asked, by the API server's clock.
    asked_at: Timestamp,
}

/// One request for a value.
struct Ask {
    admitted: AdmittedRequest,
    kind: Kind,
    asker: Asker,
}

impl Ask {
    fn remote(&self) -> &RemoteRef {
        &self.admitted.request().remote
    }

    /// Where the master can be, as far as that is known without the store.
    fn places(&self) -> Vec<Place> {
        let Some(name) = name(self.kind, self.remote(), None) else { return Vec::new() };
        let kinds = [Some(ObjectKind::Secret), self.kind.may_be_plain().then_some(ObjectKind::ConfigMap)];
        kinds.into_iter().flatten().map(|kind| Place { kind, name: name.clone() }).collect()
    }

    /// Where the master of this value belongs.
    fn place_of(&self, value: &Fetched) -> Result<Place, TargetError> {
        let kind = if value.payload.is_plain() { ObjectKind::ConfigMap } else { ObjectKind::Secret };
        // A store that does not say what it calls it: by the whole path then.
        let called = value.payload.name().unwrap_or(&self.remote().path);
        match name(self.kind, self.remote(), Some(called)) {
            Some(name) => Ok(Place { kind, name }),
            None => Err(TargetError::NoMaster { target: format!("a {kind} with the name of {}", quoted(called)) }),
        }
    }
}
