//! Integration tests: the real `jasm-agent` program against a real API server and an emulator of the stores.

mod admission;
mod annotation;
mod api_faults;
mod bench;
mod canary;
mod cases;
mod corpus;
mod credentials;
mod e2e;
mod failures;
mod fleet;
mod freshness;
mod harness;
mod harness_azure;
mod harness_proxy;
mod harness_stores;
mod main_job;
mod migrate;
mod names;
mod policies;
mod program;
mod rights;
mod spec_coverage;
mod support;
mod upgrade;
mod workloads;
