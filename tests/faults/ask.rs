//! An HTTP client over a raw socket, which tells an answer from a connection that was cut.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::PATIENCE;

/// A client with one connection that it keeps.
pub(super) struct Client {
    pub(super) address: SocketAddr,
    pub(super) stream: Option<BufReader<TcpStream>>,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(super) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            stream: None,
        }
    }

    /// `None` when no whole answer came: nobody knows then what became of the request.
    pub(super) fn ask(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        key: Option<&str>,
        body: &str,
    ) -> Option<Answer> {
        let key = key.map_or_else(String::new, |key| format!("Idempotency-Key: {key}\r\n"));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer {token}\r\n\
             {key}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.exchange(&request);
        if answer
            .as_ref()
            .is_none_or(|answer| answer.header("connection") == Some("close"))
        {
            self.stream = None;
        }
        answer
    }

    fn exchange(&mut self, request: &str) -> Option<Answer> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            stream.set_nodelay(true).ok()?;
            self.stream = Some(BufReader::new(stream));
        }
        let stream = self.stream.as_mut()?;
        stream.get_mut().write_all(request.as_bytes()).ok()?;
        read_answer(stream)
    }

    pub(super) fn post(&mut self, path: &str, token: &str, body: &Value) -> Option<Answer> {
        self.ask("POST", path, token, None, &body.to_string())
    }

    /// Reading may be repeated, so a connection that was closed meanwhile is opened anew.
    pub(super) fn get(&mut self, path: &str, token: &str) -> Answer {
        self.ask("GET", path, token, None, "")
            .or_else(|| self.ask("GET", path, token, None, ""))
            .unwrap_or_else(|| panic!("no answer to GET {path}"))
    }

    /// A whole list, page by page. `path` has a query already.
    pub(super) fn get_all(&mut self, path: &str, token: &str) -> Vec<Value> {
        let (mut all, mut next) = (Vec::new(), path.to_owned());
        loop {
            let page = self.get(&next, token).json();
            all.extend(page["items"].as_array().expect("a list").iter().cloned());
            match page["next_cursor"].as_str() {
                Some(cursor) => next = format!("{path}&cursor={cursor}"),
                None => return all,
            }
        }
    }
}

pub(super) fn read_answer(stream: &mut impl BufRead) -> Option<Answer> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let mut answer = Answer {
        status: head.split(' ').nth(1)?.parse().ok()?,
        head,
        body: String::new(),
    };
    match answer.header("content-length") {
        Some(length) => {
            let mut body = vec![0; length.parse().ok()?];
            stream.read_exact(&mut body).ok()?;
            answer.body = String::from_utf8(body).ok()?;
        }
        None if answer.status == 204 => {}
        None => {
            stream.read_to_string(&mut answer.body).ok()?;
        }
    }
    Some(answer)
}
