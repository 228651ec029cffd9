//! One client of the server that is drilled: its requests, whole or cut short, and its connection.
//!
//! Invariants: a request is the same whatever it travels over; a client's address is the one that the
//! server takes it for; a thousand requests of a megabyte take no megabyte each.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::clock::Stopwatch;

/// What requests travel over.
#[derive(Clone, Default)]
pub enum Over {
    /// HTTP/1.1 in the clear, from the client's own address.
    #[default]
    Plain,
    /// HTTP/1.1 from 127.0.0.1, a proxy that the server trusts and that tells the client's address.
    Proxy,
    /// HTTP/2 over TLS. A client has many streams on one connection. The settings trust the server's
    /// certificate for `localhost`, and offer `h2`.
    Http2(Arc<ClientConfig>),
}

/// The name that the server's certificate is for.
const SERVER_NAME: &str = "localhost";
/// What a client takes that reads nothing: as little as the system allows, and a byte of each stream.
const UNREAD_BYTES: u32 = 4_096;
/// How long a stream that is not read is held.
const HOLDS: Duration = Duration::from_secs(10);
/// `a` so many times, as a piece of a long body.
const PIECE: &[u8] = &[b'a'; 16_384];

/// A request, or as much of one as is sent.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    method: &'static str,
    path: String,
    token: String,
    body: Option<Body>,
}

#[derive(Clone, Debug)]
struct Body {
    begin: Vec<u8>,
    /// Bytes `a` between beginning and end.
    fill: usize,
    end: Vec<u8>,
    /// Bytes that are told and never come.
    withheld: usize,
}

impl Body {
    fn told(&self) -> usize {
        self.begin.len() + self.fill + self.end.len() + self.withheld
    }

    /// Its bytes, piece by piece.
    fn pieces(self) -> impl Iterator<Item = Bytes> {
        let fill = (0..self.fill)
            .step_by(PIECE.len())
            .map(move |at| Bytes::from_static(&PIECE[..PIECE.len().min(self.fill - at)]));
        let begin = std::iter::once(Bytes::from(self.begin));
        begin
            .chain(fill)
            .chain(std::iter::once(Bytes::from(self.end)))
    }
}

impl Asked {
    pub(super) fn get(path: impl Into<String>, token: &str) -> Self {
        Self {
            method: "GET",
            path: path.into(),
            token: token.to_owned(),
            body: None,
        }
    }

    pub(super) fn post(path: impl Into<String>, token: &str, body: &serde_json::Value) -> Self {
        Self::parts(path, token, [&body.to_string(), ""], 0, 0)
    }

    /// A POST whose body begins and ends so, with `fill` bytes between; `withheld` bytes more are told and
    /// don't come.
    pub(super) fn parts(
        path: impl Into<String>,
        token: &str,
        [begin, end]: [&str; 2],
        fill: usize,
        withheld: usize,
    ) -> Self {
        Self {
            method: "POST",
            path: path.into(),
            token: token.to_owned(),
            body: Some(Body {
                begin: begin.as_bytes().to_vec(),
                fill,
                end: end.as_bytes().to_vec(),
                withheld,
            }),
        }
    }

    /// Of an account with this session.
    pub(super) fn by(mut self, token: &str) -> Self {
        token.clone_into(&mut self.token);
        self
    }

    fn head(&self, told_for: Option<Ipv4Addr>) -> String {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: shop\r\n", self.method, self.path);
        if let Some(client) = told_for {
            text.push_str(&format!("X-Forwarded-For: {client}\r\n"));
        }
        if !self.token.is_empty() {
            text.push_str(&format!("Authorization: Bearer {}\r\n", self.token));
        }
        if let Some(body) = &self.body {
            text.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.told()
            ));
        }
        text.push_str("\r\n");
        text
    }

    fn stream(&self) -> io::Result<hyper::Request<BoxBody<Bytes, Infallible>>> {
        let mut request = hyper::Request::builder()
            .method(self.method)
            .uri(format!("https://{SERVER_NAME}{}", self.path));
        if !self.token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        }
        let body = match self.body.clone() {
            None => Empty::new().boxed(),
            Some(body) => {
                request = request
                    .header(header::CONTENT_TYPE, "application/json")
                    .header(header::CONTENT_LENGTH, body.told());
                let is_withheld = body.withheld > 0;
                let pieces = stream::iter(body.pieces().map(|piece| Ok(Frame::data(piece))));
                match is_withheld {
                    true => BodyExt::boxed(StreamBody::new(pieces.chain(stream::pending()))),
                    false => BodyExt::boxed(StreamBody::new(pieces)),
                }
            }
        };
        request.body(body).map_err(io::Error::other)
    }
}

