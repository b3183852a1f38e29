//! Who may have which secret. Pure; default deny.
//!
//! [`Policy::admit`] is the only way to an [`AdmittedRequest`], and the steps after it take nothing else.

use std::fmt;

use serde::Deserialize;

use crate::{
    annotations::quoted,
    pod::{PodNamespace, PodView},
    request::SecretRequest,
};

/// The operator's rules. No rule that matches = denied.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// One rule of the file; every field must match.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    /// Exact names, or a trailing `*`.
    namespaces: Vec<NamePattern>,
    /// Exact names, or a trailing `*`.
    service_accounts: Vec<NamePattern>,
    /// Exact instance names, or a trailing `*`.
    providers: Vec<NamePattern>,
    /// Whole paths by segments.
    paths: Vec<PathPattern>,
}

/// The form of `policy.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    #[serde(default)]
    rules: Vec<Rule>,
}

/// An exact name, or a prefix followed by `*`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct NamePattern {
    prefix: String,
    open: bool,
}

/// A path pattern, cut at `/`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct PathPattern(Vec<Segment>);

#[derive(Debug, PartialEq, Eq)]
enum Segment {
    /// `**`: any number of segments, none included.
    AnyNumber,
    /// `*`: exactly one segment.
    AnyOne,
    /// A text in which `{namespace}` and `{serviceAccount}` are filled in.
    Text(String),
}

/// The pod on whose behalf a secret is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requester {
    /// The pod's namespace, and so the Secret's.
    pub namespace: PodNamespace,
    /// The pod's service account.
    pub service_account: String,
}

impl Requester {
    /// The pod as policy sees it.
    pub fn of(pod: &PodView) -> Self {
        Self { namespace: pod.namespace(), service_account: pod.service_account.clone() }
    }
}

/// A request that a rule admitted. Only this module makes one.
#[derive(Debug)]
pub struct AdmittedRequest {
    request: SecretRequest,
    rule: usize,
}

impl AdmittedRequest {
    /// What was admitted.
    pub fn request(&self) -> &SecretRequest {
        &self.request
    }

    /// The number of the rule that admitted it, counted from 1 over all files in their order.
    pub fn rule(&self) -> usize {
        self.rule
    }
}

/// A request that no rule admits. The text never depends on what the store holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no policy rule lets service account {service_account} in namespace {namespace} have {} from {provider}; an operator \
     can add to the agent's policy.yaml: - {{namespaces: [{namespace}], serviceAccounts: [{service_account}], \
     providers: [{provider}], paths: [{path:?}]}}",
    quoted(.path)
)]
pub struct Denied {
    namespace: PodNamespace,
    service_account: String,
    provider: String,
    path: String,
}

impl Policy {
    /// Reads the files of a policy, in their order.
    ///
    /// # Errors
    /// The name of the first file that is not a policy, with line and column.
    pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, PolicyError> {
        let mut rules = Vec::new();
        for (file, text) in files {
            if text.trim().is_empty() {
                continue;
            }
            let parsed: RulesFile =
                serde_yaml::from_str(text).map_err(|source| PolicyError { file: file.to_owned(), source })?;
            rules.extend(parsed.rules);
        }
        Ok(Self { rules })
    }

    /// Number of rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether everything is denied.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Admits a request if a rule matches all of it: namespace, service account, provider and whole path.
    ///
    /// # Errors
    /// [`Denied`], with the rule that an operator would have to add.
    pub fn admit(&self, request: SecretRequest, requester: &Requester) -> Result<AdmittedRequest, Denied> {
        match self.rules.iter().position(|rule| rule.matches(&request, requester)) {
            Some(index) => Ok(AdmittedRequest { request, rule: index + 1 }),
            None => Err(Denied {
                namespace: requester.namespace.clone(),
                service_account: requester.service_account.clone(),
                provider: request.remote.provider.to_string(),
                path: request.remote.path,
            }),
        }
    }
}

/// A policy file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file} is not a policy: rules with namespaces, serviceAccounts, providers and paths are allowed")]
pub struct PolicyError {
    file: String,
    source: serde_yaml::Error,
}

impl Rule {
    fn matches(&self, request: &SecretRequest, requester: &Requester) -> bool {
        let any = |patterns: &[NamePattern], name: &str| patterns.iter().any(|pattern| pattern.matches(name));
        any(&self.namespaces, requester.namespace.as_str())
            && any(&self.service_accounts, &requester.service_account)
            && any(&self.providers, request.remote.provider.as_str())
            && self.paths.iter().any(|pattern| pattern.matches(&request.remote.path, requester))
    }
}

