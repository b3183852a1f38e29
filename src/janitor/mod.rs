//! `jasm-agent janitor`: takes away replicas that nothing stands behind any more, with proof. The one part that deletes.
//!
//! ```text
//! list masters and records -> ask the store about each source -> suspect -> (10 minutes) -> ask again -> replicas -> master
//! ```
//!
//! A replica goes when its source is gone for the store itself, which said so twice, far enough apart; or when somebody deleted
//! its master and no pod asks for it. Everything that is not known, late, denied or too much at once leaves all as it is.

mod evidence;
mod lease;
mod plan;
mod remove;
mod report;
mod start;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join3;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, ResourceExt as _, api::ListParams, core::PartialObjectMeta};
use tokio::time::Instant;

pub use report::table;
pub use start::{dry_run, run};

use self::{
    evidence::{Said, Suspicions, believed},
    lease::Election,
    plan::{Listed, NodeRecord, Orphan, Why},
    remove::{Removed, Remover},
    report::Teller,
};
use crate::{
    config::JanitorConfig,
    error::{BoxError, chain},
    masters::{MastersNamespace, Replica},
    metrics::Metrics,
    provider::{ProviderError, Registry},
    request::{ObjectKind, RemoteRef, SecretName},
    target::{RECORD, SOURCE, SOURCE_KIND, Stored},
};

/// A record that was not written for so long is of a node that is gone: an agent writes at least every hour.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// The most objects that one request lists.
const PAGE: u32 = 500;

/// Looks after replicas.
pub struct Janitor {
    client: Client,
    namespace: MastersNamespace,
    registry: Arc<Registry>,
    config: JanitorConfig,
    election: Election,
    remover: Remover,
    teller: Teller,
    metrics: Arc<Metrics>,
}

/// What is there, by complete lists of the same round.
struct Lists {
    masters: Vec<Listed>,
    records: Vec<NodeRecord>,
}

/// What is remembered from one round to the next.
#[derive(Default)]
struct Memory {
    gone: Suspicions,
    taken: Suspicions,
    /// By name: the state of a record, and since when it is in that.
    records: HashMap<String, (String, Instant)>,
}

/// What a round found.
#[derive(Default)]
pub struct Findings {
    orphans: Vec<Orphan>,
    /// Masters of sources that are gone.
    masters: Vec<Listed>,
    known: usize,
}

impl Janitor {
    /// RBAC: in the masters' namespace `get` and `list` on secrets and configmaps, `delete` there and wherever replicas are,
    /// `get`, `create`, `update` on leases; `create` and `patch` on events.
    pub fn new(
        client: Client,
        namespace: MastersNamespace,
        registry: Arc<Registry>,
        config: JanitorConfig,
        metrics: Arc<Metrics>,
    ) -> Self {
        let election = Election::new(client.clone(), namespace.as_str());
        let (remover, teller) = (Remover::new(client.clone()), Teller::new(client.clone()));
        Self { client, namespace, registry, config, election, remover, teller, metrics }
    }

    /// Whether this one works, or another.
    pub fn is_leader(&self) -> bool {
        self.election.is_mine()
    }

    /// Works while it holds the lease. Never ends.
    pub async fn run(&self) {
        join3(self.election.run(), self.work(), self.registry.keep_ready()).await;
    }

    async fn work(&self) {
        let mut memory = Memory::default();
        loop {
            if self.election.is_mine() {
                match self.look(&mut memory).await {
                    Ok(findings) => self.clean_up(findings).await,
                    Err(error) => {
                        // What was suspected before was not looked at since.
                        memory = Memory::default();
                        tracing::warn!(
                            error = chain(&*error),
                            "masters and records could not be read: nothing is deleted"
                        );
                    }
                }
            } else {
                memory = Memory::default();
            }
            tokio::time::sleep(self.config.every).await;
        }
    }

    /// What would go, after two looks that are far enough apart. Deletes nothing.
    ///
    /// # Errors
    /// Where masters or records cannot be read.
    pub async fn dry_run(&self) -> Result<Findings, BoxError> {
        let mut memory = Memory::default();
        self.look(&mut memory).await?;
        tokio::time::sleep(self.config.confirm_after).await;
        self.look(&mut memory).await
    }

