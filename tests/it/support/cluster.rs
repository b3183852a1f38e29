//! A test's own namespace and what lies in it. Everything here is done as cluster administrator.

mod pods;
mod workloads;

use std::collections::BTreeMap;
use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ResourceQuota, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::control_plane::ControlPlane;
use super::wait::eventually;
use super::{object, unique};
pub(crate) use pods::PodBuilder;
pub(crate) use workloads::Workload;

/// The annotation with which a pod asks.
pub(crate) const SYNC_ANNOTATION: &str = "jasm.codnod.io/secret-sync";
/// A finalizer that nobody ever removes.
const STAYS: &str = "jasm.codnod.io/test-stays";

/// A namespace that no other test uses. It stays until the control plane ends.
#[derive(Clone)]
pub(crate) struct TestNamespace {
    name: String,
    admin: kube::Client,
}

impl TestNamespace {
    /// Creates a namespace in which pods can be made.
    pub(crate) async fn create(control_plane: &ControlPlane) -> Self {
        Self::named(control_plane, &unique("test")).await
    }

    /// The same with a name of choice.
    pub(crate) async fn named(control_plane: &ControlPlane, name: &str) -> Self {
        let namespace = Self { name: name.to_owned(), admin: control_plane.admin().await };
        let all: Api<Namespace> = Api::all(namespace.admin.clone());
        let object = object(json!({"metadata": {"name": name}}));
        all.create(&PostParams::default(), &object)
            .await
            .unwrap_or_else(|error| panic!("no namespace {name}: {error}"));
        // Pods are refused without it. The controller that makes it would do so a moment later.
        namespace.service_account("default").await;
        namespace
    }

    /// One that is there.
    pub(crate) async fn shared(control_plane: &ControlPlane, name: &str) -> Self {
        let namespace = Self { name: name.to_owned(), admin: control_plane.admin().await };
        namespace.service_account("default").await;
        namespace
    }

    /// Deletes the namespace with all that is in it, and makes one of the same name.
    pub(crate) async fn recreate(&self, control_plane: &ControlPlane) -> Self {
        // No kubelet runs that would end its pods.
        for pod in self.api::<Pod>().list(&ListParams::default()).await.expect("a list of pods") {
            self.delete_pod(&pod).await;
        }
        let all: Api<Namespace> = Api::all(self.admin.clone());
        all.delete(&self.name, &DeleteParams::default()).await.expect("the namespace is deleted");
        eventually(&format!("the end of the namespace {}", self.name), async || {
            match all.get_opt(&self.name).await.map_err(|error| error.to_string())? {
                None => Ok(()),
                Some(_) => Err("that it is there".to_owned()),
            }
        })
        .await;
        Self::named(control_plane, &self.name).await
    }

