//! Faults of the network between the nodes of a test. The server wraps the streams that it accepts
//! in [`Faulty`], so a test can hold back, delay or cut what one node sends to another, and the
//! answers.
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
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Sleep, sleep},
};
use weft_model::NodeId;

use super::Caller;

/// The node that calls, and the address of the node that it calls.
pub(crate) type Link = (NodeId, IpAddr);

#[derive(Debug, Clone, Copy, Default)]
struct Fault {
    held: bool,
    /// How long each part waits, at most.
    delay: Duration,
    /// How often the streams were cut. A stream that is older than the last cut ends.
    cuts: u64,
}

/// The faults of all links of this process. The ids of nodes differ between tests.
static FAULTS: LazyLock<watch::Sender<BTreeMap<Link, Fault>>> = LazyLock::new(watch::Sender::default);

/// Holds what comes by these links from now on, and lets everything else through at once.
pub(crate) fn hold(all: &[Link], held: &[Link]) {
    FAULTS.send_modify(|faults| {
        for link in all {
            let fault = faults.entry(link.clone()).or_default();
            (fault.held, fault.delay) = (held.contains(link), Duration::ZERO);
        }
    });
}

/// Delays each part of what comes by these links from now on, and lets everything through.
pub(crate) fn slow(links: &[Link], delay: Duration) {
    FAULTS.send_modify(|faults| {
        for link in links {
            let fault = faults.entry(link.clone()).or_default();
            (fault.held, fault.delay) = (false, delay);
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
    /// While the link is slow: the delay of the next part, in each direction.
    received: Delay,
    sent: Delay,
}

/// The time that the next part of a stream still waits.
#[derive(Default)]
struct Delay(Option<Pin<Box<Sleep>>>);

impl Delay {
    /// Ready after `delay`. The next call begins to wait again.
    fn poll(&mut self, cx: &mut Context<'_>, delay: Duration) -> Poll<()> {
        if self.0.is_some() || !delay.is_zero() {
            let wait = self.0.get_or_insert_with(|| Box::pin(sleep(delay)));
            ready!(wait.as_mut().poll(cx));
            self.0 = None;
        }
        Poll::Ready(())
    }
}

impl<S> Faulty<S> {
    pub(super) fn new(stream: S, caller: &Caller, own: IpAddr) -> Self {
        let link = match caller {
            Caller::Node(peer) | Caller::Expired(peer) => Some((peer.node.clone(), own)),
            Caller::Anonymous => None,
        };
        let cuts = link.as_ref().map_or(0, |link| fault_of(&FAULTS.borrow(), link).cuts);
        Self { stream, link, cuts, released: None, received: Delay::default(), sent: Delay::default() }
    }

    /// Ready, with the delay of the link, while nothing holds it; an error once it was cut.
    fn poll_link(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Duration>> {
        let Some(link) = &self.link else { return Poll::Ready(Ok(Duration::ZERO)) };
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
                return Poll::Ready(Ok(fault.delay));
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
        let delay = ready!(self.poll_link(cx))?;
        ready!(self.received.poll(cx, delay));
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Faulty<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let delay = ready!(self.poll_link(cx))?;
        ready!(self.sent.poll(cx, delay));
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::Instant,
    };
    use weft_model::{id::ClusterId, spec::Role};

    use super::*;
    use crate::pki::PeerIdentity;

    #[tokio::test]
    async fn a_slow_link_delays_each_part_and_delivers_all() {
        let (node, addr) = (NodeId::from_random(1), IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)));
        let cluster = ClusterId::from_random(1);
        let caller = Caller::Node(PeerIdentity { cluster, node: node.clone(), role: Role::Manager });
        let (mut near, far) = duplex(64);
        let mut far = Faulty::new(far, &caller, addr);
        let (links, delay) = ([(node, addr)], Duration::from_millis(20));
        slow(&links, delay);
        let started = Instant::now();
        for part in 0..3 {
            near.write_u8(part).await.expect("sent");
            assert_eq!(far.read_u8().await.expect("delivered"), part);
            far.write_u8(part).await.expect("sent");
            assert_eq!(near.read_u8().await.expect("delivered"), part);
        }
        assert!(started.elapsed() >= 6 * delay, "{:?}", started.elapsed());
        hold(&links, &[]);
        assert!(FAULTS.borrow()[&links[0]].delay.is_zero(), "the link is not slow any more");
    }
}
