//! The table of provider instances.

use std::fmt::Write as _;

use crate::{error::chain, provider::Validated};

/// One line for each instance, and what to do about those that were not reached.
pub(super) fn table(validated: &[Validated]) -> String {
    if validated.is_empty() {
        return "\nno provider is set up".to_owned();
    }
    let width = |of: fn(&Validated) -> usize| validated.iter().map(of).max().unwrap_or(0).max(8) + 2;
    let (names, kinds) = (width(|one| one.name.as_str().len()), width(|one| one.kind.as_str().len()));
    let mut text = format!("\n{:<names$}{:<kinds$}{:<11}{:<9}identity", "instance", "kind", "reachable", "latency");
    let mut troubles = String::new();
    for Validated { name, kind, outcome, took } in validated {
        let (reached, identity) = match outcome {
            Ok(None) => ("not tried", "each pod's service account"),
            Ok(Some(identity)) if identity.is_empty() => ("yes", "unknown"),
            Ok(Some(identity)) => ("yes", identity.as_str()),
            Err(_) => ("no", "-"),
        };
        let took = format!("{} ms", took.as_millis());
        let _ = write!(text, "\n{:<names$}{:<kinds$}{reached:<11}{took:<9}{identity}", name.as_str(), kind.as_str());
        if let Err(error) = outcome {
            let _ = write!(troubles, "\n{name}: {}", chain(error));
        }
    }
    text + &troubles
}
