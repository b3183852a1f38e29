//! The stores. One adapter per file behind [`SecretProvider`]; retries, deduplication and logging live outside them.

mod aws_secrets_manager;
mod circuit;
mod credentials;
mod error;
mod in_flight;
mod instances;
mod registry;
mod setbacks;
mod slots;

use std::{collections::BTreeMap, fmt};

use async_trait::async_trait;
use serde::Deserialize;

pub use error::{FetchError, ProviderError};
pub use in_flight::{FetchKey, Fetched, InFlight};
pub use instances::{InstanceConfig, ProvidersError, read_instances};
pub use registry::{Asker, Registry};

use crate::{request::RemoteRef, secret_value::SecretPayload};

/// Reads secrets from one external store. One implementation per file.
#[async_trait]
pub trait SecretProvider: fmt::Debug + Send + Sync {
    /// The instance name that annotations use, e.g. `aws-secretsmanager`.
    fn name(&self) -> &ProviderName;

    /// The largest value that the store can hold, in bytes; memory for it is reserved before a fetch.
    fn max_payload_bytes(&self) -> usize;

    /// Fetches exactly what `remote` names, as `identity`: no retry, no cache, no log of the value.
    ///
    /// # Errors
    /// [`ProviderError`], classified; the store's own text only in its source.
    async fn fetch(&self, remote: &RemoteRef, identity: &Identity) -> Result<SecretPayload, ProviderError>;

    /// Gets credentials and connections ready, best effort; the caller bounds its time and ignores the outcome.
    async fn warm_up(&self) {}
}

/// As whom a store is asked. Part of every fetch's key, so that no value crosses identities.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The agent's own identity at the store.
    Agent,
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

/// The kinds of store that this agent has an adapter for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// AWS Secrets Manager.
    #[serde(rename = "aws-secretsmanager")]
    AwsSecretsManager,
}

impl Kind {
    /// Checks a path against the store's grammar, so that policy sees exactly the string that is sent.
    ///
    /// # Errors
    /// What is wrong with it, to follow "field `path` ".
    pub fn check_path(self, path: &str) -> Result<(), String> {
        match self {
            Self::AwsSecretsManager => aws_secrets_manager::check_path(path),
        }
    }

    /// Checks a version in the store's own terms.
    ///
    /// # Errors
    /// What is wrong with it, to follow "field `version` ".
    pub fn check_version(self, version: &str) -> Result<(), String> {
        match self {
            Self::AwsSecretsManager => aws_secrets_manager::check_version(version),
        }
    }
}

/// The configured instances by name, for the pure layers.
#[derive(Debug, Default)]
pub struct Catalogue(BTreeMap<ProviderName, Kind>);

impl Catalogue {
    /// Collects instances; the caller has checked that no name stands twice.
    pub fn new(instances: impl IntoIterator<Item = (ProviderName, Kind)>) -> Self {
        Self(instances.into_iter().collect())
    }

    /// The instance of that name.
    pub fn get(&self, name: &str) -> Option<(&ProviderName, Kind)> {
        self.0.iter().find(|(known, _)| known.as_str() == name).map(|(name, kind)| (name, *kind))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(ProviderName::as_str)
    }
}
