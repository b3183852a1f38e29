//! The stores. One adapter per file behind [`SecretProvider`]; retries, deduplication and logging live outside them.

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "azure")]
mod azure_key_vault;
#[cfg(feature = "aws")]
mod batch;
mod caller;
mod circuit;
mod error;
mod file;
mod http;
mod in_flight;
mod instances;
mod kind;
#[cfg(feature = "aws")]
mod pace;
mod registry;
mod setbacks;
mod slots;
mod throttle;
#[cfg(feature = "vault")]
mod vault;

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use serde::Deserialize;

pub use caller::{ActsAs, Caller, Identity};
pub use error::{FetchError, ProviderError};
pub use in_flight::{FetchKey, Fetched, InFlight};
pub use instances::{InstanceConfig, ProvidersError, read_instances};
pub use kind::{Kind, Reference};
pub use registry::{Asker, Registry, Validated};

use crate::{config::Mode, request::RemoteRef, secret_value::SecretPayload};

/// Reads secrets from one external store. One implementation per file.
#[async_trait]
pub trait SecretProvider: fmt::Debug + Send + Sync {
    /// The instance name that annotations use, e.g. `aws-secretsmanager`.
    fn name(&self) -> &ProviderName;

    /// How large values of the store are at most, or where that is much, usually, in bytes: memory for so much is reserved
    /// before a fetch.
    fn usual_payload_bytes(&self) -> usize;

    /// As whom it asks the store.
    fn acts_as(&self) -> ActsAs {
        ActsAs::Agent
    }

    /// Drops what it has for service accounts of which no pod is left on the node; gives the number of accounts for which it has
    /// something still.
    fn drop_unused(&self) -> usize;

    /// Fetches exactly what `remote` names, as `caller`, which is of the kind that it acts as: no retry, no cache, no log of the
    /// value.
    ///
    /// # Errors
    /// [`ProviderError`], classified; the store's own text only in its source.
    async fn fetch(&self, remote: &RemoteRef, caller: &Caller) -> Result<SecretPayload, ProviderError>;

    /// Whether the store itself says that there is no such secret: of no version, and nowhere from where it could be restored.
    /// Asked by the janitor alone, for which a value is of no use. A store that cannot be trusted with that says nothing.
    ///
    /// # Errors
    /// [`ProviderError`], as of a fetch, and never [`ProviderError::NotFound`].
    async fn presence(&self, _remote: &RemoteRef) -> Result<Presence, ProviderError> {
        Ok(Presence::Unknown)
    }

    /// Gets credentials ready, and connections where that costs the store nothing; gives the store's name for the agent.
    /// Every agent does that at its start. The caller bounds its time.
    ///
    /// # Errors
    /// [`ProviderError`], as of a fetch.
    async fn warm_up(&self) -> Result<String, ProviderError>;

    /// The same, and whether the store itself is reached, for `jasm-agent check`. Reads no secret. `None` where that takes a pod.
    ///
    /// # Errors
    /// [`ProviderError`], as of a fetch.
    async fn validate(&self) -> Result<Option<String>, ProviderError> {
        match self.acts_as() {
            ActsAs::Pod => Ok(None),
            ActsAs::Agent | ActsAs::Named => self.warm_up().await.map(Some),
        }
    }

    /// Keeps credentials from running out while nobody asks; gives the time until it is to be called again, or nothing
    /// where that is not needed.
    async fn keep_ready(&self) -> Option<Duration> {
        None
    }
}

/// What a store says of a secret's existence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is there, whether or not it can be read now.
    There,
    /// There is no such secret.
    Absent,
    /// The store has no word for that.
    Unknown,
}

/// The name of a configured instance: 1 to 63 characters of `[a-z0-9-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ProviderName(String);

impl ProviderName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For tables in tests.
    #[cfg(test)]
    pub fn for_test(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl fmt::Display for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ProviderName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if (1..=63).contains(&name.len()) && name.chars().all(allowed) {
            return Ok(Self(name));
        }
        Err(format!("instance name {name:?} must be 1 to 63 of a-z, 0-9 and `-`"))
    }
}

/// The configured instances by name, for the pure layers, and what annotations may say in this agent's mode.
#[derive(Debug)]
pub struct Catalogue {
    instances: BTreeMap<ProviderName, Kind>,
    mode: Mode,
}

impl Catalogue {
    /// Collects instances; the caller has checked that no name stands twice.
    pub fn new(mode: Mode, instances: impl IntoIterator<Item = (ProviderName, Kind)>) -> Self {
        Self { instances: instances.into_iter().collect(), mode }
    }

    /// The agent's mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The instance of that name.
    pub fn get(&self, name: &str) -> Option<(&ProviderName, Kind)> {
        self.instances.iter().find(|(known, _)| known.as_str() == name).map(|(name, kind)| (name, *kind))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.instances.keys().map(ProviderName::as_str)
    }
}
