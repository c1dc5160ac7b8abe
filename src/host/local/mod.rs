//! The machine that nestlab itself runs on.

mod copy;
mod keeper;
mod process;

use async_trait::async_trait;
use camino::Utf8Path;

use super::{Command, Exit, Host, OnOutput, Stream, StreamAddress};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;

/// This machine.
#[derive(Debug)]
pub struct Local {
    name: &'static str,
    is_root: bool,
}

impl Local {
    /// Returns this machine, called `L0`, with the rights of the user that runs nestlab.
    pub fn new() -> Self {
        Local::called("L0")
    }

    /// Returns this machine under another name, for where it is not L0.
    pub fn called(name: &'static str) -> Self {
        Local { name, is_root: rustix::process::geteuid().is_root() }
    }
}

impl Default for Local {
    fn default() -> Self {
        Local::new()
    }
}

#[async_trait]
impl Host for Local {
    fn name(&self) -> &str {
        self.name
    }

    /// Runs `command` in a process group of its own. Dropping the future, or silence beyond the
    /// command's limit, ends the whole group; what has left the group (a daemon) lives on.
    async fn run_streaming(&self, command: &Command, on_output: OnOutput<'_>) -> Result<Exit> {
        process::run(command, self.is_root, on_output)
            .await
            .map_err(|error| error.on_host(self.name()))
    }

    async fn put(
        &self,
        from: &Utf8Path,
        to: &Utf8Path,
        mode: u32,
        events: &EventSink,
    ) -> Result<()> {
        copy::copy(from, to, mode, events).await.map_err(|error| error.on_host(self.name()))
    }

    async fn get(&self, from: &Utf8Path, to: &Utf8Path, events: &EventSink) -> Result<()> {
        copy::copy(from, to, 0o600, events).await.map_err(|error| error.on_host(self.name()))
    }

    async fn open_stream(&self, address: &StreamAddress) -> Result<Box<dyn Stream>> {
        let opened: std::io::Result<Box<dyn Stream>> = match address {
            StreamAddress::Tcp(host, port) => {
                tokio::net::TcpStream::connect((host.as_str(), *port)).await.and_then(|stream| {
                    stream.set_nodelay(true)?;
                    Ok(Box::new(stream) as Box<dyn Stream>)
                })
            }
            StreamAddress::Unix(path) => tokio::net::UnixStream::connect(path)
                .await
                .map(|stream| Box::new(stream) as Box<dyn Stream>),
        };
        opened.map_err(|cause| {
            Error::new(Kind::Unreachable, format!("cannot connect to {address}: {cause}"))
                .with_source(cause)
                .on_host(self.name())
        })
    }

    fn is_root(&self) -> bool {
        self.is_root
    }

