//! The configured instances, and the one place where a store is asked.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    FutureExt, TryFutureExt,
    future::{join, join_all},
};
use jiff::Timestamp;

use super::{
    ActsAs, Caller, Catalogue, FetchError, FetchKey, Fetched, InFlight, InstanceConfig, Presence, ProviderError,
    ProviderName, SecretProvider,
    circuit::{Change, Circuit},
    http::{Http, TIMEOUT},
    instances::Built,
    kind::{BuildError, Kind},
    setbacks::Setbacks,
    slots::Slots,
    throttle::Throttle,
};
use crate::{
    changes::Changes, clock::SeenClock, config::Mode, error::chain, limits::ByteBudget, metrics::Metrics,
    pod::PodNamespace, policy::AdmittedRequest, request::RemoteRef, secret_value::SecretPayload,
};

/// Between looks at what is kept for pods that are gone.
const DROP_UNUSED: Duration = Duration::from_secs(5);
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
    /// The age that a value may have at most.
    pub fn not_older_than(&self) -> Timestamp {
        self.reference.checked_sub(self.freshness).unwrap_or(self.reference)
    }
}

/// All instances of this agent.
#[derive(Debug)]
pub struct Registry {
    instances: BTreeMap<ProviderName, Arc<Instance>>,
    catalogue: Catalogue,
    left_out: Vec<String>,
    in_flight: InFlight<FetchError>,
    setbacks: Arc<Setbacks>,
    metrics: Arc<Metrics>,
    changes: Arc<Changes>,
}

#[derive(Debug)]
struct Instance {
    kind: Kind,
    adapter: Arc<dyn SecretProvider>,
    slots: Slots,
    circuit: Circuit,
    throttle: Throttle,
    /// Of its own: what is asked of a store that does not answer takes nothing from the others.
    payloads: ByteBudget,
}

/// What became of a look at one instance.
#[derive(Debug)]
pub struct Validated {
    /// The instance.
    pub name: ProviderName,
    /// Its kind.
    pub kind: Kind,
    /// As whom the store knows the agent, or why it was not reached; `None` where it was not tried, since that takes a pod.
    pub outcome: Result<Option<String>, ProviderError>,
    /// How long that took.
    pub took: Duration,
}

impl Instance {
    fn new(kind: Kind, built: Built) -> Self {
        let slots = Slots::new(built.concurrency * kind.together());
        let (circuit, throttle) = (Circuit::default(), Throttle::default());
        Self { kind, adapter: built.adapter, slots, circuit, throttle, payloads: ByteBudget::for_payloads() }
    }

    async fn validate(&self) -> Result<Option<String>, ProviderError> {
        let validated = tokio::time::timeout(TIMEOUT, self.adapter.validate());
        validated.await.unwrap_or_else(|_| Err(no_answer(self.adapter.name())))
    }

    async fn warm_up(&self) {
        let (provider, kind) = (self.adapter.name(), self.kind.as_str());
        let warm = tokio::time::timeout(WARM_UP, self.adapter.warm_up());
        match warm.await.unwrap_or_else(|_| Err(no_answer(provider))) {
            Ok(identity) => tracing::info!(%provider, kind, identity, "provider is ready"),
            Err(error) => tracing::warn!(%provider, kind, error = %chain(&error), "provider is not ready yet"),
        }
    }
}

fn no_answer(provider: &ProviderName) -> ProviderError {
    ProviderError::Unavailable { provider: provider.clone(), source: "no answer in time".into() }
}

