//! The policy once more, by another algorithm, and the comparison of both.
//!
//! It reads the texts of the rules each time, and matches paths by a table over all prefixes of pattern and path. It
//! shares no code with the real one: no parsed pattern, no second try of a `**`.

use fastrand::Rng;
use serde_json::{Value, json};

use super::{Policy, Requester};
use crate::{pod::PodNamespace, request::SecretRequest};

/// The fields of a rule, as they are written.
#[derive(Debug, Clone)]
struct Written {
    namespaces: Vec<String>,
    accounts: Vec<String>,
    providers: Vec<String>,
    paths: Vec<String>,
}

/// Who asks for what.
#[derive(Debug, Clone)]
struct Asked {
    namespace: String,
    account: String,
    provider: String,
    path: String,
}

/// How the reference compares; anything but [`RIGHT`] is a planted mistake.
struct Reading {
    same: fn(wanted: &str, segment: &str) -> bool,
    /// `**` may stand for nothing.
    none: bool,
    /// `*` may stand for several segments.
    several: bool,
}

const RIGHT: Reading = Reading { same: |wanted, segment| wanted == segment, none: true, several: false };

/// The number of the first rule that admits, from 1.
fn admits(rules: &[Written], asked: &Asked, reading: &Reading) -> Option<usize> {
    let name = |patterns: &[String], name: &str| patterns.iter().any(|pattern| is_name(pattern, name));
    let rule = |rule: &Written| {
        name(&rule.namespaces, &asked.namespace)
            && name(&rule.accounts, &asked.account)
            && name(&rule.providers, &asked.provider)
            && rule.paths.iter().any(|pattern| is_path(pattern, asked, reading))
    };
    Some(1 + rules.iter().position(rule)?)
}

fn is_name(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.chars(), name.chars());
    loop {
        match (pattern.next(), name.next()) {
            (Some('*'), _) => return true,
            (None, None) => return true,
            (wanted, got) if wanted != got => return false,
            _ => {}
        }
    }
}

/// `reached[j]`: the pattern up to here matches the first j segments of the path.
fn is_path(pattern: &str, asked: &Asked, reading: &Reading) -> bool {
    let path: Vec<&str> = asked.path.split('/').collect();
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for part in pattern.split('/') {
        let before = reached.clone();
        for j in 0..=path.len() {
            let earlier = |from: usize| before[from..j].iter().any(|reached| *reached);
            reached[j] = match part {
                "**" => (reading.none && before[j]) || earlier(0),
                "*" if reading.several => earlier(0),
                "*" => j > 0 && before[j - 1],
                text => j > 0 && before[j - 1] && (reading.same)(&filled_in(text, asked), path[j - 1]),
            };
        }
    }
    reached[path.len()]
}

/// One pass from left to right, so that what was filled in is not looked at again.
fn filled_in(text: &str, asked: &Asked) -> String {
    let mut filled = String::new();
    let mut parts = text.split('{');
    filled.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (word, rest) = part.split_once('}').expect("a placeholder ends");
        filled.push_str(if word == "namespace" { &asked.namespace } else { &asked.account });
        filled.push_str(rest);
    }
    filled
}

impl Written {
    fn in_yaml(rules: &[Self]) -> String {
        let rule = |rule: &Self| json!({"namespaces": rule.namespaces, "serviceAccounts": rule.accounts, "providers": rule.providers, "paths": rule.paths});
        json!({"rules": rules.iter().map(rule).collect::<Vec<Value>>()}).to_string()
    }

    fn policy(rules: &[Self]) -> Policy {
        let text = Self::in_yaml(rules);
        Policy::parse([("policy.yaml", text.as_str())]).unwrap_or_else(|error| panic!("{text}: {}", error.source))
    }
}

/// What the policy says: the number of the rule, from 1.
fn really_admits(policy: &Policy, asked: &Asked) -> Option<usize> {
    let requester =
        Requester { namespace: PodNamespace::for_test(&asked.namespace), service_account: asked.account.clone() };
    let request = SecretRequest::for_test(&asked.provider, &asked.path, "x");
    policy.admit(request, &requester).ok().map(|admitted| admitted.rule().number())
}

