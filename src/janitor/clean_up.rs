//! Deletes what a round found: slowly, on evidence that is never older than a minute.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Findings, Janitor,
    lists::Lister,
    plan::{Listed, Orphan, Why},
    remove::Removed,
};
use crate::{error::BoxError, error::chain, provider::Presence};

/// What was shown longer ago is shown again before anything is deleted on it.
const MINUTE: Duration = Duration::from_secs(60);

/// What was shown since this clean-up began, and when.
#[derive(Default)]
struct Shown {
    gone: HashMap<String, Instant>,
    taken: Option<(Instant, HashSet<Orphan>)>,
}

impl Janitor {
    /// One after the other, at most so many a minute; a source's master when none of its replicas is left.
    ///
    /// # Errors
    /// Where masters or records cannot be read any more.
    pub(super) async fn clean_up(&self, findings: Findings, lister: &mut Lister) -> Result<(), BoxError> {
        let is_wave = findings.is_a_wave() && !self.config.allow_waves;
        self.metrics.janitor(findings.orphans.len(), is_wave);
        findings.kept.iter().for_each(|(orphan, reason)| stays(orphan, reason));
        if is_wave {
            tracing::error!(
                orphans = findings.orphans.len(),
                known = findings.known,
                masters = findings.masters.len(),
                all_masters = findings.all_masters,
                "so many became orphans that this looks like a mistake: nothing is deleted; look at `jasm-agent janitor \
                 --dry-run`, and allow it with --allow-waves"
            );
            return Ok(());
        }
        let (mut shown, mut kept) = (Shown::default(), findings.kept_sources());
        for orphan in &findings.orphans {
            if !self.still(orphan, &mut shown, lister).await? {
                stays(orphan, "what made it an orphan is not so any more");
                kept.insert(&orphan.source);
                continue;
            }
            if !self.election.is_mine() {
                return Ok(());
            }
            match self.remover.replica(orphan).await {
                Ok(Removed::Deleted) => self.deleted(orphan).await,
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
            if !self.is_still_gone(&master.source, &mut shown).await || !self.election.is_mine() {
                continue;
            }
            self.master(master).await;
        }
        Ok(())
    }

    /// Whether what made it an orphan was so within the last minute.
    async fn still(&self, orphan: &Orphan, shown: &mut Shown, lister: &mut Lister) -> Result<bool, BoxError> {
        if orphan.why == Why::SourceGone {
            return Ok(self.is_still_gone(&orphan.source, shown).await);
        }
        if shown.taken.as_ref().is_none_or(|(at, _)| at.elapsed() >= MINUTE) {
            let lists = lister.lists().await?;
            let taken = lists.replicas.without_master(&lists.masters).into_iter().map(str::to_owned).collect();
            let orphans = lists.replicas.orphans(&HashSet::new(), &taken);
            shown.taken = Some((Instant::now(), orphans.into_iter().collect()));
        }
        Ok(shown.taken.as_ref().is_some_and(|(_, orphans)| orphans.contains(orphan)))
    }

    async fn is_still_gone(&self, source: &str, shown: &mut Shown) -> bool {
        if shown.gone.get(source).is_some_and(|at| at.elapsed() < MINUTE) {
            return true;
        }
        let is_gone = self.presence(source).await == Presence::Absent;
        if is_gone {
            shown.gone.insert(source.to_owned(), Instant::now());
        }
        is_gone
    }

    async fn deleted(&self, orphan: &Orphan) {
        let (namespace, name, source) = (orphan.namespace.as_str(), orphan.name.as_str(), orphan.source.as_str());
        let (kind, why) = (orphan.kind.as_str(), orphan.why.as_str());
        self.metrics.janitor_deleted(why);
        tracing::info!(kind, namespace, name, source, why, "deleted");
        self.teller.deleted(orphan).await;
        tokio::time::sleep(self.config.between_deletions()).await;
    }

    async fn master(&self, master: &Listed) {
        let (name, source) = (master.name.as_str(), master.source.as_str());
        match self.remover.master(self.namespace.as_str(), master).await {
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

fn stays(orphan: &Orphan, reason: &str) {
    let (namespace, name, source) = (orphan.namespace.as_str(), orphan.name.as_str(), orphan.source.as_str());
    let (kind, why) = (orphan.kind.as_str(), orphan.why.as_str());
    tracing::warn!(kind, namespace, name, source, why, reason, "not deleted");
}