    /// The namespace's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The administrator's access to objects of one type in this namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.admin.clone(), &self.name)
    }

    /// Creates any object from its JSON.
    pub(crate) async fn add<K>(&self, json: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let object: K = object(json);
        let added = self.api::<K>().create(&PostParams::default(), &object).await;
        added.unwrap_or_else(|error| panic!("no {} {} in {}: {error}", K::kind(&()), object.name_any(), self.name))
    }

    /// Makes a service account, where it is not there yet.
    pub(crate) async fn service_account(&self, name: &str) {
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = self.api();
        match accounts.create(&PostParams::default(), &object(json!({"metadata": {"name": name}}))).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("no service account {name} in {}: {error}", self.name),
        }
    }

    /// From the return of this on the API server refuses new objects here. The namespace stays in that state.
    pub(crate) async fn terminate(&self) {
        // Something that cannot go keeps the namespace from going.
        let _: ConfigMap = self.add(json!({"metadata": {"name": "stays", "finalizers": [STAYS]}})).await;
        let all: Api<Namespace> = Api::all(self.admin.clone());
        let deleted = all.delete(&self.name, &DeleteParams::default()).await;
        deleted.unwrap_or_else(|error| panic!("cannot delete the namespace {}: {error}", self.name));
        let maps: Api<ConfigMap> = self.api();
        eventually(&format!("creates to be refused in {}", self.name), async || {
            let one = PostParams { dry_run: true, ..PostParams::default() };
            match maps.create(&one, &object(json!({"metadata": {"name": "one-more"}}))).await {
                Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
                Err(error) => Err(format!("another error: {error}")),
                Ok(_) => Err("that one was accepted".to_owned()),
            }
        })
        .await;
    }

    /// Sets a quota, as in `limit("count/secrets", 1)`, and waits until it is in force.
    pub(crate) async fn limit(&self, what: &str, hard: u32) {
        let quota = json!({"metadata": {"name": unique("quota")}, "spec": {"hard": {what: hard.to_string()}}});
        let quota: ResourceQuota = self.add(quota).await;
        let quotas: Api<ResourceQuota> = self.api();
        eventually(&format!("the quota of {what} in {} to be in force", self.name), async || {
            let quota = quotas.get(&quota.name_any()).await.map_err(|error| error.to_string())?;
            let known = quota.status.and_then(|status| status.used).is_some_and(|used| used.contains_key(what));
            if known {
                Ok(())
            } else {
                Err("no count of what is there (is the controller manager running?)".to_owned())
            }
        })
        .await;
    }

    // ---- Secrets ----

    /// The Secret, where it is there.
    pub(crate) async fn secret(&self, name: &str) -> Option<Secret> {
        let found = self.api::<Secret>().get_opt(name).await;
        found.unwrap_or_else(|error| panic!("cannot read the Secret {}/{name}: {error}", self.name))
    }

    /// The Secret's data.
    ///
    /// # Panics
    /// When there is no such Secret.
    pub(crate) async fn data(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let secret = self.secret(name).await;
        data(&secret.unwrap_or_else(|| panic!("there is no Secret {}/{name}", self.name)))
    }

    /// Waits until the Secret is there.
    pub(crate) async fn wait_for_secret(&self, name: &str) -> Secret {
        eventually(&format!("the Secret {}/{name}", self.name), async || {
            self.secret(name).await.ok_or_else(|| "that it is not there".to_owned())
        })
        .await
    }

    /// Waits until the Secret's data is exactly this; returns the Secret. A message names keys, never values.
    pub(crate) async fn wait_for_data<K, V>(&self, name: &str, want: impl IntoIterator<Item = (K, V)>) -> Secret
    where
        K: AsRef<str>,
        V: AsRef<[u8]>,
    {
        let want: BTreeMap<String, Vec<u8>> =
            want.into_iter().map(|(key, value)| (key.as_ref().to_owned(), value.as_ref().to_vec())).collect();
        eventually(&format!("the data of the Secret {}/{name}", self.name), async || {
            let secret = self.secret(name).await.ok_or_else(|| "that it is not there".to_owned())?;
            match differences(&data(&secret), &want).as_slice() {
                [] => Ok(secret),
                differences => Err(differences.join(", ")),
            }
        })
        .await
    }

    /// Makes a Secret that is not the agent's.
    pub(crate) async fn add_secret(&self, name: &str, data: &[(&str, &str)]) -> Secret {
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        self.add(json!({"metadata": {"name": name}, "type": "Opaque", "stringData": data})).await
    }

    /// Edits a Secret by a JSON merge patch, as somebody with `kubectl edit` does.
    pub(crate) async fn edit_secret(&self, name: &str, patch: Value) -> Secret {
        let edited = self.api::<Secret>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        edited.unwrap_or_else(|error| panic!("cannot edit the Secret {}/{name}: {error}", self.name))
    }

    // ---- Events ----

    /// The Events about a pod, the oldest first.
    pub(crate) async fn events(&self, pod: &Pod) -> Vec<Event> {
        let uid = pod.uid();
        let mut events = self.all_events().await;
        events.retain(|event| event.regarding.as_ref().is_some_and(|regarding| regarding.uid == uid));
        events
    }

    /// All Events of the namespace, the oldest first.
    pub(crate) async fn all_events(&self) -> Vec<Event> {
        let list = self.api::<Event>().list(&ListParams::default()).await;
        let mut events = list.unwrap_or_else(|error| panic!("cannot list the Events in {}: {error}", self.name)).items;
        events.sort_by_key(|event| event.event_time.as_ref().map(|time| time.0));
        events
    }

    /// Waits until the pod has at least so many Events; returns them all.
    pub(crate) async fn wait_for_events(&self, pod: &Pod, wanted: usize) -> Vec<Event> {
        let awaited = format!("{wanted} Events about the pod {}", pod.name_any());
        eventually(&awaited, async || {
            let events = self.events(pod).await;
            if events.len() >= wanted { Ok(events) } else { Err(format!("{}", events.len())) }
        })
        .await
    }

    /// Waits until the pod has an Event with this reason; returns it (the newest, where there are more).
    pub(crate) async fn wait_for_event(&self, pod: &Pod, reason: &str) -> Event {
        eventually(&format!("the Event {reason} on the pod {}/{}", self.name, pod.name_any()), async || {
            let events = self.events(pod).await;
            let others = events.iter().map(told).collect::<Vec<_>>();
            let found = events.into_iter().rfind(|event| event.reason.as_deref() == Some(reason));
            found.ok_or_else(|| format!("{} Events: {}", others.len(), others.join("; ")))
        })
        .await
    }
}

/// An Event's reason and note.
fn told(event: &Event) -> String {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}: {}", text(&event.reason), text(&event.note))
}

/// A Secret's data; none is empty.
pub(crate) fn data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

/// In words, without values.
pub(crate) fn differences(found: &BTreeMap<String, Vec<u8>>, want: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let wanted = want.iter().filter_map(|(key, value)| match found.get(key) {
        None => Some(format!("{key} is missing")),
        Some(other) if other != value => Some(format!("{key} has another value")),
        Some(_) => None,
    });
    let unwanted = found.keys().filter(|key| !want.contains_key(*key)).map(|key| format!("{key} is one too many"));
    wanted.chain(unwanted).collect()
}
