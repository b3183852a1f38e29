//! `jasm-agent check`: the configuration, and for CI, requests and manifests.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::program::{Ended, run};
use crate::support::agent::program;
use crate::support::scene::ALLOW_ALL;
use crate::support::store::Store;
use crate::support::surroundings::Surroundings;
use crate::support::unique;

/// A folder with files for the program; it goes when this is dropped.
pub(crate) struct Files(PathBuf);

impl Files {
    pub(crate) fn new() -> Self {
        let folder = std::env::temp_dir().join(unique("jasm-check"));
        std::fs::create_dir(&folder).expect("a folder");
        Self(folder)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).expect("a file");
        self.0.join(name).display().to_string()
    }

    fn check(&self, policy: &str, providers: &str, env: &[(&str, &str)]) -> Ended {
        run(&["check", "--policy-file", policy, "--providers-file", providers], env)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn check_says_what_cannot_be_used() {
    let files = Files::new();
    let policy = files.write("policy.yaml", ALLOW_ALL);
    let broken = files.write("broken.yaml", "rules: 3");
    let good = files.write("good.yaml", "providers: [{name: aws-eu, kind: aws-secretsmanager, region: eu-west-1}]");
    let with = |name: &str, fields: &str| files.write(name, &format!("providers:\n- name: aws-eu\n  {fields}"));
    let no_region = with("no-region.yaml", "kind: aws-secretsmanager");
    let http = with("http.yaml", "kind: aws-ssm\n  region: eu-west-1\n  endpoint: http://ssm");
    let unknown = with("unknown.yaml", "kind: aws-ssm\n  regoin: eu-west-1");
    let vault = with("vault.yaml", "kind: vault\n  address: http://vault:8200\n  auth: {tokenFile: /nowhere}");
    let cases = [
        ("broken policy", [&broken, &good], "JASM_POLICY_FILE) cannot be used: "),
        ("broken providers", [&policy, &broken], "JASM_PROVIDERS_FILE"),
        ("no region", [&policy, &no_region], "instance aws-eu: no region"),
        ("no TLS", [&policy, &http], "instance aws-eu: endpoint \"http://ssm\" has no TLS"),
        ("no TLS to Vault", [&policy, &vault], "`allowInsecure: true`"),
        ("unknown field", [&policy, &unknown], "instance aws-eu (line 4): unknown field `regoin`"),
        ("near miss", [&policy, &unknown], "did you mean `region`?"),
    ];
    for (case, [policy, providers], want) in cases {
        let bad = files.check(policy, providers, &[]);
        assert_eq!(bad.code, Some(2), "case: {case}: {}", bad.stderr);
        assert!(bad.stderr.contains(want), "case: {case}: {:?}", bad.stderr);
    }
    let insecure = [("AWS_REGION", "eu-west-1"), ("AWS_ENDPOINT_URL", "http://aws")];
    let bad = run(&["check", "--policy-file", &policy], &insecure);
    assert_eq!(bad.code, Some(2), "no TLS by the environment");
    assert!(bad.stderr.contains("AWS_ENDPOINT_URL \"http://aws\" has no TLS"), "{}", bad.stderr);
    // A file that was named is not taken for absent.
    for [policy, providers] in [[policy.as_str(), "/nowhere"], ["/nowhere", &good]] {
        let bad = files.check(policy, providers, &[]);
        assert!(bad.code == Some(2) && bad.stderr.contains("/nowhere was named, and is not there"), "{}", bad.stderr);
    }
}

#[tokio::test]
async fn check_tries_each_instance_and_reads_no_secret() {
    let surroundings = Surroundings::get().await;
    let store = Store::start(surroundings).await;
    let files = Files::new();
    let policy = files.write("policy.yaml", ALLOW_ALL);
    let good = "- {name: eu, kind: aws-secretsmanager, region: us-east-1, allowInsecure: true}";
    let down = "- {name: down, kind: vault, address: 'https://127.0.0.1:9', auth: {tokenFile: /nowhere}}";
    let (url, key) = (store.url(), "made-up");
    let env = [("AWS_ENDPOINT_URL", url), ("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", key)];
    let tried = files.check(&policy, &files.write("one.yaml", &format!("providers:\n{good}")), &env);
    assert_eq!(tried.code, Some(0), "{}", tried.stderr);
    let line = |text: &str, name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let eu = line(&tried.stdout, "eu ");
    for want in ["aws-secretsmanager", "yes", " ms", "arn:aws:"] {
        assert!(eu.contains(want), "{want} is not in {}", tried.stdout);
    }
    let tried = files.check(&policy, &files.write("two.yaml", &format!("providers:\n{good}\n{down}")), &env);
    assert_eq!(tried.code, Some(1), "{}", tried.stdout);
    assert!(line(&tried.stdout, "eu ").contains("yes"), "one that is down is no other's trouble: {}", tried.stdout);
    assert!(line(&tried.stdout, "down ").contains("no"), "{}", tried.stdout);
    assert!(line(&tried.stdout, "down: ").contains("/nowhere holds a token"), "what to do: {}", tried.stdout);
    assert_eq!(store.total_calls(), 0, "no secret was read");
    let none = run(&["check", "--policy-file", &policy], &[]);
    assert_eq!(none.code, Some(0));
    assert!(none.stdout.contains("not set up: aws-secretsmanager (no region"), "{}", none.stdout);
}

const ONE_RULE: &str = "rules:
- {namespaces: [team-a], serviceAccounts: [web], providers: [vault], paths: ['{namespace}/**']}
";
/// Nothing is there: neither the store, nor the token for it.
const VAULT: &str = "providers:
- {name: vault, kind: vault, address: 'https://127.0.0.1:9', auth: {tokenFile: /nowhere}}
";

#[test]
fn check_prints_the_policy_and_warns_about_probable_mistakes() {
    let files = Files::new();
    let rules = "  - {namespaces: [team-a], serviceAccounts: [web], providers: [valt], paths: [team-a/db]}\n";
    let policy = files.write("policy.yaml", &format!("{ALLOW_ALL}{rules}"));
    let folder = files.0.join("files");
    std::fs::create_dir(&folder).expect("a folder");
    let providers = format!("providers: [{{name: vault, kind: file, directory: {}}}]", folder.display());
    let ended = files.check(&policy, &files.write("providers.yaml", &providers), &[]);
    let mut at = 0;
    for want in [
        "the configuration is valid: policy rules: 2\n",
        "rule  file         namespaces  serviceAccounts  providers  paths\n",
        "1     policy.yaml  *           *                *          **\n",
        "2     policy.yaml  team-a      web              valt       team-a/db\n",
        "warning: rule 1 admits everything",
        "warning: rule 2 adds nothing: rule 1 admits all that it admits\n",
        "warning: rule 2 names provider `valt`, which is not configured; did you mean `vault`?\n",
        "vault",
    ] {
        let found = ended.stdout[at..].find(want);
        at += found.unwrap_or_else(|| panic!("{want} is not next in\n{}{}", ended.stdout, ended.stderr));
    }
    assert_eq!(ended.code, Some(0), "a warning is no error: {}", ended.stdout);
}

/// With a policy and a store that is not there; `input` is the standard input.
fn asked(files: &Files, arguments: &[&str], input: &str) -> Ended {
    let (policy, providers) = (files.write("policy.yaml", ONE_RULE), files.write("providers.yaml", VAULT));
    let all = ["check", "--policy-file", &policy, "--providers-file", &providers];
    let mut command = Command::new(program());
    command.args(all.iter().chain(arguments)).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    // It may have ended without reading.
    let _ = child.stdin.take().expect("its input").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("a text");
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn check_answers_to_requests_without_asking_anybody() {
    let files = Files::new();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["team-a,web,vault,team-a/db"], 0, "by rule 1\nadmitted: 1, refused: 0\n"),
        (
            &["team-a,web,vault,team-a/db", "team-a,x,vault,team-a/db"],
            3,
            "PolicyDenied        team-a/x: no policy rule",
        ),
        (
            &["team-a,web,vault,/team-a/db"],
            3,
            "AnnotationInvalid   team-a/web: annotation jasm.codnod.io/secret-sync: field `path`",
        ),
        (&["team-a,web,valt,team-a/db"], 3, "did you mean `vault`?"),
        (&["team-a,web"], 2, "four parts are needed"),
        (&["Team-A,web,vault,a"], 2, "cannot be a namespace's name"),
    ];
    for (requests, code, want) in cases {
        let arguments: Vec<&str> = requests.iter().flat_map(|request| ["--request", request]).collect();
        let ended = asked(&files, &arguments, "");
        assert_eq!(ended.code, Some(code), "{requests:?}: {}{}", ended.stdout, ended.stderr);
        assert!((ended.stdout + &ended.stderr).contains(want), "{requests:?} lacks {want}");
    }
}

