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
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join3;
use kube::Client;
use tokio::time::Instant;

pub use report::table;
pub use start::{dry_run, run};

use self::{
    evidence::{Answer, Said, Suspicions, said_by},
    lease::Election,
    lists::Lister,
    plan::{Listed, Orphan, Replicas, Why, is_a_wave},
    remove::{Judgement, Remover},
    report::Teller,
};
use crate::{
    clock::ApiClock,
    config::JanitorConfig,
    error::{BoxError, chain},
    masters::MastersNamespace,
    metrics::Metrics,
    provider::{Presence, ProviderError, Registry},
    request::RemoteRef,
    target::Stored,
};

/// Between looks at whether the lease is this one's.
const WAIT: Duration = Duration::from_secs(1);
/// Questions in a row that an instance may leave without an answer; then it is asked no more in this round.
const PATIENCE: u32 = 3;

/// Looks after replicas.
pub struct Janitor {
    namespace: MastersNamespace,
    registry: Arc<Registry>,
    config: JanitorConfig,
    election: Election,
    lister: Lister,
    remover: Remover,
    teller: Teller,
    metrics: Arc<Metrics>,
}

/// What is remembered from one round to the next.
#[derive(Default)]
struct Memory {
    gone: Suspicions,
    taken: Suspicions,
    /// The sources of all replicas on record, as of the last round.
    recorded: Option<HashSet<String>>,
}

/// What a round found. Everything in it was looked at.
#[derive(Default)]
pub struct Findings {
    /// With the state in which each goes.
    orphans: Vec<(Orphan, Stored)>,
    /// What looks like an orphan and stays: why.
    kept: Vec<(Orphan, String)>,
    /// Masters of sources that are gone and of which replicas are recorded.
    masters: Vec<Listed>,
    /// How many replicas pods ask for, or are orphans.
    known: usize,
    /// How many sources have masters.
    all_masters: usize,
    /// Instances whose word does not count, each with what they said.
    not_believed: Vec<String>,
    /// Instances that gave no word about some of their sources, each with why.
    unanswered: Vec<String>,
    /// How many sources lack their master, of those from which something is made that is in use or an orphan.
    without_master: usize,
    /// Why no replica counts as asked for by no pod.
    doubt: Option<String>,
}

