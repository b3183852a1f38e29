//! `jasm-agent`: reads flags, starts, runs, and says with its exit code how it ended.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;
use jasm::{
    agent,
    check::{self, Checked, Verdict},
    config::{Config, Flags},
    error::chain,
    janitor,
    journald::Journal,
    metrics::Metrics,
    process, telemetry,
};

/// Configuration that cannot be used.
const MISUSE: u8 = 2;
/// `check` found the configuration valid, and a store that it did not reach.
const UNREACHED: u8 = 1;
/// `check` was asked about something that is denied or malformed.
const REFUSED: u8 = 3;

fn main() -> ExitCode {
    // Before anything is read: flags and environment can hold credentials.
    let unprotected = process::protect();
    let config = match Config::try_from(Flags::parse()) {
        Ok(config) => config,
        Err(error) => return end(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(&error),
    };
    // Fails only where one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    runtime.block_on(async {
        if let Some(what) = &config.check {
            return match check::check(&config, what).await {
                Ok(Checked { text, verdict }) => {
                    let _ = writeln!(stdout(), "{text}");
                    match verdict {
                        Verdict::Good => ExitCode::SUCCESS,
                        Verdict::Unreached => ExitCode::from(UNREACHED),
                        Verdict::Refused => ExitCode::from(REFUSED),
                    }
                }
                Err(error) => end(&error),
            };
        }
        if let Some(of) = config.janitor.as_ref().filter(|janitor| janitor.dry_run) {
            return match janitor::dry_run(&config, of).await {
                Ok(findings) => {
                    let _ = writeln!(stdout(), "{}", janitor::table(&findings));
                    ExitCode::SUCCESS
                }
                Err(error) => end(&*error),
            };
        }
        let metrics = Arc::new(match config.janitor {
            Some(_) => Metrics::of_a_janitor(),
            None => Metrics::default(),
        });
        let journal = match config.journald.then(|| Journal::start(&config.node_name, &metrics)).transpose() {
            Ok(journal) => journal,
            Err(error) => return end(&error),
        };
        let _logs = telemetry::start(config.log_format, config.log_level, journal);
        for error in unprotected {
            tracing::warn!(error = chain(&error), "less protected than it could be");
        }
        let ran = match &config.janitor {
            Some(of) => janitor::run(&config, of, metrics).await,
            None => agent::run(config, metrics).await,
        };
        match ran {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => end(&error),
        }
    })
}

fn end(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    let _ = writeln!(stderr(), "jasm-agent: {}", chain(error));
    ExitCode::from(MISUSE)
}