const NAMES: &[&str] = &[
    "team-a",
    "team-ab",
    "team",
    "Team-A",
    "te\u{430}m-a",
    "web",
    "{serviceAccount}",
    "{namespace}",
    "*",
    "**",
    "",
    "a/b",
];
const NAME_PATTERNS: &[&str] = &["team-*", "team-a", "team-ab", "Team-A", "te\u{430}m-a", "web", "{namespace}"];
const PROVIDERS: &[&str] = &["aws-ssm", "aws-eu", "vault"];
const PROVIDER_PATTERNS: &[&str] = &["aws-*", "aws-ssm", "vault"];
const SEGMENTS: &[&str] = &[
    "",
    "prod",
    "Prod",
    "team-a",
    "team-ab",
    "te\u{430}m-a",
    "web",
    "*",
    "**",
    "{namespace}",
    "x-team-a",
    "team-a-web",
    "..",
];
const SEGMENT_PATTERNS: &[&str] = &[
    "*",
    "**",
    "**",
    "{namespace}",
    "{serviceAccount}",
    "x-{namespace}",
    "{namespace}-{serviceAccount}",
    "prod",
    "Prod",
    "team-a",
    "team-ab",
    "te\u{430}m-a",
    "",
    "..",
];

fn one(rng: &mut Rng, of: &[&str]) -> String {
    of[rng.usize(..of.len())].to_owned()
}

fn asked(rng: &mut Rng) -> Asked {
    let segments: Vec<String> = (0..rng.usize(1..6)).map(|_| one(rng, SEGMENTS)).collect();
    let (namespace, account, provider) = (one(rng, NAMES), one(rng, NAMES), one(rng, PROVIDERS));
    Asked { namespace, account, provider, path: segments.join("/") }
}

/// A pattern that resembles the path: each segment stays, or becomes another one or several.
fn pattern_like(rng: &mut Rng, path: &str) -> String {
    let stays = |segment: &str| !segment.contains('{');
    let mut pattern = Vec::new();
    for segment in path.split('/') {
        match rng.u8(..8) {
            0..=4 if stays(segment) => pattern.push(segment.to_owned()),
            5 => {}
            6 => pattern.extend([one(rng, SEGMENT_PATTERNS), one(rng, SEGMENT_PATTERNS)]),
            _ => pattern.push(one(rng, SEGMENT_PATTERNS)),
        }
    }
    let text = pattern.join("/");
    if text.is_empty() { "**".to_owned() } else { text }
}

fn rule_for(rng: &mut Rng, asked: &[Asked]) -> Written {
    let few = |rng: &mut Rng, of: &[&str]| match rng.u8(..3) > 0 {
        true => vec!["*".to_owned()],
        false => (0..rng.usize(1..4)).map(|_| one(rng, of)).collect(),
    };
    let paths = (0..rng.usize(1..3)).map(|_| {
        let path = asked[rng.usize(..asked.len())].path.clone();
        pattern_like(rng, &path)
    });
    let paths = paths.collect();
    Written {
        namespaces: few(rng, NAME_PATTERNS),
        accounts: few(rng, NAME_PATTERNS),
        providers: few(rng, PROVIDER_PATTERNS),
        paths,
    }
}

/// What came of comparing.
#[derive(Debug, Default)]
struct Compared {
    cases: usize,
    admitted: usize,
    differences: Vec<String>,
}

/// So many policies, ten requests to each.
fn compare(policies: usize, seed: u64, reading: &Reading) -> Compared {
    let mut rng = Rng::with_seed(seed);
    let mut compared = Compared::default();
    for _ in 0..policies {
        let asked: Vec<Asked> = (0..10).map(|_| asked(&mut rng)).collect();
        let rules: Vec<Written> = (0..rng.usize(1..5)).map(|_| rule_for(&mut rng, &asked)).collect();
        let policy = Written::policy(&rules);
        for asked in &asked {
            let (real, reference) = (really_admits(&policy, asked), admits(&rules, asked, reading));
            compared.cases += 1;
            compared.admitted += usize::from(real.is_some());
            if real != reference {
                let rules = Written::in_yaml(&rules);
                compared.differences.push(format!("seed {seed}: {asked:?}: {real:?}, not {reference:?}: {rules}"));
            }
        }
    }
    compared
}

