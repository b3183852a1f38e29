//! `jasm-agent janitor`: takes away replicas that nothing stands behind any more, with proof. The one part that deletes.
//!
//! ```text
//! list masters and records -> ask the store about each source -> suspect -> (10 minutes) -> ask again -> replicas -> master
//! ```
//!
//! A replica goes when its source is gone for the store itself, which said so twice, far enough apart; or when somebody deleted
//! its master and no pod asks for it. Everything that is not known, late, denied or too much at once leaves all as it is.

mod clean_up;
mod evidence;
mod lease;
mod lists;
mod plan;
mod remove;
mod report;
mod start;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join3;
use kube::Client;

pub use report::table;
pub use start::{dry_run, run};

use self::{
    evidence::{Suspicions, believed},
    lease::Election,
    lists::{Lister, Lists},
    plan::{Listed, Orphan},
    remove::{Judgement, Remover},
    report::Teller,
};
use crate::{
    config::JanitorConfig,
    error::{BoxError, chain},
    masters::MastersNamespace,
    metrics::Metrics,
    provider::{Presence, Registry},
    request::RemoteRef,
    target::Stored,
};

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

/// What is remembered from one round to the next.
struct Memory {
    gone: Suspicions,
    taken: Suspicions,
    lister: Lister,
}

/// What a round found. Everything in it was looked at.
#[derive(Default)]
pub struct Findings {
    orphans: Vec<Orphan>,
    /// What looks like an orphan and stays: why.
    kept: Vec<(Orphan, String)>,
    /// Masters of sources that are gone.
    masters: Vec<Listed>,
    /// How many replicas pods ask for, or are orphans.
    known: usize,
    /// How many masters there are.
    all_masters: usize,
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
        let mut memory = self.nothing();
        loop {
            if self.election.is_mine() {
                let outcome = match self.look(&mut memory).await {
                    Ok(findings) => self.clean_up(findings, &mut memory.lister).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = outcome {
                    // What was suspected before was not looked at since.
                    memory = self.nothing();
                    tracing::warn!(error = chain(&*error), "masters and records could not be read: nothing is deleted");
                }
            } else {
                memory = self.nothing();
            }
            tokio::time::sleep(self.config.every).await;
        }
    }

    fn nothing(&self) -> Memory {
        let lister = Lister::new(self.client.clone(), self.namespace.clone());
        Memory { gone: Suspicions::default(), taken: Suspicions::default(), lister }
    }

    /// What would go, after two looks that are far enough apart. Deletes nothing.
    ///
    /// # Errors
    /// Where masters or records cannot be read.
    pub async fn dry_run(&self) -> Result<Findings, BoxError> {
        let mut memory = self.nothing();
        self.look(&mut memory).await?;
        tokio::time::sleep(self.config.confirm_after).await;
        self.look(&mut memory).await
    }

    /// One round.
    async fn look(&self, memory: &mut Memory) -> Result<Findings, BoxError> {
        let before = memory.lister.lists().await?.masters;
        let gone = self.gone(&before, memory).await;
        // That may have taken long: what is there and what pods ask for by now counts.
        let Lists { masters, replicas } = memory.lister.lists().await?;
        let taken = taken(&replicas.without_master(&masters), memory, self.config.confirm_after);
        let mut findings = Findings { all_masters: masters.len(), ..Findings::default() };
        for orphan in replicas.orphans(&gone, &taken) {
            match self.remover.judge(&orphan).await {
                Ok(Judgement::Orphan(_)) => findings.orphans.push(orphan),
                Ok(Judgement::Another) => {}
                Ok(Judgement::Dead) => memory.lister.bury(&orphan.states),
                Ok(Judgement::Kept(reason)) => findings.kept.push((orphan, reason)),
                Err(error) => findings.kept.push((orphan, chain(&*error))),
            }
        }
        findings.known = replicas.in_use() + findings.orphans.iter().filter(|orphan| !orphan.in_use).count();
        findings.masters = masters.into_iter().filter(|master| gone.contains(&master.source)).collect();
        Ok(findings)
    }

    /// The sources that are gone for the store, which said so now and before.
    async fn gone(&self, masters: &[Listed], memory: &mut Memory) -> HashSet<String> {
        let mut by_source: BTreeMap<&str, Vec<Stored>> = BTreeMap::new();
        for master in masters {
            by_source.entry(&master.source).or_default().push(master.stored.clone());
        }
        let mut answers: Vec<(String, Presence)> = Vec::new();
        for source in by_source.keys() {
            let instance = source.split(':').nth(1).unwrap_or_default().to_owned();
            answers.push((instance, self.presence(source).await));
            tokio::time::sleep(self.config.pause).await;
        }
        let believed = believed(&answers);
        memory.gone.keep_only(&by_source.keys().copied().collect());
        let mut gone = HashSet::new();
        for ((source, masters), (instance, said)) in by_source.into_iter().zip(&answers) {
            let suspected = *said == Presence::Absent && believed.contains(instance.as_str());
            if memory.gone.note(source, suspected, &masters, self.config.confirm_after) {
                gone.insert(source.to_owned());
            }
        }
        gone
    }

    /// What the store says of a source now.
    async fn presence(&self, source: &str) -> Presence {
        let Some(remote) = RemoteRef::of_source_id(source, self.registry.catalogue()) else {
            return Presence::Unknown;
        };
        self.registry.presence(&remote).await.unwrap_or_else(|error| {
            tracing::info!(source, error = chain(&error), "nothing is known of a source");
            Presence::Unknown
        })
    }
}

/// Sources whose masters were missing in two lists, far enough apart.
fn taken(without_master: &BTreeSet<&str>, memory: &mut Memory, apart: Duration) -> HashSet<String> {
    memory.taken.keep_only(&without_master.iter().copied().collect());
    let missing = without_master.iter().filter(|source| memory.taken.note(source, true, &[], apart));
    missing.map(|source| (*source).to_owned()).collect()
}

impl Findings {
    /// Whether it is too much at once, of replicas or of masters.
    pub fn is_a_wave(&self) -> bool {
        plan::is_a_wave(self.orphans.len(), self.known) || plan::is_a_wave(self.masters.len(), self.all_masters)
    }

    /// Masters that go: those of which no replica stays.
    fn masters_without<'a>(&'a self, kept: &HashSet<&str>) -> impl Iterator<Item = &'a Listed> {
        self.masters.iter().filter(|master| !kept.contains(master.source.as_str()))
    }

    fn kept_sources(&self) -> HashSet<&str> {
        self.kept.iter().map(|(orphan, _)| orphan.source.as_str()).collect()
    }
}
