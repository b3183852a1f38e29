//! What stands in front of every store of a test: a server that counts requests, and holds and spoils their answers.
//!
//! A *key* names what is counted, held or spoiled: a subject (a secret, as the request names it) or an action (all
//! requests of that kind). A request with several subjects is about each of them. Where several keys of a request are
//! set, the first subject's own setting wins, and an action's comes last.

mod fault;
mod gate;
mod server;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Bytes;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body_util::Full;
use rustls::ServerConfig;

use super::own_thread::Server;
use super::tls::TlsListener;
use super::wait::eventually;
use fault::Spoiling;
pub(crate) use fault::{Fault, Refusal};
use gate::Barrier;
pub(crate) use gate::Gate;
pub(super) use server::answer;
pub(super) use upstream::{Upstream, passed_on};

/// What a front has to know of its store's API.
pub(super) trait Protocol: fmt::Debug + Send + Sync + 'static {
    /// What a request is about.
    fn read(&self, head: &Parts, body: &[u8]) -> Asked;

    /// The answer without any fault.
    fn right(&self, asked: &Asked, request: Request<Full<Bytes>>) -> impl Future<Output = Response> + Send;

    /// How the store's API words this refusal of that request.
    fn refusal(&self, asked: &Asked, refusal: Refusal) -> Response;
}

/// One request, noted when it arrived, whatever became of it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) action: String,
    /// The secrets that it names, as sent.
    pub(super) subjects: Vec<String>,
    /// What the sender showed: a token, or the id of the key that signed.
    pub(super) credential: String,
    pub(super) headers: HeaderMap,
}

impl Asked {
    /// The keys under which it may be held or spoiled, the most particular first.
    fn keys(&self) -> impl Iterator<Item = &str> {
        self.subjects.iter().chain([&self.action]).map(String::as_str)
    }

    fn is_about(&self, key: &str) -> bool {
        self.keys().any(|own| own == key)
    }
}

/// A header's text; empty where it is not there.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A server that speaks `P`. It ends when this is dropped, together with all requests that it still holds.
#[derive(Debug)]
pub(crate) struct Front<P> {
    shared: Arc<Shared<P>>,
    server: Server,
}

/// What the test and the server's thread both touch.
#[derive(Debug)]
struct Shared<P> {
    protocol: P,
    book: Arc<Book>,
}

impl<P: Protocol> Shared<P> {
    fn serve(self: &Arc<Self>) -> Server {
        let served = Arc::clone(self);
        Server::start(move |listener| server::serve(server::prompt(listener), served))
    }
}

/// What was asked, and what shall befall the answers.
#[derive(Debug, Default)]
struct Book(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    calls: Vec<Asked>,
    faults: BTreeMap<String, Spoiling>,
    gates: BTreeMap<String, Arc<Barrier>>,
}

impl Book {
    fn open(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().expect("nothing panics while it holds the front's book")
    }
}

impl<P> Front<P> {
    pub(super) fn start(protocol: P) -> Self
    where
        P: Protocol,
    {
        let shared = Arc::new(Shared { protocol, book: Arc::default() });
        let server = shared.serve();
        Self { shared, server }
    }

    /// The same behind TLS. The second server is another way in, without TLS.
    pub(super) fn start_tls(protocol: P, config: Arc<ServerConfig>) -> (Self, Server)
    where
        P: Protocol,
    {
        let shared = Arc::new(Shared { protocol, book: Arc::default() });
        let (served, plain) = (Arc::clone(&shared), shared.serve());
        let server = Server::start(move |listener| server::serve(TlsListener::new(listener, config), served));
        (Self { shared, server }, plain)
    }

    pub(super) fn protocol(&self) -> &P {
        &self.shared.protocol
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> &str {
        self.server.url()
    }

    // ---- trouble ----

    /// Spoils each answer about `key` until [`Front::heal`].
    pub(crate) fn fail(&self, key: &str, fault: Fault) {
        self.book().faults.insert(key.to_owned(), Spoiling::all(fault));
    }

    /// Spoils the next `times` answers about `key`; later ones are right again.
    pub(crate) fn fail_times(&self, key: &str, times: usize, fault: Fault) {
        assert!(times > 0, "no answer about {key} would be spoiled");
        self.book().faults.insert(key.to_owned(), Spoiling::times(fault, times));
    }

    /// Spoils one in so many answers about `key`, until [`Front::heal`].
    pub(crate) fn fail_every(&self, key: &str, every: usize, fault: Fault) {
        self.book().faults.insert(key.to_owned(), Spoiling::every(fault, every));
    }

    /// Answers about `key` are right again.
    pub(crate) fn heal(&self, key: &str) {
        self.book().faults.remove(key);
    }

    /// Holds back each answer about `key` until the gate is released. The value is read before the answer is held: an
    /// answer that was asked for before a change stays the old one. A gate that stays shut is a store that hangs.
    pub(crate) fn hold(&self, key: &str) -> Gate {
        Gate::shut(Arc::clone(&self.shared.book), key)
    }

    // ---- what was asked ----

    /// How many requests about `key` have arrived, answered or not.
    pub(crate) fn calls(&self, key: &str) -> usize {
        self.about(key, |_| ()).len()
    }

    /// The subjects of all requests that have arrived.
    pub(crate) fn asked(&self) -> BTreeSet<String> {
        self.book().calls.iter().flat_map(|asked| asked.subjects.clone()).collect()
    }

    /// What the sender of each request about `key` showed (a rotation shows here).
    pub(crate) fn credentials(&self, key: &str) -> Vec<String> {
        self.about(key, |asked| asked.credential.clone())
    }

    /// Starts counting anew.
    pub(crate) fn forget_calls(&self) {
        self.book().calls.clear();
    }

    /// Waits until at least `wanted` requests about `key` have arrived.
    pub(crate) async fn wait_for_calls(&self, key: &str, wanted: usize) {
        eventually(&format!("{wanted} requests about {key}"), async || match self.calls(key) {
            enough if enough >= wanted => Ok(()),
            found => Err(format!("{found} requests about it")),
        })
        .await;
    }

    /// Something of each request about `key`, in the order of their arrival.
    pub(super) fn about<T>(&self, key: &str, what: impl Fn(&Asked) -> T) -> Vec<T> {
        self.book().calls.iter().filter(|asked| asked.is_about(key)).map(what).collect()
    }

    fn book(&self) -> MutexGuard<'_, Entries> {
        self.shared.book.open()
    }
}
