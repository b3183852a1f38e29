//! Integration tests: the real `jasm-agent` program against a real API server and an emulator of the stores.

mod admission;
mod annotation;
mod bench;
mod canary;
mod corpus;
mod credentials;
mod e2e;
mod failures;
mod freshness;
mod harness;
mod main_job;
mod names;
mod policies;
mod program;
mod rights;
mod support;
