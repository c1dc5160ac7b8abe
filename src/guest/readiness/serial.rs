//! A guest's serial console as evidence: a line that matches.

use regex::Regex;

use super::{Evidence, Observation, VmView};
use crate::error::{Error, Result};
use crate::event::printable;
use crate::host::Command;

/// How much of an unfinished line is kept; a guest may write without ever ending one.
const LONGEST_LINE: usize = 64 << 10;

/// Prints the size of the log "$1", a newline, and at most 1 MiB of it from the byte "$2" on (counted from
/// one); nothing if there is no log yet.
const READ: &str = r#"
size=$(stat -c %s -- "$1" 2>/dev/null) || exit 0
echo "$size"
tail -c "+$2" -- "$1" | head -c 1048576
"#;

/// Reads the console as it grows.
#[derive(Debug)]
pub struct Serial {
    pattern: Regex,
    read: u64,
    line: Vec<u8>,
}

impl Serial {
    /// Returns a reader that looks for a line that `pattern` matches.
    pub fn new(pattern: Regex) -> Self {
        Serial { pattern, read: 0, line: Vec::new() }
    }

    /// Looks at what was written since the last look.
    pub(super) async fn look(&mut self, view: VmView<'_>) -> Result<Observation> {
        let log = view.hypervisor.serial_log(view.spec);
        let from = (self.read + 1).to_string();
        let read = Command::new("sh").args(["-c", READ, "read-log", log.as_str(), &from]);
        let answer = view.host.check(&read).await?.stdout;
        let found = match answer.iter().position(|b| *b == b'\n') {
            None => None,
            Some(end) => self.take(&answer[..end], &answer[end + 1..])?,
        };
        Ok(match found {
            Some(line) => Observation::Up(Evidence::Serial { line }),
            None => Observation::Waiting {
                what: match String::from_utf8_lossy(&self.line).trim() {
                    "" => "waiting for its serial console".to_owned(),
                    last => format!("waiting for its serial console: {}", shortened(last)),
                },
                life: self.read.to_string(),
            },
        })
    }

    /// Takes the log's size as it was printed and its next bytes, and returns the first line that matches,
    /// made safe for a terminal.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::Kind) if `size` is no number.
    pub fn take(&mut self, size: &[u8], bytes: &[u8]) -> Result<Option<String>> {
        let size: u64 = String::from_utf8_lossy(size)
            .trim()
            .parse()
            .map_err(|_| Error::failed("stat did not answer with a size"))?;
        if size < self.read {
            // The VM was started anew, and its log with it.
            self.read = 0;
            self.line.clear();
            return Ok(None);
        }
        self.read += bytes.len() as u64;
        self.line.extend_from_slice(bytes);
        // What stands behind the last newline; a login prompt ends without one.
        let last = self.line.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let found =
            self.line.split_inclusive(|byte| *byte == b'\n').find_map(|line| self.matching(line));
        self.line.drain(..last);
        if self.line.len() > LONGEST_LINE {
            self.line.clear();
        }
        Ok(found)
    }

    fn matching(&self, line: &[u8]) -> Option<String> {
        let line = printable(String::from_utf8_lossy(line).trim_end());
        self.pattern.is_match(&line).then_some(line)
    }
}

/// Returns the end of the guest's serial console, for an error; nothing if it cannot be read.
pub(super) async fn tail(view: VmView<'_>) -> Vec<u8> {
    let log = view.hypervisor.serial_log(view.spec);
    let tail = Command::new("tail").args(["-c", "8192", "--", log.as_str()]);
    view.host.run(&tail).await.map(|output| output.stdout).unwrap_or_default()
}

/// Returns the end of a line that fits on a progress line.
fn shortened(line: &str) -> String {
    let line = printable(line);
    let skip = line.chars().count().saturating_sub(60);
    line.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial(pattern: &str) -> Serial {
        Serial::new(Regex::new(pattern).expect("a pattern"))
    }

    fn take(serial: &mut Serial, text: &str) -> Option<String> {
        let size = (serial.read + text.len() as u64).to_string();
        serial.take(size.as_bytes(), text.as_bytes()).expect("a size")
    }

    #[test]
    fn a_line_that_arrives_in_pieces_is_matched_once_it_is_whole_enough() {
        let mut serial = serial("^l2 ready: [0-9]+ cpu$");
        assert_eq!(take(&mut serial, "booting\nl2 rea"), None);
        assert_eq!(take(&mut serial, "dy: 1 c"), None);
        assert_eq!(take(&mut serial, "pu\n"), Some("l2 ready: 1 cpu".to_owned()));
    }

    #[test]
    fn a_letter_of_several_bytes_may_arrive_in_pieces() {
        let (mut serial, line) = (serial("^bereit für dich$"), "bereit für dich\n".as_bytes());
        let (first, second) = line.split_at(9);
        assert_eq!(serial.take(b"9", first).expect("a size"), None);
        assert!(serial.take(b"17", second).expect("a size").is_some());
    }

    #[test]
    fn a_guest_that_writes_nothing_but_newlines_says_nothing_and_keeps_nothing() {
        // Moving the rest after every line would take a minute.
        let (mut serial, newlines) = (serial("never"), vec![b'\n'; 1 << 20]);
        assert_eq!(serial.take(b"1048576", &newlines).expect("a size"), None);
        assert_eq!((serial.read, serial.line.as_slice()), (1 << 20, &b""[..]));
    }

    #[test]
    fn a_prompt_without_a_newline_counts() {
        assert_eq!(take(&mut serial("login: ?$"), "\r\nl2 login: "), Some("l2 login:".to_owned()));
    }

    #[test]
    fn what_a_guest_writes_is_matched_and_kept_without_escape_sequences() {
        let found = take(&mut serial("^ready$"), "\x1b[0;32mready\x1b[0m\r\n");
        assert_eq!(found.as_deref(), Some("ready"));
    }

    #[test]
    fn a_log_that_shrank_is_read_from_its_start_again() {
        let mut serial = serial("^up$");
        assert_eq!(take(&mut serial, "the boot before\nu"), None);
        assert_eq!(serial.take(b"3", b"").expect("a size"), None);
        assert_eq!(take(&mut serial, "up\n").as_deref(), Some("up"));
    }

    #[test]
    fn a_guest_that_never_ends_its_line_does_not_fill_the_memory() {
        let mut serial = serial("never");
        for _ in 0..8 {
            take(&mut serial, &"x".repeat(LONGEST_LINE));
        }
        assert!(serial.line.len() <= LONGEST_LINE, "{}", serial.line.len());
    }
}
