//! One try to bring an image's bytes here from one address, from where the last try ended.

use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{Response, StatusCode};
use tokio::time::{Duration, Instant};
use url::Url;

use super::client::{failed, stalled, status};
use super::partial::{Partial, PartialState};
use super::sink::{HashingWriter, ResumePoint};
use super::{DownloadJob, free_space, interrupted};
use crate::error::{Error, Kind};
use crate::image::verify::{Expectations, Hashed};

/// A try that brought at least so many bytes was progress, and the next one is a first one again.
pub(super) const PROGRESS: u64 = 16 * 1024;

/// So many bytes are worth telling.
const TOLD: u64 = 128 * 1024;

/// Space that a download leaves free.
const RESERVE: u64 = 64 << 20;

/// Why bytes did not come, and what is worth doing about it.
#[derive(Debug)]
pub(in crate::image) enum FetchError {
    /// The same address again, from where it ended.
    Retry(Error),
    /// Another mirror.
    NextMirror(Error),
    /// Nothing: it is not the mirror's fault.
    Stop(Error),
}

impl FetchError {
    /// Returns the error, whatever is worth doing.
    pub(in crate::image) fn into_error(self) -> Error {
        match self {
            FetchError::Retry(error) | FetchError::NextMirror(error) | FetchError::Stop(error) => {
                error
            }
        }
    }
}

/// What a try needs to know.
pub(super) struct Attempt<'a> {
    pub(super) job: &'a DownloadJob<'a>,
    pub(super) url: &'a Url,
    pub(super) expectations: &'a Expectations,
}

