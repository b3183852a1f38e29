//! AWS Systems Manager Parameter Store, by the official SDK.
//!
//! Rights at AWS: `ssm:GetParameters` on the parameter, `ssm:GetParametersByPath` on the path of a folder, and
//! `kms:Decrypt` where a SecureString has a key of its own.
//!
//! Its quota is small (40 requests a second for the whole account and region, unless it was raised), so that names which
//! are asked for within 5 ms go out ten at a time, and never more requests a second than the instance says.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_ssm::{
    Client,
    config::Builder,
    primitives::DateTime,
    types::{Parameter, ParameterType},
};
use futures::FutureExt;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    super::{
        ActsAs, Caller, Presence, ProviderError, ProviderName, SecretProvider,
        batch::{Batch, Batches, Outcome, Unasked},
        caller::PerAccount,
        kind::{self, BuildError, Common, Reference, Store, check_characters, check_length, check_segments},
        pace::{Pace, Turn},
    },
    Place, Service,
    access::Access,
    exchange::Tag,
    failure::{Failed, Failure},
    name_in_arn,
};
use crate::{mapping::MAX_SECRET_BYTES, request::RemoteRef, secret_value::SecretPayload};

/// The largest value of an advanced parameter.
const MAX_VALUE_BYTES: usize = 8 * 1024;
/// Names that GetParameters takes.
const NAMES: usize = 10;
/// What ends the path of a folder: all parameters directly under it.
const ALL_UNDER: &str = "/*";
/// The account's quota, where it was not raised.
const PER_SECOND: u32 = 40;
/// How long a request waits for the store's patience, at most.
const LIMIT: Duration = Duration::from_secs(8);
const READ: &str = "ssm:GetParameters";
const READ_FOLDER: &str = "ssm:GetParametersByPath";

pub(in crate::provider) const STORE: Store = Store {
    kind: "aws-ssm",
    prefix: "ssm",
    source_kind: "ssm",
    may_be_plain: true,
    by_default: true,
    concurrency: 8,
    together: NAMES,
    reference: Reference::whole,
    check_path,
    check_version,
    settings: kind::settings::<Settings>,
};

/// What the operator's file may say of an instance of this kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Settings {
    /// AWS region; default `AWS_REGION`, then `AWS_DEFAULT_REGION`.
    region: Option<String>,
    /// Endpoint URL of Systems Manager, for a VPC endpoint or an emulator; default `AWS_ENDPOINT_URL_SSM`, then
    /// `AWS_ENDPOINT_URL`, then AWS's own.
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
    /// Requests a second of this agent, at most. All agents of a cluster share the account's quota.
    #[serde(default = "per_second")]
    requests_per_second: u32,
}

fn per_second() -> u32 {
    PER_SECOND
}

