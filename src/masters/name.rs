//! What a master is called. Pure; the one place where that is decided.

use sha2::{Digest, Sha256};

use crate::{
    names::MAX_NAME_BYTES,
    provider::Kind,
    request::{RemoteRef, SecretName},
};

/// Characters of the hash behind a name that does not tell its source alone.
const HASH: usize = 8;

/// The name of the master of a source: `sm-<name>`, `ssm-<name>`, `vault-<name>`, `akv-<name>`, `file-<name>`, in lower case,
/// with `-` for every run of other characters than letters and digits.
///
/// Where that does not tell the source alone, a hyphen and 8 characters follow, a hash of instance, path and version: where a
/// character was lost, for another instance than the one that is called like its kind, for a version, and for a name that ends
/// as if in such a hash. So two sources share a name only if their hashes (39 bits) and all else agree; a master also says in
/// an annotation what it is of, and is not taken for another source's.
///
/// `called`: what the store calls it, without which there is no name for a source that is given by its ARN.
pub fn name(kind: Kind, remote: &RemoteRef, called: Option<&str>) -> Option<SecretName> {
    let by_arn = remote.path.starts_with("arn:");
    let base = if by_arn { called? } else { &remote.path };
    let (prefix, clean) = (kind.prefix(), cleaned(base));
    let whole = format!("{prefix}-{clean}");
    let tells_all = clean == base
        && !by_arn
        && remote.provider.as_str() == kind.as_str()
        && remote.version.is_none()
        && whole.len() <= MAX_NAME_BYTES
        && !ends_like_a_hash(&clean);
    if tells_all {
        return SecretName::checked(whole);
    }
    // All of it is ASCII.
    let stem = &whole[..whole.len().min(MAX_NAME_BYTES - HASH - 1)];
    SecretName::checked(format!("{}-{}", stem.trim_end_matches('-'), hash(remote)))
}

fn cleaned(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

/// A digit and seven letters or digits: seldom at the end of what people call things.
fn hash(remote: &RemoteRef) -> String {
    let RemoteRef { provider, path, version } = remote;
    // No field can hold the separator.
    let digest = Sha256::digest(format!("{provider}\n{path}\n{}", version.as_deref().unwrap_or_default()));
    let mut number = digest.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    let mut next = |radix: u32| {
        let digit = u32::try_from(number % u64::from(radix)).unwrap_or_default();
        number /= u64::from(radix);
        std::char::from_digit(digit, radix).unwrap_or('0')
    };
    let first = next(10);
    std::iter::once(first).chain((1..HASH).map(|_| next(36))).collect()
}

fn ends_like_a_hash(name: &str) -> bool {
    let end = name.rsplit('-').next().unwrap_or_default();
    end.len() == HASH && end.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::provider::ProviderName;

    fn remote(provider: &str, path: &str) -> RemoteRef {
        RemoteRef { provider: ProviderName::for_test(provider), path: path.to_owned(), version: None }
    }

    fn of(provider: &str, path: &str) -> String {
        let kind = if provider.contains("ssm") { Kind::parameters_for_test() } else { Kind::for_test() };
        name(kind, &remote(provider, path), None).expect("a name").to_string()
    }

    const SM: &str = "aws-secretsmanager";
    const SSM: &str = "aws-ssm";

    /// Masters outlive releases: a name that was once given must never be another.
    #[test]
    fn names_are_the_documented_ones() {
        for (provider, path, want) in [
            (SM, "db", "sm-db"),
            (SM, "prod-db-password", "sm-prod-db-password"),
            (SSM, "db", "ssm-db"),
            (SM, "prod/db", "sm-prod-db-5te7ykfw"),
            (SM, "prod-db", "sm-prod-db"),
            (SM, "Prod-DB", "sm-prod-db-64qm7fgw"),
            (SSM, "/prod/db", "ssm-prod-db-5e79ucmi"),
            (SSM, "/prod/db/*", "ssm-prod-db-8qd52ati"),
            ("aws-eu", "db", "sm-db-5bqa31zj"),
            (SM, "a--b", "sm-a-b-5v0ue71o"),
            (SM, "-a", "sm-a-8a3xp4mf"),
            (SM, "_._", "sm-9kppqspq"),
            (SM, "db-1abcdefg", "sm-db-1abcdefg-4fr1b1gq"),
        ] {
            assert_eq!(of(provider, path), want, "{provider} {path}");
        }
    }

    #[test]
    fn a_version_and_the_length_of_a_name_count() {
        let plain = RemoteRef { version: Some("AWSPREVIOUS".into()), ..remote(SM, "db") };
        let previous = name(Kind::for_test(), &plain, None).expect("a name").to_string();
        assert!(previous.starts_with("sm-db-") && previous.len() == "sm-db-".len() + HASH, "{previous}");
        let fits = "a".repeat(MAX_NAME_BYTES - 3);
        assert_eq!(of(SM, &fits), format!("sm-{fits}"));
        let long = of(SM, &format!("{fits}a"));
        assert_eq!(long.len(), MAX_NAME_BYTES);
        assert_ne!(long, of(SM, &format!("{fits}b")));
    }

    #[test]
    fn an_arn_is_called_what_the_store_calls_it_and_never_cut() {
        let arn = remote(SM, "arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/db-AbCdEf");
        assert_eq!(name(Kind::for_test(), &arn, None), None);
        let named = |called| name(Kind::for_test(), &arn, Some(called)).expect("a name").to_string();
        assert!(named("prod/db").starts_with("sm-prod-db-"), "{}", named("prod/db"));
        assert!(named("prod/db-AbCdEf").starts_with("sm-prod-db-abcdef-"), "that is its name");
    }

    /// Names of few characters, so that most of them are alike once characters are lost.
    #[test]
    fn a_hundred_thousand_random_names_share_none() {
        let mut random = fastrand::Rng::with_seed(7);
        let characters: Vec<char> = "abAB01-_./+=@!".chars().collect();
        let mut seen = HashMap::new();
        while seen.len() < 100_000 {
            let length = random.usize(1..12);
            let path: String = (0..length).map(|_| characters[random.usize(..characters.len())]).collect();
            let provider = ["aws-secretsmanager", "aws-eu", "aws-ssm"][random.usize(..3)];
            let called = of(provider, &path);
            assert!(called.len() <= MAX_NAME_BYTES);
            let source = (provider, path);
            if let Some(other) = seen.insert(called.clone(), source.clone()) {
                assert_eq!(other, source, "{called}");
            }
        }
    }
}