impl Attempt<'_> {
    /// Brings the bytes that are missing and returns the hashes of all.
    pub(super) async fn run(&self, partial: &mut Partial) -> Result<Hashed, FetchError> {
        let have = partial.len().map_err(FetchError::Stop)?;
        if have > 0 && partial.state().total == Some(have) {
            // An earlier run brought it all and ended before it was judged.
            partial.goes_on(self.url.as_str()).map_err(FetchError::Stop)?;
            return self.sink(partial, have)?.finish().await.map_err(FetchError::Stop);
        }
        let resume = if have > 0 { condition(partial.state(), self.url) } else { None };
        let have = if resume.is_some() { have } else { 0 };
        let headers = resume.map_or_else(Vec::new, |validator| {
            vec![(header::RANGE, format!("bytes={have}-")), (header::IF_RANGE, validator)]
        });
        let job = self.job;
        let response = job.client.get(self.url.as_str(), &headers, job.cancel).await?;
        let have = self.answered(&response, have, partial)?;
        let total = partial.state().total;
        self.fits(have, total, partial)?;
        let mut sink = self.sink(partial, have)?;
        let flow = self.flow(response, have, total, &mut sink).await;
        // The writer's own trouble (a full disk, a web page) is the cause of the flow's end.
        match (sink.finish().await, flow) {
            (Err(error), _) if error.kind() == Kind::Network => {
                partial.clear().map_err(FetchError::Stop)?;
                Err(FetchError::NextMirror(error))
            }
            (Err(error), _) => Err(FetchError::Stop(error)),
            (Ok(_), Err(trouble)) => Err(trouble),
            (Ok(hashed), Ok(())) => Ok(hashed),
        }
    }

    fn sink(&self, partial: &Partial, have: u64) -> Result<HashingWriter, FetchError> {
        let hashing = self.expectations.hashing().map_err(FetchError::Stop)?;
        let download = self.job.download;
        let form = (download.format, download.compression);
        Ok(HashingWriter::start(ResumePoint { file: partial.file(), have, hashing, form }))
    }

    /// Judges the answer's head and returns how many of the bytes at hand it goes on from.
    fn answered(
        &self,
        response: &Response,
        have: u64,
        partial: &mut Partial,
    ) -> Result<u64, FetchError> {
        let headers = response.headers();
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let same = partial.state().url == self.url.as_str();
                if let Err(why) = right_range(headers, have, partial.state(), same) {
                    partial.clear().map_err(FetchError::Stop)?;
                    let what = format!("{}: {why}", self.url);
                    return Err(FetchError::Retry(Error::new(Kind::Network, what)));
                }
                partial.goes_on(self.url.as_str()).map_err(FetchError::Stop)?;
                Ok(have)
            }
            StatusCode::OK => {
                self.not_a_page(headers)?;
                let state = PartialState {
                    url: self.url.to_string(),
                    etag: text(headers, &header::ETAG).filter(|tag| !tag.starts_with("W/")),
                    last_modified: text(headers, &header::LAST_MODIFIED),
                    total: response.content_length(),
                };
                partial.starts(state).map_err(FetchError::Stop)?;
                Ok(0)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                partial.clear().map_err(FetchError::Stop)?;
                let what = format!("{} has fewer bytes than it had", self.url);
                Err(FetchError::Retry(Error::new(Kind::Network, what)))
            }
            other => {
                status(self.url.as_str(), other)?;
                let what = format!("{} answered {other}", self.url);
                Err(FetchError::NextMirror(Error::new(Kind::Network, what)))
            }
        }
    }

    fn not_a_page(&self, headers: &HeaderMap) -> Result<(), FetchError> {
        let kind = text(headers, &header::CONTENT_TYPE).unwrap_or_default();
        if kind.starts_with("text/html") || kind.starts_with("application/xhtml") {
            let what = format!("{} answered a web page instead of an image", self.url);
            return Err(FetchError::NextMirror(Error::new(Kind::Network, what)));
        }
        if let Some(coding) = text(headers, &header::CONTENT_ENCODING) {
            let what = format!("{} answered with the encoding `{coding}`", self.url);
            return Err(FetchError::NextMirror(Error::new(Kind::Network, what)));
        }
        Ok(())
    }

    /// Compares the announced size with the pinned one and with the free space.
    fn fits(&self, have: u64, total: Option<u64>, partial: &mut Partial) -> Result<(), FetchError> {
        let Some(total) = total.or(self.expectations.size()) else {
            partial.clear().map_err(FetchError::Stop)?;
            let what = format!("{} does not say how big the file is", self.url);
            return Err(FetchError::NextMirror(
                Error::new(Kind::Network, what).hint("a `size` in the manifest would do instead"),
            ));
        };
        if let Some(pinned) = self.expectations.size().filter(|pinned| *pinned != total) {
            partial.clear().map_err(FetchError::Stop)?;
            let what = format!("size: {total} announced, not {pinned} bytes");
            return Err(FetchError::NextMirror(Error::new(Kind::Untrusted, what)));
        }
        let root = self.job.store.root();
        let free = free_space(root).map_err(FetchError::Stop)?;
        let needed = total.saturating_sub(have);
        if needed.saturating_add(RESERVE) > free {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return Err(FetchError::Stop(
                Error::new(
                    Kind::HostCannot,
                    format!(
                        "the image needs {} MiB more, but only {} MiB are free in {root}",
                        mib(needed),
                        mib(free)
                    ),
                )
                .hint("`nestlab image prune` frees space; `--cache-dir` puts the store elsewhere"),
            ));
        }
        Ok(())
    }

    /// Moves the body into the sink, block by block, for as long as it flows.
    async fn flow(
        &self,
        mut response: Response,
        have: u64,
        total: Option<u64>,
        sink: &mut HashingWriter,
    ) -> Result<(), FetchError> {
        let job = self.job;
        let url = self.url.as_str();
        let limit = self.expectations.size().or(total).unwrap_or(u64::MAX);
        let mut pace = Pace::new(job.options.stall, job.options.slowest);
        let mut done = have;
        let mut told = have;
        job.events.bytes(done, total);
        let end = loop {
            let asked = Instant::now();
            let chunk = tokio::select! {
                () = job.cancel.cancelled() => break Err(FetchError::Stop(interrupted())),
                chunk = tokio::time::timeout(pace.left(), response.chunk()) => chunk,
            };
            let waited = asked.elapsed();
            match chunk {
                Err(_) => {}
                Ok(Err(error)) => break Err(failed(url, error)),
                Ok(Ok(None)) => break Ok(()),
                Ok(Ok(Some(bytes))) => {
                    done += bytes.len() as u64;
                    pace.came(bytes.len() as u64);
                    // What arrives before a trouble is kept: the next try goes on after it.
                    if !sink.take(&bytes).await {
                        return Ok(());
                    }
                }
            }
            if pace.stalled(waited) {
                break Err(FetchError::Retry(stalled(url)));
            }
            if done > limit {
                let what = format!("{url} sends more than the {limit} bytes it should");
                break Err(FetchError::NextMirror(Error::new(Kind::Network, what)));
            }
            if done - told >= TOLD {
                told = done;
                job.events.bytes(done, total);
            }
        };
        job.events.bytes(done, total);
        if end.is_ok() && total.is_some_and(|total| done < total) {
            return Err(FetchError::Retry(Error::new(Kind::Network, format!("{url} ended early"))));
        }
        end
    }
}

