//! A small HTTP/1.1 server on loopback that serves files well, or misbehaves exactly as told.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request, as far as the answers care.
#[derive(Debug, Clone)]
pub struct Request {
    /// The path with its query.
    pub path: String,
    /// Header names in lower case.
    pub headers: BTreeMap<String, String>,
    /// How many requests for this path came before.
    pub earlier: usize,
}

impl Request {
    /// The first byte that is asked for, if a range is.
    pub fn range_start(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it goes.
    Whole,
    /// So many bytes, then the connection is closed.
    DropAfter(usize),
    /// So many bytes, then nothing more while the connection stays open.
    SilentAfter(usize),
    /// A byte at a time, with so much time between.
    Trickle(Duration),
}

/// An answer; `content-length` is added unless it is among the headers.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Arc<[u8]>,
    pub pace: Pace,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Arc<[u8]>>) -> Self {
        Answer { status, headers: Vec::new(), body: body.into(), pace: Pace::Whole }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }
}

type Handler = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// A connection, plain or TLS.
trait Connection: Read + Write + Send {}
impl<T: Read + Write + Send> Connection for T {}

/// A running server; it ends when it is dropped.
pub struct Server {
    scheme: &'static str,
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    handlers: Mutex<BTreeMap<String, Handler>>,
    log: Mutex<Vec<Request>>,
    over: AtomicBool,
}

impl Server {
    /// Starts a server on a free port of 127.0.0.1 that answers 404 to everything.
    pub fn start() -> Self {
        Self::listen("http", |stream| Box::new(stream))
    }

    /// Starts a server that speaks TLS, and returns it with its certificate in PEM form; nobody trusts
    /// that who is not told to.
    pub fn start_tls() -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("made");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("a certificate and its key");
        let config = Arc::new(config);
        let server = Self::listen("https", move |stream| {
            let tls = rustls::ServerConnection::new(config.clone()).expect("a session");
            Box::new(rustls::StreamOwned::new(tls, stream))
        });
        (server, made.cert.pem())
    }

    fn listen(
        scheme: &'static str,
        open: impl Fn(TcpStream) -> Box<dyn Connection> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared::default());
        let for_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if for_thread.over.load(Ordering::SeqCst) {
                    break;
                }
                let shared = for_thread.clone();
                if let Ok(stream) = stream {
                    let stream = open(stream);
                    // A client that goes away in the middle ends only its own thread.
                    std::thread::spawn(move || shared.serve(stream));
                }
            }
        });
        Server { scheme, address, shared, thread: Some(thread) }
    }

    /// The server's address, such as `http://127.0.0.1:1234`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The server's socket address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests for `path` as `handler` says.
    pub fn answer(&self, path: &str, handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock().expect("no handler panicked");
        handlers.insert(path.to_owned(), Arc::new(handler));
    }

    /// Serves `body` at `path` as a good server does: with a strong tag, a date and ranges.
    pub fn serve(&self, path: &str, body: impl Into<Arc<[u8]>>) {
        let body = body.into();
        self.answer(path, move |request| good(request, &body));
    }

    /// What a plain request for `path` is answered with; `None` if nothing.
    pub fn current(&self, path: &str) -> Option<Arc<[u8]>> {
        let handler = self.shared.handlers.lock().expect("no handler panicked").get(path).cloned();
        let request = Request { path: path.to_owned(), headers: BTreeMap::new(), earlier: 0 };
        handler.map(|handler| handler(&request).body)
    }

    /// Answers 404 for `path` from now on.
    pub fn forget(&self, path: &str) {
        self.shared.handlers.lock().expect("no handler panicked").remove(path);
    }

    /// Every request so far, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.lock().expect("no handler panicked").clone()
    }

    /// The requests for `path` so far.
    pub fn requests_for(&self, path: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path == path).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // The accepting thread wakes up for this connection and sees that it is over.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What nginx answers for a file, conditions and ranges included.
pub fn good(request: &Request, body: &Arc<[u8]>) -> Answer {
    const DATE: &str = "Sat, 18 Jul 2026 10:00:00 GMT";
    let tag = format!("\"{:x}-{:x}\"", body.len(), body.iter().map(|b| u64::from(*b)).sum::<u64>());
    let answer = |status, body: Arc<[u8]>| {
        Answer::new(status, body)
            .header("etag", tag.clone())
            .header("last-modified", DATE)
            .header("accept-ranges", "bytes")
            .header("content-type", "application/octet-stream")
    };
    let unchanged = request.headers.get("if-range").is_none_or(|seen| *seen == tag || seen == DATE);
    match request.range_start().filter(|_| unchanged) {
        Some(start) if start < body.len() => answer(206, body[start..].into())
            .header("content-range", format!("bytes {start}-{}/{}", body.len() - 1, body.len())),
        Some(_) => {
            Answer::new(416, *b"").header("content-range", format!("bytes */{}", body.len()))
        }
        None => answer(200, body.clone()),
    }
}

impl Shared {
    fn serve(&self, mut stream: Box<dyn Connection>) -> Option<()> {
        loop {
            let request = self.read(&mut stream)?;
            let handler =
                self.handlers.lock().expect("no handler panicked").get(&request.path).cloned();
            let answer = match handler {
                Some(handler) => handler(&request),
                None => Answer::new(404, *b"not here\n"),
            };
            self.write(&mut stream, &answer)?;
        }
    }

    fn read(&self, stream: &mut dyn Connection) -> Option<Request> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
            (head.len() < 64 * 1024).then_some(())?;
        }
        let head = String::from_utf8(head).ok()?;
        let mut lines = head.lines();
        let target = lines.next()?.split_whitespace().nth(1)?;
        // A proxy's client names the whole address.
        let path = target
            .strip_prefix("http://")
            .map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut log = self.log.lock().expect("no handler panicked");
        let earlier = log.iter().filter(|request| request.path == path).count();
        let request = Request { path: path.to_owned(), headers, earlier };
        log.push(request.clone());
        Some(request)
    }

    /// Sends an answer; `None` ends the connection.
    fn write(&self, stream: &mut dyn Connection, answer: &Answer) -> Option<()> {
        let mut head = format!("HTTP/1.1 {} Answer\r\n", answer.status);
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let framed = |(name, _): &(&str, String)| {
            matches!(*name, "content-length" | "transfer-encoding" | "connection")
        };
        let own_length = answer.headers.iter().any(framed);
        if !own_length {
            head.push_str(&format!("content-length: {}\r\n", answer.body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        stream.flush().ok()?;
        match answer.pace {
            Pace::Whole => stream.write_all(&answer.body).ok()?,
            Pace::DropAfter(count) => {
                stream.write_all(&answer.body[..count.min(answer.body.len())]).ok()?;
                return None;
            }
            Pace::SilentAfter(count) => {
                stream.write_all(&answer.body[..count.min(answer.body.len())]).ok()?;
                // Until the client gives up and closes.
                let _ = stream.read(&mut [0]);
                return None;
            }
            Pace::Trickle(pause) => {
                for byte in answer.body.iter() {
                    stream.write_all(&[*byte]).ok()?;
                    stream.flush().ok()?;
                    if self.over.load(Ordering::SeqCst) {
                        return None;
                    }
                    std::thread::sleep(pause);
                }
            }
        }
        stream.flush().ok()?;
        (!own_length).then_some(())
    }
}