impl Janitor {
    /// RBAC: `list` on secrets and configmaps in the masters' namespace and on nodes, `delete` on secrets and configmaps there and
    /// wherever replicas are; `get`, `create`, `update` on leases; `create` and `patch` on events.
    pub fn new(
        client: Client,
        namespace: MastersNamespace,
        registry: Arc<Registry>,
        config: JanitorConfig,
        clock: Arc<ApiClock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let election = Election::new(client.clone(), namespace.as_str());
        let (remover, teller) = (Remover::new(client.clone()), Teller::new(client.clone()));
        let lister = Lister { client, namespace: namespace.clone(), clock, nodes: config.nodes.clone() };
        Self { namespace, registry, config, election, lister, remover, teller, metrics }
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
            if !self.election.is_mine() {
                memory = Memory::default();
                self.metrics.janitor(0, false, 0);
                tokio::time::sleep(WAIT).await;
                continue;
            }
            let outcome = match self.look(&mut memory).await {
                Ok(findings) => self.clean_up(findings, &mut memory).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => self.metrics.janitor_was_through(),
                // What was suspected before was not spoken against.
                Err(error) => {
                    tracing::warn!(
                        error = chain(&*error),
                        "masters, records or nodes could not be read: nothing more is deleted"
                    );
                }
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
        let before = self.lister.masters().await?;
        let sources_before = by_source(&before);
        let recorded = match memory.recorded.take() {
            Some(recorded) => recorded,
            None => self.lister.replicas(|_| false).await?.recorded().clone(),
        };
        let Gone { sources: gone, not_believed, unanswered } = self.gone(&sources_before, &recorded, memory).await;
        // That may have taken long: what is there and what pods ask for by now counts.
        let masters = self.lister.masters().await?;
        let sources = by_source(&masters);
        let is_unchanged = |source: &String| sources.get(source.as_str()) == sources_before.get(source.as_str());
        let gone: HashSet<String> = gone.into_iter().filter(is_unchanged).collect();
        let is_wanted = |source: &str| gone.contains(source) || !sources.contains_key(source);
        let replicas = self.lister.replicas(is_wanted).await?;
        memory.recorded = Some(replicas.recorded().clone());
        let recorded = replicas.sources();
        let missing = missing(&recorded, &sources);
        let taken = taken(&missing, memory, self.config.confirm_after);
        let mut findings = self.judged(replicas.orphans(&gone, &taken)).await;
        (findings.not_believed, findings.unanswered) = (not_believed, unanswered);
        findings.all_masters = sources.len();
        let unused = findings.orphans.iter().filter(|(orphan, _)| !orphan.in_use).count();
        findings.known = replicas.in_use() + unused;
        findings.without_master = self.without_master(&replicas, &missing, &findings).await;
        let goes = |master: &Listed| gone.contains(&master.source) && recorded.contains(master.source.as_str());
        findings.masters = masters.iter().filter(|master| goes(master)).cloned().collect();
        findings.doubt = replicas.doubt().filter(|_| !taken.is_empty()).map(str::to_owned);
        Ok(findings)
    }

    /// Which of these are there, as they are said to be.
    async fn judged(&self, orphans: Vec<Orphan>) -> Findings {
        let mut findings = Findings::default();
        for orphan in orphans {
            match self.remover.judge(&orphan).await {
                Ok(Judgement::Orphan(state)) => findings.orphans.push((orphan, state)),
                Ok(Judgement::Gone) => {}
                Ok(Judgement::Kept(reason)) => findings.kept.push((orphan, reason)),
                Err(error) => findings.kept.push((orphan, chain(&*error))),
            }
        }
        findings
    }

    /// How many sources of `missing` have a replica that goes or that pods ask for: so many as make a wave, if it is one. A pod
    /// remembers a replica that went: so one of each is looked at.
    async fn without_master(&self, replicas: &Replicas, missing: &BTreeSet<&str>, findings: &Findings) -> usize {
        let mut sources: HashSet<String> = findings.taken_sources().map(str::to_owned).collect();
        for orphan in replicas.used(missing) {
            if is_a_wave(sources.len(), findings.all_masters + sources.len()) {
                break;
            }
            if !sources.contains(&orphan.source) && !matches!(self.remover.judge(&orphan).await, Ok(Judgement::Gone)) {
                sources.insert(orphan.source);
            }
        }
        sources.len()
    }

    /// The sources that are gone for the store, which said so now and before.
    async fn gone(
        &self,
        by_source: &BTreeMap<&str, Vec<Stored>>,
        recorded: &HashSet<String>,
        memory: &mut Memory,
    ) -> Gone {
        let (answers, unanswered) = self.answers(by_source, recorded).await;
        memory.gone.keep_only(&by_source.keys().copied().collect());
        let (said, allowed) = (said_by(&answers), self.config.allow_waves);
        let mut gone = HashSet::new();
        for ((source, masters), answer) in by_source.iter().zip(&answers) {
            let is_believed = said.get(answer.instance.as_str()).is_some_and(|said| said.is_believed(allowed));
            let suspected = (answer.is_absent() && is_believed).then_some(answer.at);
            if memory.gone.note(source, suspected, masters, self.config.confirm_after) {
                gone.insert((*source).to_owned());
            }
        }
        // What is not answered is another trouble.
        let is_doubted = |(instance, said): &(&str, Said)| {
            let unanswered = unanswered.get(*instance).map_or(0, |(count, _)| *count);
            Said { there: said.there + unanswered, ..*said }.is_doubted(allowed)
        };
        let not_believed = said.into_iter().filter(is_doubted).map(|(instance, said)| {
            let Said { there, absent, all_absent } = said;
            format!(
                "{instance} is not believed: it says that {absent} sources are absent, {} more of which no replica is on record, and \
                 {there} there",
                all_absent - absent
            )
        });
        let not_believed = not_believed.collect();
        let unanswered = unanswered
            .into_iter()
            .map(|(instance, (count, why))| format!("{instance} gave no word about {count} sources: {why}"));
        Gone { sources: gone, not_believed, unanswered: unanswered.collect() }
    }

    /// What the stores say of each source now; of how many an instance said nothing, and why.
    async fn answers(
        &self,
        by_source: &BTreeMap<&str, Vec<Stored>>,
        recorded: &HashSet<String>,
    ) -> (Vec<Answer>, BTreeMap<String, (usize, String)>) {
        let mut answers: Vec<Answer> = Vec::new();
        let mut failures: HashMap<String, u32> = HashMap::new();
        let mut unanswered: BTreeMap<String, (usize, String)> = BTreeMap::new();
        let answer = |source: &str, instance, said| {
            let is_recorded = recorded.contains(source);
            Answer { instance, said, at: Instant::now(), is_recorded }
        };
        for source in by_source.keys() {
            let instance = source.split(':').nth(1).unwrap_or_default().to_owned();
            let failed = failures.entry(instance.clone()).or_default();
            let said = match *failed {
                // It is in trouble, and the agents ask it, too.
                PATIENCE.. => {
                    unanswered.entry(instance.clone()).or_default().0 += 1;
                    answers.push(answer(source, instance, Presence::Unknown));
                    continue;
                }
                _ => self.presence(source).await,
            };
            *failed = match &said {
                Err(error) if error.retry().is_trouble() => *failed + 1,
                _ => 0,
            };
            let said = said.unwrap_or_else(|error| {
                let (count, why) = unanswered.entry(instance.clone()).or_default();
                (*count, *why) = (*count + 1, error.to_string());
                Presence::Unknown
            });
            answers.push(answer(source, instance, said));
            tokio::time::sleep(self.config.pause).await;
        }
        (answers, unanswered)
    }

    /// What the store says of a source now.
    async fn presence(&self, source: &str) -> Result<Presence, ProviderError> {
        let Some(remote) = RemoteRef::of_source_id(source, self.registry.catalogue()) else {
            return Ok(Presence::Unknown);
        };
        let said = self.registry.presence(&remote).await;
        said.inspect_err(|error| tracing::info!(source, error = chain(error), "nothing is known of a source"))
    }
}

/// What stores say.
struct Gone {
    sources: HashSet<String>,
    not_believed: Vec<String>,
    unanswered: Vec<String>,
}

/// What goes of one source.
#[derive(Default)]
struct Step<'a> {
    replicas: Vec<&'a (Orphan, Stored)>,
    masters: Vec<&'a Listed>,
}

