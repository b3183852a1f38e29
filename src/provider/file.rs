//! A folder of files: for development, and for clusters that reach no store.
//!
//! A path is a file's name in the folder. Links are followed as long as they stay in it, as those of a mounted ConfigMap
//! or Secret do: who may write into the folder decides what a path gives. No rights but the file system's.

use std::{
    io::{ErrorKind, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use serde::Deserialize;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::{
    Caller, ProviderError, ProviderName, SecretProvider,
    kind::{self, BuildError, Common, Reference, Store, check_characters, check_length, check_segments},
};
use crate::{mapping::MAX_SECRET_BYTES, request::RemoteRef, secret_value::SecretPayload};

/// A file may be as large as a Secret, and few are.
const USUAL_VALUE_BYTES: usize = 64 * 1024;

pub(super) const STORE: Store = Store {
    kind: "file",
    prefix: "file",
    source_kind: "file",
    may_be_plain: false,
    by_default: false,
    concurrency: 8,
    together: 1,
    reference: Reference::whole,
    check_path,
    check_version: |_, _| Err("cannot be chosen: a file has none".to_owned()),
    settings: kind::settings::<Settings>,
};

/// What the operator's file may say of an instance of this kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Settings {
    /// The folder, as an absolute path.
    directory: PathBuf,
}

#[async_trait]
impl kind::Settings for Settings {
    async fn build(self: Box<Self>, common: Common) -> Result<Arc<dyn SecretProvider>, BuildError> {
        if !self.directory.is_absolute() {
            return Err(BuildError::Invalid("`directory` must be an absolute path".to_owned()));
        }
        let threads = Arc::new(Semaphore::new(common.concurrency));
        Ok(Arc::new(Folder { name: common.name, directory: self.directory, threads }))
    }
}

/// One folder.
#[derive(Debug)]
struct Folder {
    name: ProviderName,
    directory: PathBuf,
    threads: Arc<Semaphore>,
}

#[async_trait]
impl SecretProvider for Folder {
    fn name(&self) -> &ProviderName {
        &self.name
    }

    fn usual_payload_bytes(&self) -> usize {
        USUAL_VALUE_BYTES
    }

    fn drop_unused(&self) -> usize {
        0
    }

    async fn fetch(&self, remote: &RemoteRef, _: &Caller) -> Result<SecretPayload, ProviderError> {
        let (directory, path) = (self.directory.clone(), remote.path.clone());
        // A file system can hang: then this many threads hang with it, and no more.
        let slot = Arc::clone(&self.threads).acquire_owned().await;
        let read = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            read(&directory, &path)
        });
        let read = read.await.unwrap_or_else(|error| Err(Failed::Io(std::io::Error::other(error))));
        read.map_err(|failed| self.explain(remote, failed))
    }

    async fn warm_up(&self) -> Result<String, ProviderError> {
        match tokio::fs::read_dir(&self.directory).await {
            Ok(_) => Ok(format!("files under {}", self.directory.display())),
            Err(error) => Err(ProviderError::Unavailable { provider: self.name.clone(), source: error.into() }),
        }
    }
}

enum Failed {
    NoFolder(std::io::Error),
    Io(std::io::Error),
    Outside,
    NoFile,
    TooLarge,
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

fn read(directory: &Path, path: &str) -> Result<SecretPayload, Failed> {
    let directory = directory.canonicalize().map_err(Failed::NoFolder)?;
    let file = directory.join(path).canonicalize()?;
    if !file.starts_with(&directory) {
        return Err(Failed::Outside);
    }
    // Looked at before it is opened: opening a pipe would wait for a writer.
    if !file.metadata()?.is_file() {
        return Err(Failed::NoFile);
    }
    let open = std::fs::File::open(file)?;
    let metadata = open.metadata()?;
    let changed = metadata.modified()?;
    // Room for all of it, so that no copy stays behind where it would have to grow.
    let room = usize::try_from(metadata.len()).unwrap_or(MAX_SECRET_BYTES).min(MAX_SECRET_BYTES) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    open.take(MAX_SECRET_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_SECRET_BYTES {
        return Err(Failed::TooLarge);
    }
    let version = jiff::Timestamp::try_from(changed).map_or_else(|_| String::new(), |time| time.to_string());
    let payload = match std::str::from_utf8(&bytes) {
        Ok(_) => SecretPayload::new,
        Err(_) => SecretPayload::whole,
    };
    Ok(payload(std::mem::take(&mut bytes), version))
}

impl Folder {
    fn explain(&self, remote: &RemoteRef, failed: Failed) -> ProviderError {
        let (provider, path) = (self.name.clone(), remote.path.clone());
        let invalid = |problem| ProviderError::Invalid {
            provider: self.name.clone(),
            path: remote.path.clone(),
            problem,
            source: None,
        };
        match failed {
            Failed::Io(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                ProviderError::NotFound { provider, path }
            }
            Failed::Io(error) if error.kind() == ErrorKind::PermissionDenied => ProviderError::AccessDenied {
                provider,
                path,
                action: "read access to the file".into(),
                identity: "the agent's user".to_owned(),
                source: error.into(),
            },
            Failed::NoFolder(error) | Failed::Io(error) => {
                ProviderError::Unavailable { provider, source: error.into() }
            }
            Failed::Outside => invalid("it is a link to outside the folder"),
            Failed::NoFile => invalid("it is no file"),
            Failed::TooLarge => invalid("the file is larger than a Secret can be"),
        }
    }
}

/// Names of files below the folder: letters, digits and `-._/`, none beginning with `..`, which a mounted volume uses for
/// itself.
fn check_path(path: &str) -> Result<String, String> {
    check_length(path)?;
    check_characters(path, "a file's name here", "-._/")?;
    check_segments(path)?;
    match path.split('/').any(|segment| segment.starts_with("..")) {
        true => Err("has a name that begins with `..`".to_owned()),
        false => Ok(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_folder() {
        for good in ["a", "team-a/db.json", "a/b/c", ".hidden"] {
            assert_eq!(check_path(good), Ok(good.to_owned()), "{good}");
        }
        for bad in ["", "/etc/passwd", "a//b", "a/", "../a", "a/../b", "..data/a", "a b", "a\0", "ä", "a*"] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }
}
