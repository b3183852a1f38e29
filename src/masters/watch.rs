//! The watch on masters' metadata, and what follows from it for the copies of this node's pods.
//!
//! RBAC: `list` and `watch` on secrets and configmaps in the masters' namespace.

use std::{collections::HashSet, fmt::Debug, time::Duration};

use futures::{StreamExt, future::join3, stream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Resource,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{Config, Event, watcher},
    },
};

use super::{Entry, Masters};
use crate::{
    changes::Changes,
    error::chain,
    progress::Progress,
    request::{ObjectKind, SecretName},
    target::{Known, SOURCE, SOURCE_KIND, SOURCE_VERSION, SYNCED_THROUGH},
    watch::{WATCH_SECONDS, until_forgotten},
};

/// Copies of a master that changed are looked at within this time: not by all agents of a cluster at once, so that one writes
/// a copy and the others find it written.
const SPREAD: Duration = Duration::from_secs(2);

impl Masters {
    /// Follows all masters, and has the copies looked at that one has left behind. Never ends.
    pub async fn watch(&self, progress: &Progress, changes: &Changes) {
        let secrets = self.follow::<Secret>(ObjectKind::Secret);
        let config_maps = self.follow::<ConfigMap>(ObjectKind::ConfigMap);
        join3(secrets, config_maps, self.pass_on(progress, changes)).await;
    }

    async fn follow<K>(&self, kind: ObjectKind)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Send + 'static,
    {
        let api: Api<PartialObjectMeta<K>> = Api::namespaced(self.client.clone(), self.namespace.as_str());
        let config = Config::default().labels(SOURCE_KIND).timeout(fastrand::u32(WATCH_SECONDS)).any_semantic();
        let watchers = stream::repeat(()).flat_map(|()| until_forgotten(watcher(api.clone(), config.clone())));
        let mut events = std::pin::pin!(watchers.default_backoff());
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(master)) => {
                    listed.extend(SecretName::checked(name_of(&master).to_owned()));
                    self.note(kind, &master);
                }
                Ok(Event::InitDone) => self.index.keep_only(kind, &std::mem::take(&mut listed)),
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
        if let Some(through) = annotation(SYNCED_THROUGH).and_then(|time| time.parse().ok()) {
            self.index.learn(source, Entry { kind, name, known: Known { version, through } });
        }
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
