//! A mail server, as bad as a test wants it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What it does about a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Post {
    /// Takes it.
    Take,
    /// Answers this to the recipient.
    Refuse(u16),
    /// Takes the whole mail and never says so.
    HangAfterData,
    /// Answers this to the login.
    RefuseLogin(u16),
}

/// A mail server; it reacts in the order of its list, and the last reaction stays.
pub struct MailServer {
    pub address: SocketAddr,
    mails: Arc<Mutex<Vec<String>>>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl MailServer {
    pub fn open(reactions: &[Post]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let mails = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut reactions = reactions.to_vec();
        let (kept, said) = (Arc::clone(&mails), Arc::clone(&lines));
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let stream = stream.expect("a connection");
                let reaction = match reactions.len() {
                    1 => reactions[0],
                    _ => reactions.remove(0),
                };
                if converse(&stream, reaction, &kept, &said).is_none()
                    && reaction == Post::HangAfterData
                {
                    held.push(stream);
                }
            }
        });
        Self {
            address,
            mails,
            lines,
        }
    }

    /// Mails that were taken, as they came.
    pub fn mails(&self) -> Vec<String> {
        self.mails.lock().expect("list").clone()
    }

    /// Commands that came.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("list").clone()
    }
}

/// One connection; `None` when it is over.
fn converse(
    stream: &TcpStream,
    reaction: Post,
    mails: &Mutex<Vec<String>>,
    lines: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let mut say = |text: &str| writer.write_all(format!("{text}\r\n").as_bytes()).ok();
    say("220 post")?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        lines.lock().expect("list").push(line.clone());
        let verb = line.split(' ').next().unwrap_or_default().to_uppercase();
        match verb.as_str() {
            "EHLO" => say("250-post\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 AUTH PLAIN")?,
            "AUTH" => match reaction {
                Post::RefuseLogin(code) => say(&format!("{code} who are you"))?,
                _ => say("235 welcome")?,
            },
            "RCPT" => match reaction {
                Post::Refuse(code) => say(&format!("{code} no such person here"))?,
                _ => say("250 ok")?,
            },
            "DATA" => {
                say("354 go on")?;
                let mut mail = String::new();
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).ok()? == 0 {
                        return None;
                    }
                    if line.trim_end() == "." {
                        break;
                    }
                    mail.push_str(line.strip_prefix('.').unwrap_or(&line));
                }
                if reaction == Post::HangAfterData {
                    return None;
                }
                mails.lock().expect("list").push(mail);
                say("250 taken")?;
            }
            "QUIT" => {
                say("221 bye")?;
                return Some(());
            }
            _ => say("250 ok")?,
        }
    }
}
