//! The kinds of store that this agent has an adapter for, and what each says of itself. The list is here, and nowhere else.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

#[cfg(feature = "aws")]
use super::aws;
#[cfg(feature = "azure")]
use super::azure_key_vault;
#[cfg(feature = "vault")]
use super::vault;
use super::{ProviderName, SecretProvider, file, http::Http};
use crate::request::MAX_PATH_BYTES;

/// All kinds. A new store is one line here, and one file.
static KINDS: &[Store] = &[
    #[cfg(feature = "aws")]
    aws::secrets_manager::STORE,
    #[cfg(feature = "aws")]
    aws::parameter_store::STORE,
    #[cfg(feature = "vault")]
    vault::STORE,
    #[cfg(feature = "azure")]
    azure_key_vault::STORE,
    file::STORE,
];

/// What an adapter says of its kind of store.
#[derive(Debug)]
pub(super) struct Store {
    /// As it stands in `kind`.
    pub(super) kind: &'static str,
    /// How the names of masters begin, before a hyphen.
    pub(super) prefix: &'static str,
    /// As it stands in labels.
    pub(super) source_kind: &'static str,
    /// Whether the store itself calls some of its values no secrets.
    pub(super) may_be_plain: bool,
    /// The environment alone may set one up, without an entry in the operator's file.
    pub(super) by_default: bool,
    /// Requests under way at a time, where the operator says nothing.
    pub(super) concurrency: usize,
    /// How many fetches may go out as one request.
    pub(super) together: usize,
    /// What a path says beside the path itself: [`Reference::whole`] where that is nothing. The error follows "field `path` ".
    pub(super) reference: fn(&str) -> Result<Reference, String>,
    /// Checks a path against the store's grammar, so that policy sees exactly the string that is sent; gives it in the
    /// one form that is used from then on. The error follows "field `path` ".
    pub(super) check_path: fn(&str) -> Result<String, String>,
    /// Checks a version of a path in the store's own terms. The error follows "field `version` ".
    pub(super) check_version: fn(path: &str, version: &str) -> Result<(), String>,
    /// Reads the kind's own settings of an entry: [`settings`] of the adapter's type.
    pub(super) settings: fn(Value) -> Result<Box<dyn Settings>, serde_yaml::Error>,
}

/// The settings of one instance, from which its adapter is built.
#[async_trait]
pub(super) trait Settings: fmt::Debug + Send + Sync {
    /// Builds the adapter; makes no request.
    async fn build(self: Box<Self>, common: Common) -> Result<Arc<dyn SecretProvider>, BuildError>;
}

/// What an instance of whatever kind is built with.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) name: ProviderName,
    /// Whether the operator allows an address without TLS.
    pub(super) allow_insecure: bool,
    /// Requests under way at a time.
    pub(super) concurrency: usize,
    /// As each pod's own service account.
    pub(super) by_pod: bool,
    /// The client that the instances share.
    pub(super) http: Http,
}

/// Why an adapter cannot be built.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    /// Neither the file nor the environment says enough: one that nobody wrote down is left out then.
    #[error("{0}")]
    NotSetUp(String),
    /// Something that is said cannot be used.
    #[error("{0}")]
    Invalid(String),
}

impl From<String> for BuildError {
    fn from(problem: String) -> Self {
        Self::Invalid(problem)
    }
}

/// For [`Store::settings`].
pub(super) fn settings<S: Settings + DeserializeOwned + 'static>(
    entry: Value,
) -> Result<Box<dyn Settings>, serde_yaml::Error> {
    Ok(Box::new(serde_yaml::from_value::<S>(entry)?))
}

/// A path taken apart: some stores have a way to write key and version into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The path itself.
    pub path: String,
    /// The one key that is meant.
    pub key: Option<String>,
    /// The version.
    pub version: Option<String>,
}