/// Tells a slow server from a stalled one. Only time spent waiting for the server counts.
struct Pace {
    window: Duration,
    least: u64,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(window: Duration, slowest: u64) -> Self {
        let least = slowest.saturating_mul(window.as_secs().max(1));
        Pace { window, least, waited: Duration::ZERO, bytes: 0 }
    }

    /// Returns how long to wait at most until [`Pace::stalled`] is asked again.
    fn left(&self) -> Duration {
        self.window.saturating_sub(self.waited)
    }

    fn came(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    fn stalled(&mut self, waited: Duration) -> bool {
        self.waited += waited;
        if self.waited < self.window {
            return false;
        }
        let stalled = self.bytes < self.least;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        stalled
    }
}

/// Returns the condition under which the bytes at hand may be gone on with: the server's strong tag, or,
/// also on another mirror, its date.
fn condition(state: &PartialState, url: &Url) -> Option<String> {
    let date = state.last_modified.clone().filter(|_| state.total.is_some());
    if state.url == url.as_str() { state.etag.clone().or(date) } else { date }
}

/// Checks that a partial answer is the part that was asked for, of the same whole.
fn right_range(
    headers: &HeaderMap,
    have: u64,
    state: &PartialState,
    same_server: bool,
) -> Result<(), String> {
    if have == 0 {
        return Err("it answered a part of what was asked for whole".to_owned());
    }
    let range = text(headers, &header::CONTENT_RANGE).unwrap_or_default();
    let parsed = range.strip_prefix("bytes ").and_then(|range| {
        let (span, total) = range.split_once('/')?;
        let (first, last) = span.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?, total.parse().ok()?))
    });
    let (first, last, total): (u64, u64, u64) =
        parsed.ok_or_else(|| format!("it answered the unreadable range `{range}`"))?;
    if first != have || last.checked_add(1) != Some(total) {
        return Err(format!("it answered the range `{range}`, not from {have} to the end"));
    }
    if state.total.is_some_and(|known| known != total) {
        return Err("the file changed its size on the server".to_owned());
    }
    // Two servers tag the same file differently; there the date, which was asked for, decides.
    let (known, name) = match same_server && state.etag.is_some() {
        true => (&state.etag, &header::ETAG),
        false => (&state.last_modified, &header::LAST_MODIFIED),
    };
    match text(headers, name) {
        Some(now) if known.as_ref().is_some_and(|known| *known != now) => {
            Err("the file changed on the server".to_owned())
        }
        _ => Ok(()),
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(range: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_RANGE, range.parse().expect("a value"))])
    }

    #[test]
    fn only_the_missing_rest_of_the_same_whole_is_gone_on_with() {
        let state = PartialState { total: Some(100), ..PartialState::default() };
        right_range(&headers("bytes 10-99/100"), 10, &state, true).expect("the rest");
        for bad in [
            "bytes 0-99/100",
            "bytes 11-99/100",
            "bytes 10-98/100",
            "bytes 10-100/101",
            "bytes 10-99/*",
            "bytes */100",
            "10-99/100",
            "bytes 10-18446744073709551615/100",
            "",
        ] {
            assert!(right_range(&headers(bad), 10, &state, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_trickle_is_a_stall_and_a_slow_flow_is_not() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(second * 10, 100);
        pace.came(999);
        assert!(!pace.stalled(second * 9), "the window is not over");
        assert!(pace.stalled(second), "999 bytes in ten seconds");
        pace.came(1000);
        assert!(!pace.stalled(second * 10), "100 bytes a second");
        assert!(pace.stalled(second * 10), "silence");
    }
}
