//! A client of QMP, QEMU's machine protocol, over any stream.
//!
//! Answers are told from events by their ids, a line has a greatest length, and silence has a limit:
//! whatever is at the other end costs one clear error.

pub mod message;

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};

pub use message::{QmpEvent, Refusal};

use self::message::Message;
use crate::error::{Error, Kind, Result};
use crate::host::Stream;

/// The longest line that is read, in bytes. QEMU's longest usual answers (`query-qmp-schema`, which
/// nestlab does not ask for) stay under 300 KiB.
const LONGEST_LINE: u64 = 1 << 20;

/// How many events are kept for whom they may concern; older ones are dropped.
const KEPT_EVENTS: usize = 256;

/// How many messages may come before the answer to a command; the events of a busy QEMU are a few.
const MOST_BESIDE: usize = 100_000;

/// A connection to one QEMU, past its greeting.
pub struct Qmp {
    reader: BufReader<ReadHalf<Box<dyn Stream>>>,
    writer: WriteHalf<Box<dyn Stream>>,
    silence: Duration,
    last_id: u64,
    events: VecDeque<QmpEvent>,
    /// What has arrived of the next line. It outlives a wait that is dropped half-way.
    line: Vec<u8>,
}

impl Qmp {
    /// Returns a connection over `stream`, after greeting and capabilities.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] if the other end is silent for longer than `silence`, hangs up, or is no QMP server.
    pub async fn connect(stream: Box<dyn Stream>, silence: Duration) -> Result<Self> {
        let (reader, writer) = tokio::io::split(stream);
        let mut qmp = Qmp {
            reader: BufReader::new(reader),
            writer,
            silence,
            last_id: 0,
            events: VecDeque::new(),
            line: Vec::new(),
        };
        match qmp.receive().await? {
            Message::Greeting => {}
            other => return Err(broken(format!("QMP began with {other:?}"))),
        }
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Runs `command` and returns what it returned; events that arrive meanwhile are kept.
    ///
    /// # Errors
    /// [`Kind::Failed`] with QEMU's words if it refuses, [`Kind::Unreachable`] as for [`Qmp::connect`].
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        match self.ask(command, arguments).await? {
            Ok(value) => Ok(value),
            Err(refusal) => Err(Error::failed(format!("QEMU refuses {command}: {}", refusal.desc))),
        }
    }

    /// Runs `command` and returns its answer, refusals included, for a caller who tells them apart.
    pub async fn ask(&mut self, command: &str, arguments: Value) -> Result<Result<Value, Refusal>> {
        self.last_id += 1;
        let line = message::request(self.last_id, command, arguments);
        self.timed(command, async |qmp: &mut Self| {
            qmp.writer.write_all(&line).await?;
            qmp.writer.flush().await
        })
        .await?;
        for _ in 0..MOST_BESIDE {
            match self.receive().await? {
                Message::Answer { id: Some(id), outcome } if id == self.last_id => {
                    return Ok(outcome);
                }
                // The answer to a command whose caller was dropped while waiting.
                Message::Answer { id: Some(id), .. } if id < self.last_id => {}
                Message::Event(event) => self.keep(event),
                other => return Err(broken(format!("{command} was answered with {other:?}"))),
            }
        }
        Err(broken(format!(
            "{command} was answered with {MOST_BESIDE} messages, and with no answer"
        )))
    }

    /// Runs `line` in QEMU's human monitor and returns what it printed, for what has no QMP command.
    pub async fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line })).await?;
        answer
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| broken("QEMU's human monitor answered with something that is no text"))
    }

    /// Returns the events that arrived since the last call, oldest first.
    pub fn take_events(&mut self) -> Vec<QmpEvent> {
        self.events.drain(..).collect()
    }

    /// Waits until QEMU has hung up; silence has no limit here. May be dropped, and the conversation
    /// goes on.
    pub async fn closed(&mut self) {
        while let Ok(Some(line)) = self.next_line().await {
            if let Ok(Message::Event(event)) = message::parse(&line) {
                self.keep(event);
            }
        }
    }

    fn keep(&mut self, event: QmpEvent) {
        if self.events.len() == KEPT_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    async fn receive(&mut self) -> Result<Message> {
        match self.timed("an answer", async |qmp: &mut Self| qmp.next_line().await).await? {
            Some(line) => message::parse(&line).map_err(|why| broken(why).tail(&line)),
            None => Err(broken("QEMU closed its QMP connection")),
        }
    }

    /// Returns the next line with its end, or `None` where the connection ends. Loses nothing when dropped.
    async fn next_line(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let room = LONGEST_LINE.saturating_sub(self.line.len() as u64);
        (&mut self.reader).take(room).read_until(b'\n', &mut self.line).await?;
        if self.line.ends_with(b"\n") {
            return Ok(Some(std::mem::take(&mut self.line)));
        }
        if self.line.len() as u64 >= LONGEST_LINE {
            let longer = format!("a line of QMP is longer than {LONGEST_LINE} bytes");
            return Err(std::io::Error::other(longer));
        }
        Ok(None)
    }

    async fn timed<T>(
        &mut self,
        what: &str,
        work: impl AsyncFnOnce(&mut Self) -> std::io::Result<T>,
    ) -> Result<T> {
        let silence = self.silence;
        match tokio::time::timeout(silence, work(self)).await {
            Ok(done) => done.map_err(|error| broken(format!("QMP broke off: {error}"))),
            Err(_) => Err(broken(format!(
                "QEMU was silent on QMP for {silence:?} while {what} was waited for"
            ))),
        }
    }
}

