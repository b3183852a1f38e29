//! AWS Secrets Manager, by the official SDK.
//!
//! Rights at AWS: `secretsmanager:GetSecretValue` on the secret, `kms:Decrypt` where it has a key of its own, and
//! nothing else (`sts:GetCallerIdentity` needs no right).

use std::sync::Arc;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_secretsmanager::{Client, config::Builder, operation::get_secret_value::GetSecretValueOutput};
use serde::Deserialize;

use super::{
    super::{
        ActsAs, Caller, Presence, ProviderError, ProviderName, SecretProvider,
        kind::{self, BuildError, Common, Reference, Store, check_characters, check_length, check_segments},
    },
    Place, Service,
    exchange::Tag,
    failure::{Failed, Failure},
    name_in_arn,
};
use crate::{request::RemoteRef, secret_value::SecretPayload};

/// Secrets Manager's own limit for a value.
const MAX_VALUE_BYTES: usize = 64 * 1024;
/// What marks a version id in an annotation, as External Secrets Operator writes it.
const VERSION_ID: &str = "uuid/";
/// Colons in an ARN, and one more.
const PARTS_OF_AN_ARN: usize = 7;
const READ: &str = "secretsmanager:GetSecretValue";
const DESCRIBE: &str = "secretsmanager:DescribeSecret";
/// Asked for to see whether the service answers; that there is none, or no right to it, is an answer.
const NO_SECRET: &str = "jasm-agent-check";

pub(in crate::provider) const STORE: Store = Store {
    kind: "aws-secretsmanager",
    prefix: "sm",
    source_kind: "secretsmanager",
    may_be_plain: false,
    by_default: true,
    // Secrets Manager allows 10,000 a second; this bounds sockets, not the rate.
    concurrency: 32,
    together: 1,
    reference,
    check_path,
    check_version: |_, version| check_version(version),
    settings: kind::settings::<Settings>,
};

/// What the operator's file may say of an instance of this kind.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Settings {
    /// AWS region; default `AWS_REGION`, then `AWS_DEFAULT_REGION`.
    region: Option<String>,
    /// Endpoint URL of Secrets Manager, for a VPC endpoint or an emulator; default `AWS_ENDPOINT_URL_SECRETS_MANAGER`,
    /// then `AWS_ENDPOINT_URL`, then AWS's own.
    endpoint: Option<String>,
    /// Use the node's role where nothing else is set up.
    #[serde(default)]
    imds: bool,
    /// A role that the agent takes on, for this instance alone.
    role_arn: Option<String>,
    /// What its trust policy wants to hear.
    external_id: Option<String>,
    /// What a session in that role says of the pod: `namespace`, `serviceAccount`.
    #[serde(default)]
    session_tags: Vec<Tag>,
    /// With `identity: pod`: by EKS Pod Identity, and not by the role that the service account names.
    #[serde(default)]
    eks_pod_identity: bool,
}

#[async_trait]
impl kind::Settings for Settings {
    async fn build(self: Box<Self>, common: Common) -> Result<Arc<dyn SecretProvider>, BuildError> {
        let Self { region, endpoint, imds, role_arn, external_id, session_tags, eks_pod_identity } = *self;
        let place = Place { region, endpoint, imds, role_arn, external_id, session_tags, eks_pod_identity };
        let account = Service::new(&common, place, "AWS_ENDPOINT_URL_SECRETS_MANAGER", client).await?;
        Ok(Arc::new(SecretsManager(account)))
    }
}

fn client(sdk: &SdkConfig, endpoint: Option<&str>) -> Client {
    let mut config = Builder::from(sdk);
    // Else what the SDK's environment says.
    if let Some(endpoint) = endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(config.build())
}

/// One region of one account.
#[derive(Debug)]
struct SecretsManager(Service<Client>);

impl SecretsManager {
    async fn get(&self, client: Client, remote: &RemoteRef) -> Result<GetSecretValueOutput, Failed> {
        let request = client.get_secret_value().secret_id(&remote.path);
        let request = match remote.version.as_deref().map(|version| (version, version.strip_prefix(VERSION_ID))) {
            None => request,
            Some((_, Some(id))) => request.version_id(id),
            Some((stage, None)) => request.version_stage(stage),
        };
        request.send().await.map_err(Failed::from)
    }
}

#[async_trait]
impl SecretProvider for SecretsManager {
    fn name(&self) -> &ProviderName {
        &self.0.own.name
    }

    fn usual_payload_bytes(&self) -> usize {
        MAX_VALUE_BYTES
    }

    fn acts_as(&self) -> ActsAs {
        self.0.acts_as()
    }

    fn drop_unused(&self) -> usize {
        self.0.of_accounts.drop_unused()
    }

    async fn fetch(&self, remote: &RemoteRef, caller: &Caller) -> Result<SecretPayload, ProviderError> {
        let access = self.0.access(caller);
        let output = access.ask(|client| self.get(client, remote)).await;
        let output = output.map_err(|failed| access.explain(&remote.path, READ, failed))?;
        let version = output.version_id.unwrap_or_default();
        match (output.secret_string, output.secret_binary) {
            (Some(text), _) => Ok(SecretPayload::new(text.into_bytes(), version).named(output.name)),
            (None, Some(blob)) => Ok(SecretPayload::whole(blob.into_inner(), version).named(output.name)),
            (None, None) => Err(ProviderError::Invalid {
                provider: self.0.own.name.clone(),
                path: remote.path.clone(),
                problem: "it holds neither text nor bytes",
                source: None,
            }),
        }
    }

