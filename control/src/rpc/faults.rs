//! A fault of the network between the nodes of a test. The server wraps the streams that it accepts
//! in [`Held`], so a test can hold back what one node sends to another, and the answers. The faults
//! of whole clusters are those of simulated machines (`fixture::simulated`).
//!
//! A held stream delivers everything when it is released, also requests whose caller has given up
//! long ago: a network may delay a message for any time.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use weft_model::NodeId;

use super::Caller;

/// The node that calls, and the address of the node that it calls.
pub(crate) type Link = (NodeId, IpAddr);

/// The links of this process that are held. The ids of nodes differ between tests.
static HELD: LazyLock<watch::Sender<BTreeSet<Link>>> = LazyLock::new(watch::Sender::default);

/// Holds what comes by these links from now on, or lets it through.
pub(crate) fn hold(links: &[Link], holds: bool) {
    HELD.send_modify(|held| {
        for link in links {
            if holds {
                held.insert(link.clone())
            } else {
                held.remove(link)
            };
        }
    });
}

/// A stream of a link.
pub(super) struct Held<S> {
    stream: S,
    /// `None` for callers that are no nodes yet.
    link: Option<Link>,
    /// While the link is held: resolves when it is not.
    released: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> Held<S> {
    pub(super) fn new(stream: S, caller: &Caller, own: IpAddr) -> Self {
        let link = match caller {
            Caller::Node(peer) | Caller::Expired(peer) => Some((peer.node.clone(), own)),
            Caller::Anonymous => None,
        };
        Self { stream, link, released: None }
    }

    /// Ready while nothing holds the link.
    fn poll_link(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(link) = &self.link else { return Poll::Ready(()) };
        loop {
            if let Some(released) = &mut self.released {
                ready!(released.as_mut().poll(cx));
                self.released = None;
            }
            if !HELD.borrow().contains(link) {
                return Poll::Ready(());
            }
            let (link, mut held) = (link.clone(), HELD.subscribe());
            self.released = Some(Box::pin(async move {
                // The sender is never dropped.
                drop(held.wait_for(|held| !held.contains(&link)).await);
            }));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_link(cx));
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_link(cx));
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_link(cx));
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
