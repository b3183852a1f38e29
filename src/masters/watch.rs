//! The watch on masters' metadata, and what follows from it for the copies of this node's pods.
//!
//! RBAC: `list` and `watch` on secrets and configmaps in the masters' namespace.

use std::{collections::HashSet, fmt::Debug, time::Duration};

use futures::{StreamExt, future::join4, stream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Resource,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{Config, Event},
    },
};
use tokio::time::Instant;

use super::{Entry, Masters, Records};
use crate::{
    changes::Changes,
    error::chain,
    progress::Progress,
    request::{ObjectKind, SecretName},
    target::{Known, Record, SOURCE, SOURCE_KIND, SOURCE_VERSION, SYNCED_THROUGH, TargetError},
    watch::{WATCH_SECONDS, until_forgotten, watcher_of},
};

/// Between looks at what the node's record should say.
const RECORD_PAUSE: Duration = Duration::from_secs(2);
/// A record that says the same is written again all the same: one that is much older is of a node that is gone.
const RECORD_AGAIN: Duration = Duration::from_secs(60 * 60);

/// Copies of a master that changed are looked at within this time: not by all agents of a cluster at once, so that one writes
/// a copy and the others find it written.
const SPREAD: Duration = Duration::from_secs(2);

impl Masters {
    /// Follows all masters, and has the copies looked at that one has left behind. Never ends.
    pub async fn watch(&self, progress: &Progress, changes: &Changes) {
        let secrets = self.follow::<Secret>(ObjectKind::Secret);
        let config_maps = self.follow::<ConfigMap>(ObjectKind::ConfigMap);
        join4(secrets, config_maps, self.pass_on(progress, changes), self.keep_record(progress)).await;
    }

    async fn follow<K>(&self, kind: ObjectKind)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Send + 'static,
    {
        let api: Api<PartialObjectMeta<K>> = Api::namespaced(self.client.clone(), self.namespace.as_str());
        let config = Config::default().labels(SOURCE_KIND).timeout(fastrand::u32(WATCH_SECONDS));
        let watchers = stream::repeat(()).flat_map(|()| until_forgotten(watcher_of(api.clone(), config.clone())));
        let mut events = std::pin::pin!(watchers.default_backoff());
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(master)) => {
                    listed.extend(SecretName::checked(name_of(&master).to_owned()));
                    self.note(kind, &master);
                }
                Ok(Event::InitDone) => {
                    self.index.keep_only(kind, &std::mem::take(&mut listed));
                    self.index.is_listed(kind);
                }
                Ok(Event::Apply(master)) => self.note(kind, &master),
                Ok(Event::Delete(master)) => {
                    if let Some(name) = SecretName::checked(name_of(&master).to_owned()) {
                        self.index.forget(kind, &name);
                    }
                }
                Err(error) => {
                    let (namespace, error) = (self.namespace.as_str(), chain(&error));
                    tracing::warn!(namespace, error, "the watch on masters failed; it begins anew with backoff");
                }
            }
        }
    }

    fn note<K>(&self, kind: ObjectKind, master: &PartialObjectMeta<K>) {
        let annotation = |name| master.metadata.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
        let (Some(source), Some(name)) = (annotation(SOURCE), SecretName::checked(name_of(master).to_owned())) else {
            return;
        };
        let version = annotation(SOURCE_VERSION).unwrap_or_default().to_owned();
        let revision = master.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
        if let (Some(through), Some(revision)) = (annotation(SYNCED_THROUGH), revision) {
            let through = self.store.believe(through.parse().ok());
            self.index.learn(source, Entry { kind, name, known: Known { version, through }, revision });
        }
    }

    /// Writes down which replicas the node has, while its pods are known: a record that is not written any more says so by its age.
    async fn keep_record(&self, progress: &Progress) {
        let (mut kept, mut written_at, mut is_failing) = (None, None::<Instant>, false);
        loop {
            tokio::time::sleep(RECORD_PAUSE).await;
            if !progress.knows_pods() {
                continue;
            }
            let is_due = written_at.is_none_or(|at| at.elapsed() >= RECORD_AGAIN);
            match self.bring_record_up_to_date(progress, &mut kept, is_due).await {
                Ok(wrote) => {
                    is_failing = false;
                    written_at = if wrote { Some(Instant::now()) } else { written_at };
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        let error = chain(&error);
                        tracing::warn!(error, "the node's record of replicas could not be written; it is tried again");
                    }
                    kept = None;
                    tokio::time::sleep(RECORD_PAUSE.mul_f64(5.0 * fastrand::f64())).await;
                }
            }
        }
    }

    /// Says whether it wrote.
    async fn bring_record_up_to_date(
        &self,
        progress: &Progress,
        kept: &mut Option<(Records, Option<Record>)>,
        is_due: bool,
    ) -> Result<bool, TargetError> {
        let (records, stored) = match kept {
            Some(kept) => kept,
            None => {
                let stored = self.store.read_record().await?;
                let records = stored.as_ref().map(|record| Records::read(&record.data)).unwrap_or_default();
                kept.insert((records, stored))
            }
        };
        records.update(&progress.in_use(), self, &self.store.now().to_string());
        let data = records.to_data();
        // Also one that says nothing: it shows that nothing is in use here.
        if stored.as_ref().is_some_and(|stored| stored.data == data && !is_due) {
            return Ok(false);
        }
        match self.store.write_record(data, stored.as_ref()).await? {
            Some(record) => *stored = Some(record),
            // Another agent of the node, as in a roll-out: what it wrote is read first.
            None => *kept = None,
        }
        Ok(kept.is_some())
    }

    async fn pass_on(&self, progress: &Progress, changes: &Changes) {
        loop {
            self.index.changed().await;
            tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await;
            let changed = self.index.take_changed();
            let left_behind = progress.left_behind(|request, copy| {
                changed.get(&request.remote.source_id()).is_some_and(|master| copy.is_behind(master))
            });
            if left_behind > 0 {
                tracing::info!(requests = left_behind, "masters have changed: their copies are looked at");
                changes.announce();
            }
        }
    }
}

fn name_of<K>(master: &PartialObjectMeta<K>) -> &str {
    master.metadata.name.as_deref().unwrap_or_default()
}
