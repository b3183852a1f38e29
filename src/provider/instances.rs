//! The operator's `providers.yaml`: which instances there are, and with which settings.

use std::{path::Path, sync::Arc};

use serde::Deserialize;
use serde_yaml::{Mapping, Value};

use super::{
    Kind, ProviderName, SecretProvider,
    aws_secrets_manager::{self, AwsSecretsManager},
};

/// One entry of `providers.yaml`.
#[derive(Debug)]
pub struct InstanceConfig {
    pub(super) name: ProviderName,
    settings: Settings,
    /// One that the operator did not write down: left out where the environment does not set it up.
    pub(super) is_default: bool,
}

#[derive(Debug)]
enum Settings {
    AwsSecretsManager(aws_secrets_manager::Settings),
}

/// A providers file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--providers-file (JASM_PROVIDERS_FILE) {file}: {problem}")]
pub struct ProvidersError {
    file: String,
    problem: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProvidersFile {
    providers: Vec<Mapping>,
}

/// Reads the operator's file; where there is none, the default instances with settings from the SDK's environment.
///
/// # Errors
/// [`ProvidersError`] names the file, the instance and what is wrong with it.
pub fn read_instances(file: &Path) -> Result<Vec<InstanceConfig>, ProvidersError> {
    let fail = |problem: String| ProvidersError { file: file.display().to_string(), problem };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return default_instances().map_err(fail),
        Err(error) => return Err(fail(error.to_string())),
    };
    let parsed: ProvidersFile = serde_yaml::from_str(&text).map_err(|error| fail(error.to_string()))?;
    let mut instances: Vec<InstanceConfig> = Vec::new();
    for entry in parsed.providers {
        let instance = parse_instance(entry).map_err(fail)?;
        if instances.iter().any(|other| other.name == instance.name) {
            return Err(fail(format!("two instances are called {}; give each a name of its own", instance.name)));
        }
        instances.push(instance);
    }
    Ok(instances)
}

fn default_instances() -> Result<Vec<InstanceConfig>, String> {
    Ok(vec![InstanceConfig {
        name: ProviderName::try_from("aws-secretsmanager".to_owned())?,
        settings: Settings::AwsSecretsManager(aws_secrets_manager::Settings::default()),
        is_default: true,
    }])
}

/// Takes `name` and `kind` out, and leaves the rest to the kind's own settings, which know every field they have.
fn parse_instance(mut entry: Mapping) -> Result<InstanceConfig, String> {
    let name = match entry.remove("name") {
        Some(Value::String(name)) => ProviderName::try_from(name)?,
        _ => return Err("an instance has no `name`".to_owned()),
    };
    let kind = entry.remove("kind").ok_or_else(|| format!("instance {name} has no `kind`"))?;
    let at = |error: serde_yaml::Error| format!("instance {name}: {error}");
    let kind: Kind = serde_yaml::from_value(kind).map_err(at)?;
    let settings = match kind {
        Kind::AwsSecretsManager => {
            Settings::AwsSecretsManager(serde_yaml::from_value(Value::Mapping(entry)).map_err(at)?)
        }
    };
    Ok(InstanceConfig { name, settings, is_default: false })
}

impl InstanceConfig {
    /// The instance's name.
    pub fn name(&self) -> &ProviderName {
        &self.name
    }

    pub(super) fn kind(&self) -> Kind {
        match self.settings {
            Settings::AwsSecretsManager(_) => Kind::AwsSecretsManager,
        }
    }

    /// Builds the adapter; makes no request.
    pub(super) async fn build(self) -> Result<Arc<dyn SecretProvider>, String> {
        match self.settings {
            Settings::AwsSecretsManager(settings) => {
                let provider = AwsSecretsManager::new(self.name, settings).await?;
                Ok(Arc::new(provider))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let file = std::env::temp_dir().join(format!("jasm-providers-{}-{:x}", std::process::id(), fastrand::u64(..)));
        std::fs::write(&file, text).expect("a temporary file");
        let got = read_instances(&file);
        std::fs::remove_file(&file).expect("removed");
        got.map(|all| all.iter().map(|instance| instance.name().to_string()).collect()).map_err(|error| error.problem)
    }

    #[test]
    fn several_instances_of_one_kind() {
        let text = "providers:\n- {name: aws-eu, kind: aws-secretsmanager, region: eu-west-1}\n- {name: aws-us, kind: aws-secretsmanager, region: us-east-1, imds: true}\n";
        assert_eq!(read(text), Ok(vec!["aws-eu".to_owned(), "aws-us".to_owned()]));
    }

    #[test]
    fn an_absent_file_gives_the_default_instances() {
        let got = read_instances(Path::new("/nonexistent/providers.yaml")).expect("defaults");
        assert_eq!(got.iter().map(|instance| instance.name().as_str()).collect::<Vec<_>>(), ["aws-secretsmanager"]);
    }

    #[test]
    fn a_wrong_entry_is_named() {
        let cases = [
            ("no name", "providers: [{kind: aws-secretsmanager}]", "has no `name`"),
            ("bad name", "providers: [{name: A_B, kind: aws-secretsmanager}]", "must be 1 to 63"),
            ("no kind", "providers: [{name: a}]", "instance a has no `kind`"),
            ("unknown kind", "providers: [{name: a, kind: gcp}]", "instance a: unknown variant `gcp`"),
            (
                "unknown field",
                "providers: [{name: a, kind: aws-secretsmanager, regoin: x}]",
                "instance a: unknown field `regoin`",
            ),
            (
                "same name",
                "providers: [{name: a, kind: aws-secretsmanager}, {name: a, kind: aws-secretsmanager}]",
                "two instances are called a",
            ),
            ("no list", "provider: []", "unknown field `provider`"),
        ];
        for (case, text, want) in cases {
            let got = read(text).expect_err(case);
            assert!(got.contains(want), "case: {case}: {got}");
        }
    }
}