    /// One round.
    async fn look(&self, memory: &mut Memory) -> Result<Findings, BoxError> {
        let lists = self.lists(memory).await?;
        let gone = self.gone(&lists, memory).await;
        // That may have taken long: what pods ask for by now counts.
        let lists = self.lists(memory).await?;
        let without = plan::without_master(&lists.masters, &lists.records);
        memory.taken.keep_only(&without.iter().cloned().collect());
        let apart = self.config.confirm_after;
        let taken: HashSet<String> =
            without.into_iter().filter(|source| memory.taken.note(source, true, apart)).collect();
        let orphans = plan::orphans(&lists.records, &gone, &taken);
        let masters = lists.masters.into_iter().filter(|master| gone.contains(&master.source)).collect();
        Ok(Findings { orphans, masters, known: plan::known(&lists.records) })
    }

    /// The sources that are gone for the store, which said so now and before.
    async fn gone(&self, lists: &Lists, memory: &mut Memory) -> HashSet<String> {
        let mut asked: BTreeMap<&str, (String, Said)> = BTreeMap::new();
        for master in &lists.masters {
            if asked.contains_key(master.source.as_str()) {
                continue;
            }
            if let Some(remote) = RemoteRef::of_source_id(&master.source, self.registry.catalogue()) {
                let said = self.ask(&remote).await;
                asked.insert(&master.source, (remote.provider.to_string(), said));
                tokio::time::sleep(self.config.pause).await;
            }
        }
        let answers: Vec<(String, Said)> = asked.values().cloned().collect();
        let believed = believed(&answers);
        memory.gone.keep_only(&asked.keys().map(|source| (*source).to_owned()).collect());
        let is_gone = |(source, (instance, said)): (&&str, &(String, Said))| {
            let suspected = *said == Said::NotThere && believed.contains(instance.as_str());
            memory.gone.note(source, suspected, self.config.confirm_after).then(|| (*source).to_owned())
        };
        asked.iter().filter_map(is_gone).collect()
    }

    async fn ask(&self, remote: &RemoteRef) -> Said {
        match self.registry.look(remote).await {
            Ok(()) => Said::There,
            Err(ProviderError::NotFound { .. }) => Said::NotThere,
            Err(error) => {
                tracing::info!(provider = %remote.provider, path = remote.path, error = chain(&error), "nothing is known of a source");
                Said::Nothing
            }
        }
    }

