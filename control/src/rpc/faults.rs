//! Faults of the network between the nodes of a test. The server wraps the streams that it accepts
//! in [`Faulty`], so a test can hold back or cut what one node sends to another, and the answers.
//!
//! A held stream delivers everything when it is released, also requests whose caller has given up
//! long ago: a network may delay a message for any time.

use std::{
    collections::BTreeMap,
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

#[derive(Debug, Clone, Copy, Default)]
struct Fault {
    held: bool,
    /// How often the streams were cut. A stream that is older than the last cut ends.
    cuts: u64,
}

/// The faults of all links of this process. The ids of nodes differ between tests.
static FAULTS: LazyLock<watch::Sender<BTreeMap<Link, Fault>>> = LazyLock::new(watch::Sender::default);

/// Holds what comes by these links from now on, and lets everything else through.
pub(crate) fn hold(all: &[Link], held: &[Link]) {
    FAULTS.send_modify(|faults| {
        for link in all {
            faults.entry(link.clone()).or_default().held = held.contains(link);
        }
    });
}

/// Ends the streams of these links. Both ends may open new ones at once.
pub(crate) fn cut(links: &[Link]) {
    FAULTS.send_modify(|faults| {
        for link in links {
            faults.entry(link.clone()).or_default().cuts += 1;
        }
    });
}

fn fault_of(faults: &BTreeMap<Link, Fault>, link: &Link) -> Fault {
    faults.get(link).copied().unwrap_or_default()
}

/// A stream of a link.
pub(super) struct Faulty<S> {
    stream: S,
    /// `None` for callers that are no nodes yet.
    link: Option<Link>,
    cuts: u64,
    /// While the link is held: resolves when it is not, or is cut.
    released: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> Faulty<S> {
    pub(super) fn new(stream: S, caller: &Caller, own: IpAddr) -> Self {
        let link = match caller {
            Caller::Node(peer) | Caller::Expired(peer) => Some((peer.node.clone(), own)),
            Caller::Anonymous => None,
        };
        let cuts = link.as_ref().map_or(0, |link| fault_of(&FAULTS.borrow(), link).cuts);
        Self { stream, link, cuts, released: None }
    }

    /// Ready while nothing holds the link; an error once it was cut.
    fn poll_link(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(link) = &self.link else { return Poll::Ready(Ok(())) };
        loop {
            if let Some(released) = &mut self.released {
                ready!(released.as_mut().poll(cx));
                self.released = None;
            }
            let fault = fault_of(&FAULTS.borrow(), link);
            if fault.cuts > self.cuts {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if !fault.held {
                return Poll::Ready(Ok(()));
            }
            let (link, cuts, mut faults) = (link.clone(), self.cuts, FAULTS.subscribe());
            self.released = Some(Box::pin(async move {
                let is_over = |faults: &BTreeMap<Link, Fault>| {
                    let fault = fault_of(faults, &link);
                    !fault.held || fault.cuts > cuts
                };
                // The sender is never dropped.
                drop(faults.wait_for(is_over).await);
            }));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Faulty<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_link(cx))?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Faulty<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_link(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_link(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
