//! `RawRequest` -> `SecretRequest`: every value checked once, into a type. Pure.

use std::fmt;

use crate::{
    annotations::{self, AnnotationError, RawRequest, did_you_mean, invalid, quoted},
    names::{MAX_NAME_BYTES, is_dns_subdomain},
    provider::{Catalogue, ProviderName},
};

/// The longest path, name or ARN that is sent to a store, in bytes (Secrets Manager's own limit for names).
pub const MAX_PATH_BYTES: usize = 512;

/// What a pod asks for: one external secret, and the Kubernetes Secret to put it in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretRequest {
    /// What to fetch.
    pub remote: RemoteRef,
    /// Where to put it (in the pod's own namespace).
    pub secret_name: SecretName,
}

/// One version of one secret in one store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RemoteRef {
    /// The instance that is asked.
    pub provider: ProviderName,
    /// Exactly the string that policy sees and the store gets.
    pub path: String,
    /// The store's own term for a version; `None` is the current one.
    pub version: Option<String>,
}

/// A checked name of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretName(String);

impl SecretName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
impl SecretName {
    /// For tables in tests.
    pub fn for_test(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SecretRequest {
    /// The canonical name of what the Secret is made from, as it stands in the annotation `jasm.codnod.io/source`.
    ///
    /// Fields at their default are left out, so that ids written by older releases stay equal: the golden file
    /// `tests/golden/source_ids.txt` may only grow.
    pub fn source_id(&self) -> String {
        let RemoteRef { provider, path, version } = &self.remote;
        match version {
            None => format!("v1:{provider}:{path}"),
            Some(version) => format!("v1:{provider}:{path}?version={version}"),
        }
    }
}

/// Why a request cannot be served as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RequestError {
    /// The annotation is malformed.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// The annotation names a provider instance that this agent does not have.
    #[error("provider {} is not configured on this agent{}; configured: {known}; an operator can add it to providers.yaml", quoted(.written), .near)]
    ProviderUnsupported {
        /// What the annotation says.
        written: String,
        /// `; did you mean ...`, or nothing.
        near: String,
        /// The names that would work.
        known: String,
    },
}

/// Parses and checks a pod's annotation.
///
/// # Errors
/// [`RequestError`] for the first thing that is wrong; nothing is filled in by guess.
pub fn parse(text: &str, catalogue: &Catalogue) -> Result<Vec<SecretRequest>, RequestError> {
    annotations::parse(text)?.into_iter().map(|raw| check(raw, catalogue)).collect()
}

fn check(raw: RawRequest, catalogue: &Catalogue) -> Result<SecretRequest, RequestError> {
    let Some((provider, kind)) = catalogue.get(&raw.provider) else {
        return Err(RequestError::ProviderUnsupported {
            near: did_you_mean(&raw.provider, catalogue.names()),
            known: if catalogue.is_empty() {
                "none".to_owned()
            } else {
                catalogue.names().collect::<Vec<_>>().join(", ")
            },
            written: raw.provider,
        });
    };
    kind.check_path(&raw.path).map_err(|problem| invalid(format!("field `path` {problem}")))?;
    Ok(SecretRequest {
        remote: RemoteRef { provider: provider.clone(), path: raw.path, version: None },
        secret_name: check_secret_name(raw.secret_name)?,
    })
}

fn check_secret_name(name: String) -> Result<SecretName, AnnotationError> {
    if is_dns_subdomain(&name) {
        return Ok(SecretName(name));
    }
    Err(invalid(format!(
        "field `secretName` {} is not a Secret's name: use lower case letters, digits, `-` and `.`, \
         at most {MAX_NAME_BYTES} characters, beginning and ending with a letter or digit",
        quoted(&name)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Kind;

    fn catalogue() -> Catalogue {
        Catalogue::new([(ProviderName::for_test("aws-secretsmanager"), Kind::AwsSecretsManager)])
    }

    fn asking(provider: &str, path: &str, name: &str) -> String {
        serde_json::json!({"provider": provider, "path": path, "secretName": name}).to_string()
    }

    #[test]
    fn a_request_names_provider_path_and_secret() {
        let got = parse(&asking("aws-secretsmanager", "/prod/codnod/config", "app-credentials"), &catalogue());
        let want = SecretRequest {
            remote: RemoteRef {
                provider: ProviderName::for_test("aws-secretsmanager"),
                path: "/prod/codnod/config".into(),
                version: None,
            },
            secret_name: SecretName("app-credentials".into()),
        };
        assert_eq!(got, Ok(vec![want]));
    }

    #[test]
    fn an_unknown_provider_is_named_with_its_nearest() {
        let error = parse(&asking("aws-secretmanager", "a", "b"), &catalogue()).expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "provider `aws-secretmanager` is not configured on this agent; did you mean `aws-secretsmanager`?; \
             configured: aws-secretsmanager; an operator can add it to providers.yaml"
        );
    }

    #[test]
    fn secret_names_follow_rfc_1123() {
        let long = "a".repeat(254);
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "a/b", "a b", "ä", "a\u{0}", long.as_str()] {
            let error = parse(&asking("aws-secretsmanager", "a", bad), &catalogue()).expect_err(bad);
            assert!(error.to_string().contains("field `secretName`"), "{bad:?}: {error}");
        }
        let longest = "a".repeat(253);
        for good in ["a", "0", "a-b.c-d", "app-credentials", longest.as_str()] {
            assert!(parse(&asking("aws-secretsmanager", "a", good), &catalogue()).is_ok(), "{good:?}");
        }
    }

    /// Secrets outlive releases: an id that was once written must never be rendered differently.
    #[test]
    fn source_ids_equal_the_golden_file() {
        let vectors = include_str!("../tests/golden/source_ids.txt").lines().filter(|line| !line.starts_with('#'));
        for line in vectors {
            let (fields, want) = line.split_once(" => ").expect("fields => id");
            let fields: Vec<&str> = fields.split_whitespace().collect();
            let request = SecretRequest {
                remote: RemoteRef {
                    provider: ProviderName::for_test(fields[0]),
                    path: fields[1].to_owned(),
                    version: fields.get(2).map(|&version| version.to_owned()),
                },
                secret_name: SecretName("x".into()),
            };
            assert_eq!(request.source_id(), want, "line: {line}");
        }
    }
}
