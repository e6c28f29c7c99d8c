//! `weft service logs`: the API's multiplexed stream, line by line.

use std::io;

use anyhow::{Context as _, Result};
use bytes::{Buf as _, Bytes, BytesMut};
use clap::Args;
use http_body_util::BodyExt as _;

use super::super::{
    client::{Client, DaemonError, percent_encode},
    names::{self, Names},
    output::write,
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Name or id of a service, or id of a task
    #[arg(value_name = "SERVICE|TASK")]
    service: String,
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only that many of the last lines, or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all")]
    tail: String,
    /// Only what is newer: an RFC 3339 time or Unix seconds
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Begin every line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Show the ids of nodes instead of their names
    #[arg(long)]
    no_resolve: bool,
    /// Do not say which task wrote a line
    #[arg(long)]
    raw: bool,
}

/// How lines come, and how they are shown.
#[derive(Debug, Clone, Copy)]
struct Form {
    timestamps: bool,
    raw: bool,
}

impl Options {
    fn form(&self) -> Form {
        Form { timestamps: self.timestamps, raw: self.raw }
    }
}

/// Stream number of standard error in a frame.
const STDERR: u8 = 2;
/// `[stream, 0, 0, 0, length as 32 bits big-endian]`.
const HEADER_LEN: usize = 8;

pub(super) async fn print(client: &Client, options: &Options) -> Result<()> {
    let mut query = format!(
        "stdout=true&stderr=true&follow={}&tail={}&timestamps={}&details={}",
        options.follow,
        percent_encode(&options.tail),
        options.timestamps,
        !options.raw
    );
    if let Some(since) = &options.since {
        query += &format!("&since={}", percent_encode(since));
    }
    let name = percent_encode(&options.service);
    let mut body = match client.stream(&format!("/services/{name}/logs?{query}")).await {
        Err(error) if error.downcast_ref::<DaemonError>().is_some_and(|e| e.status == hyper::StatusCode::NOT_FOUND) => {
            // Not a service: a task, perhaps. Where it is neither, the first error is the one to show.
            client.stream(&format!("/tasks/{name}/logs?{query}")).await.map_err(|_| error)?
        }
        other => other?,
    };
    let nodes = if options.raw || options.no_resolve { Names::new() } else { names::nodes(client).await? };
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the daemon's answer broke off")?.into_data() {
            buffer.extend_from_slice(&data);
        }
        while let Some((stream, line)) = frame_of(&mut buffer) {
            let line = shown(&line, options.form(), &nodes);
            if stream == STDERR { write(&mut io::stderr(), &line)? } else { write(&mut io::stdout(), &line)? }
        }
    }
    Ok(())
}

/// Takes one whole frame from the front, if there is one.
fn frame_of(buffer: &mut BytesMut) -> Option<(u8, Bytes)> {
    let header: [u8; HEADER_LEN] = buffer.get(..HEADER_LEN)?.try_into().ok()?;
    let [stream, _, _, _, length @ ..] = header;
    let length = u32::from_be_bytes(length) as usize;
    if buffer.len() < HEADER_LEN + length {
        return None;
    }
    buffer.advance(HEADER_LEN);
    Some((stream, buffer.split_to(length).freeze()))
}

/// With details, a line begins with `key=value,…` of its origin, after its time if that was asked for: the task and its node
/// are shown before a bar.
fn shown(line: &[u8], form: Form, nodes: &Names) -> Vec<u8> {
    if form.raw {
        return line.to_vec();
    }
    let text = String::from_utf8_lossy(line);
    let (time, text) = if form.timestamps { text.split_once(' ').unwrap_or(("", &text)) } else { ("", &*text) };
    let Some((details, rest)) = text.split_once(' ') else { return line.to_vec() };
    let value = |key: &str| details.split(',').find_map(|pair| pair.strip_prefix(key)).unwrap_or_default();
    let task = value("com.docker.swarm.task.name=");
    let node = value("com.docker.swarm.node.id=");
    let node = nodes.get(node).map_or(node, String::as_str);
    let origin = if task.is_empty() { value("com.docker.swarm.task.id=") } else { task };
    let time = if time.is_empty() { String::new() } else { format!("{time} ") };
    if origin.is_empty() { line.to_vec() } else { format!("{time}{origin}@{node}    | {rest}").into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_whole() {
        let mut buffer = BytesMut::from(&[1, 0, 0, 0, 0, 0, 0, 3, b'a', b'b'][..]);
        assert_eq!(frame_of(&mut buffer), None);
        buffer.extend_from_slice(b"\nrest");
        assert_eq!(frame_of(&mut buffer), Some((1, Bytes::from_static(b"ab\n"))));
        assert_eq!(&buffer[..], b"rest");
    }

    #[test]
    fn a_line_says_who_wrote_it() {
        let nodes = [("n".to_owned(), "n1".to_owned())].into();
        let check = |line: &str, timestamps, raw, expected: &str| {
            assert_eq!(shown(line.as_bytes(), Form { timestamps, raw }, &nodes), expected.as_bytes());
        };
        let line = "com.docker.swarm.node.id=n,com.docker.swarm.task.name=web.1.x hello there\n";
        check(line, false, false, "web.1.x@n1    | hello there\n");
        check(
            &format!("2026-01-02T03:04:05Z {line}"),
            true,
            false,
            "2026-01-02T03:04:05Z web.1.x@n1    | hello there\n",
        );
        check("hello\n", false, true, "hello\n");
    }
}
