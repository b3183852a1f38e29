//! What is there: masters by their metadata, and what the nodes' records say. Each list is complete and as new as the API
//! server's storage.
//!
//! RBAC: `list` on secrets and configmaps in the masters' namespace; `get` on nodes.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    time::Duration,
};

use futures::{Stream, TryStreamExt, stream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Node, Secret},
};
use kube::{Api, Client, Resource, ResourceExt as _, api::ListParams, core::PartialObjectMeta};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::plan::{Listed, Replicas};
use crate::{
    error::{BoxError, chain},
    masters::{MastersNamespace, Replica},
    request::{ObjectKind, SecretName},
    target::{NODE, RECORD, SOURCE, SOURCE_KIND, Stored},
};

/// A record that was not written for so long may be of a node that is gone: an agent writes at least every hour.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// Masters that one request lists, by their metadata.
const MASTERS: u32 = 500;
/// Records that one request lists; each may be a megabyte.
const RECORDS: u32 = 8;

/// What is there.
pub(super) struct Lists {
    pub(super) masters: Vec<Listed>,
    pub(super) replicas: Replicas,
}

/// Lists, and what it remembers of earlier times.
pub(super) struct Lister {
    client: Client,
    namespace: MastersNamespace,
    /// By name: the state of a record, and since when it is in that.
    records: HashMap<String, (String, Instant)>,
    /// UIDs of replicas that are not there any more, and never will be.
    dead: HashSet<String>,
}

impl Lister {
    pub(super) fn new(client: Client, namespace: MastersNamespace) -> Self {
        Self { client, namespace, records: HashMap::new(), dead: HashSet::new() }
    }

    /// Nothing stands under its name: what the records say of these objects counts no more.
    pub(super) fn bury(&mut self, states: &[Stored]) {
        self.dead.extend(states.iter().map(|state| state.uid.clone()));
    }

    /// Everything at this time.
    ///
    /// # Errors
    /// Whatever part could not be read.
    pub(super) async fn lists(&mut self) -> Result<Lists, BoxError> {
        let mut masters = self.masters::<Secret>(ObjectKind::Secret).await?;
        masters.extend(self.masters::<ConfigMap>(ObjectKind::ConfigMap).await?);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), self.namespace.as_str());
        let mut pages = std::pin::pin!(pages(api, RECORD, RECORDS));
        let (before, was_dead) = (std::mem::take(&mut self.records), std::mem::take(&mut self.dead));
        let mut replicas = Replicas::default();
        while let Some(page) = pages.try_next().await? {
            for record in page {
                let counts = self.counts(&record, &before).await;
                // One by one, so that never all of them are held as they are written.
                for replica in record.data.iter().flatten().filter_map(|(_, text)| Replica::read(text)) {
                    if was_dead.contains(&replica.stored.uid) {
                        self.dead.insert(replica.stored.uid);
                    } else {
                        replicas.add(replica, counts);
                    }
                }
            }
        }
        Ok(Lists { masters, replicas })
    }

    /// Whether what a record says of pods counts: not if its agent is silent and its node is not there.
    async fn counts(&mut self, record: &ConfigMap, before: &HashMap<String, (String, Instant)>) -> bool {
        let (name, version) = (record.name_any(), record.resource_version().unwrap_or_default());
        let since = match before.get(&name) {
            Some((known, since)) if *known == version => *since,
            _ => Instant::now(),
        };
        self.records.insert(name, (version, since));
        if since.elapsed() < STALE {
            return true;
        }
        let Some(node) = record.annotations().get(NODE) else { return true };
        match Api::<Node>::all(self.client.clone()).get_metadata_opt(node).await {
            Ok(found) => found.is_some(),
            Err(error) => {
                tracing::warn!(node, error = chain(&error), "whether a node is there is not known: its pods count");
                true
            }
        }
    }

    async fn masters<K>(&self, kind: ObjectKind) -> Result<Vec<Listed>, BoxError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Send + 'static,
    {
        let api: Api<PartialObjectMeta<K>> = Api::namespaced(self.client.clone(), self.namespace.as_str());
        let listed = |master: PartialObjectMeta<K>| {
            let source = master.annotations().get(SOURCE)?.clone();
            let stored = Stored { uid: master.uid()?, resource_version: master.resource_version()? };
            Some(Listed { kind, name: SecretName::checked(master.name_any())?, stored, source })
        };
        let pages: Vec<Vec<Listed>> = pages(api, SOURCE_KIND, MASTERS)
            .map_ok(|page| page.into_iter().filter_map(listed).collect())
            .try_collect()
            .await?;
        Ok(pages.into_iter().flatten().collect())
    }
}

/// All that has a label, page by page.
fn pages<K>(api: Api<K>, label: &str, size: u32) -> impl Stream<Item = kube::Result<Vec<K>>>
where
    K: Clone + DeserializeOwned + Debug,
{
    let first = ListParams::default().labels(label).limit(size);
    stream::try_unfold(Some(first), move |params| {
        let api = api.clone();
        async move {
            let Some(params) = params else { return Ok(None) };
            let page = api.list(&params).await?;
            let next = page.metadata.continue_.filter(|token| !token.is_empty());
            Ok(Some((page.items, next.map(|token| params.continue_token(&token)))))
        }
    })
}
