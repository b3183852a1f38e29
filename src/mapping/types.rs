//! What the types of Secrets promise to those who use them.

use rustls::{
    InconsistentKeys,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use serde::{Deserialize, de::IgnoredAny};
use zeroize::Zeroize;

use super::{MappingError, SecretData};
use crate::request::SecretType;

/// Checks data against its type, beyond what the API server does (which is hardly more than the names of keys).
pub(super) fn check(secret_type: SecretType, data: &SecretData) -> Result<(), MappingError> {
    let checked = match secret_type {
        SecretType::Opaque => Ok(()),
        SecretType::Tls => tls(data),
        SecretType::DockerConfigJson => docker_config(data),
        SecretType::BasicAuth => basic_auth(data),
        SecretType::SshAuth => ssh_auth(data),
    };
    checked.map_err(|problem| MappingError::WrongForType { secret_type: secret_type.as_str(), problem })
}

/// A certificate and its key, both PEM. A kind of key that is not known here is not refused.
fn tls(data: &SecretData) -> Result<(), &'static str> {
    let (Some(certificates), Some(key)) = (data.get("tls.crt"), data.get("tls.key")) else {
        return Err("it needs the keys tls.crt and tls.key; choose them with `keys`");
    };
    let certificates: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(certificates).collect();
    let certificates = certificates
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or("tls.crt holds no readable PEM certificate; check it at the store")?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(
        |_| "tls.key holds no readable PEM private key (an encrypted one cannot be used); check it at the store",
    )?;
    let signing = aws_lc_rs::sign::any_supported_type(&key);
    // The decoded key is a copy of our own.
    let mut key = key;
    key.zeroize();
    match signing.map(|signing| CertifiedKey::new(certificates, signing).keys_match()) {
        Ok(Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch))) => {
            Err("tls.key is not the key of the first certificate in tls.crt; check both at the store")
        }
        _ => Ok(()),
    }
}

fn docker_config(data: &SecretData) -> Result<(), &'static str> {
    #[derive(Deserialize)]
    struct Config {
        // One entry for each registry.
        #[serde(rename = "auths")]
        _auths: std::collections::BTreeMap<String, IgnoredAny>,
    }
    let Some(config) = data.get(".dockerconfigjson") else {
        return Err(
            "it needs the key .dockerconfigjson; where the whole value is that, write format: raw and dataKey: .dockerconfigjson",
        );
    };
    match serde_json::from_slice::<Config>(config) {
        Ok(_) => Ok(()),
        Err(_) => Err(".dockerconfigjson is not a JSON object with the object `auths`; check it at the store"),
    }
}

fn basic_auth(data: &SecretData) -> Result<(), &'static str> {
    match (data.get("username"), data.get("password")) {
        (None, None) => Err("it needs the key username or password; choose them with `keys`"),
        _ => Ok(()),
    }
}

fn ssh_auth(data: &SecretData) -> Result<(), &'static str> {
    match data.get("ssh-privatekey") {
        Some(key) if !key.trim_ascii().is_empty() => Ok(()),
        _ => Err(
            "it needs the key ssh-privatekey, not empty; where the whole value is that, write format: raw and dataKey: ssh-privatekey",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use zeroize::Zeroizing;

    use super::*;

    /// A pair made for this test, and a key that belongs to nothing.
    const CERTIFICATE: &str = include_str!("../../tests/golden/tls/certificate.pem");
    const KEY: &str = include_str!("../../tests/golden/tls/key.pem");
    const OTHER_KEY: &str = include_str!("../../tests/golden/tls/other-key.pem");

    /// Name, type, data, and what an error has to say.
    type Case<'a> = (&'a str, SecretType, &'a [(&'a str, &'a str)], Option<&'a str>);

    #[test]
    fn data_has_to_be_what_its_type_promises() {
        use SecretType::{BasicAuth, DockerConfigJson, Opaque, SshAuth, Tls};
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\naGVsbG8=\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let (config, no_config) = (r#"{"auths":{"registry.example":{"auth":"eA=="}}}"#, r#"{"auths":[]}"#);
        let cases: &[Case<'_>] = &[
            ("anything", Opaque, &[("a", "b")], None),
            ("a pair", Tls, &[("tls.crt", CERTIFICATE), ("tls.key", KEY), ("ca.crt", "x")], None),
            ("no key", Tls, &[("tls.crt", CERTIFICATE)], Some("tls.crt and tls.key")),
            ("no PEM", Tls, &[("tls.crt", "hello"), ("tls.key", KEY)], Some("no readable PEM certificate")),
            ("swapped", Tls, &[("tls.crt", KEY), ("tls.key", CERTIFICATE)], Some("no readable PEM certificate")),
            ("cut", Tls, &[("tls.crt", &CERTIFICATE[..200]), ("tls.key", KEY)], Some("no readable PEM certificate")),
            (
                "encrypted",
                Tls,
                &[("tls.crt", CERTIFICATE), ("tls.key", encrypted)],
                Some("encrypted one cannot be used"),
            ),
            ("another key", Tls, &[("tls.crt", CERTIFICATE), ("tls.key", OTHER_KEY)], Some("not the key of the first")),
            ("a config", DockerConfigJson, &[(".dockerconfigjson", config)], None),
            ("no config", DockerConfigJson, &[("auths", "{}")], Some("dataKey: .dockerconfigjson")),
            ("a broken config", DockerConfigJson, &[(".dockerconfigjson", "{")], Some("is not a JSON object")),
            ("a config without registries", DockerConfigJson, &[(".dockerconfigjson", no_config)], Some("`auths`")),
            ("a user", BasicAuth, &[("username", "u")], None),
            ("a password", BasicAuth, &[("password", "p")], None),
            ("neither", BasicAuth, &[("user", "u")], Some("username or password")),
            ("a private key", SshAuth, &[("ssh-privatekey", "x")], None),
            ("an empty one", SshAuth, &[("ssh-privatekey", " \n")], Some("not empty")),
        ];
        for (case, secret_type, data, want) in cases {
            let value = |value: &str| Zeroizing::new(value.as_bytes().to_vec());
            let data: BTreeMap<_, _> = data.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect();
            let got = check(*secret_type, &SecretData(data)).err().map(|error| error.to_string());
            match (want, &got) {
                (None, None) => {}
                (Some(want), Some(got)) => {
                    assert!(got.contains(want) && got.contains(secret_type.as_str()), "case: {case}: {got}")
                }
                _ => panic!("case: {case}: {got:?}"),
            }
        }
    }
}
