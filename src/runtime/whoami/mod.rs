//! The program of the built-in image `weft/whoami`: HTTP on port 80 that says who answers whom, TCP and UDP echo on port
//! 7. Owns its sockets and its way of stopping; it must not know anything of weft but the two names in its environment.
//!
//! One thread: the HTTP accept loop, a task for each connection, and the two echoes. On SIGTERM it takes what is already in
//! the accept queue, lets every request finish, asks kept-alive connections to go, and exits with 0.

mod echo;
mod http;

use std::{
    fmt,
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    rc::Rc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::LocalSet,
};
use tokio_util::task::TaskTracker;

/// The hidden subcommand that runs it.
pub(crate) const COMMAND: &str = "__whoami";

/// The image that runs it, with any tag.
pub(crate) const IMAGE: &str = "weft/whoami";

pub(crate) const HTTP_PORT: u16 = 80;
const ECHO_PORT: u16 = 7;
/// As many connections as may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// How long a kept-alive connection without a request may live once it is time to stop. A request that arrives within is
/// answered with `Connection: close`, so that no client meets a closed connection just as it sends.
const IDLE_LINGER: Duration = Duration::from_millis(500);

/// How far the server is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// Each response is the last of its connection.
    Leaving,
    /// Connections without a request are closed.
    Closing,
}

pub(crate) fn main() -> ExitCode {
    let identity = http::Identity::from_env();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| LocalSet::new().block_on(&runtime, serve(identity))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(io::stderr(), format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

/// It serves whether or not somebody reads what it says: `println!` would panic where nobody does.
fn say(mut to: impl Write, what: fmt::Arguments<'_>) {
    let _ = writeln!(to, "whoami: {what}");
}

async fn serve(identity: http::Identity) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let http_listener = listen(HTTP_PORT)?;
    let echo_listener = listen(ECHO_PORT)?;
    let echo_socket = echo::Udp::bind(ECHO_PORT)?;
    say(io::stdout(), format_args!("http on {HTTP_PORT}, echo on {ECHO_PORT}"));

    let (stage, _) = watch::channel(Stage::Serving);
    let identity = Rc::new(identity);
    let connections = TaskTracker::new();
    tokio::task::spawn_local(echo::tcp(echo_listener));
    tokio::task::spawn_local(echo_socket.run());

    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            accepted = http_listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let connection = http::connection(stream, peer, identity.clone(), stage.subscribe());
                    connections.spawn_local(connection);
                }
                Err(error) => out_of_connections(&error).await,
            },
        }
    }

    stage.send_replace(Stage::Leaving);
    while let Some(Ok((stream, peer))) = now_or_never(http_listener.accept()).await {
        connections.spawn_local(http::connection(stream, peer, identity.clone(), stage.subscribe()));
    }
    drop(http_listener);
    connections.close();
    if tokio::time::timeout(IDLE_LINGER, connections.wait()).await.is_err() {
        stage.send_replace(Stage::Closing);
        connections.wait().await;
    }
    Ok(())
}

/// A listener for both families, or for IPv4 where the kernel has no IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    let (socket, addr) = match TcpSocket::new_v6() {
        Ok(socket) => (socket, SocketAddr::from(([0u16; 8], port))),
        Err(_) => (TcpSocket::new_v4()?, SocketAddr::from(([0u8; 4], port))),
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// The future's value if it is there already.
async fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = std::future::ready(()) => None,
    }
}

/// Accepting fails when a connection died in the queue (go on at once) or when descriptors ran out (let some be closed first).
async fn out_of_connections(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_reads_is_said_all_the_same() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        say(writer, format_args!("http on {HTTP_PORT}"));
        let mut heard = Vec::new();
        say(&mut heard, format_args!("http on {HTTP_PORT}"));
        assert_eq!(heard, b"whoami: http on 80\n");
    }
}