impl NamePattern {
    fn matches(&self, name: &str) -> bool {
        if self.open { name.starts_with(&self.prefix) } else { name == self.prefix }
    }
}

impl TryFrom<String> for NamePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let open = text.ends_with('*');
        let prefix = text.strip_suffix('*').unwrap_or(&text);
        if prefix.contains('*') || text.is_empty() {
            return Err(format!("{} is not a name pattern: write an exact name, or a trailing `*`", quoted(&text)));
        }
        Ok(Self { prefix: prefix.to_owned(), open })
    }
}

impl PathPattern {
    fn matches(&self, path: &str, requester: &Requester) -> bool {
        let segments: Vec<&str> = path.split('/').collect();
        matches_from(&self.0, &segments, requester)
    }
}

/// Matches whole segments, so that `prod/team-a` never covers `prod/team-ab`. `**` tries each length once per place:
/// at most patterns x segments steps, since only the latest `**` is ever tried again.
fn matches_from(patterns: &[Segment], segments: &[&str], requester: &Requester) -> bool {
    let (mut p, mut s) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while s < segments.len() {
        match patterns.get(p) {
            Some(Segment::AnyNumber) => {
                retry = Some((p + 1, s));
                p += 1;
            }
            Some(pattern) if pattern.matches_one(segments[s], requester) => {
                p += 1;
                s += 1;
            }
            _ => match retry {
                Some((after, from)) => {
                    retry = Some((after, from + 1));
                    p = after;
                    s = from + 1;
                }
                None => return false,
            },
        }
    }
    patterns[p..].iter().all(|pattern| *pattern == Segment::AnyNumber)
}

impl Segment {
    fn matches_one(&self, segment: &str, requester: &Requester) -> bool {
        match self {
            Self::AnyNumber | Self::AnyOne => true,
            Self::Text(text) => {
                text.replace("{namespace}", requester.namespace.as_str())
                    .replace("{serviceAccount}", &requester.service_account)
                    == segment
            }
        }
    }
}

impl TryFrom<String> for PathPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty path pattern matches nothing: write `**` for every path".to_owned());
        }
        text.split('/').map(parse_segment).collect::<Result<_, _>>().map(Self)
    }
}

