//! Somebody else's HTTP server, as bad as a test wants it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request that came in.
#[derive(Clone, Debug)]
pub struct Received {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// What it does about a request.
#[derive(Clone, Debug)]
pub enum Reaction {
    /// Answers with this status.
    Status(u16),
    /// Answers with these bytes.
    Raw(String),
    /// Keeps the connection and says nothing.
    Hang,
}

/// A receiver; it reacts in the order of its list, and the last reaction stays.
pub struct Receiver {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    reactions: Arc<Mutex<Vec<Reaction>>>,
}

impl Receiver {
    pub fn open(reactions: &[Reaction]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let received = Arc::new(Mutex::new(Vec::new()));
        let reactions = Arc::new(Mutex::new(reactions.to_vec()));
        let (kept, next) = (Arc::clone(&received), Arc::clone(&reactions));
        // Ends with the test's process: it holds nothing but a port.
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let Some(request) = read(&stream) else {
                    continue;
                };
                kept.lock().expect("list").push(request);
                let reaction = {
                    let mut list = next.lock().expect("list");
                    match list.len() {
                        0 | 1 => list.first().cloned().expect("a reaction"),
                        _ => list.remove(0),
                    }
                };
                let answer = match reaction {
                    Reaction::Hang => {
                        held.push(stream);
                        continue;
                    }
                    Reaction::Status(status) => {
                        let body = "so 😀";
                        let length = body.len();
                        format!("HTTP/1.1 {status} So\r\nContent-Length: {length}\r\n\r\n{body}")
                    }
                    Reaction::Raw(bytes) => bytes,
                };
                // The caller may have had enough.
                let _gone = stream.write_all(answer.as_bytes());
            }
        });
        Self {
            address,
            received,
            reactions,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook?token=secret", self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().expect("list").clone()
    }

    pub fn count(&self) -> usize {
        self.received.lock().expect("list").len()
    }

    /// From now on it reacts like this.
    pub fn react(&self, reaction: Reaction) {
        *self.reactions.lock().expect("list") = vec![reaction];
    }
}

fn read(stream: &TcpStream) -> Option<Received> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (mut headers, mut length) = (Vec::new(), 0);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).ok()? == 0 {
            return None;
        }
        let header = header.trim_end();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Received {
        line: line.trim_end().to_owned(),
        headers,
        body: String::from_utf8(body).ok()?,
    })
}
