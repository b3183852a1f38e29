//! Flags and environment, checked once.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand};
use tracing::Level;

use crate::{
    masters::MastersNamespace,
    names::{is_dns_label, is_dns_subdomain},
    telemetry::LogFormat,
};

/// Puts external secrets where pods ask for them by annotation.
#[derive(Debug, Parser)]
#[command(name = "jasm-agent", version, about)]
pub struct Flags {
    #[command(subcommand)]
    command: Option<Command>,
    /// The node whose pods are served [required, but for `check`]
    #[arg(long, env = "NODE_NAME", global = true, value_name = "NAME", hide_env_values = true)]
    node_name: Option<String>,
    /// Policy: a file, or a folder of files; absent = everything is denied
    ///
    /// [default: /etc/jasm/policy.yaml]
    #[arg(long, env = "JASM_POLICY_FILE", global = true, value_name = "PATH")]
    policy_file: Option<PathBuf>,
    /// Provider instances; absent = the defaults, set up by the environment
    ///
    /// [default: /etc/jasm/providers.yaml]
    #[arg(long, env = "JASM_PROVIDERS_FILE", global = true, value_name = "PATH")]
    providers_file: Option<PathBuf>,
    /// Where values go: direct (from the store to the pods' namespaces) or central (by way of one master for each source)
    #[arg(long, env = "JASM_MODE", global = true, value_name = "MODE", default_value = "direct")]
    mode: String,
    /// Namespace of the masters, in central mode
    #[arg(long, env = "JASM_MASTERS_NAMESPACE", global = true, value_name = "NAME", default_value = "jasm-masters")]
    masters_namespace: String,
    /// Address of probes and metrics
    #[arg(long, env = "JASM_LISTEN", global = true, value_name = "IP:PORT", default_value = "0.0.0.0:8080")]
    listen: String,
    /// How much older than its pod a value may be, as in 60s or 5m; at most 24h
    #[arg(
        long,
        env = "JASM_FRESHNESS",
        global = true,
        value_name = "DURATION",
        default_value = "0s",
        allow_hyphen_values = true
    )]
    freshness: String,
    /// Serve pods also by the annotation of their workload: true or false
    #[arg(long, env = "JASM_WORKLOAD_ANNOTATIONS", global = true, value_name = "BOOL", default_value = "true")]
    workload_annotations: String,
    /// Log lines: json or text
    #[arg(long, env = "JASM_LOG_FORMAT", global = true, value_name = "FORMAT", default_value = "json")]
    log_format: String,
    /// Log level: error, warn, info, debug or trace
    #[arg(long, env = "JASM_LOG_LEVEL", global = true, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// Log lines also to the node's systemd-journald: true or false [bare: true]
    #[arg(
        long,
        env = "JASM_JOURNALD",
        global = true,
        value_name = "BOOL",
        default_value = "false",
        num_args = 0..=1,
        // Else it would take the subcommand for its value.
        require_equals = true,
        default_missing_value = "true"
    )]
    journald: String,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Checks flags, policy and providers, and tries each provider without reading a secret; or says what the policy
    /// answers to requests and manifests, without asking anybody
    ///
    /// Exit code: 0, 1 where a provider was not reached, 2 where the configuration or a manifest cannot be used, 3 where
    /// something in a request or manifest is denied or malformed.
    Check(Check),
    /// Takes away replicas of central mode that nothing stands behind any more; one of all works at a time
    Janitor(JanitorFlags),
}

#[derive(Debug, Clone, Args)]
struct JanitorFlags {
    /// Between rounds; each asks the stores once about every source that has a master
    #[arg(long, env = "JASM_JANITOR_EVERY", value_name = "DURATION", default_value = "1h")]
    every: String,
    /// How far apart two looks must be that show the same; less than 10m is for trials
    #[arg(long, env = "JASM_JANITOR_CONFIRM_AFTER", value_name = "DURATION", default_value = "10m")]
    confirm_after: String,
    /// Deletions in a minute, at most: 1 to 600
    #[arg(long, env = "JASM_JANITOR_MAX_PER_MINUTE", value_name = "N", default_value = "10")]
    max_per_minute: String,
    /// Delete also where more than a fifth of all replicas, or of an instance's sources, are gone at once
    #[arg(long, env = "JASM_JANITOR_ALLOW_WAVES")]
    allow_waves: bool,
    /// The labels of nodes that run an agent: each of them must have an up-to-date record before a replica counts as asked for by no
    /// pod; the same as the DaemonSet's nodeSelector
    #[arg(long, env = "JASM_JANITOR_NODES", value_name = "SELECTOR", default_value = "kubernetes.io/os=linux")]
    nodes: String,
    /// Show what would go, and why; delete nothing
    #[arg(long)]
    dry_run: bool,
}

