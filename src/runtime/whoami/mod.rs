//! The program of the built-in image `weft/whoami`, for demonstrations and tests of a
//! cluster. It answers
//! HTTP requests on port 80 with the names of its task and its node and the address of the client,
//! and echoes TCP and UDP on port 7.
//!
//! A runtime starts it as a process of its own, and the binary's `main` calls [`main`]. It must not
//! use anything of weft, except for the names of the two variables in its environment.
//!
//! It has one thread, which runs the accept loop for HTTP, a task for each connection, and the two
//! echo servers. SIGTERM and SIGINT stop it without losing a request:
//!
//! ```text
//! Serving ── signal ──▶ Draining ── after IDLE_LINGER ──▶ Closing ── no connection left ──▶ exit 0
//!                          └───────────── no connection left ────────────────────────────────▶┘
//! ```

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

/// The hidden subcommand of the binary that runs this program.
pub(crate) const COMMAND: &str = "__whoami";

/// The image whose tasks run this program, with any tag.
pub(crate) const IMAGE: &str = weft_model::WHOAMI_IMAGE;

pub(crate) const HTTP_PORT: u16 = 80;
const ECHO_PORT: u16 = 7;
/// Maximum number of connections that wait to be accepted. The kernel limits it to
/// `net.core.somaxconn` (listen(2)).
const BACKLOG: u32 = 4096;
/// How long a kept-alive connection without a request stays open after the signal. A request that
/// arrives in this time is answered with `Connection: close`. Without this time, the server could
/// close a connection at the moment at which its client sends a request.
const IDLE_LINGER: Duration = Duration::from_millis(500);
/// Pause after an error of accept(2).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How far the server has shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// Each response tells the client that it is the last one of its connection.
    Draining,
    /// Connections without a request are closed.
    Closing,
}

pub(crate) fn main() -> ExitCode {
    let identity = http::Identity::from_env();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| LocalSet::new().block_on(&runtime, serve(identity))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            write_line(io::stderr(), format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line, and ignores an error. `println!` would panic if the reader of a pipe has closed
/// it, but the server must continue.
fn write_line(mut to: impl Write, message: fmt::Arguments<'_>) {
    let _ = writeln!(to, "whoami: {message}");
}

async fn serve(identity: http::Identity) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let http_listener = listen(HTTP_PORT)?;
    let echo_listener = listen(ECHO_PORT)?;
    let echo_socket = echo::UdpEcho::bind(ECHO_PORT)?;
    write_line(io::stdout(), format_args!("http on {HTTP_PORT}, echo on {ECHO_PORT}"));

    let (stage, _) = watch::channel(Stage::Serving);
    let identity = Rc::new(identity);
    let connections = TaskTracker::new();
    tokio::task::spawn_local(echo::serve_tcp(echo_listener));
    tokio::task::spawn_local(echo_socket.serve());

    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            accepted = http_listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let connection = http::serve_connection(stream, peer, identity.clone(), stage.subscribe());
                    connections.spawn_local(connection);
                }
                Err(error) => pause_after_accept_error(&error).await,
            },
        }
    }

    stage.send_replace(Stage::Draining);
    // The kernel has accepted these connections already, so their clients may have sent requests.
    while let Some(Ok((stream, peer))) = now_or_never(http_listener.accept()).await {
        connections.spawn_local(http::serve_connection(stream, peer, identity.clone(), stage.subscribe()));
    }
    drop(http_listener);
    connections.close();
    if tokio::time::timeout(IDLE_LINGER, connections.wait()).await.is_err() {
        stage.send_replace(Stage::Closing);
        connections.wait().await;
    }
    Ok(())
}

/// A listener for IPv6 and IPv4, or for IPv4 only if the kernel has no IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    let (socket, addr) = match TcpSocket::new_v6() {
        Ok(socket) => (socket, SocketAddr::from(([0u16; 8], port))),
        Err(_) => (TcpSocket::new_v4()?, SocketAddr::from(([0u8; 4], port))),
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// The value of the future, or `None` if the future is not ready now.
async fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = std::future::ready(()) => None,
    }
}

/// Waits after an error of accept(2), so that some connections can end first: the process or the
/// machine is out of file descriptors or memory. Does not wait if the error means only that a
/// connection ended before it was accepted.
async fn pause_after_accept_error(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_does_not_stop_the_server() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        write_line(writer, format_args!("http on {HTTP_PORT}"));
        let mut written = Vec::new();
        write_line(&mut written, format_args!("http on {HTTP_PORT}"));
        assert_eq!(written, b"whoami: http on 80\n");
    }
}