    fn is_local(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::host::StdStream;

    fn host() -> Box<dyn Host> {
        Box::new(Local::new())
    }

    fn shell(script: &str) -> Command {
        Command::new("sh").args(["-c", script])
    }

    /// Waits until the process `pid` is gone or a zombie.
    async fn gone(pid: &str) {
        while let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_command_that_writes_without_end_is_ended_and_costs_one_error() {
        let error = host().run(&Command::new("yes")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.message().contains("yes wrote more than 64 MiB"), "{error}");
    }

    #[tokio::test]
    async fn both_outputs_are_read_however_much_is_written_to_either_first() {
        let flood = "head -c 8388608 /dev/zero >&2; head -c 8388609 /dev/zero; echo end >&2";
        let output = host().run(&shell(flood)).await.unwrap();
        assert!(output.exit.success());
        assert_eq!((output.stdout.len(), output.stderr.len()), (8388609, 8388612));
    }

    #[tokio::test]
    async fn a_large_input_streams_through_while_the_output_is_read() {
        let input: Vec<u8> = (0..8 << 20).map(|i: u32| (i % 251) as u8).collect();
        let output = host().run(&Command::new("cat").stdin(input.clone())).await.unwrap();
        assert!(output.stdout == input);
    }

    #[tokio::test]
    async fn a_program_may_ignore_its_input() {
        let output = host().run(&Command::new("true").stdin(vec![0; 4 << 20])).await.unwrap();
        assert!(output.exit.success());
    }

    #[tokio::test]
    async fn exit_codes_and_signals_are_told_apart() {
        let exits = [("exit 0", Exit::Code(0)), ("exit 137", Exit::Code(137))];
        for (script, exit) in exits {
            assert_eq!(host().run(&shell(script)).await.unwrap().exit, exit);
        }
        let killed = host().run(&shell("kill -KILL $$")).await.unwrap();
        assert_eq!(killed.exit, Exit::Signal("KILL".into()));
        let error = host().check(&shell("echo why >&2; exit 3")).await.unwrap_err();
        assert_eq!((error.kind(), error.host()), (Kind::Failed, Some("L0")));
        assert_eq!(error.output_tail(), Some("why"));
    }

    #[tokio::test]
    async fn a_missing_program_is_named_with_its_package() {
        let command = Command::new("/nonexistent/qemu-img");
        let error = host().run(&command).await.unwrap_err();
        assert!(error.message().contains("qemu-img"), "{error:?}");
        assert!(error.hints()[0].contains("qemu-utils"), "{error:?}");
    }

    #[tokio::test]
    async fn silence_beyond_the_limit_ends_the_whole_group() {
        let pids = tempfile::NamedTempFile::new().unwrap();
        // The one that waits is silent from its beginning; how far it came by then does not matter.
        let command = shell(r#"sleep 1000 & echo "$$ $!" >"$0"; wait"#);
        let command = command.arg(pids.path().to_str().unwrap());
        let error = host().run(&command.silence(Duration::from_millis(300))).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.message().contains("wrote nothing"), "{error}");
        for pid in std::fs::read_to_string(pids.path()).unwrap().split_whitespace() {
            gone(pid).await;
        }
    }

    #[tokio::test]
    async fn a_dropped_command_is_killed_with_its_children() {
        let (told, mut pid) = tokio::sync::mpsc::unbounded_channel();
        let command = shell("sleep 1000 & echo $!; wait");
        let running = tokio::spawn(async move {
            let mut tell = move |stream, bytes: &[u8]| {
                assert_eq!(stream, StdStream::Out);
                told.send(String::from_utf8_lossy(bytes).trim().to_owned()).unwrap();
            };
            host().run_streaming(&command, &mut tell).await
        });
        let pid = pid.recv().await.unwrap();
        running.abort();
        gone(&pid).await;
    }

    #[tokio::test]
    async fn what_a_command_leaves_in_the_background_is_neither_waited_for_nor_killed() {
        let output = host().run(&shell("setsid sleep 1000 & echo $!")).await.unwrap();
        let pid = output.text().trim().to_owned();
        let alive = std::path::Path::new(&format!("/proc/{pid}")).exists();
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert!(alive);
    }

    #[tokio::test]
    async fn a_stream_reaches_tcp_and_unix_sockets() {
        let directory = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(directory.path().join("s")).unwrap();
        let unix = tokio::net::UnixListener::bind(&path).unwrap();
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = tcp.local_addr().unwrap().port();
        tokio::spawn(async move {
            tcp.accept().await.unwrap().0.write_all(b"tcp").await.unwrap();
            unix.accept().await.unwrap().0.write_all(b"unix").await.unwrap();
        });
        for (address, said) in [
            (StreamAddress::Tcp("127.0.0.1".into(), port), "tcp"),
            (StreamAddress::Unix(path.clone()), "unix"),
        ] {
            let mut stream = host().open_stream(&address).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, said);
        }
        let nowhere = StreamAddress::Unix(path.join("none"));
        let error = host().open_stream(&nowhere).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Unreachable);
    }
}
