//! The configured instances, and the one place where a store is asked.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt, future::join_all};
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::{
    Catalogue, FetchKey, Fetched, Identity, InFlight, InstanceConfig, ProviderError, ProviderName, SecretProvider,
};
use crate::{clock::SeenClock, limits::ByteBudget, metrics::Metrics, policy::AdmittedRequest};

/// Fetches under way per instance. Secrets Manager allows 10,000 a second; this bounds sockets, not the rate.
const CONCURRENT_FETCHES: usize = 32;
const WARM_UP: Duration = Duration::from_secs(2);

/// All instances of this agent.
#[derive(Debug)]
pub struct Registry {
    instances: BTreeMap<ProviderName, Instance>,
    catalogue: Catalogue,
    left_out: Vec<String>,
    in_flight: InFlight,
    payloads: ByteBudget,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Instance {
    adapter: Arc<dyn SecretProvider>,
    permits: Arc<Semaphore>,
}

impl Registry {
    /// Builds every configured instance; no request is made. A default instance that the environment does not set up is
    /// left out: a request that names it is told that it is not configured.
    ///
    /// # Errors
    /// The first instance of the operator's file whose settings cannot work, and why.
    pub async fn new(configs: Vec<InstanceConfig>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let (mut instances, mut kinds, mut left_out) = (BTreeMap::new(), Vec::new(), Vec::new());
        for config in configs {
            let (name, kind, is_default) = (config.name.clone(), config.kind(), config.is_default);
            match config.build().await {
                Ok(adapter) => {
                    let permits = Arc::new(Semaphore::new(CONCURRENT_FETCHES));
                    instances.insert(name.clone(), Instance { adapter, permits });
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
            payloads: ByteBudget::for_payloads(),
            metrics,
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

    /// Fetches what was admitted, as new as `not_older_than` demands, together with everybody who asks for the same.
    ///
    /// # Errors
    /// The store's failure, classified, shared by all who waited.
    pub async fn fetch(
        &self,
        admitted: &AdmittedRequest,
        identity: Identity,
        not_older_than: Timestamp,
        seen: &SeenClock,
    ) -> Result<Arc<Fetched>, Arc<ProviderError>> {
        let remote = admitted.request().remote.clone();
        let Some(instance) = self.instances.get(&remote.provider) else {
            // Requests are parsed against this registry's own catalogue.
            return Err(Arc::new(ProviderError::Invalid {
                provider: remote.provider,
                path: remote.path,
                problem: "the instance is not configured",
                source: None,
            }));
        };
        let key = FetchKey { identity, remote };
        let start = || {
            let fetch = self.ask(instance, key.clone(), seen.newest());
            (seen.newest(), fetch)
        };
        self.in_flight.fetch(&key, not_older_than, start).await
    }

    fn ask(
        &self,
        instance: &Instance,
        key: FetchKey,
        seen_through: Timestamp,
    ) -> futures::future::BoxFuture<'static, Result<Fetched, ProviderError>> {
        let (adapter, permits) = (Arc::clone(&instance.adapter), Arc::clone(&instance.permits));
        let (payloads, metrics) = (self.payloads.clone(), Arc::clone(&self.metrics));
        async move {
            let _permit = permits.acquire_owned().await;
            let mut reserved = payloads.reserve(adapter.max_payload_bytes()).await;
            let outcome = adapter.fetch(&key.remote, &key.identity).await;
            let result = outcome.as_ref().map_or_else(ProviderError::result, |_| "ok");
            metrics.provider_request(adapter.name(), result);
            let payload = outcome?;
            ByteBudget::shrink(&mut reserved, payload.len());
            Ok(Fetched { payload, seen_through, reserved })
        }
        .boxed()
    }
}
