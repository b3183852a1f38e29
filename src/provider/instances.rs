//! The operator's `providers.yaml`: which instances there are, and with which settings.

use std::{path::Path, sync::Arc};

use serde::Deserialize;
use serde_yaml::{Mapping, Value};

use super::{
    ActsAs, ProviderName, SecretProvider,
    http::Http,
    kind::{BuildError, Common, Kind, Settings},
};
use crate::annotations::did_you_mean;

const MAX_CONCURRENCY: usize = 256;

/// One entry of `providers.yaml`.
#[derive(Debug)]
pub struct InstanceConfig {
    name: ProviderName,
    kind: Kind,
    settings: Box<dyn Settings>,
    allow_insecure: bool,
    concurrency: usize,
    identity: By,
    /// One that the operator did not write down: left out where the environment does not set it up.
    is_default: bool,
}

/// An adapter, and how many requests it may have under way.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) adapter: Arc<dyn SecretProvider>,
    pub(super) concurrency: usize,
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

/// What an entry of whatever kind may say beside its kind's own settings.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CommonSettings {
    #[serde(default)]
    allow_insecure: bool,
    concurrency: Option<usize>,
    #[serde(default)]
    identity: By,
}

/// As whom the store is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    #[default]
    Agent,
    Pod,
}

/// Reads the operator's file; where there is none, the default instances with settings from the SDK's environment.
///
/// # Errors
/// [`ProvidersError`] names the file, the instance and what is wrong with it, with the line where it can be found.
pub fn read_instances(file: &Path) -> Result<Vec<InstanceConfig>, ProvidersError> {
    let fail = |problem: String| ProvidersError { file: file.display().to_string(), problem };
    match std::fs::read_to_string(file) {
        Ok(text) => parse(&text).map_err(fail),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => default_instances().map_err(fail),
        Err(error) => Err(fail(error.to_string())),
    }
}

fn parse(text: &str) -> Result<Vec<InstanceConfig>, String> {
    let parsed: ProvidersFile = serde_yaml::from_str(text).map_err(|error| with_near_miss(&error.to_string()))?;
    let mut instances: Vec<InstanceConfig> = Vec::new();
    for (number, entry) in parsed.providers.into_iter().enumerate() {
        let instance = parse_instance(entry, number + 1, text)?;
        if instances.iter().any(|other| other.name == instance.name) {
            return Err(format!("two instances are called {}; give each a name of its own", instance.name));
        }
        instances.push(instance);
    }
    Ok(instances)
}

fn default_instances() -> Result<Vec<InstanceConfig>, String> {
    let all = Kind::defaults().map(|kind| {
        Ok(InstanceConfig {
            name: ProviderName::try_from(kind.as_str().to_owned())?,
            kind,
            settings: kind.settings(Value::Mapping(Mapping::new())).map_err(|error| error.to_string())?,
            allow_insecure: false,
            concurrency: kind.concurrency(),
            identity: By::Agent,
            is_default: true,
        })
    });
    all.collect()
}

/// Takes out what is common to all kinds, and leaves the rest to the kind's own settings, which know every field they
/// have.
fn parse_instance(mut entry: Mapping, number: usize, text: &str) -> Result<InstanceConfig, String> {
    let name = match entry.remove("name") {
        Some(Value::String(name)) => ProviderName::try_from(name)?,
        _ => return Err(format!("instance {number} has no `name`")),
    };
    let at = |problem: String| format!("instance {name}{}: {}", place(text, &name, &problem), with_near_miss(&problem));
    let kind = match entry.remove("kind") {
        Some(Value::String(kind)) => kind_of(&kind).map_err(at)?,
        _ => return Err(at("has no `kind`".to_owned())),
    };
    let mut common = Mapping::new();
    for field in ["allowInsecure", "concurrency", "identity"] {
        if let Some(value) = entry.remove(field) {
            common.insert(field.into(), value);
        }
    }
    let read = |error: serde_yaml::Error| at(error.to_string());
    let common: CommonSettings = serde_yaml::from_value(Value::Mapping(common)).map_err(read)?;
    let concurrency = common.concurrency.unwrap_or(kind.concurrency());
    if !(1..=MAX_CONCURRENCY).contains(&concurrency) {
        return Err(at(format!("`concurrency` must be 1 to {MAX_CONCURRENCY}")));
    }
    let settings = kind.settings(Value::Mapping(entry)).map_err(read)?;
    let CommonSettings { allow_insecure, identity, .. } = common;
    Ok(InstanceConfig { name, kind, settings, allow_insecure, concurrency, identity, is_default: false })
}

