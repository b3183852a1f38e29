//! The policy as it lies on disk: read at start, and again whenever it changes.
//!
//! The kubelet delivers a changed ConfigMap by swapping a symbolic link, up to 90 s after the change. The files are
//! small, so they are read once a second and compared by digest; there is nothing that could miss a change.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::{
    changes::Changes,
    error::chain,
    metrics::Metrics,
    policy::{Policy, PolicyError},
};

const PERIOD: Duration = Duration::from_secs(1);

/// The policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// It cannot be read.
    #[error("--policy-file (JASM_POLICY_FILE) {path} cannot be read: a file, or a folder of files, is allowed")]
    Unreadable {
        /// What was to be read.
        path: String,
        /// Why it could not be.
        source: io::Error,
    },
    /// It is not a policy.
    #[error("--policy-file (JASM_POLICY_FILE) cannot be used")]
    Invalid(#[from] PolicyError),
}

/// What lay on disk, and the digest that the metric shows.
struct Snapshot {
    files: Vec<(String, String)>,
    sha256: String,
}

/// Of all files together, and each one's name and length: a rule that moves from one file to the next is a change, too.
type Fingerprint = (String, Vec<(String, usize)>);

impl Snapshot {
    fn fingerprint(&self) -> Fingerprint {
        (self.sha256.clone(), self.files.iter().map(|(name, text)| (name.clone(), text.len())).collect())
    }
}

/// The policy in force.
#[derive(Debug)]
pub struct PolicyFile {
    path: PathBuf,
    current: RwLock<Arc<Policy>>,
    /// What was read last, good or broken, so that each content is judged once; `None` where it could not be read.
    seen: Mutex<Option<Fingerprint>>,
    metrics: Arc<Metrics>,
    changes: Arc<Changes>,
}

impl PolicyFile {
    /// Reads the policy: a file, or all files of a folder that do not begin with a dot, in the order of their names.
    /// Where there is none, everything is denied until there is.
    ///
    /// # Errors
    /// [`PolicyFileError`] where it is there and cannot be used.
    pub fn load(path: &Path, metrics: Arc<Metrics>, changes: Arc<Changes>) -> Result<Self, PolicyFileError> {
        let snapshot = read(path)?;
        let policy = parse(&snapshot)?;
        metrics.policy(&snapshot.sha256);
        metrics.policy_reload(true);
        log_policy(path, &policy, &snapshot);
        Ok(Self {
            path: path.to_owned(),
            current: RwLock::new(Arc::new(policy)),
            seen: Mutex::new(Some(snapshot.fingerprint())),
            metrics,
            changes,
        })
    }

    /// The policy in force.
    pub fn current(&self) -> Arc<Policy> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over every change, until dropped. What is broken is logged once, and the last good policy stays in force.
    pub async fn watch(&self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            self.reload();
        }
    }

    fn reload(&self) {
        let read = read(&self.path);
        if !self.is_news(read.as_ref().ok().map(Snapshot::fingerprint)) {
            return;
        }
        match read.and_then(|snapshot| Ok((parse(&snapshot)?, snapshot))) {
            Ok((policy, snapshot)) => {
                log_policy(&self.path, &policy, &snapshot);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
                self.metrics.policy(&snapshot.sha256);
                self.metrics.policy_reload(true);
                self.changes.announce();
            }
            Err(error) => {
                self.metrics.policy_reload(false);
                tracing::error!(error = %chain(&error), "the changed policy cannot be used; the last good one stays in force");
            }
        }
    }

    fn is_news(&self, read: Option<Fingerprint>) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *seen, read.clone()) != read
    }
}

fn parse(snapshot: &Snapshot) -> Result<Policy, PolicyFileError> {
    let files = snapshot.files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    Ok(Policy::parse(files)?)
}

fn log_policy(path: &Path, policy: &Policy, snapshot: &Snapshot) {
    let (rules, files) = (policy.len(), snapshot.files.len());
    tracing::info!(path = %path.display(), files, rules, sha256 = %snapshot.sha256, "policy in force");
    if policy.is_empty() {
        tracing::warn!(path = %path.display(), "the policy has no rule: every request is denied");
    }
}

/// The digest is that of the text (as `sha256sum` gives it); of several files, that of their texts one after another.
fn read(path: &Path) -> Result<Snapshot, PolicyFileError> {
    let files =
        read_files(path).map_err(|source| PolicyFileError::Unreadable { path: path.display().to_string(), source })?;
    let mut hasher = Sha256::new();
    for (_, text) in &files {
        hasher.update(text);
    }
    let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Snapshot { files, sha256 })
}

