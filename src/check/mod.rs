//! `jasm-agent check`: whether the configuration can be used, and for CI, what the policy says to a request or a manifest.

mod answers;
mod instances;
mod manifest;

use std::{fmt::Write as _, io::Read as _, path::Path, sync::Arc};

use self::answers::Answers;
use crate::{
    agent::StartError,
    config::{Check, Config, Mode},
    policy::Policy,
    policy_file::PolicyFile,
    provider::{Catalogue, Registry, read_instances},
};

/// What was found.
#[derive(Debug)]
pub struct Checked {
    /// For the operator.
    pub text: String,
    /// How the program ends.
    pub verdict: Verdict,
}

/// How a check ended whose configuration can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Each instance was reached; or all that was asked for is admitted.
    Good,
    /// An instance was not reached.
    Unreached,
    /// Something that was asked for is denied or malformed.
    Refused,
}

/// A check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The agent would not start either.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A policy or providers file that was named and is not there; an agent would take it for none.
    #[error("{file} was named, and is not there: name a file that is, or none, for what an agent takes then")]
    NotThere {
        /// Which.
        file: String,
    },
    /// A manifest that is not there.
    #[error("--filename {file} cannot be read: a file, or `-` for the standard input, is allowed")]
    Unreadable {
        /// Which.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// Checks what `check` names: requests and manifests, or where it names none, the configuration as a start does, and each
/// instance, without reading a secret.
///
/// # Errors
/// [`CheckError`], where the configuration or a manifest cannot be used.
pub async fn check(config: &Config, check: &Check) -> Result<Checked, CheckError> {
    if let Some(file) = config.named_files.iter().find(|file| !file.exists()) {
        return Err(CheckError::NotThere { file: file.display().to_string() });
    }
    let policy = PolicyFile::load(&config.policy_file, Arc::default(), Arc::default()).map_err(StartError::from)?;
    let policy = policy.current();
    if check.requests.is_empty() && check.manifests.is_empty() {
        return Ok(configuration(config, &policy).await?);
    }
    // By name and kind alone: nothing of what the agent's own environment sets up is needed.
    let instances = read_instances(&config.providers_file).map_err(StartError::from)?;
    let catalogue =
        Catalogue::new(config.mode, instances.iter().map(|instance| (instance.name().clone(), instance.kind())));
    let masters = (config.mode == Mode::Central).then(|| config.masters_namespace.as_str());
    let mut answers = Answers::new(&policy, &catalogue, config.workload_annotations, masters);
    for question in &check.requests {
        answers.ask(question);
    }
    for file in &check.manifests {
        let unreadable = |source| CheckError::Unreadable { file: file.display().to_string(), source };
        answers.ask_manifest(&read(file).map_err(unreadable)?, &check.namespace);
    }
    Ok(answers.finish())
}

async fn configuration(config: &Config, policy: &Policy) -> Result<Checked, StartError> {
    let instances = read_instances(&config.providers_file)?;
    let registry =
        Registry::new(config.mode, instances, Arc::default(), Arc::default()).await.map_err(StartError::Instance)?;
    let mut text = format!("the configuration is valid: policy rules: {}", policy.len());
    for what in registry.left_out() {
        // Writing into a text cannot fail.
        let _ = write!(text, "; not set up: {what}");
    }
    if policy.is_empty() {
        text.push_str("\nwarning: no rule, so that every request is denied");
    } else {
        let _ = write!(text, "\n\n{}", policy.table());
        for warning in policy.warnings(registry.catalogue()) {
            let _ = write!(text, "\nwarning: {warning}");
        }
        text.push('\n');
    }
    let validated = registry.validate().await;
    text.push_str(&instances::table(&validated));
    let reached = validated.iter().all(|one| one.outcome.is_ok());
    Ok(Checked { text, verdict: if reached { Verdict::Good } else { Verdict::Unreached } })
}

fn read(file: &Path) -> std::io::Result<String> {
    if file.as_os_str() != "-" {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}