#[async_trait]
impl kind::Settings for Settings {
    async fn build(self: Box<Self>, common: Common) -> Result<Arc<dyn SecretProvider>, BuildError> {
        if !(1..=10_000).contains(&self.requests_per_second) {
            return Err(BuildError::Invalid("`requestsPerSecond` must be 1 to 10000".to_owned()));
        }
        let pace = Arc::new(Pace::new(self.requests_per_second));
        let Self { region, endpoint, imds, role_arn, external_id, session_tags, eks_pod_identity, .. } = *self;
        let place = Place { region, endpoint, imds, role_arn, external_id, session_tags, eks_pod_identity };
        let account = Service::new(&common, place, "AWS_ENDPOINT_URL_SSM", client).await?;
        let own = Line::new(Arc::clone(&account.own), Arc::clone(&pace), common.concurrency);
        let (concurrency, of_accounts) = (common.concurrency, PerAccount::default());
        Ok(Arc::new(ParameterStore { account, pace, concurrency, own: Arc::new(own), of_accounts }))
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
struct ParameterStore {
    account: Service<Client>,
    /// The quota is everybody's.
    pace: Arc<Pace>,
    concurrency: usize,
    own: Arc<Line>,
    of_accounts: PerAccount<Line>,
}

/// One caller's requests: names of two callers never go out together.
#[derive(Debug)]
struct Line {
    asker: Arc<Asker>,
    batches: Arc<Batches>,
}

impl Line {
    fn new(access: Arc<Access<Client>>, pace: Arc<Pace>, concurrency: usize) -> Self {
        let asker = Arc::new(Asker { access, pace: Arc::clone(&pace) });
        let send = Arc::clone(&asker);
        let send = move |batch, turn| Arc::clone(&send).get_all(batch, turn).boxed();
        Self { asker, batches: Batches::new(NAMES, concurrency, pace, Box::new(send)) }
    }
}

#[derive(Debug)]
struct Asker {
    access: Arc<Access<Client>>,
    pace: Arc<Pace>,
}

/// The value of one parameter.
struct Found {
    value: Zeroizing<Vec<u8>>,
    version: i64,
    plain: bool,
    name: Option<String>,
}

/// One parameter of a folder.
struct Setting {
    /// The last segment of its name.
    key: String,
    value: Zeroizing<String>,
    modified: Option<DateTime>,
    plain: bool,
}

/// By the type that Parameter Store gives a parameter, never by its name; an unknown type is a secret.
fn is_plain(of_type: Option<&ParameterType>) -> bool {
    matches!(of_type, Some(ParameterType::String | ParameterType::StringList))
}

impl From<Parameter> for Setting {
    fn from(parameter: Parameter) -> Self {
        let key = parameter.name.as_deref().and_then(|name| name.rsplit('/').next()).unwrap_or_default().to_owned();
        let plain = is_plain(parameter.r#type.as_ref());
        Self { key, value: parameter.value.unwrap_or_default().into(), modified: parameter.last_modified_date, plain }
    }
}

impl Asker {
    /// Asks for several names together; where the refusal may be about one of them alone, for one half and the other.
    async fn get_all(self: Arc<Self>, batch: Batch, turn: Turn) {
        let mut next = Some(turn);
        let mut batches = vec![batch];
        while let Some(batch) = batches.pop() {
            if batch.len() == 0 {
                continue;
            }
            let turn = match next.take() {
                Some(turn) => turn,
                None => self.pace.turn().await,
            };
            match self.get(&batch.names(), turn).await {
                Ok(found) => {
                    let found = self.by_name(found);
                    batch.tell(|name| self.outcome(name, &found));
                }
                Err(failed) if batch.len() > 1 && failed.failure.may_be_about_one() => batches.extend(batch.halves()),
                Err(failed) => batch.tell(|name| Err(self.access.explain(name, READ, failed.clone()))),
            }
        }
    }

    async fn get(&self, names: &[String], turn: Turn) -> Result<Vec<Parameter>, Failed> {
        let request = async |client: Client| {
            let request = client.get_parameters().set_names(Some(names.to_vec())).with_decryption(true);
            request.send().await.map_err(Failed::from)
        };
        let outcome = self.access.ask(request).await;
        self.note(turn, outcome.as_ref().err());
        Ok(outcome?.parameters.unwrap_or_default())
    }

    /// What was found, by what it may have been asked for: its name or ARN, and its selector.
    fn by_name(&self, found: Vec<Parameter>) -> HashMap<String, Arc<Found>> {
        let mut by_name = HashMap::new();
        for parameter in found {
            let selector = parameter.selector.as_deref().unwrap_or_default();
            let called = |name: Option<&str>| name.map(|name| format!("{name}{selector}"));
            let names = [called(parameter.name.as_deref()), called(parameter.arn.as_deref())];
            let plain = is_plain(parameter.r#type.as_ref());
            let value = parameter.value.map(|value| Zeroizing::new(value.into_bytes())).unwrap_or_default();
            let found = Arc::new(Found { value, version: parameter.version, plain, name: parameter.name });
            by_name.extend(names.into_iter().flatten().map(|name| (name, Arc::clone(&found))));
        }
        by_name
    }

    fn outcome(&self, name: &str, found: &HashMap<String, Arc<Found>>) -> Outcome {
        match found.get(name) {
            // A parameter is one setting, whatever it looks like.
            Some(found) => Ok(SecretPayload::whole(found.value.to_vec(), found.version.to_string())
                .plain(found.plain)
                .named(found.name.clone())),
            None => Err(ProviderError::NotFound { provider: self.access.name.clone(), path: name.to_owned() }),
        }
    }

    /// All parameters directly under a path, or none: what is missing on one page must not vanish from the Secret.
    async fn get_folder(&self, path: &str) -> Outcome {
        let folder = path.strip_suffix(ALL_UNDER).unwrap_or(path);
        let (mut all, mut next): (Vec<Setting>, Option<String>) = (Vec::new(), None);
        loop {
            let turn = self.pace.turn().await;
            let request = async |client: Client| {
                let request = client.get_parameters_by_path().path(folder).recursive(false).with_decryption(true);
                request.set_next_token(next.clone()).send().await.map_err(Failed::from)
            };
            let outcome = self.access.ask(request).await;
            self.note(turn, outcome.as_ref().err());
            let page = outcome.map_err(|failed| self.access.explain(path, READ_FOLDER, failed))?;
            all.extend(page.parameters.unwrap_or_default().into_iter().map(Setting::from));
            next = page.next_token.filter(|token| !token.is_empty());
            let size: usize = all.iter().map(|setting| setting.value.len()).sum();
            if size > MAX_SECRET_BYTES {
                return Err(self.invalid(path, "what is directly under it is more than a Secret can hold"));
            }
            if next.is_none() {
                break;
            }
        }
        self.as_object(path, &all)
    }

    /// The last segments of the names as keys of a JSON object.
    fn as_object(&self, path: &str, all: &[Setting]) -> Outcome {
        if all.is_empty() {
            return Err(ProviderError::NotFound { provider: self.access.name.clone(), path: path.to_owned() });
        }
        let object: BTreeMap<&str, &str> =
            all.iter().map(|setting| (setting.key.as_str(), setting.value.as_str())).collect();
        // An escape takes at most six bytes for one. Allocated once, so that no copy stays behind.
        let most = |(key, value): (&&str, &&str)| 6 * (key.len() + value.len()) + 6;
        let mut text = Vec::with_capacity(2 + object.iter().map(most).sum::<usize>());
        // A map of texts is always JSON, and writing into memory cannot fail.
        let written = serde_json::to_writer(&mut text, &object);
        debug_assert!(written.is_ok());
        let newest = all.iter().filter_map(|setting| setting.modified).max();
        let version = newest.and_then(|time| jiff::Timestamp::from_second(time.secs()).ok());
        let version = version.map_or_else(String::new, |time| format!("{} parameters, newest {time}", all.len()));
        Ok(SecretPayload::new(text, version).plain(all.iter().all(|setting| setting.plain)))
    }

    /// Keeps the pace that the store wants.
    fn note(&self, turn: Turn, failed: Option<&Failed>) {
        match failed {
            // Of another service, for one caller.
            Some(failed) if failed.is_of_an_exchange => {}
            Some(failed) if failed.failure == Failure::Throttled => self.pace.refused(turn),
            Some(failed) if failed.failure == Failure::Unavailable => {}
            _ => self.pace.answered(),
        }
    }

    fn invalid(&self, path: &str, problem: &'static str) -> ProviderError {
        let (provider, path) = (self.access.name.clone(), path.to_owned());
        ProviderError::Invalid { provider, path, problem, source: None }
    }
}

impl ParameterStore {
    fn line(&self, caller: &Caller) -> Arc<Line> {
        match caller {
            Caller::Agent => Arc::clone(&self.own),
            Caller::ServiceAccount(account) => self
                .of_accounts
                .of(account, |_| Line::new(self.account.access(caller), Arc::clone(&self.pace), self.concurrency)),
        }
    }
}

#[async_trait]
impl SecretProvider for ParameterStore {
    fn name(&self) -> &ProviderName {
        &self.account.own.name
    }

    fn usual_payload_bytes(&self) -> usize {
        MAX_VALUE_BYTES
    }

    fn acts_as(&self) -> ActsAs {
        self.account.acts_as()
    }

    fn drop_unused(&self) -> usize {
        self.of_accounts.drop_unused();
        self.account.of_accounts.drop_unused()
    }

    async fn fetch(&self, remote: &RemoteRef, caller: &Caller) -> Result<SecretPayload, ProviderError> {
        let line = self.line(caller);
        if remote.path.ends_with(ALL_UNDER) {
            return line.batches.beside(line.asker.get_folder(&remote.path)).await;
        }
        let name = match &remote.version {
            Some(version) => format!("{}:{version}", remote.path),
            None => remote.path.clone(),
        };
        let provider = || self.name().clone();
        line.batches.ask(&name, LIMIT).await.unwrap_or_else(|unasked| {
            Err(match unasked {
                Unasked::Late => ProviderError::Throttled {
                    provider: provider(),
                    retry_after: None,
                    source: format!("no turn within {LIMIT:?}: more is asked for than `requestsPerSecond` allows")
                        .into(),
                },
                Unasked::GivenUp => {
                    ProviderError::Unavailable { provider: provider(), source: "the request was given up".into() }
                }
            })
        })
    }

    /// By its name, which is asked for without decryption. A folder is what is in it: it has no existence of its own. One that is
    /// given by its ARN may be another account's, which can take it back.
    async fn presence(&self, remote: &RemoteRef) -> Result<Presence, ProviderError> {
        if remote.path.ends_with(ALL_UNDER) || remote.path.starts_with("arn:") {
            return Ok(Presence::Unknown);
        }
        let turn = self.pace.turn().await;
        let asked = self.account.own.ask(async |client: Client| {
            client.get_parameters().names(&remote.path).with_decryption(false).send().await.map_err(Failed::from)
        });
        let outcome = asked.await;
        self.own.asker.note(turn, outcome.as_ref().err());
        let answer = outcome.map_err(|failed| self.account.own.explain(&remote.path, READ, failed))?;
        let is_named = |name: &String| *name == remote.path;
        Ok(match (answer.parameters(), answer.invalid_parameters()) {
            ([_], []) => Presence::There,
            ([], [name]) if is_named(name) => Presence::Absent,
            _ => Presence::Unknown,
        })
    }

    async fn warm_up(&self) -> Result<String, ProviderError> {
        self.account.warm_up().await
    }

    async fn validate(&self) -> Result<Option<String>, ProviderError> {
        let account = &self.account;
        if account.acts_as() == ActsAs::Pod {
            return Ok(None);
        }
        // One name and no value; that there is no right to it is an answer, too.
        let described = account.own.ask(async |client: Client| {
            client.describe_parameters().max_results(1).send().await.map(|_| ()).map_err(Failed::from)
        });
        account.reached(described.await)?;
        // STS may be out of reach where the store is not.
        Ok(Some(account.own.who().await.unwrap_or_default()))
    }
}

/// Names and ARNs of Parameter Store: `[A-Za-z0-9_.-]` between slashes, beginning with one where there are several; a
/// path that ends in `/` or `/*` is all parameters directly under it, and is written with `/*` from then on. `/aws/` is
/// refused: by way of it Parameter Store reads secrets of Secrets Manager.
fn check_path(path: &str) -> Result<String, String> {
    check_length(path)?;
    let is_arn = path.starts_with("arn:");
    let (path, folder) = match (path.strip_suffix(ALL_UNDER), path.strip_suffix('/')) {
        (Some(folder), _) | (_, Some(folder)) => (folder, true),
        (None, None) => (path, false),
    };
    if folder && (is_arn || !path.starts_with('/')) {
        return Err("ends as a folder and is none: a folder begins with `/`, as in /prod/app/*".to_owned());
    }
    let name = match is_arn {
        true => name_in_arn(path, "ssm", "parameter", "arn:aws:ssm:REGION:ACCOUNT:parameter/NAME")?,
        false => path,
    };
    check_characters(name, "a parameter's name", "/_.-")?;
    let segments = name.strip_prefix('/').unwrap_or(name);
    check_segments(segments)?;
    let first = segments.split('/').next().unwrap_or_default().to_ascii_lowercase();
    if first == "aws" {
        return Err("is under /aws/, which is AWS's own".to_owned());
    }
    // Parameter Store wants /a/b; people also write a/b.
    let slash = if !is_arn && segments.contains('/') && !name.starts_with('/') { "/" } else { "" };
    let end = if folder { ALL_UNDER } else { "" };
    Ok(format!("{slash}{path}{end}"))
}

/// A version's number, or a label.
fn check_version(path: &str, version: &str) -> Result<(), String> {
    if path.ends_with(ALL_UNDER) {
        return Err("cannot be chosen for a folder; its parameters have versions of their own".to_owned());
    }
    let number = !version.is_empty() && version.len() <= 18 && version.chars().all(|c| c.is_ascii_digit());
    let label = (1..=100).contains(&version.len())
        && version.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        && !version.starts_with(|c: char| c.is_ascii_digit());
    match number || label {
        true => Ok(()),
        false => {
            Err("must be a version's number or a label (letters, digits and _.-, not beginning with a digit)"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_names_arns_or_folders() {
        let good = [
            ("/prod/app/db", "/prod/app/db"),
            ("plain", "plain"),
            ("/plain", "/plain"),
            ("/prod/app/", "/prod/app/*"),
            ("prod/app/db", "/prod/app/db"),
            ("/prod/app/*", "/prod/app/*"),
            ("/awsome/x", "/awsome/x"),
            (
                "arn:aws:ssm:eu-west-1:111122223333:parameter/prod/db",
                "arn:aws:ssm:eu-west-1:111122223333:parameter/prod/db",
            ),
        ];
        for (path, want) in good {
            assert_eq!(check_path(path), Ok(want.to_owned()), "path: {path}");
        }
        let bad = [
            "",
            "/",
            "/*",
            "//",
            "/a//b",
            "/a/../b",
            "/a/*/b",
            "/a*",
            "a/",
            "/a:3",
            "/a b",
            "/aws/reference/secretsmanager/x",
            "/AWS/service/x",
            "/aws/",
            "aws",
            "/a?b",
            "/ä",
            "arn:aws:ssm:eu-west-1:111122223333:parameter/aws/reference/secretsmanager/x",
            "arn:aws:ssm:eu-west-1:111122223333:parameter/a/*",
            "arn:aws:ssm:eu-west-1:111122223333:document/a",
            "arn:aws:secretsmanager:eu-west-1:111122223333:secret:x",
            "arn:aws:ssm:eu-west-1:111122223333:parameter/a:3",
        ];
        for path in bad {
            assert!(check_path(path).is_err(), "path: {path}");
        }
    }

    #[test]
    fn versions_are_numbers_or_labels() {
        for good in ["1", "42", "prod", "my_label.v-1"] {
            assert_eq!(check_version("/a", good), Ok(()), "{good}");
        }
        for bad in ["", "1a", "a:b", "a b", "1234567890123456789"] {
            assert!(check_version("/a", bad).is_err(), "{bad:?}");
        }
        assert!(check_version("/a/*", "1").is_err());
    }
}
