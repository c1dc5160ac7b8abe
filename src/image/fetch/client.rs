//! The HTTP client: which addresses are allowed, through which proxy, and how small files are got.

use std::sync::Once;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{NoProxy, Proxy, StatusCode};
use tokio_util::sync::CancellationToken;
use url::{Host, Url};

use super::download::FetchError;
use super::{FetchOptions, interrupted};
use crate::error::{Error, Kind, Result};

/// The most bytes that a key, signature, checksum file or version number may have.
pub(in crate::image) const SMALL: usize = 4 << 20;

/// How many redirections are followed.
const REDIRECTIONS: usize = 10;

/// An HTTP client that keeps to the manifest's rules.
#[derive(Debug, Clone)]
pub(in crate::image) struct Client {
    http: reqwest::Client,
    allow_http: bool,
    pub(super) stall: Duration,
}

impl Client {
    /// Returns a client; with `allow_http`, plain HTTP is allowed everywhere.
    pub(in crate::image) fn new(allow_http: bool, options: &FetchOptions) -> Result<Self> {
        static RING: Once = Once::new();
        RING.call_once(|| {
            // It fails only if another one is installed already, which then serves.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("nestlab/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.stall)
            .redirect(Policy::custom(move |attempt| {
                let from = attempt.previous().last().map_or("", Url::scheme);
                if attempt.previous().len() > REDIRECTIONS {
                    attempt.error("too many redirections")
                } else if from == "https" && attempt.url().scheme() != "https" && !allow_http {
                    let to = attempt.url().clone();
                    attempt.error(format!("redirected from HTTPS to {to}"))
                } else if let Err(why) = allowed(attempt.url(), allow_http) {
                    attempt.error(why)
                } else {
                    attempt.follow()
                }
            }));
        if let Some(proxy) = &options.proxy {
            let proxy = Proxy::all(proxy.as_str()).map_err(|error| {
                Error::new(Kind::Recipe, format!("`{proxy}` cannot be a proxy")).with_source(error)
            })?;
            builder =
                builder.proxy(proxy.no_proxy(NoProxy::from_string("localhost,127.0.0.0/8,::1")));
        }
        let http = builder.build().map_err(|error| {
            Error::new(Kind::HostCannot, "the HTTPS client cannot be set up").with_source(error)
        })?;
        Ok(Client { http, allow_http, stall: options.stall })
    }

    /// Sends a GET request with these headers and returns the answer once its head is there.
    pub(super) async fn get(
        &self,
        url: &str,
        headers: &[(reqwest::header::HeaderName, String)],
        cancel: &CancellationToken,
    ) -> Result<reqwest::Response, FetchError> {
        let parsed = Url::parse(url).map_err(|error| {
            FetchError::NextMirror(
                Error::new(Kind::Recipe, format!("`{url}` is not an address")).with_source(error),
            )
        })?;
        allowed(&parsed, self.allow_http)
            .map_err(|why| FetchError::NextMirror(Error::new(Kind::Network, why)))?;
        let mut request = self.http.get(parsed);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        tokio::select! {
            () = cancel.cancelled() => Err(FetchError::Stop(interrupted())),
            answer = tokio::time::timeout(self.stall, request.send()) => match answer {
                Err(_) => Err(FetchError::Retry(stalled(url))),
                Ok(answer) => answer.map_err(|error| failed(url, error)),
            },
        }
    }

    /// Gets a small file whole.
    pub(in crate::image) async fn small(
        &self,
        url: &str,
        cancel: &CancellationToken,
    ) -> Result<Vec<u8>, FetchError> {
        let mut response = self.get(url, &[], cancel).await?;
        status(url, response.status())?;
        let mut bytes = Vec::new();
        // A small file has one stall's time as a whole: no trickle keeps it open for ever.
        let body = async {
            while let Some(chunk) = response.chunk().await.map_err(|error| failed(url, error))? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > SMALL {
                    return Err(FetchError::NextMirror(Error::new(
                        Kind::Network,
                        format!("{url} has more than {SMALL} bytes"),
                    )));
                }
            }
            Ok(())
        };
        tokio::select! {
            () = cancel.cancelled() => return Err(FetchError::Stop(interrupted())),
            done = tokio::time::timeout(self.stall, body) => match done {
                Err(_) => return Err(FetchError::Retry(stalled(url))),
                Ok(done) => done?,
            },
        }
        Ok(bytes)
    }
}

/// Says why `url` is not allowed: HTTPS is, everywhere; HTTP to this machine, to an onion service, whose
/// address is its key, or where the manifest says so.
fn allowed(url: &Url, allow_http: bool) -> Result<(), String> {
    let local = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".onion"),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(()),
        "http" if local || allow_http => Ok(()),
        "http" => {
            Err(format!("{url} is plain HTTP; `allow-http = true` in the manifest allows it"))
        }
        other => Err(format!("{url}: {other} addresses do not work")),
    }
}

/// Judges a status: what a server may get over is worth another try, what is not there is not.
pub(super) fn status(url: &str, status: StatusCode) -> Result<(), FetchError> {
    if status.is_success() {
        return Ok(());
    }
    let error = Error::new(Kind::Network, format!("{url} answered {status}"));
    let passing = status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    Err(if passing { FetchError::Retry(error) } else { FetchError::NextMirror(error) })
}

pub(super) fn stalled(url: &str) -> Error {
    Error::new(Kind::Network, format!("{url} stalled"))
}

pub(super) fn failed(url: &str, error: reqwest::Error) -> FetchError {
    let redirect = error.is_redirect() || error.is_builder();
    let told = Error::new(Kind::Network, format!("{url} could not be read"))
        .with_source(error.without_url());
    if redirect { FetchError::NextMirror(told) } else { FetchError::Retry(told) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_and_onion_services_only() {
        let onion =
            "http://w5j6stm77zs6652pgsij4awcjeel3eco7kvipheu6mtr623eyyehj4yd.onion/download/x.ova";
        for good in ["https://example.org/x", "http://127.0.0.1:1/x", "http://[::1]/x", onion] {
            allowed(&good.parse().expect("an address"), false).expect(good);
        }
        for bad in [
            "http://example.org/x",
            "http://127.0.0.1.example.org/x",
            "http://localhost.example.org/x",
            "ftp://127.0.0.1/x",
            "file:///etc/passwd",
        ] {
            assert!(allowed(&bad.parse().expect("an address"), false).is_err(), "{bad}");
        }
        allowed(&"http://example.org/x".parse().expect("an address"), true).expect("allowed");
    }
}
