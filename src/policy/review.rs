//! The policy as its operator reads it: a table, and what is probably a mistake in it. Pure.

use std::fmt::{Display, Write as _};

use super::{
    Policy, Rule,
    pattern::{NamePattern, PathPattern},
};
use crate::{
    annotations::{did_you_mean, quoted},
    provider::Catalogue,
};

const HEAD: [&str; 6] = ["rule", "file", "namespaces", "serviceAccounts", "providers", "paths"];

impl Policy {
    /// One line for each rule, below a line of headings.
    pub fn table(&self) -> String {
        let rows = self.rules.iter().map(|(name, rule)| {
            [
                name.number.to_string(),
                name.file.to_string(),
                listed(&rule.namespaces),
                listed(&rule.service_accounts),
                listed(&rule.providers),
                listed(&rule.paths),
            ]
        });
        let rows: Vec<[String; 6]> = [HEAD.map(str::to_owned)].into_iter().chain(rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        let lines = rows.iter().map(|row| {
            let cells = row.iter().zip(&widths).fold(String::new(), |mut line, (cell, width)| {
                // Writing into a text cannot fail.
                let _ = write!(line, "{cell:<width$}  ");
                line
            });
            cells.trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// What is probably a mistake, each with its rule. Only what is certain is said: a rule without a warning may still
    /// be one that nobody needs.
    pub fn warnings(&self, catalogue: &Catalogue) -> Vec<String> {
        let mut warnings = Vec::new();
        for (index, (name, rule)) in self.rules.iter().enumerate() {
            let mut warn = |what: String| warnings.push(format!("{name} {what}"));
            rule.empty_field().into_iter().for_each(|field| warn(format!("admits nothing: `{field}` is empty")));
            if rule.admits_everything() {
                warn("admits everything: any pod may have any secret; that is for a cluster of one tenant".to_owned());
            }
            if let Some((earlier, _)) = self.rules[..index].iter().find(|(_, earlier)| earlier.covers(rule)) {
                warn(format!("adds nothing: {earlier} admits all that it admits"));
            }
            rule.unknown_providers(catalogue).for_each(&mut warn);
            rule.dead_paths(catalogue).for_each(&mut warn);
        }
        warnings
    }
}

impl Rule {
    fn empty_field(&self) -> Option<&'static str> {
        let fields = [
            ("namespaces", self.namespaces.is_empty()),
            ("serviceAccounts", self.service_accounts.is_empty()),
            ("providers", self.providers.is_empty()),
            ("paths", self.paths.is_empty()),
        ];
        fields.iter().find(|(_, empty)| *empty).map(|(field, _)| *field)
    }

    fn admits_everything(&self) -> bool {
        let any = |patterns: &[NamePattern]| patterns.iter().any(NamePattern::is_any);
        any(&self.namespaces)
            && any(&self.service_accounts)
            && any(&self.providers)
            && self.paths.iter().any(PathPattern::is_any)
    }

    /// Whether it certainly admits all that the other one admits: for each pattern there, there is one here that covers
    /// it. `false` says nothing.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let names = |wide: &[NamePattern], narrow: &[NamePattern]| {
            narrow.iter().all(|narrow| wide.iter().any(|wide| wide.covers(narrow)))
        };
        // An empty list is another warning.
        other.empty_field().is_none()
            && names(&self.namespaces, &other.namespaces)
            && names(&self.service_accounts, &other.service_accounts)
            && names(&self.providers, &other.providers)
            && other.paths.iter().all(|narrow| self.paths.iter().any(|wide| wide.covers(narrow)))
    }

    fn unknown_providers(&self, catalogue: &Catalogue) -> impl Iterator<Item = String> {
        let known = |pattern: &NamePattern| pattern.is_any() || catalogue.names().any(|name| pattern.matches(name));
        self.providers.iter().filter(move |pattern| !known(pattern)).map(|pattern| {
            let written = pattern.to_string();
            let near = pattern.exact().map(|name| did_you_mean(name, catalogue.names())).unwrap_or_default();
            format!("names provider {}, which is not configured{near}", quoted(&written))
        })
    }

    /// Paths that no request can have, since no provider of the rule has such a path.
    fn dead_paths(&self, catalogue: &Catalogue) -> impl Iterator<Item = String> {
        self.paths.iter().filter_map(|pattern| {
            let problem = pattern.why_dead(self, catalogue)?;
            Some(format!("has path {}, which no request can have: {problem}", quoted(&pattern.to_string())))
        })
    }
}

impl PathPattern {
    /// Why no request to the rule's providers has a path that it matches, where that is certain.
    fn why_dead(&self, rule: &Rule, catalogue: &Catalogue) -> Option<String> {
        if self.has_impossible_segment() {
            return Some("a path has no empty segment, `.` or `..` between its slashes".to_owned());
        }
        let path = self.exact()?;
        let asked = |name: &&str| rule.providers.iter().any(|pattern| pattern.matches(name));
        let kinds = catalogue.names().filter(asked).filter_map(|name| catalogue.get(name));
        let mut problems = kinds.map(|(name, kind)| match kind.check_path(&path) {
            Ok(sent) if sent == path => None,
            Ok(sent) => Some(format!("for {name} it is {}", quoted(&sent))),
            Err(problem) => Some(format!("for {name} it {problem}")),
        });
        let first = problems.next()??;
        problems.all(|problem| problem.is_some()).then_some(first)
    }
}

fn listed(patterns: &[impl Display]) -> String {
    match patterns {
        [] => "-".to_owned(),
        _ => patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

#[cfg(all(test, feature = "aws"))]
mod tests {
    use super::*;
    use crate::provider::{Kind, ProviderName};

    fn catalogue() -> Catalogue {
        let kind = |name: &str| Kind::of(name).expect("a kind of this build");
        Catalogue::new(
            crate::config::Mode::Direct,
            [
                (ProviderName::for_test("aws-secretsmanager"), kind("aws-secretsmanager")),
                (ProviderName::for_test("aws-ssm"), kind("aws-ssm")),
                (ProviderName::for_test("files"), kind("file")),
            ],
        )
    }

    fn policy(rules: &[&str]) -> Policy {
        let text = format!("rules:\n- {}\n", rules.join("\n- "));
        Policy::parse([("/etc/jasm/policy.yaml", text.as_str())]).expect("a policy")
    }

    const TEAM_A: &str = "{namespaces: [team-a], serviceAccounts: ['*'], providers: [aws-ssm], paths: ['/prod/*']}";

    #[test]
    fn the_table_has_a_line_for_each_rule() {
        let second =
            "{namespaces: [x, 'team-*'], serviceAccounts: [web], providers: [], paths: ['**', '/{namespace}/a']}";
        let want = "\
rule  file         namespaces  serviceAccounts  providers  paths
1     policy.yaml  team-a      *                aws-ssm    /prod/*
2     policy.yaml  x,team-*    web              -          **,/{namespace}/a";
        assert_eq!(policy(&[TEAM_A, second]).table(), want);
    }

    #[test]
    fn what_is_probably_a_mistake() {
        let rule = |providers: &str, path: &str| {
            format!("{{namespaces: [team-a], serviceAccounts: ['*'], providers: [{providers}], paths: ['{path}']}}")
        };
        let cases = [
            ("nothing wrong", rule("aws-ssm", "/a/{namespace}/**"), None),
            ("a prefix that an instance has", rule("'aws-*'", "/a"), None),
            ("any provider", rule("'*'", "/a/*"), None),
            (
                "all",
                "{namespaces: ['*'], serviceAccounts: ['*'], providers: ['*'], paths: [x, '**']}".into(),
                Some("admits everything"),
            ),
            ("all but", "{namespaces: ['*'], serviceAccounts: ['*'], providers: ['*'], paths: ['/**']}".into(), None),
            ("no instance", rule("vault", "/a"), Some("names provider `vault`, which is not configured")),
            ("near miss", rule("aws-smm", "/a"), Some("not configured; did you mean `aws-ssm`?")),
            ("no prefix", rule("'vault-*'", "/a"), Some("names provider `vault-*`")),
            ("empty list", rule("", "/a"), Some("admits nothing: `providers` is empty")),
            (
                "trailing slash",
                rule("'*'", "/prod/{namespace}/"),
                Some("has path `/prod/{namespace}/`, which no request"),
            ),
            ("two slashes", rule("'*'", "/prod//**"), Some("no empty segment")),
            ("parent", rule("'*'", "../{namespace}"), Some("no empty segment, `.` or `..`")),
            ("parameter without a slash", rule("aws-ssm", "a/b"), Some("for aws-ssm it is `/a/b`")),
            ("a secret without one", rule("'aws-*'", "a/b"), None),
            ("no such character", rule("files", "a b"), Some("for files it has the character")),
        ];
        for (case, rule, want) in cases {
            let got = policy(&[&rule]).warnings(&catalogue());
            match want {
                None => assert_eq!(got, Vec::<String>::new(), "case: {case}"),
                Some(want) => assert!(got.len() == 1 && got[0].contains(want), "case: {case}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_rule_that_an_earlier_one_covers_adds_nothing() {
        let narrow = "{namespaces: [team-a], serviceAccounts: [web], providers: [aws-ssm], paths: [/prod/db]}";
        let other = "{namespaces: [team-b], serviceAccounts: [web], providers: [aws-ssm], paths: [/prod/db]}";
        let both = "{namespaces: [team-a, team-b], serviceAccounts: [web], providers: [aws-ssm], paths: [/prod/db]}";
        let cases = [
            ("covered", [TEAM_A, narrow], vec!["rule 2 adds nothing: rule 1 admits all that it admits"]),
            ("the same twice", [narrow, narrow], vec!["rule 2 adds nothing: rule 1 admits all that it admits"]),
            ("the wide one later", [narrow, TEAM_A], vec![]),
            ("another namespace", [TEAM_A, other], vec![]),
            ("one namespace of two", [TEAM_A, both], vec![]),
        ];
        for (case, rules, want) in cases {
            assert_eq!(policy(&rules).warnings(&catalogue()), want, "case: {case}");
        }
    }

    #[test]
    fn rules_of_several_files_are_named_with_their_file() {
        let text = format!("rules: [{TEAM_A}]");
        let policy = Policy::parse([("/p/a.yaml", text.as_str()), ("/p/b.yaml", text.as_str())]).expect("a policy");
        let want = ["rule 1 of b.yaml adds nothing: rule 1 of a.yaml admits all that it admits"];
        assert_eq!(policy.warnings(&catalogue()), want);
    }
}
