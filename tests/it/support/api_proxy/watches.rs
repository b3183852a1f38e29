//! Watches that are open, and what still comes out of them.

use axum::body::Bytes;
use futures::StreamExt as _;
use futures::stream::unfold;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::sync::watch;

use super::server::{AnswerBody, BoxError};

/// What comes out of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// What goes in.
    Free,
    /// Nothing, though its connection stays.
    Silent,
    /// Its connection ends in the middle of the answer.
    Cut,
}

/// All watches that may be open.
#[derive(Debug, Default)]
pub(super) struct Watches(Vec<watch::Sender<Flow>>);

impl Watches {
    /// Changes all that are open; says how many.
    pub(super) fn turn(&mut self, flow: Flow) -> usize {
        self.0.retain(|watch| !watch.is_closed());
        self.0.iter().for_each(|watch| {
            watch.send_replace(flow);
        });
        self.0.len()
    }

    /// Opens one: `body` for as long as nobody turns it.
    pub(super) fn open(&mut self, body: AnswerBody) -> AnswerBody {
        let (turned, flow) = watch::channel(Flow::Free);
        self.0.push(turned);
        let pieces = unfold((body, flow), |(mut body, mut flow)| async move {
            let piece = next(&mut body, &mut flow).await?;
            Some((piece, (body, flow)))
        });
        StreamBody::new(pieces.boxed()).boxed_unsync()
    }
}

/// What comes next; `None` at the end of the answer.
async fn next(body: &mut AnswerBody, flow: &mut watch::Receiver<Flow>) -> Option<Result<Frame<Bytes>, BoxError>> {
    loop {
        let turned = *flow.borrow_and_update();
        match turned {
            Flow::Cut => return Some(Err("the watch is cut".into())),
            Flow::Silent => flow.changed().await.ok()?,
            Flow::Free => tokio::select! {
                // So that nothing comes out once it is turned.
                biased;
                changed = flow.changed() => changed.ok()?,
                piece = body.frame() => return piece,
            },
        }
    }
}
