//! Who may have which secret. Pure; default deny.
//!
//! [`Policy::admit`] is the only way to an [`AdmittedRequest`], and the steps after it take nothing else.

mod pattern;
#[cfg(test)]
mod reference;
mod review;

use std::{fmt, sync::Arc};

use serde::Deserialize;

use self::pattern::{NamePattern, PathPattern};
use crate::{
    annotations::quoted,
    pod::{PodNamespace, PodView},
    provider::Caller,
    request::SecretRequest,
};

/// The operator's rules. No rule that matches = denied.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<(RuleName, Rule)>,
}

/// Which rule it is: its number in its file, from 1, and the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleName {
    number: usize,
    file: Arc<str>,
    one_of_several: bool,
}

impl RuleName {
    /// Its number in its file, from 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The file, where the policy has several.
    pub fn file(&self) -> Option<&str> {
        self.one_of_several.then_some(&*self.file)
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}", self.number)?;
        self.file().map_or(Ok(()), |file| write!(f, " of {file}"))
    }
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
    /// Absent, or without a value: none.
    rules: Option<Vec<Rule>>,
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
#[derive(Debug, Clone)]
pub struct AdmittedRequest {
    request: SecretRequest,
    rule: RuleName,
    caller: Caller,
}

impl AdmittedRequest {
    /// What was admitted.
    pub fn request(&self) -> &SecretRequest {
        &self.request
    }

    /// The same, with the store asked as another caller than the agent.
    pub fn by(self, caller: Caller) -> Self {
        Self { caller, ..self }
    }

    /// Who asks the store.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What stands on the Secret about its source.
    pub fn source_id(&self) -> String {
        self.request.source_id_as(&self.caller.identity())
    }

    /// The rule that admitted it: the first that does, over all files in their order.
    pub fn rule(&self) -> &RuleName {
        &self.rule
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
        let files: Vec<(&str, &str)> = files.into_iter().collect();
        let one_of_several = files.len() > 1;
        let mut rules = Vec::new();
        for (path, text) in files {
            let parsed: Option<RulesFile> =
                serde_yaml::from_str(text).map_err(|source| PolicyError { file: path.to_owned(), source })?;
            let file: Arc<str> = path.rsplit('/').next().unwrap_or(path).into();
            let named = parsed.and_then(|file| file.rules).unwrap_or_default().into_iter().enumerate();
            rules.extend(
                named.map(|(index, rule)| {
                    (RuleName { number: index + 1, file: Arc::clone(&file), one_of_several }, rule)
                }),
            );
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
        match self.rules.iter().find(|(_, rule)| rule.matches(&request, requester)) {
            Some((name, _)) => Ok(AdmittedRequest { request, rule: name.clone(), caller: Caller::Agent }),
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
        let catalogue = Catalogue::new(
            crate::config::Mode::Direct,
            [(ProviderName::for_test("aws-secretsmanager"), Kind::for_test())],
        );
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
    fn the_shown_rule_is_whole_in_an_event_also_for_the_longest_path() {
        let (name, path) = ("n".repeat(30), "p".repeat(request::MAX_PATH_BYTES));
        let denied = Policy::default().admit(asking(&path), &by(&name, &name)).expect_err("denied").to_string();
        assert!(denied.ends_with("\"]}") && denied.len() <= 1000, "{} bytes", denied.len());
    }

    #[test]
    fn the_shown_rule_admits_what_was_denied_whatever_the_names() {
        let arn = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/db+x=@!-a1b2c3";
        let cases = [
            ("123", "456", "/prod/db"),
            ("true", "null", "a"),
            ("1e3", "0x1f", "-a"),
            ("no", "y", "!a"),
            ("on", "a.b.c", "@a"),
            ("2026-01-01", "1.5", "=+.@!-"),
            ("a", "b", arn),
        ];
        for (namespace, account, path) in cases {
            let denied = Policy::default().admit(asking(path), &by(namespace, account)).expect_err("denied");
            let text = denied.to_string();
            let (_, rule) = text.split_once("policy.yaml: ").expect("a rule");
            let policy = Policy::parse([("shown", format!("rules:\n{rule}").as_str())]);
            let policy = policy.unwrap_or_else(|error| panic!("{rule}: {}", error.source));
            assert!(policy.admit(asking(path), &by(namespace, account)).is_ok(), "{rule}");
            assert!(policy.admit(asking("/other"), &by(namespace, account)).is_err(), "{rule}");
        }
    }

    #[test]
    fn a_broken_file_is_refused_whole_with_its_place() {
        let good = "- {namespaces: [a], serviceAccounts: [a], providers: [a], paths: [a]}";
        let cases = [
            ("star inside a segment", "paths: ['/a*']", "whole segment", "line 3 column"),
            ("an empty path", "paths: ['']", "empty path pattern", "line 3 column"),
            ("placeholder", "paths: ['{pod}']", "unknown placeholder", "line 3 column"),
            ("star in front", "namespaces: ['*a']", "name pattern", "line 3 column"),
            ("two stars", "providers: ['a**']", "name pattern", "line 3 column"),
            ("an empty name", "serviceAccounts: ['']", "name pattern", "line 3 column"),
            ("unknown field", "namespace: [a]", "unknown field `namespace`", "line 3 column"),
            ("a text for a list", "paths: a", "expected a sequence", "line 3 column"),
            ("missing fields", "x-y", "", "line 3 column"),
            ("not YAML", "paths: [", "", "line 4 column"),
        ];
        for (case, field, want, place) in cases {
            let text = format!("rules:\n{good}\n- {field}\n");
            let error = Policy::parse([("good.yaml", ""), ("p.yaml", text.as_str())]).expect_err(case);
            let shown = format!("{error}: {}", error.source);
            for want in ["p.yaml is not a policy", want, place] {
                assert!(shown.contains(want), "case: {case}: {shown} lacks {want}");
            }
        }
        let missing = "rules:\n- {namespaces: [a], serviceAccounts: [a], providers: [a]}";
        let error = Policy::parse([("p.yaml", missing)]).expect_err("a field is missing");
        assert!(error.source.to_string().contains("missing field `paths` at line 2 column 3"), "{}", error.source);
    }

    #[test]
    fn rules_of_all_files_count_in_order() {
        let rule = |namespace: &str| {
            format!("rules: [{{namespaces: [{namespace}], serviceAccounts: ['*'], providers: ['*'], paths: ['**']}}]")
        };
        let (first, second) = (rule("team-b"), rule("team-a"));
        let policy = Policy::parse([("1", first.as_str()), ("empty", "  \n"), ("2", second.as_str())]).expect("policy");
        let admitted = policy.admit(asking("/a"), &by("team-a", "web")).expect("admitted");
        assert_eq!((policy.len(), admitted.rule().to_string()), (2, "rule 1 of 2".to_owned()));
        let policy = Policy::parse([("/p/policy.yaml", format!("{first}\n").as_str())]).expect("a policy");
        let admitted = policy.admit(asking("/a"), &by("team-b", "web")).expect("admitted");
        assert_eq!((admitted.rule().number(), admitted.rule().file()), (1, None), "a file that is alone is not named");
    }

    #[test]
    fn a_file_without_rules_denies_all() {
        for text in ["", " \n", "# rules:\n", "rules:\n", "rules:\n# - {}\n", "rules: []", "{}", "---\n"] {
            assert_eq!(Policy::parse([("p.yaml", text)]).map(|policy| policy.len()).ok(), Some(0), "{text:?}");
        }
    }
}