fn parse_segment(text: &str) -> Result<Segment, String> {
    match text {
        "**" => Ok(Segment::AnyNumber),
        "*" => Ok(Segment::AnyOne),
        _ if text.contains('*') => {
            Err(format!("`*` must be a whole segment of a path pattern, not a part of {}", quoted(text)))
        }
        _ => {
            let rest = text.replace("{namespace}", "").replace("{serviceAccount}", "");
            if rest.contains(['{', '}']) {
                return Err(format!(
                    "{} has an unknown placeholder: known are {{namespace}} and {{serviceAccount}}",
                    quoted(text)
                ));
            }
            Ok(Segment::Text(text.to_owned()))
        }
    }
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        provider::{Catalogue, Kind, ProviderName},
        request,
    };

    fn asking(path: &str) -> SecretRequest {
        let catalogue = Catalogue::new([(ProviderName::for_test("aws-secretsmanager"), Kind::for_test())]);
        let text = serde_json::json!({"provider": "aws-secretsmanager", "path": path, "secretName": "x"}).to_string();
        request::parse(&text, &catalogue).expect("a request").remove(0).expect("a valid one")
    }

    fn by(namespace: &str, service_account: &str) -> Requester {
        Requester { namespace: PodNamespace::for_test(namespace), service_account: service_account.to_owned() }
    }

    fn policy(namespaces: &str, service_accounts: &str, providers: &str, path: &str) -> Policy {
        let text = format!(
            "rules:\n- namespaces: {namespaces}\n  serviceAccounts: {service_accounts}\n  providers: {providers}\n  paths: [{path:?}]\n"
        );
        Policy::parse([("policy.yaml", text.as_str())]).expect("a policy")
    }

    #[test]
    fn paths_match_by_whole_segments() {
        let cases = [
            ("/prod/a", "/prod/a", true),
            ("/prod/a", "/prod/ab", false),
            ("/prod/a", "/prod/A", false),
            ("/prod/a", "prod/a", false),
            ("/prod/a", "/prod/a/b", false),
            ("/prod/*", "/prod/a", true),
            ("/prod/*", "/prod/a/b", false),
            ("/prod/*", "/prod", false),
            ("/prod/**", "/prod/a/b/c", true),
            ("/prod/**", "/prod", true),
            ("/prod/**", "/product/a", false),
            ("/**/db", "/a/b/db", true),
            ("/**/db", "/db", true),
            ("/**/db", "/a/b/dbx", false),
            ("**/x/**/y", "a/x/b/x/c/y", true),
            ("**/x/**/y", "a/x/b/x/c/z", false),
            ("**", "anything/at/all", true),
            ("/prod/{namespace}/**", "/prod/team-a/db", true),
            ("/prod/{namespace}/**", "/prod/team-ab/db", false),
            ("/{serviceAccount}/db", "/web/db", true),
            ("/x-{namespace}/db", "/x-team-a/db", true),
        ];
        for (pattern, path, want) in cases {
            let got = policy("[team-a]", "['*']", "['*']", pattern).admit(asking(path), &by("team-a", "web"));
            assert_eq!(got.is_ok(), want, "pattern {pattern}, path {path}");
        }
    }

    #[test]
    fn every_field_must_match() {
        let cases = [
            ("all", "[team-a]", "[web]", "[aws-secretsmanager]", true),
            ("prefix", "['team-*']", "['w*']", "['aws-*']", true),
            ("one of several", "[x, team-a]", "[x, web]", "[x, aws-secretsmanager]", true),
            ("other namespace", "[team-b]", "[web]", "[aws-secretsmanager]", false),
            ("namespace as prefix without a star", "[team]", "[web]", "[aws-secretsmanager]", false),
            ("other account", "[team-a]", "[webx]", "[aws-secretsmanager]", false),
            ("other provider", "[team-a]", "[web]", "[vault]", false),
            ("empty list", "[]", "[web]", "[aws-secretsmanager]", false),
        ];
        for (case, namespaces, accounts, providers, want) in cases {
            let got = policy(namespaces, accounts, providers, "**").admit(asking("/a"), &by("team-a", "web"));
            assert_eq!(got.is_ok(), want, "case: {case}");
        }
    }

    #[test]
    fn no_rule_denies_and_shows_the_rule_to_add() {
        let denied = Policy::default().admit(asking("/prod/db"), &by("team-a", "web")).expect_err("denied");
        assert_eq!(
            denied.to_string(),
            "no policy rule lets service account web in namespace team-a have `/prod/db` from aws-secretsmanager; an \
             operator can add to the agent's policy.yaml: - {namespaces: [team-a], serviceAccounts: [web], providers: \
             [aws-secretsmanager], paths: [\"/prod/db\"]}"
        );
        let rule =
            denied.to_string().split_once("policy.yaml: ").map(|(_, rule)| format!("rules:\n{rule}")).expect("rule");
        let policy = Policy::parse([("shown", rule.as_str())]).expect("the shown rule is a rule");
        assert!(policy.admit(asking("/prod/db"), &by("team-a", "web")).is_ok(), "and it admits what was denied");
    }

    #[test]
    fn a_broken_file_is_refused_whole_with_its_place() {
        let cases = [
            (
                "star inside a segment",
                "rules:\n- {namespaces: [a], serviceAccounts: [a], providers: [a], paths: ['/a*']}",
                "whole segment",
            ),
            (
                "unknown field",
                "rules:\n- {namespace: [a], serviceAccounts: [a], providers: [a], paths: [a]}",
                "unknown field `namespace`",
            ),
            (
                "missing field",
                "rules:\n- {namespaces: [a], serviceAccounts: [a], providers: [a]}",
                "missing field `paths`",
            ),
            (
                "placeholder",
                "rules:\n- {namespaces: [a], serviceAccounts: [a], providers: [a], paths: ['{pod}']}",
                "unknown placeholder",
            ),
            (
                "star in front",
                "rules:\n- {namespaces: ['*a'], serviceAccounts: [a], providers: [a], paths: [a]}",
                "name pattern",
            ),
            ("not YAML", "rules: [", "line 2"),
        ];
        for (case, text, want) in cases {
            let error = Policy::parse([("p.yaml", text)]).expect_err(case);
            let shown = format!("{error}: {}", error.source);
            assert!(shown.contains("p.yaml") && shown.contains(want), "case: {case}: {shown}");
        }
    }

    #[test]
    fn rules_of_all_files_count_in_order() {
        let rule = |namespace: &str| {
            format!("rules: [{{namespaces: [{namespace}], serviceAccounts: ['*'], providers: ['*'], paths: ['**']}}]")
        };
        let (first, second) = (rule("team-b"), rule("team-a"));
        let policy = Policy::parse([("1", first.as_str()), ("empty", "  \n"), ("2", second.as_str())]).expect("policy");
        let admitted = policy.admit(asking("/a"), &by("team-a", "web")).expect("admitted");
        assert_eq!((policy.len(), admitted.rule()), (2, 2));
    }
}
