//! A mail server that takes or refuses everything.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

use mailin::{Action, Handler, Response, SessionBuilder, response};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::eventually;

/// A mail as the mail server got it.
#[derive(Clone, Debug, Default)]
pub struct Received {
    pub from: String,
    pub to: Vec<String>,
    pub data: String,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        let (head, _) = self.data.split_once("\r\n\r\n").unwrap();
        let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {name} in {head}"))
    }

    /// The one group of eight digits in subject and text.
    pub fn code(&self) -> String {
        let (_, text) = self.data.split_once("\r\n\r\n").unwrap();
        let shown = format!("{}\n{text}", self.header("Subject"));
        let groups: Vec<_> = shown.split(|c: char| !c.is_ascii_digit()).filter(|group| group.len() == 8).collect();
        assert_eq!(groups.len(), 1, "{shown}");
        groups[0].to_owned()
    }
}

/// What all conversations with a mail server share.
#[derive(Default)]
pub struct Mailroom {
    pub received: Mutex<Vec<Received>>,
    /// The reply to RCPT instead of 250, unless 0.
    pub refuse_with: AtomicU16,
    pub refused: AtomicU16,
}

impl Mailroom {
    pub fn mails(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub async fn nth(&self, index: usize) -> Received {
        eventually("the mail arrives", || async { self.mails().get(index).cloned() }).await
    }

    pub async fn refused(&self, times: u16) {
        eventually("mails were refused", || async { (self.refused.load(Ordering::SeqCst) >= times).then_some(()) })
            .await;
    }
}

struct Conversation {
    room: Arc<Mailroom>,
    mail: Received,
    data: Vec<u8>,
}

impl Handler for Conversation {
    fn mail(&mut self, _: std::net::IpAddr, _: &str, from: &str) -> Response {
        from.clone_into(&mut self.mail.from);
        response::OK
    }

    fn rcpt(&mut self, to: &str) -> Response {
        match self.room.refuse_with.load(Ordering::SeqCst) {
            0 => {
                self.mail.to.push(to.to_owned());
                response::OK
            }
            code => {
                self.room.refused.fetch_add(1, Ordering::SeqCst);
                Response::custom(code, "not now".to_owned())
            }
        }
    }

    fn data(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.data.extend_from_slice(bytes);
        Ok(())
    }

    fn data_end(&mut self) -> Response {
        let mut mail = std::mem::take(&mut self.mail);
        mail.data = String::from_utf8(std::mem::take(&mut self.data)).unwrap();
        self.room.received.lock().unwrap().push(mail);
        response::OK
    }
}

/// A mail server that takes or refuses everything.
pub struct MailServer {
    pub address: SocketAddr,
    pub room: Arc<Mailroom>,
    accepting: JoinHandle<()>,
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl MailServer {
    pub async fn start() -> Self {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub async fn start_on(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let room = Arc::new(Mailroom::default());
        let rooms = room.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let conversation = Conversation { room: rooms.clone(), mail: Received::default(), data: vec![] };
                tokio::spawn(converse(stream, conversation));
            }
        });
        Self { address, room, accepting }
    }

    pub fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }
}

/// Carries one conversation's lines between the stream and the protocol's state machine.
async fn converse(stream: TcpStream, conversation: Conversation) -> std::io::Result<()> {
    let peer = stream.peer_addr()?.ip();
    let mut stream = BufReader::new(stream);
    let mut session = SessionBuilder::new("mail.example").build(peer, conversation);
    stream.write_all(&session.greeting().buffer()?).await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let reply = session.process(&line);
        stream.write_all(&reply.buffer()?).await?;
        if reply.action == Action::Close {
            return Ok(());
        }
    }
}