fn read_files(path: &Path) -> io::Result<Vec<(String, String)>> {
    let file = |path: &Path| fs::read_to_string(path).map(|text| (path.display().to_string(), text));
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(meta) if !meta.is_dir() => Ok(vec![file(path)?]),
        Ok(_) => {
            let mut paths: Vec<PathBuf> =
                fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
            // Names with a dot in front are the kubelet's own (`..data`), or an editor's.
            paths.retain(|path| {
                path.is_file() && !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
            });
            paths.sort();
            paths.iter().map(|path| file(path)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "rules: [{namespaces: [a], serviceAccounts: ['*'], providers: [p], paths: ['**']}]\n";

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("jasm-policy-{}-{:x}", std::process::id(), fastrand::u64(..)));
            fs::create_dir(&path).expect("a folder");
            Self(path)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).expect("a file");
        }

        fn load(&self, name: &str) -> Result<PolicyFile, PolicyFileError> {
            PolicyFile::load(&self.0.join(name), Arc::default(), Arc::default())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn absent_denies_all_until_it_appears() {
        let folder = Folder::new();
        let policy = folder.load("policy.yaml").expect("absent is allowed");
        assert!(policy.current().is_empty());
        folder.write("policy.yaml", RULE);
        policy.reload();
        assert_eq!((policy.current().len(), policy.changes.count()), (1, 1));
        policy.reload();
        assert_eq!(policy.changes.count(), 1, "the same content is no change");
    }

    #[test]
    fn broken_keeps_the_last_good_policy_and_shows_in_the_metrics() {
        let folder = Folder::new();
        folder.write("policy.yaml", RULE);
        let policy = folder.load("policy.yaml").expect("good");
        folder.write("policy.yaml", "rules: [{namespaces: [a]}]");
        policy.reload();
        assert_eq!((policy.current().len(), policy.changes.count()), (1, 0));
        assert!(policy.metrics.render().contains("jasm_policy_last_reload_successful 0"));
        folder.write("policy.yaml", RULE);
        policy.reload();
        assert!(policy.metrics.render().contains("jasm_policy_last_reload_successful 1"));
    }

    #[test]
    fn broken_at_the_start_is_an_error_that_names_the_file() {
        let folder = Folder::new();
        folder.write("policy.yaml", "rules: 3");
        let error = chain(&folder.load("policy.yaml").expect_err("broken"));
        assert!(error.contains("JASM_POLICY_FILE") && error.contains("policy.yaml is not a policy"), "{error}");
    }

    #[test]
    fn a_folder_is_all_its_files_but_the_hidden_ones() {
        let folder = Folder::new();
        folder.write("a.yaml", RULE);
        folder.write("b.yaml", RULE);
        folder.write(".hidden", "rules: 3");
        assert_eq!(folder.load("").expect("good").current().len(), 2);
    }

    #[test]
    fn a_rule_that_moves_to_another_file_is_a_change() {
        let folder = Folder::new();
        // One file that says `rules` twice is broken, and the same text in two files is not.
        folder.write("a.yaml", &format!("{RULE}{RULE}"));
        folder.write("b.yaml", "");
        assert!(folder.load("").is_err());
        folder.write("a.yaml", RULE);
        let policy = folder.load("").expect("good");
        folder.write("a.yaml", &format!("{RULE}{RULE}"));
        policy.reload();
        assert!(policy.metrics.render().contains("jasm_policy_last_reload_successful 0"));
        folder.write("a.yaml", RULE);
        folder.write("b.yaml", RULE);
        policy.reload();
        assert!(policy.metrics.render().contains("jasm_policy_last_reload_successful 1"));
        assert_eq!(policy.current().len(), 2);
        fs::rename(folder.0.join("b.yaml"), folder.0.join("c.yaml")).expect("renamed");
        policy.reload();
        assert_eq!(policy.changes.count(), 2, "rules are named after their files");
    }

    #[test]
    fn a_policy_that_cannot_be_read_for_a_while_stays_in_force() {
        let folder = Folder::new();
        folder.write("policy.yaml", RULE);
        let policy = folder.load("policy.yaml").expect("good");
        fs::write(folder.0.join("policy.yaml"), b"\xff\xfe").expect("no text");
        policy.reload();
        assert_eq!(policy.current().len(), 1);
        assert!(policy.metrics.render().contains("jasm_policy_last_reload_successful 0"));
        folder.write("policy.yaml", RULE);
        policy.reload();
        assert!(policy.metrics.render().contains("jasm_policy_last_reload_successful 1"), "also the same as before");
    }

    #[test]
    fn a_swapped_link_is_a_change() {
        let folder = Folder::new();
        for (data, text) in [("..1", "rules: []"), ("..2", RULE)] {
            fs::create_dir(folder.0.join(data)).expect("a folder");
            folder.write(&format!("{data}/policy.yaml"), text);
        }
        let link = |to: &str| {
            std::os::unix::fs::symlink(to, folder.0.join("..new")).expect("a link");
            fs::rename(folder.0.join("..new"), folder.0.join("..data")).expect("swapped");
        };
        link("..1");
        std::os::unix::fs::symlink("..data/policy.yaml", folder.0.join("policy.yaml")).expect("a link");
        let (file, all) = (folder.load("policy.yaml").expect("good"), folder.load("").expect("good"));
        link("..2");
        for policy in [file, all] {
            assert!(policy.current().is_empty());
            policy.reload();
            assert_eq!(policy.current().len(), 1, "as the kubelet delivers a changed ConfigMap");
        }
    }

    #[test]
    fn the_metric_shows_what_sha256sum_would() {
        let folder = Folder::new();
        folder.write("policy.yaml", "rules: []\n");
        let policy = folder.load("policy.yaml").expect("good");
        let text = policy.metrics.render();
        let sha256sum = "e0dfa70eb69d47fe9cb2be8a4fcd53e74cf7fe26fcbb1f06912b57a9c028e4e0";
        assert!(text.contains(&format!("jasm_policy_info{{sha256=\"{sha256sum}\"}} 1")), "{text}");
    }
}