#[test]
fn check_answers_to_manifests() {
    let manifest = |path: &str, namespace: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n{namespace}spec:\n  template:\n    metadata:\n      \
             annotations:\n        jasm.codnod.io/secret-sync: |\n          provider: vault\n          path: {path}\n          \
             secretName: db\n    spec:\n      serviceAccountName: web\n      containers: []\n"
        )
    };
    let files = Files::new();
    let good = files.write("good.yaml", &manifest("team-a/db", "  namespace: team-a\n"));
    let denied = files.write("denied.yaml", &manifest("team-b/db", "  namespace: team-a\n"));
    let nowhere = manifest("team-a/db", "");
    let other = files.write("other.yaml", "{apiVersion: v1, kind: Service, metadata: {name: web}}");
    let cases: [(&[&str], &str, i32, &str); 7] = [
        (&["-f", &good], "", 0, "admitted            Deployment team-a/web: vault team-a/db by rule 1\n"),
        (&["-f", &good, "--filename", &denied], "", 3, "paths: [\"team-b/db\"]}"),
        (&["-f", "-", "--namespace", "team-a"], &nowhere, 0, "admitted: 1, refused: 0"),
        (&["-f", "-"], &nowhere, 3, "in namespace default"),
        (&["-f", &other], "", 0, "nothing asks for a secret"),
        (&["-f", "-"], "kind: [", 3, "ManifestInvalid     document 1"),
        (&["-f", "/nowhere.yaml"], "", 2, "--filename /nowhere.yaml cannot be read"),
    ];
    for (arguments, input, code, want) in cases {
        let ended = asked(&files, arguments, input);
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        assert!(
            (ended.stdout.clone() + &ended.stderr).contains(want),
            "{arguments:?}: {}{}",
            ended.stdout,
            ended.stderr
        );
    }
    let broken = files.write("broken.yaml", "rules: 3");
    let ended = run(&["check", "--policy-file", &broken, "--request", "team-a,web,vault,a"], &[]);
    assert_eq!(ended.code, Some(2), "{}", ended.stdout);
    assert!(
        ended.stderr.contains("broken.yaml is not a policy") && ended.stderr.contains("line 1 column"),
        "{}",
        ended.stderr
    );
}