#[test]
fn fifty_thousand_random_cases_end_alike() {
    let seed = fastrand::u64(..);
    let Compared { cases, admitted, differences } = compare(5_000, seed, &RIGHT);
    assert!(differences.is_empty(), "{} of {cases}, as {}", differences.len(), differences[0]);
    assert_eq!(cases, 50_000);
    assert!((cases / 20..cases / 2).contains(&admitted), "seed {seed}: {admitted} admitted say little");
}

/// Else the comparison would show nothing.
#[test]
fn a_planted_mistake_is_found() {
    let mistakes = [
        ("a prefix of a segment", Reading { same: |wanted, segment| segment.starts_with(wanted), ..RIGHT }),
        ("case", Reading { same: |wanted, segment| wanted.eq_ignore_ascii_case(segment), ..RIGHT }),
        ("look-alikes", Reading { same: |wanted, segment| wanted == segment.replace('\u{430}', "a"), ..RIGHT }),
        ("** is one at least", Reading { none: false, ..RIGHT }),
        ("* is several", Reading { several: true, ..RIGHT }),
    ];
    for (case, reading) in mistakes {
        assert!(!compare(1_000, 7, &reading).differences.is_empty(), "case: {case}");
    }
}

/// A request whose path the pattern matches.
fn asked_like(rng: &mut Rng, pattern: &str) -> Asked {
    let mut like = asked(rng);
    let mut path = Vec::new();
    for part in pattern.split('/') {
        match part {
            "**" => path.extend((0..rng.usize(..3)).map(|_| one(rng, SEGMENTS))),
            "*" => path.push(one(rng, SEGMENTS)),
            text => path.push(filled_in(text, &like)),
        }
    }
    like.path = path.join("/");
    like
}

#[test]
fn what_one_rule_is_said_to_cover_it_admits() {
    let seed = fastrand::u64(..);
    let mut rng = Rng::with_seed(seed);
    let mut covered = 0;
    for _ in 0..10_000 {
        let like = asked(&mut rng);
        let wide = rule_for(&mut rng, &[like]);
        let other = asked(&mut rng);
        let mut narrow = rule_for(&mut rng, &[other]);
        narrow.paths = vec![pattern_like(&mut rng, &wide.paths[0])];
        let parsed = Written::policy(&[wide.clone(), narrow.clone()]);
        if !parsed.rules[0].1.covers(&parsed.rules[1].1) {
            continue;
        }
        for _ in 0..10 {
            let asked = asked_like(&mut rng, &narrow.paths[0]);
            let by = |rule: &Written| admits(std::slice::from_ref(rule), &asked, &RIGHT).is_some();
            covered += usize::from(by(&narrow));
            assert!(!by(&narrow) || by(&wide), "seed {seed}: {asked:?} by {narrow:?}, and not by {wide:?}");
        }
    }
    assert!(covered > 100, "seed {seed}: {covered} cases say little");
}

/// Pattern, path, pod, and whether it matches.
#[test]
fn the_examples_of_the_page_are_true_by_both() {
    let page = include_str!("../../docs/policy.md");
    let mut examples = 0;
    for line in page.lines().filter(|line| line.ends_with("| yes |") || line.ends_with("| no |")) {
        let [_, pattern, _, path, _, pod, want] = line.split('`').collect::<Vec<_>>()[..] else {
            panic!("{line} is no example");
        };
        let (namespace, account) = pod.split_once('/').expect("a pod");
        assert_matches(pattern, namespace, account, path, want == " | yes |");
        examples += 1;
    }
    assert!(examples > 10, "{examples} examples were found");
}

