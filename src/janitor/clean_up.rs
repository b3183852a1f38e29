//! Deletes what a round found: slowly, and each on evidence of the last moment.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{
    Findings, Janitor, Memory, by_source,
    plan::{Listed, Orphan, Why, is_a_wave},
    remove::{Judgement, Removed},
};
use crate::{
    error::{BoxError, chain},
    provider::Presence,
    target::Stored,
};

/// How old the lists may be on which a replica counts as asked for by no pod.
const MINUTE: Duration = Duration::from_secs(60);
/// After a master's deletion, until the records say what was made from it to the last: agents write what is new within two seconds.
const RECORDED: Duration = Duration::from_secs(5);
/// For one deletion, well within what the lease leaves.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Replicas whose master is missing and that no pod asks for, and when that was so.
type Unused = Option<(Instant, HashSet<Orphan>)>;

impl Janitor {
    /// Source by source, at most so many deletions a minute: its replicas, and then its masters, where none of its replicas is left.
    ///
    /// # Errors
    /// Where masters or records cannot be read any more.
    pub(super) async fn clean_up(&self, findings: Findings, memory: &mut Memory) -> Result<(), BoxError> {
        if !self.may_go(&findings) {
            return Ok(());
        }
        let (mut unused, mut ended) = (None, HashSet::new());
        for (source, step) in findings.steps() {
            let mut is_whole = true;
            for (orphan, state) in step.replicas {
                if !self.election.is_mine() {
                    return Ok(());
                }
                is_whole &= self.replica(orphan, state, &mut unused, memory).await?;
            }
            for master in step.masters.into_iter().filter(|_| is_whole) {
                if !self.is_still_gone(source, memory).await {
                    break;
                }
                if !self.election.is_mine() {
                    return Ok(());
                }
                if self.master(master).await {
                    ended.insert(source.to_owned());
                }
            }
        }
        self.returned(&ended, findings.known, memory).await
    }

    /// Says what was found, and whether it may go.
    fn may_go(&self, findings: &Findings) -> bool {
        let is_wave = findings.is_a_wave() && !self.config.allow_waves;
        self.metrics.janitor(findings.orphans.len(), is_wave, findings.not_believed.len());
        findings.kept.iter().for_each(|(orphan, reason)| stays(orphan, reason));
        for reason in findings.not_believed.iter().chain(&findings.unanswered) {
            tracing::warn!(reason, "of what an instance does not say, or is not believed to be so, nothing goes");
        }
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
        }
        !is_wave
    }

    /// Deletes a replica; says whether it is gone.
    async fn replica(
        &self,
        orphan: &Orphan,
        state: &Stored,
        unused: &mut Unused,
        memory: &mut Memory,
    ) -> Result<bool, BoxError> {
        let outcome = match self.still(orphan, unused, memory).await? {
            false => Ok(Removed::Kept("what made it an orphan is not so any more, or not known now".to_owned())),
            true if !self.election.is_mine() => Ok(Removed::Kept("the lease was lost".to_owned())),
            true => in_time(self.remover.replica(orphan, state)).await,
        };
        let outcome = match outcome {
            // Perhaps it went, and only the answer was lost.
            Err(error) => match self.remover.judge(orphan).await {
                Ok(Judgement::Gone) => Ok(Removed::Deleted),
                _ => Err(error),
            },
            outcome => outcome,
        };
        match outcome {
            Ok(Removed::Gone) => return Ok(true),
            Ok(Removed::Deleted) => {
                self.deleted(orphan, state).await;
                return Ok(true);
            }
            Ok(Removed::Kept(reason)) => stays(orphan, &reason),
            Err(error) => {
                stays(orphan, &chain(&*error));
                tokio::time::sleep(self.config.between_deletions()).await;
            }
        }
        Ok(false)
    }

    /// Replicas that an agent made from a master just before that was deleted. Nothing makes them from then on.
    async fn returned(&self, ended: &HashSet<String>, known: usize, memory: &mut Memory) -> Result<(), BoxError> {
        if ended.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(RECORDED).await;
        let replicas = self.lister.replicas(|source| ended.contains(source)).await?;
        // Records remember those that went.
        let returned = self.judged(replicas.orphans(ended, &HashSet::new())).await.orphans;
        if is_a_wave(returned.len(), known) && !self.config.allow_waves {
            tracing::error!(
                replicas = returned.len(),
                "so many came back from masters that went that none of them is deleted"
            );
            return Ok(());
        }
        for (orphan, state) in returned {
            if !self.election.is_mine() {
                return Ok(());
            }
            self.replica(&orphan, &state, &mut None, memory).await?;
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
        let is_gone = matches!(self.presence(source).await, Ok(Presence::Absent));
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

    /// Says whether it is gone, or may be.
    async fn master(&self, master: &Listed) -> bool {
        let (name, source) = (master.name.as_str(), master.source.as_str());
        match in_time(self.remover.master(self.namespace.as_str(), master)).await {
            Ok(Removed::Deleted) => {
                self.metrics.janitor_deleted("master");
                tracing::info!(master = name, source, "deleted: its source is gone, and so are its replicas");
                self.teller.master_deleted(self.namespace.as_str(), master).await;
                tokio::time::sleep(self.config.between_deletions()).await;
                return true;
            }
            Ok(Removed::Gone) => return true,
            Ok(other) => tracing::warn!(master = name, source, outcome = ?other, "a master was not deleted"),
            Err(error) => {
                tracing::warn!(master = name, source, error = chain(&*error), "a master was not deleted");
                return true;
            }
        }
        false
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