impl std::fmt::Debug for Qmp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qmp").field("last_id", &self.last_id).finish_non_exhaustive()
    }
}

fn broken(message: impl Into<String>) -> Error {
    Error::new(Kind::Unreachable, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

    /// Returns a client's end; the other end says `lines`, one for each line that it receives, the
    /// first at once, and hangs up after the last.
    fn server(lines: Vec<String>) -> Box<dyn Stream> {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move {
            let (reader, mut writer): (_, WriteHalf<DuplexStream>) = tokio::io::split(theirs);
            let mut requests = BufReader::new(reader).lines();
            for (index, line) in lines.iter().enumerate() {
                if index > 0 && !matches!(requests.next_line().await, Ok(Some(_))) {
                    return;
                }
                if writer.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        Box::new(ours)
    }

    fn script(answers: &[&str]) -> Box<dyn Stream> {
        let opening = [GREETING, "{\"return\": {}, \"id\": 1}\n"].map(str::to_owned);
        server(opening.into_iter().chain(answers.iter().map(|line| line.to_string())).collect())
    }

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn events_between_a_command_and_its_answer_are_kept() {
        let both = "{\"event\": \"STOP\"}\n{\"event\": \"RESUME\"}\n{\"return\": 5, \"id\": 2}\n";
        let mut qmp = Qmp::connect(script(&[both]), LIMIT).await.expect("connects");
        assert_eq!(qmp.execute("x", Value::Null).await.expect("answers"), json!(5));
        let names: Vec<_> = qmp.take_events().into_iter().map(|event| event.name).collect();
        assert_eq!(names, ["STOP", "RESUME"]);
    }

    #[tokio::test]
    async fn a_refusal_carries_qemus_words() {
        let no = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}, \"id\": 2}\n";
        let mut qmp = Qmp::connect(script(&[no]), LIMIT).await.expect("connects");
        let error = qmp.execute("quit", Value::Null).await.expect_err("refused");
        assert_eq!((error.kind(), error.message()), (Kind::Failed, "QEMU refuses quit: not now"));
    }

    #[tokio::test]
    async fn an_answer_to_an_earlier_command_is_not_taken_for_this_one() {
        let late = "{\"return\": \"late\", \"id\": 1}\n{\"return\": \"mine\", \"id\": 2}\n";
        let mut qmp = Qmp::connect(script(&[late]), LIMIT).await.expect("connects");
        assert_eq!(qmp.execute("x", Value::Null).await.expect("answers"), json!("mine"));
    }

    #[tokio::test]
    async fn a_server_that_is_no_qmp_server_costs_one_clear_error() {
        let endless = "x".repeat(LONGEST_LINE as usize + 1);
        for (says, part) in [
            ("SSH-2.0-OpenSSH_10.0\r\n", "not a line of QMP"),
            ("{\"return\": {}, \"id\": 1}\n", "QMP began with"),
            ("{\"QMP\"", "closed"),
            (endless.as_str(), "longer than"),
        ] {
            let error = Qmp::connect(server(vec![says.to_owned()]), LIMIT)
                .await
                .expect_err("no QMP server");
            assert_eq!(error.kind(), Kind::Unreachable);
            assert!(error.message().contains(part), "{error} lacks {part}");
        }
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_no_part_of_a_line() {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        theirs.write_all(GREETING.as_bytes()).await.expect("is open");
        theirs.write_all(b"{\"return\": {}, \"id\": 1}\n").await.expect("is open");
        let mut qmp = Qmp::connect(Box::new(ours), LIMIT).await.expect("connects");
        theirs.write_all(b"{\"event\": \"ST").await.expect("is open");
        let short = Duration::from_millis(20);
        assert!(tokio::time::timeout(short, qmp.closed()).await.is_err(), "it is not closed");
        theirs.write_all(b"OP\"}\n{\"return\": 1, \"id\": 2}\n").await.expect("is open");
        assert_eq!(qmp.execute("x", Value::Null).await.expect("answers"), json!(1));
        assert_eq!(qmp.take_events()[0].name, "STOP");
        drop(theirs);
        qmp.closed().await;
    }

    #[tokio::test]
    async fn silence_has_a_limit() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let limit = Duration::from_millis(20);
        let error = Qmp::connect(Box::new(ours), limit).await.expect_err("silent");
        assert!(error.message().contains("silent on QMP for 20ms"), "{error}");
    }

    #[tokio::test]
    async fn a_flood_of_events_does_not_fill_the_memory() {
        let flood = "{\"event\": \"RTC_CHANGE\"}\n".repeat(3 * KEPT_EVENTS);
        let mut qmp = Qmp::connect(script(&[&(flood + "{\"return\": 0, \"id\": 2}\n")]), LIMIT)
            .await
            .expect("connects");
        qmp.execute("x", Value::Null).await.expect("answers");
        assert_eq!(qmp.take_events().len(), KEPT_EVENTS);
    }
}