    /// All masters, by their metadata, and all records: each list complete and as new as the API server's storage.
    async fn lists(&self, memory: &mut Memory) -> Result<Lists, BoxError> {
        let mut masters = self.masters::<Secret>(ObjectKind::Secret).await?;
        masters.extend(self.masters::<ConfigMap>(ObjectKind::ConfigMap).await?);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), self.namespace.as_str());
        let mut found: Vec<ConfigMap> = Vec::new();
        let mut params = ListParams::default().labels(RECORD).limit(PAGE);
        loop {
            let page = api.list(&params).await?;
            found.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        let now = Instant::now();
        let before = std::mem::take(&mut memory.records);
        let mut records = Vec::new();
        for record in found {
            let (name, version) = (record.name_any(), record.resource_version().unwrap_or_default());
            let since = match before.get(&name) {
                Some((known, since)) if *known == version => *since,
                _ => now,
            };
            memory.records.insert(name, (version, since));
            let replicas = record.data.iter().flatten().filter_map(|(_, text)| Replica::read(text)).collect();
            records.push(NodeRecord { replicas, is_stale: now.duration_since(since) >= STALE });
        }
        Ok(Lists { masters, records })
    }

    async fn masters<K>(&self, kind: ObjectKind) -> Result<Vec<Listed>, BoxError>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + Send
            + 'static,
    {
        let api: Api<PartialObjectMeta<K>> = Api::namespaced(self.client.clone(), self.namespace.as_str());
        let mut found = Vec::new();
        let mut params = ListParams::default().labels(SOURCE_KIND).limit(PAGE);
        loop {
            let page = api.list(&params).await?;
            found.extend(page.items.iter().filter_map(|master| {
                let source = master.annotations().get(SOURCE)?.clone();
                let (uid, version) = (master.uid()?, master.resource_version()?);
                let stored = Stored { uid, resource_version: version };
                Some(Listed { kind, name: SecretName::checked(master.name_any())?, stored, source })
            }));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        Ok(found)
    }

    /// Deletes what was found, one after the other, at most so many a minute; a source's master when none of its replicas is left.
    async fn clean_up(&self, findings: Findings) {
        let is_wave = plan::is_a_wave(findings.orphans.len(), findings.known) && !self.config.allow_waves;
        self.metrics.janitor(findings.orphans.len(), is_wave);
        if is_wave {
            tracing::error!(
                orphans = findings.orphans.len(),
                known = findings.known,
                "so many replicas became orphans that this looks like a mistake: nothing is deleted; look at `jasm-agent janitor \
                 --dry-run`, and allow it with --allow-waves"
            );
            return;
        }
        let mut kept: HashSet<String> = HashSet::new();
        for orphan in &findings.orphans {
            if !self.election.is_mine() {
                return;
            }
            let done = self.remover.replica(orphan).await;
            self.tell(orphan, &done).await;
            match done {
                Ok(Removed::Deleted) => tokio::time::sleep(self.config.between_deletions()).await,
                Ok(Removed::Gone) => {}
                Ok(Removed::Kept(_)) | Err(_) => drop(kept.insert(orphan.source.clone())),
            }
        }
        for master in findings.masters.iter().filter(|master| !kept.contains(&master.source)) {
            if !self.election.is_mine() {
                return;
            }
            let done = self.remover.master(self.namespace.as_str(), master).await;
            let (name, source) = (master.name.as_str(), master.source.as_str());
            match done {
                Ok(Removed::Deleted) => {
                    self.metrics.janitor_deleted("master");
                    tracing::info!(master = name, source, "deleted: its source is gone, and so are its replicas");
                    tokio::time::sleep(self.config.between_deletions()).await;
                }
                Ok(other) => tracing::warn!(master = name, source, outcome = ?other, "a master was not deleted"),
                Err(error) => tracing::warn!(master = name, source, error = chain(&*error), "a master was not deleted"),
            }
        }
    }

    async fn tell(&self, orphan: &Orphan, done: &Result<Removed, BoxError>) {
        let (namespace, name, source) = (orphan.namespace.as_str(), orphan.name.as_str(), orphan.source.as_str());
        let (kind, why) = (orphan.kind.as_str(), orphan.why.as_str());
        match done {
            Ok(Removed::Deleted) => {
                self.metrics.janitor_deleted(why);
                tracing::info!(kind, namespace, name, source, why, "deleted");
                self.teller.deleted(orphan).await;
            }
            Ok(Removed::Gone) => tracing::debug!(kind, namespace, name, source, why, "it is not there any more"),
            Ok(Removed::Kept(reason)) => tracing::warn!(kind, namespace, name, source, why, reason, "not deleted"),
            Err(error) => {
                tracing::warn!(kind, namespace, name, source, why, error = chain(&**error), "not deleted");
            }
        }
    }
}

impl Findings {
    /// One line for each: what would go, and why.
    pub fn lines(&self) -> Vec<[String; 4]> {
        let replicas = self.orphans.iter().map(|one| {
            let object = format!("{} {}/{}", one.kind, one.namespace, one.name);
            [object, one.source.clone(), one.why.as_str().to_owned(), "replica".to_owned()]
        });
        let masters = self.masters.iter().map(|one| {
            let object = format!("{} {}", one.kind, one.name);
            [object, one.source.clone(), Why::SourceGone.as_str().to_owned(), "master".to_owned()]
        });
        replicas.chain(masters).collect()
    }

    /// Whether it is too much at once.
    pub fn is_a_wave(&self) -> bool {
        plan::is_a_wave(self.orphans.len(), self.known)
    }
}
