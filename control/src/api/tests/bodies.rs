//! Tests of bodies that a handler does not read to their end. They use a real socket.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

use super::*;

/// Many more bytes than the buffers of a socket can hold.
const SIZE: usize = 6 << 20;

/// Serves the API on a socket in a new folder.
async fn serve(api: Fixture) -> (tempfile::TempDir, UnixStream) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(crate::api::serve(listener, api.router));
    let client = UnixStream::connect(&socket).await.expect("the API");
    (folder, client)
}

/// Reads the next answer on the connection: its status line and its body.
async fn read_answer(client: &mut UnixStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("the answer's head"));
    }
    let head = String::from_utf8(head).expect("text");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("the body's length");
    let mut body = vec![0; length.parse().expect("a number")];
    client.read_exact(&mut body).await.expect("the answer's body");
    let status = head.lines().next().expect("a status").to_owned();
    (status, String::from_utf8(body).expect("text"))
}

#[tokio::test]
async fn a_client_can_send_its_whole_body_before_it_reads_the_refusal() {
    let outside = || Fixture::new(Membership::None, None);
    for (api, path, status, text) in [
        (Fixture::manager(), "/secrets/create", 413, "larger than 4 MiB"),
        (Fixture::manager(), "/v1.41/configs/create", 413, "larger than 4 MiB"),
        (Fixture::manager(), "/images/load", 501, "container engine"),
        (Fixture::manager(), "/v1.99/services/create", 400, "too new"),
        (Fixture::manager(), "/services/create", 413, "larger than 4 MiB"),
        (Fixture::manager(), "/services/web/update", 413, "larger than 4 MiB"),
        (Fixture::manager(), "/networks/create", 413, "larger than 4 MiB"),
        (Fixture::manager(), "/swarm/unlock", 413, "larger than 4 MiB"),
        (outside(), "/swarm/init", 413, "larger than 4 MiB"),
        (outside(), "/secrets/create", 413, "larger than 4 MiB"),
    ] {
        let (_folder, mut client) = serve(api).await;
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n");
        client.write_all(head.as_bytes()).await.expect("a request");
        client.write_all(&vec![b' '; SIZE]).await.expect(path);
        let (line, body) = read_answer(&mut client).await;
        assert!(line.starts_with(&format!("HTTP/1.1 {status} ")) && body.contains(text), "{path}: {line} {body}");
        assert!(body.starts_with("{\"message\":"), "{body}");
        // The connection can be used again.
        client.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a second request");
        assert_eq!(read_answer(&mut client).await.1, "OK", "{path}");
    }
}

#[tokio::test]
async fn a_chunked_body_is_read_to_its_end() {
    let (_folder, mut client) = serve(Fixture::manager()).await;
    client
        .write_all(b"POST /images/load HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .expect("a request");
    let chunk = [b"100000\r\n".as_slice(), &vec![b'x'; 1 << 20], b"\r\n"].concat();
    for _ in 0..SIZE >> 20 {
        client.write_all(&chunk).await.expect("a chunk");
    }
    client.write_all(b"0\r\n\r\n").await.expect("the end");
    let (status, body) = read_answer(&mut client).await;
    assert!(status.starts_with("HTTP/1.1 501 ") && body.contains("images"), "{status} {body}");
}

#[tokio::test]
async fn a_client_that_expects_continue_gets_the_refusal_before_it_sends() {
    let (_folder, mut client) = serve(Fixture::manager()).await;
    let head =
        format!("POST /images/load HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {SIZE}\r\n\r\n");
    client.write_all(head.as_bytes()).await.expect("a request");
    assert!(read_answer(&mut client).await.0.starts_with("HTTP/1.1 501 "));
}
