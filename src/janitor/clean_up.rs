//! Deletes what a round found: slowly, and each on evidence of the last moment.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{
    Findings, Janitor, Memory, by_source,
    plan::{Listed, Orphan, Why},
    remove::Removed,
};
use crate::{
    error::{BoxError, chain},
    provider::Presence,
    target::Stored,
};

/// How old the lists may be on which a replica counts as asked for by no pod.
const MINUTE: Duration = Duration::from_secs(60);
/// For one deletion, well within what the lease leaves.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Replicas whose master is missing and that no pod asks for, and when that was so.
type Unused = Option<(Instant, HashSet<Orphan>)>;

impl Janitor {
    /// One after the other, at most so many a minute; a source's master when none of its replicas is left.
    ///
    /// # Errors
    /// Where masters or records cannot be read any more.
    pub(super) async fn clean_up(&self, findings: Findings, memory: &mut Memory) -> Result<(), BoxError> {
        let is_wave = findings.is_a_wave() && !self.config.allow_waves;
        self.metrics.janitor(findings.orphans.len(), is_wave);
        findings.kept.iter().for_each(|(orphan, reason)| stays(orphan, reason));
        if let Some(doubt) = &findings.doubt {
            tracing::warn!(
                reason = doubt,
                "no replica counts as asked for by no pod: those whose masters are missing stay"
            );
        }
        if is_wave {
            tracing::error!(
                orphans = findings.orphans.len(),
                known = findings.known,
                masters = findings.masters.len(),
                all_masters = findings.all_masters,
                without_master = findings.without_master,
                "so many became orphans that this looks like a mistake: nothing is deleted; look at `jasm-agent janitor \
                 --dry-run`, and allow it with --allow-waves"
            );
            return Ok(());
        }
        let (mut unused, mut kept) = (None, findings.kept_sources());
        for (orphan, state) in &findings.orphans {
            let outcome = match self.still(orphan, &mut unused, memory).await? {
                false => Ok(Removed::Kept("what made it an orphan is not so any more".to_owned())),
                true if !self.election.is_mine() => return Ok(()),
                true => in_time(self.remover.replica(orphan, state)).await,
            };
            match outcome {
                Ok(Removed::Deleted) => self.deleted(orphan, state).await,
                Ok(Removed::Gone) => {}
                Ok(Removed::Kept(reason)) => {
                    stays(orphan, &reason);
                    kept.insert(&orphan.source);
                }
                Err(error) => {
                    stays(orphan, &chain(&*error));
                    kept.insert(&orphan.source);
                }
            }
        }
        for master in findings.masters_without(&kept) {
            if !self.is_still_gone(&master.source, memory).await {
                continue;
            }
            if !self.election.is_mine() {
                return Ok(());
            }
            self.master(master).await;
        }
        Ok(())
    }

    /// Whether what made it an orphan is so still.
    async fn still(&self, orphan: &Orphan, unused: &mut Unused, memory: &mut Memory) -> Result<bool, BoxError> {
        if orphan.why == Why::SourceGone {
            return Ok(self.is_still_gone(&orphan.source, memory).await);
        }
        if unused.as_ref().is_none_or(|(at, _)| at.elapsed() >= MINUTE) {
            let at = Instant::now();
            let masters = self.lister.masters().await?;
            let sources = by_source(&masters);
            let replicas = self.lister.replicas(|source| !sources.contains_key(source)).await?;
            let missing = replicas.sources().into_iter().map(str::to_owned).collect();
            *unused = Some((at, replicas.orphans(&HashSet::new(), &missing).into_iter().collect()));
        }
        Ok(unused.as_ref().is_some_and(|(_, orphans)| orphans.contains(orphan)))
    }

    async fn is_still_gone(&self, source: &str, memory: &mut Memory) -> bool {
        let is_gone = self.presence(source).await == Ok(Presence::Absent);
        if !is_gone {
            memory.gone.clear(source);
        }
        is_gone
    }

    async fn deleted(&self, orphan: &Orphan, state: &Stored) {
        let (namespace, name, source) = (orphan.namespace.as_str(), orphan.name.as_str(), orphan.source.as_str());
        let (kind, why) = (orphan.kind.as_str(), orphan.why.as_str());
        self.metrics.janitor_deleted(why);
        tracing::info!(kind, namespace, name, source, why, "deleted");
        self.teller.deleted(orphan, state).await;
        tokio::time::sleep(self.config.between_deletions()).await;
    }

    async fn master(&self, master: &Listed) {
        let (name, source) = (master.name.as_str(), master.source.as_str());
        match in_time(self.remover.master(self.namespace.as_str(), master)).await {
            Ok(Removed::Deleted) => {
                self.metrics.janitor_deleted("master");
                tracing::info!(master = name, source, "deleted: its source is gone, and so are its replicas");
                self.teller.master_deleted(self.namespace.as_str(), master).await;
                tokio::time::sleep(self.config.between_deletions()).await;
            }
            Ok(other) => tracing::warn!(master = name, source, outcome = ?other, "a master was not deleted"),
            Err(error) => tracing::warn!(master = name, source, error = chain(&*error), "a master was not deleted"),
        }
    }
}

async fn in_time(deletion: impl Future<Output = Result<Removed, BoxError>>) -> Result<Removed, BoxError> {
    tokio::time::timeout(TIMEOUT, deletion).await.unwrap_or_else(|elapsed| Err(elapsed.into()))
}

fn stays(orphan: &Orphan, reason: &str) {
    let (namespace, name, source) = (orphan.namespace.as_str(), orphan.name.as_str(), orphan.source.as_str());
    let (kind, why) = (orphan.kind.as_str(), orphan.why.as_str());
    tracing::warn!(kind, namespace, name, source, why, reason, "not deleted");
}