impl Registry {
    /// Builds every configured instance; no request is made. A default instance that the environment does not set up is
    /// left out: a request that names it is told that it is not configured.
    ///
    /// # Errors
    /// The first instance of the operator's file whose settings cannot work, and why.
    pub async fn new(
        mode: Mode,
        configs: Vec<InstanceConfig>,
        metrics: Arc<Metrics>,
        changes: Arc<Changes>,
    ) -> Result<Self, String> {
        let http = Http::new(None)?;
        let (mut instances, mut kinds, mut left_out) = (BTreeMap::new(), Vec::new(), Vec::new());
        for config in configs {
            let (name, kind, is_default) = (config.name().clone(), config.kind(), config.is_default());
            match config.build(&http).await {
                Ok(built) if mode == Mode::Central && built.adapter.acts_as() != ActsAs::Agent => {
                    return Err(format!(
                        "--providers-file (JASM_PROVIDERS_FILE): instance {name}: `identity: pod` and `sessionTags` are not for \
                         --mode central, in which all pods are given what one master holds"
                    ));
                }
                Ok(built) => {
                    metrics.circuit(&name, false);
                    instances.insert(name.clone(), Arc::new(Instance::new(kind, built)));
                    kinds.push((name, kind));
                }
                Err(BuildError::NotSetUp(problem)) if is_default => left_out.push(format!("{name} ({problem})")),
                Err(problem) => {
                    return Err(format!("--providers-file (JASM_PROVIDERS_FILE): instance {name}: {problem}"));
                }
            }
        }
        Ok(Self {
            instances,
            catalogue: Catalogue::new(mode, kinds),
            left_out,
            in_flight: InFlight::default(),
            setbacks: Arc::default(),
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

    /// As whom an instance asks its store.
    pub fn acts_as(&self, provider: &ProviderName) -> ActsAs {
        self.instances.get(provider).map(|instance| instance.adapter.acts_as()).unwrap_or_default()
    }

    /// Whether an instance asks its store as each pod's service account.
    pub fn acts_as_pods(&self) -> bool {
        self.instances.values().any(|instance| instance.adapter.acts_as() == ActsAs::Pod)
    }

    /// Drops what stores gave for service accounts of which no pod is left on the node; gives the number of what is left.
    pub fn drop_unused(&self) -> usize {
        self.instances.values().map(|instance| instance.adapter.drop_unused()).sum()
    }

    /// Gets credentials and connections ready, all instances at once, at most 2 s; failures are logged and gate nothing.
    /// Then keeps them ready; it never ends.
    pub async fn keep_ready(&self) {
        join_all(self.instances.values().map(|instance| instance.warm_up())).await;
        let kept = self.instances.values().map(|instance| async move {
            while let Some(pause) = instance.adapter.keep_ready().await {
                tokio::time::sleep(pause).await;
            }
        });
        join(join_all(kept), self.drop_unused_in_time()).await;
    }

    /// Also what was in use when its last pod went. Never ends.
    async fn drop_unused_in_time(&self) {
        loop {
            tokio::time::sleep(DROP_UNUSED).await;
            self.drop_unused();
        }
    }

    /// Tries each instance without reading a secret, all at once.
    pub async fn validate(&self) -> Vec<Validated> {
        let tried = self.instances.iter().map(|(name, instance)| async move {
            let (started, outcome) = (Instant::now(), instance.validate().await);
            Validated { name: name.clone(), kind: instance.kind, outcome, took: started.elapsed() }
        });
        join_all(tried).await
    }

    /// Why there is no point in asking for it again yet, for a pod of this age: known without a request to anybody.
    pub fn stands_in_the_way(&self, admitted: &AdmittedRequest, reference: Timestamp) -> Option<FetchError> {
        let remote = admitted.request().remote.clone();
        let instance = self.instances.get(&remote.provider)?;
        let key = FetchKey { identity: admitted.caller().identity(), remote };
        let for_all = || instance.throttle.stands(&key.identity).or_else(|| instance.circuit.stands(&key));
        self.setbacks.stands(&key, reference).or_else(for_all)
    }

    /// Whether a store has a source. No value is given to anybody, and so no policy is asked.
    ///
    /// # Errors
    /// The store's failure, classified; never [`ProviderError::NotFound`].
    pub async fn presence(&self, remote: &RemoteRef) -> Result<Presence, ProviderError> {
        let Some(instance) = self.instances.get(&remote.provider) else { return Ok(Presence::Unknown) };
        let asked = tokio::time::timeout(TIMEOUT, instance.adapter.presence(remote));
        let outcome = asked.await.unwrap_or_else(|_| Err(no_answer(&remote.provider)));
        let result = match &outcome {
            Ok(Presence::Absent) => "not_found",
            Ok(Presence::There | Presence::Unknown) => "ok",
            Err(error) => error.result(),
        };
        self.metrics.provider_request(&remote.provider, result);
        outcome
    }

    /// Fetches what was admitted, together with everybody who asks for the same.
    ///
    /// # Errors
    /// The store's failure, classified, shared by all who waited; or its last one, where it is not to be asked again yet.
    pub async fn fetch(
        &self,
        admitted: &AdmittedRequest,
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
        let key = FetchKey { identity: admitted.caller().identity(), remote };
        let start = || {
            let seen_through = seen.newest();
            let ask = Ask {
                instance: Arc::clone(instance),
                key: key.clone(),
                caller: admitted.caller().clone(),
                namespace: asker.namespace.clone(),
                seen_through,
                setbacks: Arc::clone(&self.setbacks),
                metrics: Arc::clone(&self.metrics),
                changes: Arc::clone(&self.changes),
            };
            (seen_through, ask.run().map_ok(Arc::new).boxed())
        };
        loop {
            if let Some(error) = self.setbacks.stands(&key, asker.reference) {
                return Err(error);
            }
            match self.in_flight.fetch(&key, asker.not_older_than(), start).await {
                // It was asked by a pod that is gone, before this one was known; it forgets that pod.
                Err(error) if error.provider_error().is_of_a_pod_that_is_gone() && admitted.caller().has_pods() => {}
                outcome => return outcome,
            }
        }
    }
}

/// One request to a store.
struct Ask {
    instance: Arc<Instance>,
    key: FetchKey,
    caller: Caller,
    namespace: PodNamespace,
    seen_through: Timestamp,
    setbacks: Arc<Setbacks>,
    metrics: Arc<Metrics>,
    changes: Arc<Changes>,
}

impl Ask {
    async fn run(self) -> Result<Fetched, FetchError> {
        let Instance { adapter, slots, circuit, throttle, payloads, kind: _ } = &*self.instance;
        let _slot = slots.take(&self.namespace).await;
        let mut reserved = payloads.reserve(adapter.usual_payload_bytes()).await;
        if let Some(error) = throttle.stands(&self.key.identity) {
            return Err(error);
        }
        let _pass = circuit.pass(&self.key)?;
        let outcome = self.asked().await.map_err(Arc::new);
        self.metrics.provider_request(adapter.name(), outcome.as_ref().map_or_else(|error| error.result(), |_| "ok"));
        self.note_trouble(circuit.note(&self.key, &self.namespace, &outcome));
        match &outcome {
            // What becomes of one pod is no word about the others.
            Err(error) if error.is_of_a_pod_that_is_gone() => {
                return Err(FetchError::answered(Arc::clone(error), None));
            }
            outcome => throttle.note(&self.key.identity, outcome),
        }
        match outcome {
            Ok(payload) => {
                if self.setbacks.clear(&self.key) {
                    self.changes.announce();
                }
                if payload.len() > adapter.usual_payload_bytes() {
                    // Not the store's own limit, as in emulators. Others wait meanwhile: the slot is still ours.
                    drop(reserved);
                    reserved = payloads.reserve(payload.len()).await;
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

    /// Credentials and value together have the time of one answer.
    async fn asked(&self) -> Result<SecretPayload, ProviderError> {
        let adapter = &self.instance.adapter;
        if !adapter.acts_as().is_by(&self.caller) {
            let (provider, path) = (adapter.name().clone(), self.key.remote.path.clone());
            let problem = "it was asked as somebody else than it acts as, which is a mistake in the agent";
            return Err(ProviderError::Invalid { provider, path, problem, source: None });
        }
        let fetched = adapter.fetch(&self.key.remote, &self.caller);
        tokio::time::timeout(TIMEOUT, fetched).await.unwrap_or_else(|_| Err(no_answer(adapter.name())))
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

#[cfg(all(test, feature = "aws"))]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use http::Request;
    use kube::{Client, client::Body};
    use serde_json::{Value, json};
    use tokio::sync::Notify;

    use super::*;
    use crate::{
        fake_api::{Reply, json_reply},
        pod::PodView,
        policy::{Policy, Requester},
        request::SecretRequest,
        service_account::ServiceAccounts,
    };

    /// A store that takes tokens of pods, and says no more than those; each failure is held until it is let go.
    #[derive(Debug)]
    struct Store {
        name: ProviderName,
        failed: Notify,
        let_go: Notify,
    }

    #[async_trait]
    impl SecretProvider for Store {
        fn name(&self) -> &ProviderName {
            &self.name
        }

        fn usual_payload_bytes(&self) -> usize {
            1024
        }

        fn acts_as(&self) -> ActsAs {
            ActsAs::Pod
        }

        fn drop_unused(&self) -> usize {
            0
        }

        async fn fetch(&self, _: &RemoteRef, caller: &Caller) -> Result<SecretPayload, ProviderError> {
            let Caller::ServiceAccount(account) = caller else { unreachable!("it acts as pods") };
            match account.token("store").await {
                Ok(token) => Ok(SecretPayload::new(token.text.as_bytes().to_vec(), "1")),
                Err(error) => {
                    self.failed.notify_one();
                    self.let_go.notified().await;
                    Err(ProviderError::of_token(self.name.clone(), &error))
                }
            }
        }

        async fn warm_up(&self) -> Result<String, ProviderError> {
            Ok(String::new())
        }
    }

    /// An API server that knows one account, and of its pods only `stays`. Gives the pods for which it was asked for a token.
    fn api_server() -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<Body>| answer(request, Arc::clone(&noted)));
        (Client::new(service, "jasm-system"), asked)
    }

    async fn answer(request: Request<Body>, asked: Arc<Mutex<Vec<String>>>) -> Reply {
        if request.method() == "GET" {
            let metadata = json!({"name": "app", "namespace": "team-a", "uid": "u-1"});
            return json_reply(200, &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}));
        }
        let sent: Value = serde_json::from_slice(&request.into_body().collect_bytes().await?)?;
        let pod = sent["spec"]["boundObjectRef"]["name"].as_str().unwrap_or_default().to_owned();
        let is_there = pod == "stays";
        asked.lock().expect("a lock").push(pod);
        if !is_there {
            let details = json!({"kind": "pods", "name": "passes"});
            return json_reply(
                404,
                &json!({"kind": "Status", "reason": "NotFound", "code": 404, "message": "no", "details": details}),
            );
        }
        let claims = URL_SAFE_NO_PAD.encode(r#"{"kubernetes.io":{"serviceaccount":{"uid":"u-1"}}}"#);
        let mut granted = sent;
        granted["status"] = json!({"token": format!("x.{claims}.y"), "expirationTimestamp": "2030-01-01T00:00:00Z"});
        json_reply(201, &granted)
    }

    fn pod(name: &str) -> PodView {
        let metadata = json!({"name": name, "namespace": "team-a", "uid": name});
        let spec = json!({"nodeName": "node-1", "serviceAccountName": "app"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a pod")
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_goes_while_the_store_is_asked_by_its_token_fails_none_that_comes_meanwhile() {
        let name = ProviderName::for_test("aws");
        let store = Arc::new(Store { name: name.clone(), failed: Notify::default(), let_go: Notify::default() });
        let built = Built { adapter: Arc::clone(&store) as Arc<dyn SecretProvider>, concurrency: 4 };
        let registry = Registry {
            instances: BTreeMap::from([(name.clone(), Arc::new(Instance::new(Kind::for_test(), built)))]),
            catalogue: Catalogue::new(Mode::Direct, [(name, Kind::for_test())]),
            left_out: Vec::new(),
            in_flight: InFlight::default(),
            setbacks: Arc::default(),
            metrics: Arc::default(),
            changes: Arc::default(),
        };
        let (client, asked) = api_server();
        let accounts = ServiceAccounts::new(client, "node-1", Arc::default());
        let rule = "rules: [{namespaces: ['*'], serviceAccounts: ['*'], providers: ['*'], paths: ['**']}]";
        let policy = Policy::parse([("policy.yaml", rule)]).expect("a policy");
        let (since, seen) = (tokio::time::Instant::now(), SeenClock::default());
        let fetch = async |pod: PodView| {
            let account = accounts.of(&pod, since, since).await.expect("an account");
            account.asked_by(&pod);
            let admitted =
                policy.admit(SecretRequest::for_test("aws", "a", "x"), &Requester::of(&pod)).expect("admitted");
            let namespace = pod.namespace();
            let asker = Asker { namespace, reference: Timestamp::UNIX_EPOCH, freshness: Duration::ZERO };
            registry.fetch(&admitted.by(Caller::ServiceAccount(account)), &asker, &seen).await
        };

        let late = async {
            store.failed.notified().await;
            let all = join(fetch(pod("stays")), async { store.let_go.notify_one() }).await;
            all.0
        };
        let (passes, stays) = join(fetch(pod("passes")), late).await;
        assert!(passes.is_ok() && stays.is_ok(), "{passes:?} {stays:?}");
        assert_eq!(*asked.lock().expect("a lock"), ["passes", "stays"], "one fetch that failed, and one for both");

        // One that is alone is told, and stands in nobody's way.
        store.let_go.notify_one();
        let alone = fetch(pod("passes")).await.expect_err("nobody to ask by");
        assert!(alone.provider_error().is_of_a_pod_that_is_gone() && alone.again_at().is_none(), "{alone:?}");
        assert!(fetch(pod("stays")).await.is_ok(), "at once");
    }
}
