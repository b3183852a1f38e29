//! A token service of the double's own, which believes tokens by what they claim: the emulator's takes any. A test has one token
//! reviewed by the API server that gave it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::response::Response;
use http::StatusCode;

use super::super::claims::claims;
use super::super::front::{Asked, answer};
use super::aws;

pub(crate) const WEB_IDENTITY: &str = "AssumeRoleWithWebIdentity";
pub(crate) const ASSUME_ROLE: &str = "AssumeRole";
const STS_AUDIENCE: &str = "sts.amazonaws.com";
const EKS_AUDIENCE: &str = "pods.eks.amazonaws.com";

/// Whom it trusts, and to whom its keys belong.
#[derive(Debug, Default)]
pub(super) struct Sts {
    /// Subjects by role.
    trusts: BTreeMap<String, BTreeSet<String>>,
    /// Holders by access key: a role, with the tags of its session.
    keys: BTreeMap<String, String>,
    /// Values that a holder alone has, by path.
    values: BTreeMap<(String, String), String>,
    lifetime: Option<Duration>,
}

impl Sts {
    pub(super) fn trust(&mut self, role: &str, subject: &str) {
        self.trusts.entry(role.to_owned()).or_default().insert(subject.to_owned());
    }

    pub(super) fn distrust(&mut self, role: &str) {
        self.trusts.remove(role);
    }

    pub(super) fn set_lifetime(&mut self, lifetime: Duration) {
        self.lifetime = Some(lifetime);
    }

    pub(super) fn put_for(&mut self, holder: &str, path: &str, value: &str) {
        self.values.insert((holder.to_owned(), path.to_owned()), value.to_owned());
    }

    /// What the holder of this key has at a path; `None` where that is nobody's own.
    pub(super) fn own_value(&self, key: &str, path: &str) -> Option<&String> {
        self.values.get(&(self.keys.get(key)?.clone(), path.to_owned()))
    }

    /// Who an access key was given to.
    pub(super) fn holder(&self, key: &str) -> String {
        self.keys.get(key).cloned().unwrap_or_else(|| format!("nobody this service knows ({key})"))
    }

    fn give(&mut self, holder: String) -> (String, Duration) {
        let key = format!("ASIA{:016X}", fastrand::u64(..));
        self.keys.insert(key.clone(), holder);
        (key, self.lifetime.unwrap_or(Duration::from_secs(3600)))
    }

    /// An answer in the form of STS.
    pub(super) fn answer(&mut self, asked: &Asked, body: &[u8]) -> Response {
        let fields: BTreeMap<String, String> = form_urlencoded::parse(body).into_owned().collect();
        let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let role = field("RoleArn");
        let holder = match asked.action.as_str() {
            WEB_IDENTITY => match claims(&field("WebIdentityToken")) {
                None => return aws::refused(asked, "InvalidIdentityToken", "this is no token"),
                Some(claims) if claims.audience != STS_AUDIENCE || claims.seconds > 600 || !claims.is_of_a_pod => {
                    return aws::refused(asked, "InvalidIdentityToken", "Incorrect token audience");
                }
                Some(claims) if !self.trusts.get(&role).is_some_and(|all| all.contains(&claims.subject)) => {
                    let text = "Not authorized to perform sts:AssumeRoleWithWebIdentity";
                    return aws::refused(asked, "AccessDenied", text);
                }
                Some(_) => role,
            },
            _ => {
                let tag = |number: usize, part: &str| field(&format!("Tags.member.{number}.{part}"));
                let tags = (1..).map(|number| (tag(number, "Key"), tag(number, "Value")));
                let tags: Vec<String> =
                    tags.take_while(|(key, _)| !key.is_empty()).map(|(key, value)| format!("{key}={value}")).collect();
                let wants = self.trusts.get(&role).is_some_and(|all| all.contains(&field("ExternalId")));
                if !wants {
                    return aws::refused(asked, "AccessDenied", "is not authorized to perform: sts:AssumeRole");
                }
                format!("{role} {}", tags.join(" ")).trim_end().to_owned()
            }
        };
        let (key, lifetime) = self.give(holder);
        aws::sts_credentials(&asked.action, &key, lifetime)
    }

    /// An answer of the agent of EKS Pod Identity: the role is the subject's own.
    pub(super) fn at_eks(&mut self, token: &str) -> Response {
        match claims(token) {
            Some(claims) if claims.audience == EKS_AUDIENCE && claims.seconds <= 600 && claims.is_of_a_pod => {
                match self.trusts.get("eks").is_some_and(|all| all.contains(&claims.subject)) {
                    true => {
                        let (key, lifetime) = self.give(claims.subject);
                        aws::pod_credentials(&key, lifetime)
                    }
                    false => answer(StatusCode::NOT_FOUND, "text/plain", "no association"),
                }
            }
            _ => answer(StatusCode::UNAUTHORIZED, "text/plain", "this is no token for it"),
        }
    }
}