/// How a janitor works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JanitorConfig {
    /// Between rounds.
    pub every: Duration,
    /// Between two looks that show the same.
    pub confirm_after: Duration,
    /// Deletions in a minute.
    pub max_per_minute: u32,
    /// Whether many at once are no reason to stop.
    pub allow_waves: bool,
    /// The label selector of nodes that run an agent.
    pub nodes: String,
    /// Only show.
    pub dry_run: bool,
    /// Between two questions to stores.
    pub pause: Duration,
}

impl JanitorConfig {
    /// The pause that keeps the rate.
    pub fn between_deletions(&self) -> Duration {
        Duration::from_secs(60) / self.max_per_minute
    }
}

/// Ten questions a second at most: the stores' quotas are everybody's.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(100);

impl TryFrom<JanitorFlags> for JanitorConfig {
    type Error = ConfigError;

    fn try_from(flags: JanitorFlags) -> Result<Self, ConfigError> {
        let pause = |flag, variable, text: &str| {
            let allowed = "a duration from 1s to 24h is allowed, as in 10m";
            let fail = || ConfigError { flag, variable, problem: format!("is {text:?}"), allowed };
            let parsed: jiff::SignedDuration = value(flag, variable, text, allowed)?;
            let parsed = Duration::try_from(parsed).ok();
            parsed.filter(|it| (Duration::from_secs(1)..=MAX_FRESHNESS).contains(it)).ok_or_else(fail)
        };
        let (flag, variable, allowed) = ("--max-per-minute", "JASM_JANITOR_MAX_PER_MINUTE", "1 to 600 are allowed");
        let max_per_minute: u32 = value(flag, variable, &flags.max_per_minute, allowed)?;
        if !(1..=600).contains(&max_per_minute) {
            return Err(ConfigError { flag, variable, problem: format!("is {max_per_minute}"), allowed });
        }
        Ok(Self {
            every: pause("--every", "JASM_JANITOR_EVERY", &flags.every)?,
            confirm_after: pause("--confirm-after", "JASM_JANITOR_CONFIRM_AFTER", &flags.confirm_after)?,
            max_per_minute,
            allow_waves: flags.allow_waves,
            nodes: flags.nodes,
            dry_run: flags.dry_run,
            pause: BETWEEN_QUESTIONS,
        })
    }
}

/// What is to be checked; where nothing is named, the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Check {
    /// Whether the policy admits a request; can stand several times
    #[arg(long = "request", value_name = "NAMESPACE,SERVICEACCOUNT,PROVIDER,PATH")]
    pub requests: Vec<Question>,
    /// Whether it admits what the pods of a manifest ask for, `-` = standard input; can stand several times
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub manifests: Vec<PathBuf>,
    /// The namespace of objects that name none
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = namespace)]
    pub namespace: String,
}

/// One request, as asked on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The pod's.
    pub namespace: String,
    /// The pod's.
    pub service_account: String,
    /// An instance name.
    pub provider: String,
    /// As in the annotation.
    pub path: String,
}

impl FromStr for Question {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(4, ',').map(str::to_owned);
        let (Some(name), Some(service_account), Some(provider), Some(path)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("four parts are needed, as in team-a,default,vault,team-a/db".to_owned());
        };
        if !is_dns_subdomain(&service_account) {
            return Err(format!("{service_account:?} cannot be a service account's name"));
        }
        Ok(Self { namespace: namespace(&name)?, service_account, provider, path })
    }
}

fn namespace(name: &str) -> Result<String, String> {
    match is_dns_label(name) {
        true => Ok(name.to_owned()),
        false => Err(format!("{name:?} cannot be a namespace's name")),
    }
}

/// Where values go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// From the store to the pods' namespaces.
    #[default]
    Direct,
    /// To one master for each source, and from there to the pods' namespaces.
    Central,
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "direct" => Ok(Self::Direct),
            "central" => Ok(Self::Central),
            _ => Err(()),
        }
    }
}

