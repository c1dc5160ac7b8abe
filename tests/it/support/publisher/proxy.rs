//! An HTTP proxy and a SOCKS5 proxy that lead every host name to one loopback address, and remember
//! which names they were asked for.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A running proxy; it takes no more connections once it is dropped.
pub struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
}

impl Proxy {
    /// A proxy that speaks SOCKS5 and leads everywhere to `target`.
    pub fn socks5(target: SocketAddr) -> Self {
        Self::start(target, socks5)
    }

    /// A proxy that speaks HTTP and leads everywhere to `target`.
    pub fn http(target: SocketAddr) -> Self {
        Self::start(target, http)
    }

    fn start(
        target: SocketAddr,
        speak: fn(&mut TcpStream, SocketAddr) -> Option<(String, TcpStream)>,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (asked, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, end) = (asked.clone(), over.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                let log = log.clone();
                std::thread::spawn(move || {
                    let mut client = client;
                    if let Some((name, server)) = speak(&mut client, target) {
                        log.lock().expect("not poisoned").push(name);
                        join(client, server);
                    }
                });
            }
        });
        Proxy { address, asked, over }
    }

    /// Its host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The host names that it was asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("not poisoned").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Copies both ways until both sides are done.
fn join(client: TcpStream, server: TcpStream) {
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    let (mut to_client, mut from_server) = (client, server);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    let _ = std::io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(std::net::Shutdown::Both);
}

/// RFC 1928, without authentication, and by name only: an address would mean that the name was looked
/// up outside of the proxy.
fn socks5(client: &mut TcpStream, target: SocketAddr) -> Option<(String, TcpStream)> {
    let mut head = [0; 2];
    client.read_exact(&mut head).ok()?;
    client.read_exact(&mut vec![0; usize::from(head[1])]).ok()?;
    client.write_all(&[5, 0]).ok()?;
    let mut request = [0; 5];
    client.read_exact(&mut request).ok()?;
    (request[3] == 3).then_some(())?;
    let mut name = vec![0; usize::from(request[4])];
    client.read_exact(&mut name).ok()?;
    client.read_exact(&mut [0; 2]).ok()?;
    let server = TcpStream::connect(target).ok()?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).ok()?;
    Some((String::from_utf8(name).ok()?, server))
}

/// A plain request with the whole address in its first line, one per connection.
fn http(client: &mut TcpStream, target: SocketAddr) -> Option<(String, TcpStream)> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let url = url::Url::parse(line.split_whitespace().nth(1)?).ok()?;
    let mut server = TcpStream::connect(target).ok()?;
    write!(server, "GET {} HTTP/1.1\r\nconnection: close\r\n", url.path()).ok()?;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        server.write_all(header.as_bytes()).ok()?;
        if header.trim().is_empty() {
            break;
        }
    }
    Some((url.host_str()?.to_owned(), server))
}