fn kind_of(written: &str) -> Result<Kind, String> {
    Kind::of(written).map_err(|known| {
        let near = did_you_mean(written, known.iter().copied());
        format!("unknown kind {written:?}{near}; this build has {}", known.join(", "))
    })
}

/// Where in the file the field stands that an error names; else the instance's name. The parser of a kind's settings
/// does not know lines any more.
fn place(text: &str, name: &ProviderName, problem: &str) -> String {
    let holds = |line: &str, word: &str| {
        let mut words = line.split(|c: char| !(c.is_alphanumeric() || "-_".contains(c)));
        words.any(|found| found == word)
    };
    let Some(start) = text.lines().position(|line| holds(line, "name") && holds(line, name.as_str())) else {
        return String::new();
    };
    // The name may stand in the middle of its entry, and the field before it: then the line is that of the name.
    let field = problem.split('`').nth(1).unwrap_or_default();
    let found = text.lines().skip(start).position(|line| !field.is_empty() && holds(line, field));
    format!(" (line {})", start + found.unwrap_or(0) + 1)
}

/// Adds what was meant, where the text says what a field could have been.
fn with_near_miss(problem: &str) -> String {
    let words: Vec<&str> = problem.split('`').skip(1).step_by(2).collect();
    match (problem.contains("unknown field"), words.split_first()) {
        (true, Some((written, known))) => format!("{problem}{}", did_you_mean(written, known.iter().copied())),
        _ => problem.to_owned(),
    }
}

impl InstanceConfig {
    /// The instance's name.
    pub fn name(&self) -> &ProviderName {
        &self.name
    }

    /// Its kind of store.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn is_default(&self) -> bool {
        self.is_default
    }

    /// Builds the adapter; makes no request.
    pub(super) async fn build(self, http: &Http) -> Result<Built, BuildError> {
        let Self { name, kind, settings, allow_insecure, concurrency, identity, .. } = self;
        if allow_insecure {
            let risk = "values and credentials may be sent without TLS (allowInsecure)";
            tracing::warn!(provider = %name, risk, "not for production");
        }
        let by_pod = identity == By::Pod;
        let common = Common { name, allow_insecure, concurrency, by_pod, http: http.clone() };
        let adapter = settings.build(common).await?;
        if by_pod && adapter.acts_as() != ActsAs::Pod {
            return Err(BuildError::Invalid(format!("`identity: pod` is not for kind {}", kind.as_str())));
        }
        Ok(Built { adapter, concurrency })
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
        assert_eq!(
            got.iter().map(|instance| instance.name().as_str()).collect::<Vec<_>>(),
            ["aws-secretsmanager", "aws-ssm"]
        );
    }

    #[test]
    fn a_wrong_entry_is_named() {
        let cases = [
            ("no name", "providers: [{kind: aws-secretsmanager}]", "has no `name`"),
            ("bad name", "providers: [{name: A_B, kind: aws-secretsmanager}]", "must be 1 to 63"),
            ("no kind", "providers: [{name: a}]", "instance a (line 1): has no `kind`"),
            (
                "unknown kind",
                "providers: [{name: a, kind: gcp}]",
                "instance a (line 1): unknown kind \"gcp\"; this build has",
            ),
            ("near kind", "providers: [{name: a, kind: aws-smm}]", "did you mean `aws-ssm`?"),
            (
                "unknown field",
                "providers:\n- name: b\n  kind: aws-ssm\n- name: a\n  kind: aws-secretsmanager\n  regoin: x",
                "instance a (line 6): unknown field `regoin`",
            ),
            ("near field", "providers: [{name: a, kind: aws-secretsmanager, regoin: x}]", "did you mean `region`?"),
            ("concurrency", "providers: [{name: a, kind: aws-ssm, concurrency: 0}]", "must be 1 to 256"),
            (
                "wrong type",
                "providers: [{name: a, kind: aws-ssm, allowInsecure: 1}]",
                "instance a (line 1): invalid type: integer `1`, expected a boolean",
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