fn assert_matches(pattern: &str, namespace: &str, account: &str, path: &str, want: bool) {
    let all = || vec!["*".to_owned()];
    let rule = Written { namespaces: all(), accounts: all(), providers: all(), paths: vec![pattern.to_owned()] };
    let asked = Asked {
        namespace: namespace.to_owned(),
        account: account.to_owned(),
        provider: "aws-ssm".to_owned(),
        path: path.to_owned(),
    };
    let real = really_admits(&Written::policy(std::slice::from_ref(&rule)), &asked).is_some();
    let reference = admits(&[rule], &asked, &RIGHT).is_some();
    assert_eq!((real, reference), (want, want), "{pattern} for {path}, pod {namespace}/{account}");
}

/// What a mistake in matching would confuse, by both.
#[test]
fn twins_are_told_apart() {
    // Pattern, namespace, path, whether it matches. The service account is `web`.
    let cases = [
        ("prod/team-a", "x", "prod/team-a", true),
        ("prod/team-a", "x", "prod/team-ab", false),
        ("prod/team-ab", "x", "prod/team-a", false),
        ("prod/team-a/**", "x", "prod/team-ab/db", false),
        ("prod/team-a", "x", "prod/team-a/db", false),
        ("prod/team-a", "x", "prod/Team-a", false),
        ("PROD/team-a", "x", "prod/team-a", false),
        ("prod/team-a", "x", "prod/te\u{430}m-a", false),
        ("prod/team-a", "x", "prod/team\u{2010}a", false),
        ("prod/caf\u{e9}", "x", "prod/cafe\u{301}", false),
        ("prod/team-a", "x", "prod/team-a/", false),
        ("prod/team-a/", "x", "prod/team-a", false),
        ("prod/team-a", "x", "/prod/team-a", false),
        ("/prod/team-a", "x", "prod/team-a", false),
        ("prod/*", "x", "prod/a/b", false),
        ("prod/*", "x", "prod", false),
        ("prod/*/db", "x", "prod/a/b/db", false),
        ("prod/a.b", "x", "prod/a-b", false),
        ("prod/a?b", "x", "prod/acb", false),
        ("prod/[ab]", "x", "prod/a", false),
        // A value that looks like a pattern is a text.
        ("prod/{namespace}", "*", "prod/a", false),
        ("prod/{namespace}", "*", "prod/*", true),
        ("prod/{namespace}", "**", "prod/a/b", false),
        ("prod/{namespace}", "{serviceAccount}", "prod/web", false),
        ("prod/{namespace}", "{serviceAccount}", "prod/{serviceAccount}", true),
        ("prod/{namespace}/db", "a/b", "prod/a/b/db", false),
        ("prod/{namespace}{serviceAccount}", "team-", "prod/team-web", true),
        ("prod/{namespace}-{serviceAccount}", "team", "prod/team-web", true),
        ("prod/{namespace}-{serviceAccount}", "team-web", "prod/team-web", false),
        ("prod/{namespace}", "team-a", "prod/team-ab", false),
        // `**` in the middle.
        ("/prod/**/db", "x", "/prod/db", true),
        ("/prod/**/db", "x", "/prod/a/b/db", true),
        ("/prod/**/db", "x", "/prod/a/db/b", false),
        ("/prod/**/db/**/db", "x", "/prod/db", false),
        ("/prod/**/db/**/db", "x", "/prod/db/db", true),
        ("/prod/**/*/db", "x", "/prod/db", false),
        // Empty paths and segments.
        ("**", "x", "", true),
        ("*", "x", "", true),
        ("prod", "x", "", false),
        ("prod/**", "x", "", false),
        ("/**", "x", "", true),
        ("/prod/**", "x", "/prod/", true),
        ("/prod//db", "x", "/prod/db", false),
        ("/prod/db", "x", "/prod//db", false),
        // A folder of Parameter Store, which is asked for as it is written.
        ("/prod/*", "x", "/prod/*", true),
        ("/prod/**", "x", "/prod/*", true),
        ("/prod/team-a", "x", "/prod/*", false),
        ("/prod/*", "x", "/prod/team-a/*", false),
        ("/prod/{namespace}/*", "team-a", "/prod/team-a/*", true),
        ("/prod/{namespace}/*", "team-a", "/prod/team-ab/*", false),
        ("/*/db", "x", "/prod/*", false),
    ];
    for (pattern, namespace, path, want) in cases {
        assert_matches(pattern, namespace, "web", path, want);
    }
}
