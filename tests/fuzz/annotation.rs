//! Any text as an annotation: nothing panics, what is asked for is checked, and what is said can be shown.

#![no_main]

use std::sync::LazyLock;

use jasm::{
    annotations::MAX_REQUESTS,
    provider::{Catalogue, Kind, ProviderName},
    request::{self, SecretRequest},
};
use libfuzzer_sys::fuzz_target;

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    let name = ProviderName::try_from("aws-secretsmanager".to_owned()).expect("a name");
    Catalogue::new([(name, Kind::AwsSecretsManager)])
});

fuzz_target!(|text: &str| {
    match request::parse(text, &CATALOGUE) {
        Err(error) => can_be_shown(&error.to_string()),
        Ok(asks) => {
            assert!((1..=MAX_REQUESTS).contains(&asks.len()));
            for ask in &asks {
                match ask {
                    Ok(request) => is_checked(request),
                    Err(error) => can_be_shown(&error.to_string()),
                }
            }
        }
    }
});

fn is_checked(request: &SecretRequest) {
    let name = request.secret_name.as_str();
    assert!(
        (1..=253).contains(&name.len())
            && name.bytes().all(|byte| b"abcdefghijklmnopqrstuvwxyz0123456789-.".contains(&byte))
    );
    let path = &request.remote.path;
    assert!(
        (1..=512).contains(&path.len())
            && path.bytes().all(|byte| byte.is_ascii_graphic())
            && !path.contains(['%', '?', '#', '\\'])
    );
    assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{path}");
    let source_id = request.source_id();
    assert!(source_id.len() <= 1024 && source_id.bytes().all(|byte| byte.is_ascii_graphic()), "{source_id}");
    for key in request.template.keys.iter().flat_map(|keys| keys.keys()).chain([&request.template.data_key]) {
        assert!((1..=253).contains(&key.len()) && !key.starts_with("..") && !key.contains('/'), "{key}");
    }
}

/// As a line of a terminal and as a part of an Event.
fn can_be_shown(said: &str) {
    assert!(said.len() < 900, "{said}");
    assert!(said.chars().all(|c| c == ' ' || c == '\u{fffd}' || c.is_ascii_graphic()), "{said:?}");
}
