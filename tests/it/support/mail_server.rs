//! An SMTP server that accepts or refuses every mail, and hangs for some recipients.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use mailin::{Action, Handler, Response, SessionBuilder, response};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::eventually;

/// A mail as the server received it.
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

    /// Returns the code: the only group of eight digits in the subject and text.
    pub fn code(&self) -> String {
        let (_, text) = self.data.split_once("\r\n\r\n").unwrap();
        let shown = format!("{}\n{text}", self.header("Subject"));
        let groups: Vec<_> = shown.split(|c: char| !c.is_ascii_digit()).filter(|group| group.len() == 8).collect();
        assert_eq!(groups.len(), 1, "{shown}");
        groups[0].to_owned()
    }
}

/// The state that all sessions of a mail server share.
#[derive(Default)]
pub struct MailState {
    pub received: Mutex<Vec<Received>>,
    /// The reply code to RCPT. 0 means 250.
    pub refuse_with: AtomicU16,
    pub refused: AtomicU16,
    /// Recipients for which RCPT is never answered: those whose address ends with this.
    hanging: Mutex<Option<String>>,
    /// Recipients for which RCPT is answered late: those whose address ends with this.
    slow: Mutex<Option<(String, Duration)>>,
    /// The number of RCPT commands that were not answered.
    hung: AtomicU16,
}

impl MailState {
    pub fn mails(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub async fn nth_mail(&self, index: usize) -> Received {
        eventually("the mail arrives", || async { self.mails().get(index).cloned() }).await
    }

    /// Never again answers RCPT for recipients whose address ends with this; for all again if `None`.
    pub fn hang_for(&self, end: Option<&str>) {
        *self.hanging.lock().unwrap() = end.map(str::to_owned);
    }

    pub async fn wait_for_hanging(&self, times: u16) {
        eventually("enough mails hang", || async { (self.hung.load(Ordering::SeqCst) >= times).then_some(()) }).await;
    }

    /// Answers RCPT for recipients whose address ends with this only after this time.
    pub fn delay_for(&self, end: &str, delay: Duration) {
        *self.slow.lock().unwrap() = Some((end.to_owned(), delay));
    }

    /// Whether an SMTP command is one that is never answered.
    fn hangs(&self, line: &[u8]) -> bool {
        self.hanging.lock().unwrap().as_deref().is_some_and(|end| names_recipient(line, end))
    }

    /// How late an SMTP command is answered.
    fn delay(&self, line: &[u8]) -> Option<Duration> {
        let slow = self.slow.lock().unwrap();
        slow.as_ref().filter(|(end, _)| names_recipient(line, end)).map(|(_, delay)| *delay)
    }

    /// Returns the mail with this subject to this address, once it has arrived.
    pub async fn notice_to(&self, address: &str, subject: &str) -> Received {
        let is_it = |mail: &Received| mail.to == [address] && mail.header("Subject") == subject;
        eventually("the notice arrives", || async { self.mails().into_iter().find(is_it) }).await
    }

    /// Returns the mail to this address, once it has arrived.
    pub async fn mail_to(&self, address: &str) -> Received {
        eventually("the mail arrives", || async { self.mails().into_iter().find(|mail| mail.to == [address]) }).await
    }

    pub async fn wait_for_refusals(&self, times: u16) {
        eventually("enough mails were refused", || async {
            (self.refused.load(Ordering::SeqCst) >= times).then_some(())
        })
        .await;
    }
}

/// Whether an SMTP command is RCPT with a recipient whose address ends with this.
fn names_recipient(line: &[u8], end: &str) -> bool {
    let line = String::from_utf8_lossy(line).to_ascii_lowercase();
    line.strip_prefix("rcpt to:<").and_then(|rest| rest.split('>').next()).is_some_and(|to| to.ends_with(end))
}

struct Conversation {
    state: Arc<MailState>,
    mail: Received,
    data: Vec<u8>,
}

impl Handler for Conversation {
    fn mail(&mut self, _: std::net::IpAddr, _: &str, from: &str) -> Response {
        from.clone_into(&mut self.mail.from);
        response::OK
    }

    fn rcpt(&mut self, to: &str) -> Response {
        match self.state.refuse_with.load(Ordering::SeqCst) {
            0 => {
                self.mail.to.push(to.to_owned());
                response::OK
            }
            code => {
                self.state.refused.fetch_add(1, Ordering::SeqCst);
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
        self.state.received.lock().unwrap().push(mail);
        response::OK
    }
}

/// An SMTP server on 127.0.0.1.
pub struct MailServer {
    pub address: SocketAddr,
    pub state: Arc<MailState>,
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
        let state = Arc::new(MailState::default());
        let shared = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let conversation = Conversation { state: shared.clone(), mail: Received::default(), data: vec![] };
                tokio::spawn(converse(stream, conversation));
            }
        });
        Self { address, state, accepting }
    }

    pub fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }
}

/// Passes lines between the stream and the SMTP state machine.
async fn converse(stream: TcpStream, conversation: Conversation) -> std::io::Result<()> {
    let peer = stream.peer_addr()?.ip();
    let mut stream = BufReader::new(stream);
    let state = conversation.state.clone();
    let mut session = SessionBuilder::new("mail.example").build(peer, conversation);
    stream.write_all(&session.greeting().buffer()?).await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        if state.hangs(&line) {
            state.hung.fetch_add(1, Ordering::SeqCst);
            // Until the client closes the connection.
            while stream.read_until(b'\n', &mut line).await? > 0 {}
            return Ok(());
        }
        let delay = state.delay(&line);
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let reply = session.process(&line);
        stream.write_all(&reply.buffer()?).await?;
        if reply.action == Action::Close {
            return Ok(());
        }
    }
}