impl Reference {
    /// A path that is nothing but a path.
    pub(super) fn whole(path: &str) -> Result<Self, String> {
        Ok(Self { path: path.to_owned(), key: None, version: None })
    }
}

/// A kind of store.
#[derive(Clone, Copy)]
pub struct Kind(&'static Store);

impl Kind {
    /// The kind of that name.
    ///
    /// # Errors
    /// The names of all kinds in this build.
    pub fn of(name: &str) -> Result<Self, Vec<&'static str>> {
        KINDS.iter().find(|store| store.kind == name).map(Self).ok_or_else(|| Self::names().collect())
    }

    fn names() -> impl Iterator<Item = &'static str> {
        KINDS.iter().map(|store| store.kind)
    }

    /// The kinds of which the environment alone may set up an instance, called like its kind.
    pub(super) fn defaults() -> impl Iterator<Item = Self> {
        KINDS.iter().filter(|store| store.by_default).map(Self)
    }

    /// As it stands in the operator's file.
    pub fn as_str(self) -> &'static str {
        self.0.kind
    }

    /// How the names of masters begin, before a hyphen.
    pub fn prefix(self) -> &'static str {
        self.0.prefix
    }

    /// As it stands in the labels of masters and replicas.
    pub fn source_kind(self) -> &'static str {
        self.0.source_kind
    }

    /// Whether the store itself calls some of its values no secrets.
    pub fn may_be_plain(self) -> bool {
        self.0.may_be_plain
    }

    pub(super) fn concurrency(self) -> usize {
        self.0.concurrency
    }

    pub(super) fn together(self) -> usize {
        self.0.together
    }

    pub(super) fn settings(self, entry: Value) -> Result<Box<dyn Settings>, serde_yaml::Error> {
        (self.0.settings)(entry)
    }

    /// Takes apart what a path says beside the path itself.
    ///
    /// # Errors
    /// What is wrong with it, to follow "field `path` ".
    pub fn reference(self, path: &str) -> Result<Reference, String> {
        (self.0.reference)(path)
    }

    /// Checks a path against the store's grammar, and gives it in the one form that policy sees and the store gets.
    ///
    /// # Errors
    /// What is wrong with it, to follow "field `path` ".
    pub fn check_path(self, path: &str) -> Result<String, String> {
        (self.0.check_path)(path)
    }

    /// Checks a version of a path in the store's own terms.
    ///
    /// # Errors
    /// What is wrong with it, to follow "field `version` ".
    pub fn check_version(self, path: &str, version: &str) -> Result<(), String> {
        (self.0.check_version)(path, version)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(all(test, feature = "aws"))]
impl Kind {
    /// For tables in tests.
    pub fn for_test() -> Self {
        Self(&aws::secrets_manager::STORE)
    }

    /// The same for Parameter Store.
    pub fn parameters_for_test() -> Self {
        Self(&aws::parameter_store::STORE)
    }
}

/// Whether a path has a length that is sent to a store.
pub(super) fn check_length(path: &str) -> Result<(), String> {
    match path.is_empty() || path.len() > MAX_PATH_BYTES {
        true => Err(format!("must have 1 to {MAX_PATH_BYTES} characters")),
        false => Ok(()),
    }
}

/// Whether a text has nothing but ASCII letters, digits and `more`; `what` is what it is.
pub(super) fn check_characters(text: &str, what: &str, more: &str) -> Result<(), String> {
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !more.contains(*c)) {
        Some(bad) => Err(format!("has the character {}; {what} has letters, digits and {more}", bad.escape_unicode())),
        None => Ok(()),
    }
}

/// The segments of a path, between slashes: each has something in it, and none is `.` or `..`.
pub(super) fn check_segments(path: &str) -> Result<(), String> {
    match path.split('/').any(|segment| segment.is_empty() || segment == "." || segment == "..") {
        true => Err("has an empty segment, `.` or `..` between its slashes".to_owned()),
        false => Ok(()),
    }
}