    /// Of its description alone: a secret whose deletion is scheduled still has one, and one that has no value yet, too.
    async fn presence(&self, remote: &RemoteRef) -> Result<Presence, ProviderError> {
        let described = self.0.own.ask(async |client: Client| {
            client.describe_secret().secret_id(&remote.path).send().await.map_err(Failed::from)
        });
        match described.await {
            Ok(secret) if secret.arn().is_some() => Ok(Presence::There),
            // No description is without it.
            Ok(_) => Ok(Presence::Unknown),
            Err(Failed { failure: Failure::NotFound, .. }) => Ok(Presence::Absent),
            Err(failed) => Err(self.0.own.explain(&remote.path, DESCRIBE, failed)),
        }
    }

    async fn warm_up(&self) -> Result<String, ProviderError> {
        self.0.warm_up().await
    }

    async fn validate(&self) -> Result<Option<String>, ProviderError> {
        if self.0.acts_as() == ActsAs::Pod {
            return Ok(None);
        }
        let described = self.0.own.ask(async |client: Client| {
            client.describe_secret().secret_id(NO_SECRET).send().await.map(|_| ()).map_err(Failed::from)
        });
        self.0.reached(described.await)?;
        // STS may be out of reach where the store is not.
        Ok(Some(self.0.own.who().await.unwrap_or_default()))
    }
}

/// How ECS writes key and version into an ARN: `arn:..:secret:NAME-SUFFIX:JSON-KEY:VERSION-STAGE:VERSION-ID`, in which each
/// of the three may be empty.
fn reference(path: &str) -> Result<Reference, String> {
    let parts: Vec<&str> = path.split(':').collect();
    if !path.starts_with("arn:") || parts.len() <= PARTS_OF_AN_ARN {
        return Reference::whole(path);
    }
    let (arn, more) = parts.split_at(PARTS_OF_AN_ARN);
    let [key, stage, id] = more[..] else {
        return Err("has something behind the secret's ARN that is not understood; write ARN:KEY:STAGE:ID, each of which may be \
                    empty, as in ARN:password::"
            .to_owned());
    };
    let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let version = match (filled(stage), filled(id)) {
        (Some(_), Some(_)) => return Err("names a version by its stage and by its id; name one of them".to_owned()),
        (stage, id) => stage.or(id.map(|id| format!("{VERSION_ID}{id}"))),
    };
    Ok(Reference { path: arn.join(":"), key: filled(key), version })
}

/// Names and ARNs of Secrets Manager: `[A-Za-z0-9/_+=.@!-]`, by segments, or an ARN of this service.
fn check_path(path: &str) -> Result<String, String> {
    check_length(path)?;
    let name = match path.starts_with("arn:") {
        true => name_in_arn(path, "secretsmanager", "secret:", "arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME")?,
        false => path,
    };
    check_characters(name, "a secret's name", "/_+=.@!-")?;
    check_segments(name.strip_prefix('/').unwrap_or(name))?;
    Ok(path.to_owned())
}

/// A staging label (`AWSPREVIOUS`), or `uuid/` and a version id.
fn check_version(version: &str) -> Result<(), String> {
    let bounded = |text: &str, length: std::ops::RangeInclusive<usize>, more: &str| {
        length.contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let valid = match version.strip_prefix(VERSION_ID) {
        Some(id) => bounded(id, 32..=64, "-"),
        None => bounded(version, 1..=256, "/_+=.@!-"),
    };
    if valid {
        return Ok(());
    }
    Err("must be a staging label (AWSCURRENT, AWSPREVIOUS or one of your own), or uuid/ and a version id".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::MAX_PATH_BYTES;

    #[test]
    fn paths_are_names_or_arns_of_this_service() {
        let longest = "a".repeat(MAX_PATH_BYTES);
        let too_long = "a".repeat(MAX_PATH_BYTES + 1);
        let good = [
            "/prod/codnod/config",
            "prod/db",
            "plain",
            "rds!db-1",
            "a+b=c@d.e_f-g",
            longest.as_str(),
            "arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/db-AbCdEf",
            "arn:aws-cn:secretsmanager:cn-north-1:111122223333:secret:x",
        ];
        for path in good {
            assert_eq!(check_path(path), Ok(path.to_owned()), "path: {path}");
        }
        let bad = [
            "",
            "/",
            "a//b",
            "/a/",
            "a/",
            "../a",
            "a/../b",
            "a/./b",
            "a/..",
            "%2e%2e/a",
            "a?b",
            "a#b",
            "a b",
            "a\nb",
            "a\\b",
            "https://evil/x",
            "ä",
            "a*",
            "a\u{0}b",
            "a\u{202e}b",
            too_long.as_str(),
            "arn:aws:s3:::bucket",
            "arn:aws:ssm:eu-west-1:111122223333:parameter/x",
            "arn:",
            "arn:aws:secretsmanager",
            "arn:aws:secretsmanager:eu-west-1:111122223333:secret:",
            "arn:aws:secretsmanager:eu-west-1:1:secret:x",
            "arn:aws:secretsmanager:eu-west-1:111122223333:secret:a/../b",
            "arn:aws:secretsmanager::111122223333:secret:x",
        ];
        for path in bad {
            assert!(check_path(path).is_err(), "path: {path}");
        }
    }

    #[test]
    fn versions_are_staging_labels_or_ids() {
        let id = "uuid/a1b2c3d4-5678-90ab-cdef-111122223333";
        for good in ["AWSCURRENT", "AWSPREVIOUS", "my/stage_1", id] {
            assert_eq!(check_version(good), Ok(()), "{good}");
        }
        let long = "a".repeat(257);
        for bad in ["", "uuid/", "uuid/1", "a b", "a?b", "a\n", "\u{e9}", long.as_str()] {
            assert!(check_version(bad).is_err(), "{bad:?}");
        }
    }
}