/// The checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Only check this.
    pub check: Option<Check>,
    /// Be a janitor, and no agent.
    pub janitor: Option<JanitorConfig>,
    /// The node whose pods are served; for a check it may be empty.
    pub node_name: String,
    /// A file or a folder of files.
    pub policy_file: PathBuf,
    /// A file.
    pub providers_file: PathBuf,
    /// Those of the two that were named: a check takes none of them for absent.
    pub named_files: Vec<PathBuf>,
    /// Where values go.
    pub mode: Mode,
    /// The namespace of the masters, in central mode.
    pub masters_namespace: MastersNamespace,
    /// Of probes and metrics.
    pub listen: SocketAddr,
    /// How much older than its pod a value may be.
    pub freshness: Duration,
    /// Whether workloads are read: for their annotations, and for who holds a name.
    pub workload_annotations: bool,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// Of our own log lines.
    pub log_level: Level,
    /// Whether log lines also go to the node's journald.
    pub journald: bool,
}

/// A flag that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} ({variable}) {problem}: {allowed}")]
pub struct ConfigError {
    flag: &'static str,
    variable: &'static str,
    problem: String,
    allowed: &'static str,
}

const POLICY_FILE: &str = "/etc/jasm/policy.yaml";
const PROVIDERS_FILE: &str = "/etc/jasm/providers.yaml";
const MAX_FRESHNESS: Duration = Duration::from_secs(24 * 60 * 60);

impl TryFrom<Flags> for Config {
    type Error = ConfigError;

    fn try_from(flags: Flags) -> Result<Self, ConfigError> {
        let (check, janitor) = match flags.command {
            Some(Command::Check(check)) => (Some(check), None),
            Some(Command::Janitor(janitor)) => (None, Some(JanitorConfig::try_from(janitor)?)),
            None => (None, None),
        };
        Ok(Self {
            node_name: match (check.is_some() || janitor.is_some(), flags.node_name) {
                (true, None) => String::new(),
                (_, name) => node_name(name)?,
            },
            check,
            janitor,
            named_files: flags.policy_file.iter().chain(&flags.providers_file).cloned().collect(),
            policy_file: flags.policy_file.unwrap_or_else(|| POLICY_FILE.into()),
            providers_file: flags.providers_file.unwrap_or_else(|| PROVIDERS_FILE.into()),
            mode: value("--mode", "JASM_MODE", &flags.mode, "direct and central are allowed")?,
            masters_namespace: masters_namespace(&flags.masters_namespace)?,
            listen: value(
                "--listen",
                "JASM_LISTEN",
                &flags.listen,
                "an IP address and a port are allowed, as in 0.0.0.0:8080 or [::]:8080",
            )?,
            freshness: freshness(&flags.freshness)?,
            workload_annotations: value(
                "--workload-annotations",
                "JASM_WORKLOAD_ANNOTATIONS",
                &flags.workload_annotations,
                "true and false are allowed",
            )?,
            log_format: value("--log-format", "JASM_LOG_FORMAT", &flags.log_format, "json and text are allowed")?,
            log_level: value(
                "--log-level",
                "JASM_LOG_LEVEL",
                &flags.log_level,
                "error, warn, info, debug and trace are allowed",
            )?,
            journald: value("--journald", "JASM_JOURNALD", &flags.journald, "true and false are allowed")?,
        })
    }
}

fn value<T: FromStr>(
    flag: &'static str,
    variable: &'static str,
    text: &str,
    allowed: &'static str,
) -> Result<T, ConfigError> {
    text.parse().map_err(|_| ConfigError { flag, variable, problem: format!("is {text:?}"), allowed })
}

/// Whether it is the agent's own is known once there is a connection.
fn masters_namespace(name: &str) -> Result<MastersNamespace, ConfigError> {
    MastersNamespace::checked(name).ok_or_else(|| ConfigError {
        flag: "--masters-namespace",
        variable: "JASM_MASTERS_NAMESPACE",
        problem: format!("is {name:?}"),
        allowed: "the name of a namespace that is neither kube-* nor the agent's own is allowed",
    })
}

fn node_name(name: Option<String>) -> Result<String, ConfigError> {
    let fail = |problem: String| ConfigError {
        flag: "--node-name",
        variable: "NODE_NAME",
        problem,
        allowed: "the name of the node that the agent runs on is needed; in a DaemonSet it comes from spec.nodeName",
    };
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| fail("is not set".to_owned()))?;
    if !is_dns_subdomain(&name) {
        return Err(fail(format!("is {name:?}")));
    }
    Ok(name)
}

