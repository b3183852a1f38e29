//! The configured instances, and the one place where a store is asked.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt, future::join_all};
use jiff::Timestamp;

use super::{
    Catalogue, FetchError, FetchKey, Fetched, Identity, InFlight, InstanceConfig, ProviderError, ProviderName,
    SecretProvider,
    circuit::{Change, Circuit},
    setbacks::Setbacks,
    slots::Slots,
};
use crate::{
    changes::Changes, clock::SeenClock, limits::ByteBudget, metrics::Metrics, pod::PodNamespace,
    policy::AdmittedRequest,
};

const WARM_UP: Duration = Duration::from_secs(2);

/// For which pod a store is asked.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Its namespace, whose share of the requests it is.
    pub namespace: PodNamespace,
    /// Its own age: that there was no value for an older pod counts no more.
    pub reference: Timestamp,
    /// How much older than the pod a value may be.
    pub freshness: Duration,
}

impl Asker {
    fn not_older_than(&self) -> Timestamp {
        self.reference.checked_sub(self.freshness).unwrap_or(self.reference)
    }
}

/// All instances of this agent.
#[derive(Debug)]
pub struct Registry {
    instances: BTreeMap<ProviderName, Arc<Instance>>,
    catalogue: Catalogue,
    left_out: Vec<String>,
    in_flight: InFlight,
    setbacks: Arc<Setbacks>,
    payloads: ByteBudget,
    metrics: Arc<Metrics>,
    changes: Arc<Changes>,
}

#[derive(Debug)]
struct Instance {
    adapter: Arc<dyn SecretProvider>,
    slots: Slots,
    circuit: Circuit,
}

impl Registry {
    /// Builds every configured instance; no request is made. A default instance that the environment does not set up is
    /// left out: a request that names it is told that it is not configured.
    ///
    /// # Errors
    /// The first instance of the operator's file whose settings cannot work, and why.
    pub async fn new(
        configs: Vec<InstanceConfig>,
        metrics: Arc<Metrics>,
        changes: Arc<Changes>,
    ) -> Result<Self, String> {
        let (mut instances, mut kinds, mut left_out) = (BTreeMap::new(), Vec::new(), Vec::new());
        for config in configs {
            let (name, kind, is_default) = (config.name.clone(), config.kind(), config.is_default);
            match config.build().await {
                Ok(adapter) => {
                    let instance = Instance { adapter, slots: Slots::default(), circuit: Circuit::default() };
                    metrics.circuit(&name, false);
                    instances.insert(name.clone(), Arc::new(instance));
                    kinds.push((name, kind));
                }
                Err(problem) if is_default => left_out.push(format!("{name} ({problem})")),
                Err(problem) => return Err(format!("provider {name}: {problem}")),
            }
        }
        Ok(Self {
            instances,
            catalogue: Catalogue::new(kinds),
            left_out,
            in_flight: InFlight::default(),
            setbacks: Arc::default(),
            payloads: ByteBudget::for_payloads(),
            metrics,
            changes,
        })
    }

    /// The default instances that are not set up, each with the reason.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The instances by name and kind, for the pure layers.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Gets credentials ready, all instances at once, at most 2 s; failures are logged by the adapters and gate nothing.
    pub async fn warm_up(&self) {
        let all = join_all(self.instances.values().map(|instance| instance.adapter.warm_up()));
        if tokio::time::timeout(WARM_UP, all).await.is_err() {
            tracing::warn!("warm-up of the providers took more than {WARM_UP:?}; going on without");
        }
    }

    /// Why there is no point in asking for it again yet, for a pod of this age: known without a request to anybody.
    pub fn stands_in_the_way(
        &self,
        admitted: &AdmittedRequest,
        identity: Identity,
        reference: Timestamp,
    ) -> Option<FetchError> {
        let remote = admitted.request().remote.clone();
        let instance = self.instances.get(&remote.provider)?;
        let key = FetchKey { identity, remote };
        self.setbacks.stands(&key, reference).or_else(|| instance.circuit.stands(&key))
    }

    /// Fetches what was admitted, together with everybody who asks for the same.
    ///
    /// # Errors
    /// The store's failure, classified, shared by all who waited; or its last one, where it is not to be asked again yet.
    pub async fn fetch(
        &self,
        admitted: &AdmittedRequest,
        identity: Identity,
        asker: &Asker,
        seen: &SeenClock,
    ) -> Result<Arc<Fetched>, FetchError> {
        let remote = admitted.request().remote.clone();
        let Some(instance) = self.instances.get(&remote.provider) else {
            // Requests are parsed against this registry's own catalogue.
            let (provider, path) = (remote.provider, remote.path);
            let problem = "the instance is not configured";
            let error = ProviderError::Invalid { provider, path, problem, source: None };
            return Err(FetchError::answered(Arc::new(error), None));
        };
        let key = FetchKey { identity, remote };
        if let Some(error) = self.setbacks.stands(&key, asker.reference) {
            return Err(error);
        }
        let start = || {
            let seen_through = seen.newest();
            let ask = Ask {
                instance: Arc::clone(instance),
                key: key.clone(),
                namespace: asker.namespace.clone(),
                seen_through,
                setbacks: Arc::clone(&self.setbacks),
                payloads: self.payloads.clone(),
                metrics: Arc::clone(&self.metrics),
                changes: Arc::clone(&self.changes),
            };
            (seen_through, ask.run().boxed())
        };
        self.in_flight.fetch(&key, asker.not_older_than(), start).await
    }
}

/// One request to a store.
struct Ask {
    instance: Arc<Instance>,
    key: FetchKey,
    namespace: PodNamespace,
    seen_through: Timestamp,
    setbacks: Arc<Setbacks>,
    payloads: ByteBudget,
    metrics: Arc<Metrics>,
    changes: Arc<Changes>,
}

impl Ask {
    async fn run(self) -> Result<Fetched, FetchError> {
        let Instance { adapter, slots, circuit } = &*self.instance;
        let _slot = slots.take(&self.namespace).await;
        let mut reserved = self.payloads.reserve(adapter.max_payload_bytes()).await;
        let _pass = circuit.pass(&self.key)?;
        let outcome = adapter.fetch(&self.key.remote, &self.key.identity).await.map_err(Arc::new);
        self.metrics.provider_request(adapter.name(), outcome.as_ref().map_or_else(|error| error.result(), |_| "ok"));
        self.note_trouble(circuit.note(&self.key, &outcome));
        match outcome {
            Ok(payload) => {
                if self.setbacks.clear(&self.key) {
                    self.changes.announce();
                }
                if payload.len() > adapter.max_payload_bytes() {
                    // Not the store's own limit, as in emulators. Others wait meanwhile: the slot is still ours.
                    drop(reserved);
                    reserved = self.payloads.reserve(payload.len()).await;
                }
                ByteBudget::shrink(&mut reserved, payload.len());
                Ok(Fetched { payload, seen_through: self.seen_through, reserved })
            }
            Err(error) => {
                let again_at = self.setbacks.note(&self.key, &error, self.seen_through);
                Err(FetchError::answered(error, Some(again_at)))
            }
        }
    }

    fn note_trouble(&self, change: Change) {
        let provider = self.instance.adapter.name();
        match change {
            Change::None => {}
            Change::Opened => {
                tracing::warn!(%provider, "the provider is in trouble: one request at a time tries until it is back");
                self.metrics.circuit(provider, true);
            }
            Change::Closed => {
                tracing::info!(%provider, "the provider is back");
                self.metrics.circuit(provider, false);
                self.setbacks.store_is_back(provider);
                self.changes.announce();
            }
        }
    }
}
