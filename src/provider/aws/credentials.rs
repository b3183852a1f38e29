//! Which AWS credentials the agent uses: the SDK's chain made explicit.
//!
//! The SDK's default chain goes on after a source that is not set up, and ends in IMDS, so that a mistyped IRSA
//! silently becomes the node's role. Here the environment names exactly one source, and
//! IMDS is used only where the operator's file says so.

use aws_config::{
    Region, ecs::EcsCredentialsProvider, environment::EnvironmentVariableCredentialsProvider,
    imds::credentials::ImdsCredentialsProvider, provider_config::ProviderConfig,
    web_identity_token::WebIdentityTokenCredentialsProvider,
};
use aws_credential_types::provider::SharedCredentialsProvider;

use super::super::http::Http;

/// Where credentials come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
    Static,
    /// IAM roles for service accounts: `AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN`; the file is read at each use.
    WebIdentity,
    /// EKS Pod Identity: `AWS_CONTAINER_CREDENTIALS_FULL_URI`; its token file is read at each use.
    PodIdentity,
    /// The node's role, by the operator's word.
    Imds,
}

impl Source {
    /// Picks the source by the environment's names, most specific first. `None`: nothing is set up.
    pub(super) fn pick(is_set: impl Fn(&str) -> bool, imds: bool) -> Option<Self> {
        if is_set("AWS_ACCESS_KEY_ID") {
            Some(Self::Static)
        } else if is_set("AWS_WEB_IDENTITY_TOKEN_FILE") {
            Some(Self::WebIdentity)
        } else if is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
            Some(Self::PodIdentity)
        } else {
            imds.then_some(Self::Imds)
        }
    }

    /// The SDK's own implementation of the source.
    ///
    /// # Errors
    /// No HTTP client can be made.
    pub(super) fn provider(self, region: Region, http: &Http) -> Result<SharedCredentialsProvider, String> {
        let http = match self {
            Self::PodIdentity | Self::Imds => Http::direct()?,
            Self::Static | Self::WebIdentity => http.clone(),
        };
        let config = ProviderConfig::without_region().with_region(Some(region)).with_http_client(http);
        Ok(match self {
            Self::Static => SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new()),
            Self::WebIdentity => SharedCredentialsProvider::new(
                WebIdentityTokenCredentialsProvider::builder().configure(&config).build(),
            ),
            Self::PodIdentity => {
                SharedCredentialsProvider::new(EcsCredentialsProvider::builder().configure(&config).build())
            }
            Self::Imds => SharedCredentialsProvider::new(ImdsCredentialsProvider::builder().configure(&config).build()),
        })
    }

    /// What to look at when the source gives nothing, or something that the store refuses.
    pub(super) fn remedy(source: Option<Self>) -> &'static str {
        match source {
            Some(Self::Static) => "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN of the agent",
            Some(Self::WebIdentity) => {
                "check that the role in AWS_ROLE_ARN exists and that its trust policy names the agent's service account (IRSA)"
            }
            Some(Self::PodIdentity) => {
                "check the EKS Pod Identity association of the agent's service account, and that the Pod Identity agent runs on the node"
            }
            Some(Self::Imds) => "check the instance profile of the node, and that IMDS allows two hops",
            None => {
                "set up IRSA, EKS Pod Identity or static credentials for the agent, or `imds: true` in providers.yaml for the node's role"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_by_the_environment_and_imds_only_on_demand() {
        let cases: &[(&str, &[&str], bool, Option<Source>)] = &[
            ("nothing", &[], false, None),
            ("nothing, IMDS allowed", &[], true, Some(Source::Imds)),
            ("static", &["AWS_ACCESS_KEY_ID"], true, Some(Source::Static)),
            ("IRSA", &["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"], true, Some(Source::WebIdentity)),
            ("IRSA half set never falls through", &["AWS_WEB_IDENTITY_TOKEN_FILE"], true, Some(Source::WebIdentity)),
            ("Pod Identity", &["AWS_CONTAINER_CREDENTIALS_FULL_URI"], false, Some(Source::PodIdentity)),
            ("static before IRSA", &["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"], false, Some(Source::Static)),
        ];
        for (case, set, imds, want) in cases {
            assert_eq!(Source::pick(|name| set.contains(&name), *imds), *want, "case: {case}");
        }
    }
}