fn freshness(text: &str) -> Result<Duration, ConfigError> {
    let (flag, variable, allowed) =
        ("--freshness", "JASM_FRESHNESS", "a duration from 0s to 24h is allowed, as in 60s or 5m");
    let fail = || ConfigError { flag, variable, problem: format!("is {text:?}"), allowed };
    let duration: jiff::SignedDuration = value(flag, variable, text, allowed)?;
    Duration::try_from(duration).ok().filter(|duration| *duration <= MAX_FRESHNESS).ok_or_else(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let all = ["jasm-agent"].iter().chain(arguments);
        let flags = Flags::try_parse_from(all).map_err(|error| error.to_string())?;
        Config::try_from(flags).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let want = Config {
            check: None,
            janitor: None,
            node_name: "node-1".into(),
            policy_file: "/etc/jasm/policy.yaml".into(),
            providers_file: "/etc/jasm/providers.yaml".into(),
            named_files: Vec::new(),
            mode: Mode::Direct,
            masters_namespace: MastersNamespace::checked("jasm-masters").expect("a name"),
            listen: "0.0.0.0:8080".parse().expect("an address"),
            freshness: Duration::ZERO,
            workload_annotations: true,
            log_format: LogFormat::Json,
            log_level: Level::INFO,
            journald: false,
        };
        assert_eq!(config(&["--node-name", "node-1"]), Ok(want));
    }

    #[test]
    fn flags_may_stand_behind_the_subcommand() {
        let got = config(&["check", "--node-name", "node-1", "--freshness", "5m"]).expect("good");
        assert!(got.check.is_some());
        assert_eq!(got.freshness, Duration::from_secs(300));
    }

    #[test]
    fn a_check_needs_no_node_and_takes_requests_and_manifests() {
        let arguments =
            ["check", "--request", "team-a,web,vault,a,b", "-f", "x.yaml", "--filename", "-", "--namespace", "team-b"];
        let question = Question {
            namespace: "team-a".into(),
            service_account: "web".into(),
            provider: "vault".into(),
            path: "a,b".into(),
        };
        let want = Check {
            requests: vec![question],
            manifests: vec!["x.yaml".into(), "-".into()],
            namespace: "team-b".into(),
        };
        assert_eq!(config(&arguments).map(|config| config.check), Ok(Some(want)));
        for (text, want) in [
            ("team-a,web,vault", "four parts"),
            ("team-a,,vault,a", "service account"),
            (",web,vault,a", "namespace's name"),
            ("*,web,vault,a", "namespace's name"),
            ("{namespace},web,vault,a", "namespace's name"),
            ("team.a,web,vault,a", "namespace's name"),
        ] {
            let message = config(&["check", "--request", text]).expect_err(text);
            assert!(message.contains(want), "{text}: {message}");
        }
        assert!(config(&["check", "--node-name", "a,b"]).is_err(), "a name that is given is checked");
    }

    #[test]
    fn a_bare_switch_means_true_and_takes_no_subcommand_for_its_value() {
        for (arguments, want) in [
            (["--journald", "check"], (true, true)),
            (["check", "--journald"], (true, true)),
            (["check", "--journald=false"], (true, false)),
        ] {
            let mut all = arguments.to_vec();
            all.extend(["--node-name", "n"]);
            let got = config(&all).expect("good");
            assert_eq!((got.check.is_some(), got.journald), want, "{arguments:?}");
        }
    }

    #[test]
    fn a_wrong_flag_names_itself_its_variable_and_what_is_allowed() {
        let cases: &[(&[&str], [&str; 3])] = &[
            (&[], ["--node-name", "NODE_NAME", "spec.nodeName"]),
            (&["--node-name", ""], ["--node-name", "NODE_NAME", "spec.nodeName"]),
            (&["--node-name", "a,b"], ["--node-name", "NODE_NAME", "spec.nodeName"]),
            (&["--listen", "8080"], ["--listen", "JASM_LISTEN", "0.0.0.0:8080"]),
            (&["--freshness", "-1s"], ["--freshness", "JASM_FRESHNESS", "0s to 24h"]),
            (&["--freshness", "25h"], ["--freshness", "JASM_FRESHNESS", "0s to 24h"]),
            (&["--freshness", "60"], ["--freshness", "JASM_FRESHNESS", "0s to 24h"]),
            (&["--log-format", "xml"], ["--log-format", "JASM_LOG_FORMAT", "json and text"]),
            (&["--log-level", "loud"], ["--log-level", "JASM_LOG_LEVEL", "debug"]),
            (&["--journald=yes"], ["--journald", "JASM_JOURNALD", "true and false"]),
        ];
        for (arguments, wanted) in cases {
            let mut all = arguments.to_vec();
            if !arguments.is_empty() && arguments[0] != "--node-name" {
                all.extend(["--node-name", "n"]);
            }
            let message = config(&all).expect_err("wrong");
            for want in wanted {
                assert!(message.contains(want), "{arguments:?}: {message:?} lacks {want:?}");
            }
        }
    }
}