/// The states of each source's masters.
fn by_source(masters: &[Listed]) -> BTreeMap<&str, Vec<Stored>> {
    let mut by_source: BTreeMap<&str, Vec<Stored>> = BTreeMap::new();
    for master in masters {
        by_source.entry(&master.source).or_default().push(master.stored.clone());
    }
    by_source
}

/// Sources of replicas without a master. That there is none at all is no word about any.
fn missing<'a>(recorded: &BTreeSet<&'a str>, sources: &BTreeMap<&str, Vec<Stored>>) -> BTreeSet<&'a str> {
    if !sources.is_empty() {
        return recorded.iter().copied().filter(|source| !sources.contains_key(source)).collect();
    }
    if !recorded.is_empty() {
        tracing::warn!("there is no master at all: no replica counts as one whose master was deleted");
    }
    BTreeSet::new()
}

/// Sources whose masters were missing in two lists, far enough apart.
fn taken(without_master: &BTreeSet<&str>, memory: &mut Memory, apart: Duration) -> HashSet<String> {
    memory.taken.keep_only(&without_master.iter().copied().collect());
    let now = Some(Instant::now());
    let missing = without_master.iter().filter(|source| memory.taken.note(source, now, &[], apart));
    missing.map(|source| (*source).to_owned()).collect()
}

impl Findings {
    /// Whether it is too much at once: of replicas, of sources' masters, or of those that are missing.
    pub fn is_a_wave(&self) -> bool {
        let kept = self.kept_sources();
        let masters: HashSet<&str> = self.masters.iter().map(|master| master.source.as_str()).collect();
        is_a_wave(self.orphans.len(), self.known)
            || is_a_wave(masters.difference(&kept).count(), self.all_masters)
            || is_a_wave(self.without_master, self.all_masters + self.without_master)
    }

    /// What goes, source by source: its replicas, and its masters where no replica stays.
    fn steps(&self) -> BTreeMap<&str, Step<'_>> {
        let (kept, mut steps) = (self.kept_sources(), BTreeMap::<&str, Step<'_>>::new());
        for orphan in &self.orphans {
            steps.entry(&orphan.0.source).or_default().replicas.push(orphan);
        }
        for master in self.masters.iter().filter(|master| !kept.contains(master.source.as_str())) {
            steps.entry(&master.source).or_default().masters.push(master);
        }
        steps
    }

    fn kept_sources(&self) -> HashSet<&str> {
        self.kept.iter().map(|(orphan, _)| orphan.source.as_str()).collect()
    }

    fn taken_sources(&self) -> impl Iterator<Item = &str> {
        let taken = self.orphans.iter().filter(|(orphan, _)| orphan.why == Why::MasterTaken);
        taken.map(|(orphan, _)| orphan.source.as_str())
    }
}
