//! A small HTTP/1.1 server, one thread per connection.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use hiveway_tests::load::{pattern, sha256};

pub(crate) fn serve(port: u16, name: &str) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("cannot listen on port {port}"))?;
    eprintln!("listening on {port}/tcp as {name}");
    let name: Arc<str> = name.into();
    for stream in listener.incoming() {
        // A connection that was reset before it was accepted is no reason to stop.
        let Ok(stream) = stream else { continue };
        let name = Arc::clone(&name);
        std::thread::spawn(move || {
            if let Err(error) = converse(&stream, &name) {
                eprintln!("{:?}: {error:#}", stream.peer_addr());
            }
        });
    }
    Ok(())
}

fn converse(stream: &TcpStream, name: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader, stream)? {
        let answer = match (request.method.as_str(), request.path.strip_prefix("/bytes/")) {
            ("POST", _) => format!("name={name} peer={peer} sha256={}\n", sha256(&request.body)).into_bytes(),
            (_, Some(length)) => pattern(length.parse()?),
            _ => format!("name={name} peer={peer}\n").into_bytes(),
        };
        let connection = if request.close { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            answer.len()
        );
        let mut whole = head.into_bytes();
        whole.extend_from_slice(&answer);
        (&*stream).write_all(&whole)?;
        if request.close {
            break;
        }
    }
    Ok(())
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
    close: bool,
}

/// The next request, or `None` at the end of the connection.
fn read_request(reader: &mut BufReader<&TcpStream>, mut stream: &TcpStream) -> Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { bail!("no request: {line:?}") };
    let (method, path) = (method.to_owned(), path.to_owned());
    let (mut length, mut close, mut wants_continue) = (0_usize, false, false);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 {
            bail!("connection ended within the headers");
        }
        let header = header.trim().to_ascii_lowercase();
        match header.split_once(':').map(|(key, value)| (key, value.trim())) {
            None => break,
            Some(("content-length", value)) => length = value.parse().context("content-length")?,
            Some(("connection", "close")) => close = true,
            Some(("expect", "100-continue")) => wants_continue = true,
            Some(_) => {}
        }
    }
    if wants_continue {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { method, path, body, close }))
}
