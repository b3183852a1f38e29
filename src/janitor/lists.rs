//! What is there: masters by their metadata, what the nodes' records say, and which nodes have to have one. Each list is complete
//! and as new as the API server's storage.
//!
//! RBAC: `list` on secrets and configmaps in the masters' namespace, and on nodes.

use std::{collections::HashSet, fmt::Debug, sync::Arc, time::Duration};

use futures::{Stream, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Node, Secret},
};
use kube::{Api, Client, Resource, ResourceExt as _, api::ListParams, core::PartialObjectMeta};
use serde::de::DeserializeOwned;

use super::plan::{Listed, Replicas};
use crate::{
    clock::ApiClock,
    error::BoxError,
    masters::{MastersNamespace, RecordEntry},
    request::{ObjectKind, SecretName},
    target::{NODE, RECORD, SOURCE, SOURCE_KIND, SYNCED_AT, Stored},
};

/// A record that was not written for so long is silent: an agent writes at least every hour.
const SILENT: SignedDuration = SignedDuration::from_hours(2);
/// Objects that one request lists, by their metadata.
const OBJECTS: u32 = 500;
/// Records that one request lists; each may be a megabyte.
const RECORDS: u32 = 8;
/// For one page.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Lists, by the API server's clock.
pub(super) struct Lister {
    pub(super) client: Client,
    pub(super) namespace: MastersNamespace,
    pub(super) clock: Arc<ApiClock>,
    /// The label selector of nodes that run an agent.
    pub(super) nodes: String,
}

impl Lister {
    /// All masters.
    ///
    /// # Errors
    /// Whatever part could not be read.
    pub(super) async fn masters(&self) -> Result<Vec<Listed>, BoxError> {
        let mut masters = self.of_kind::<Secret>(ObjectKind::Secret).await?;
        masters.extend(self.of_kind::<ConfigMap>(ObjectKind::ConfigMap).await?);
        Ok(masters)
    }

    /// What the records say of replicas whose source is `wanted`, and of what pods ask for.
    ///
    /// # Errors
    /// Whatever part could not be read.
    pub(super) async fn replicas(&self, wanted: impl Fn(&str) -> bool) -> Result<Replicas, BoxError> {
        let selected = self.nodes_by(&self.nodes).await?;
        let there = self.nodes_by("").await?;
        let mut heard = HashSet::new();
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), self.namespace.as_str());
        let mut pages = std::pin::pin!(pages(api, RECORD, RECORDS));
        let mut replicas = Replicas::default();
        while let Some(page) = pages.try_next().await? {
            for record in page {
                let node = record.annotations().get(NODE).cloned().unwrap_or_default();
                let is_silent = self.is_silent(&record);
                // Of a node that is gone, what it knew of replicas is still of use.
                let counts = !is_silent || there.contains(&node);
                if !is_silent {
                    heard.insert(node);
                }
                // One by one, so that never all of them are held as they are written.
                for (key, text) in record.data.iter().flatten() {
                    replicas.add(RecordEntry::read(key, text), counts, &wanted);
                }
            }
        }
        replicas.heard_of(&heard, &selected, &there);
        Ok(replicas)
    }

    fn is_silent(&self, record: &ConfigMap) -> bool {
        let written = record.annotations().get(SYNCED_AT).and_then(|at| at.parse::<Timestamp>().ok());
        written.is_none_or(|at| self.clock.now().duration_since(at) >= SILENT)
    }

    async fn nodes_by(&self, selector: &str) -> Result<HashSet<String>, BoxError> {
        let api: Api<PartialObjectMeta<Node>> = Api::all(self.client.clone());
        let names = pages(api, selector, OBJECTS)
            .map_ok(|page| page.into_iter().map(|node| node.name_any()).collect::<Vec<_>>());
        Ok(names.try_concat().await?.into_iter().collect())
    }

    async fn of_kind<K>(&self, kind: ObjectKind) -> Result<Vec<Listed>, BoxError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Send + 'static,
    {
        let api: Api<PartialObjectMeta<K>> = Api::namespaced(self.client.clone(), self.namespace.as_str());
        let listed = |master: PartialObjectMeta<K>| {
            let source = master.annotations().get(SOURCE)?.clone();
            let stored = Stored { uid: master.uid()?, resource_version: master.resource_version()? };
            Some(Listed { kind, name: SecretName::checked(master.name_any())?, stored, source })
        };
        let masters =
            pages(api, SOURCE_KIND, OBJECTS).map_ok(|page| page.into_iter().filter_map(listed).collect::<Vec<_>>());
        masters.try_concat().await
    }
}

/// All that a label selector finds, page by page.
fn pages<K>(api: Api<K>, selector: &str, size: u32) -> impl Stream<Item = Result<Vec<K>, BoxError>>
where
    K: Clone + DeserializeOwned + Debug,
{
    let first = ListParams::default().labels(selector).limit(size);
    stream::try_unfold(Some(first), move |params| {
        let api = api.clone();
        async move {
            let Some(params) = params else { return Ok(None) };
            let page = tokio::time::timeout(TIMEOUT, api.list(&params)).await??;
            let next = page.metadata.continue_.filter(|token| !token.is_empty());
            Ok(Some((page.items, next.map(|token| params.continue_token(&token)))))
        }
    })
}