/// A connection, or for HTTP/2 a part in one.
pub(super) enum Line {
    /// Of HTTP/1.1.
    Own {
        stream: TcpStream,
        /// Read and not used.
        buffer: Vec<u8>,
        /// Whose address a proxy tells.
        told_for: Option<Ipv4Addr>,
    },
    /// Of HTTP/2.
    Shared(SendRequest<BoxBody<Bytes, Infallible>>),
}

impl Line {
    /// A new connection. With `reads` the client takes answers as they come; without, as little as it can.
    pub(super) async fn open(
        over: &Over,
        from: Ipv4Addr,
        to: SocketAddr,
        reads: bool,
    ) -> io::Result<Self> {
        let source = match over {
            Over::Proxy => Ipv4Addr::LOCALHOST,
            Over::Plain | Over::Http2(_) => from,
        };
        let socket = TcpSocket::new_v4()?;
        if !reads {
            socket.set_recv_buffer_size(UNREAD_BYTES)?;
        }
        socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        let Over::Http2(tls) = over else {
            return Ok(Self::Own {
                stream,
                buffer: Vec::new(),
                told_for: matches!(over, Over::Proxy).then_some(from),
            });
        };
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::clone(tls))
            .connect(name, stream)
            .await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        if !reads {
            builder.initial_stream_window_size(1);
        }
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        // It ends with the last stream.
        tokio::spawn(connection);
        Ok(Self::Shared(sender))
    }

    /// Another part in the same connection, if it is one that is shared and still open.
    pub(super) fn another(&self) -> Option<Self> {
        match self {
            Self::Own { .. } => None,
            Self::Shared(sender) => (!sender.is_closed()).then(|| Self::Shared(sender.clone())),
        }
    }

    /// Sends a request and reads the whole answer: its status and body.
    pub(super) async fn ask(&mut self, asked: &Asked) -> io::Result<(u16, Vec<u8>)> {
        match self {
            Self::Own {
                stream,
                buffer,
                told_for,
            } => {
                let sent = send(stream, asked, *told_for).await;
                // It may be answered before all of it was read.
                let answered = answer(stream, buffer).await;
                answered.map_err(|error| sent.err().unwrap_or(error))
            }
            Self::Shared(sender) => {
                let answer = stream_of(sender, asked).await?;
                let status = answer.status().as_u16();
                let body = answer.into_body().collect().await;
                let body = body.map_err(io::Error::other)?.to_bytes();
                Ok((status, body.to_vec()))
            }
        }
    }

    /// Sends a request and takes nothing of its answer, until the server has had enough.
    pub(super) async fn ask_unread(&mut self, asked: &Asked) -> io::Result<()> {
        match self {
            Self::Own {
                stream, told_for, ..
            } => {
                send(stream, asked, *told_for).await?;
                stream.ready(Interest::ERROR).await.map(drop)
            }
            Self::Shared(sender) => {
                let answer = stream_of(sender, asked).await?;
                // That the stream alone was ended can't be seen without reading it.
                let begun = Stopwatch::start();
                while !sender.is_closed() && begun.elapsed() < HOLDS {
                    sleep(super::RETRIES).await;
                }
                drop(answer);
                Ok(())
            }
        }
    }
}

async fn stream_of(
    sender: &mut SendRequest<BoxBody<Bytes, Infallible>>,
    asked: &Asked,
) -> io::Result<hyper::Response<hyper::body::Incoming>> {
    sender.ready().await.map_err(io::Error::other)?;
    let answer = sender.send_request(asked.stream()?).await;
    answer.map_err(io::Error::other)
}

async fn send(stream: &mut TcpStream, asked: &Asked, told_for: Option<Ipv4Addr>) -> io::Result<()> {
    let mut head = asked.head(told_for).into_bytes();
    let mut body = asked.body.clone();
    if let Some(body) = &mut body {
        // Small requests go in one piece, as a browser sends them.
        head.append(&mut body.begin);
        if body.fill == 0 {
            head.append(&mut body.end);
        }
    }
    stream.write_all(&head).await?;
    for piece in body.into_iter().flat_map(Body::pieces) {
        stream.write_all(&piece).await?;
    }
    Ok(())
}

async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<(u16, Vec<u8>)> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    loop {
        if let Some(head) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
            let status = text.get(9..12).and_then(|digits| digits.parse().ok());
            let length: usize = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
                .unwrap_or_default();
            let end = head + 4 + length;
            if buffer.len() >= end {
                let body = buffer[head + 4..end].to_vec();
                buffer.drain(..end);
                return Ok((status.ok_or_else(broken)?, body));
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
