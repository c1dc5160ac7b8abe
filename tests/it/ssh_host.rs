//! The SSH host against a real sshd.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8Path;

use crate::support::dropbear::Dropbear;
use crate::support::sshd::{Sshd, is_alive, kill_group, until, user};
use nestlab::Kind;
use nestlab::event::{Event, EventSink, Progress};
use nestlab::host::job::{self, JobSpec};
use nestlab::host::ssh::{HostKeyPolicy, Ssh, SshKey, SshTarget, Via};
use nestlab::host::{Command, Exit, HostRef, StreamAddress, TimeoutScale};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

fn shell(script: &str) -> Command {
    Command::new("sh").args(["-c", script])
}

/// Returns a command that is silent, is deaf to SIGTERM, and writes its process id to `note`. Nobody waits for
/// its first word: on a busy machine its limit of silence may be over by then.
fn stubborn(note: &Utf8Path) -> Command {
    shell(r#"trap '' TERM; echo "$$" >"$0"; while :; do sleep 1000; done"#).arg(note.as_str())
}

/// Returns the process id in `note`, if the command came that far.
fn noted(note: &Utf8Path) -> Option<u32> {
    std::fs::read_to_string(note).ok()?.trim().parse().ok()
}

#[tokio::test]
async fn a_command_runs_and_its_outputs_and_exit_code_come_back() {
    let sshd = Sshd::start(&[]);
    let output = sshd.host().run(&shell("echo out; echo err >&2; exit 7")).await.unwrap();
    assert_eq!((output.text().as_str(), output.error_text().as_str()), ("out\n", "err\n"));
    assert_eq!(output.exit, Exit::Code(7));
}

#[tokio::test]
async fn both_outputs_are_read_however_much_is_written_to_either_first() {
    let sshd = Sshd::start(&[]);
    let flood = "head -c 8388608 /dev/zero >&2; head -c 8388609 /dev/zero; echo end >&2";
    let output = sshd.host().run(&shell(flood)).await.unwrap();
    assert!(output.exit.success());
    assert_eq!((output.stdout.len(), output.stderr.len()), (8388609, 8388612));
}

#[tokio::test]
async fn a_large_input_streams_through_while_the_output_is_read() {
    let sshd = Sshd::start(&[]);
    let input: Vec<u8> = (0..8 << 20).map(|i: u32| (i % 251) as u8).collect();
    let output = sshd.host().run(&Command::new("cat").stdin(input.clone())).await.unwrap();
    assert!(output.stdout == input);
}

#[tokio::test]
async fn a_killed_command_is_a_signal_and_not_a_success() {
    let sshd = Sshd::start(&[]);
    for signal in ["KILL", "TERM", "SEGV"] {
        let output = sshd.host().run(&shell(&format!("kill -{signal} $$"))).await.unwrap();
        assert_eq!(output.exit, Exit::Signal(signal.to_owned()));
    }
}

#[tokio::test]
async fn a_missing_program_is_named_with_its_package() {
    let sshd = Sshd::start(&[]);
    let error = sshd.host().run(&Command::new("/nonexistent/qemu-img")).await.unwrap_err();
    assert_eq!((error.kind(), error.host()), (Kind::Failed, Some("guest")));
    assert!(error.hints()[0].contains("qemu-utils"), "{error:?}");
}

#[tokio::test]
async fn odd_arguments_environment_and_paths_stay_data() {
    let sshd = Sshd::start(&[]);
    let odd = [
        "$(touch owned)",
        "`id`",
        "a'b",
        "a\"b",
        "a\nb",
        "-n",
        "--",
        "",
        "*",
        "~",
        "!x",
        "\\",
        "é€",
        "A=b",
        "$HOME",
        "; reboot",
        "\t",
        "#x",
    ];
    let host = sshd.host();
    let command = Command::new("printf").arg("%s|").args(odd);
    let expected: String = odd.iter().map(|arg| format!("{arg}|")).collect();
    assert_eq!(host.check(&command).await.unwrap().text(), expected);
    for value in odd {
        let command = Command::new("printenv").arg("ODD").env("ODD", value);
        assert_eq!(host.check(&command).await.unwrap().text(), format!("{value}\n"));
    }
    let program = sshd.path("it's=a $(b) -c");
    std::fs::write(&program, "#!/bin/sh\necho \"$#:$1\"\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let output = host.check(&Command::new(program.as_str()).arg("-e")).await.unwrap();
    assert_eq!(output.text(), "1:-e\n");
}

#[tokio::test]
async fn a_user_name_with_shell_syntax_is_only_an_unknown_user() {
    let sshd = Sshd::start(&[]);
    for user in ["$(touch /tmp/x)", "a'b", "-oProxyCommand=x", "a\nb", "", "nul\0nul"] {
        let target = SshTarget { user: user.to_owned(), ..sshd.target() };
        let host: HostRef = Arc::new(Ssh::new(target));
        let error = host.run(&Command::new("true")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable, "{user:?}: {error:?}");
    }
}

#[tokio::test]
async fn many_commands_run_at_once_in_one_session_beyond_what_the_server_allows() {
    // OpenSSH allows ten sessions in one connection.
    let sshd = Sshd::start(&[]);
    let host = sshd.host();
    let commands = (0..20).map(|n| {
        let host = host.clone();
        async move {
            let script = format!("head -c {} /dev/zero; echo {n} >&2", 100_000 + n);
            host.check(&shell(&script)).await.unwrap()
        }
    });
    let outputs = futures::future::join_all(commands).await;
    for (n, output) in outputs.iter().enumerate() {
        assert_eq!(output.stdout.len(), 100_000 + n);
        assert_eq!(output.error_text().trim(), n.to_string());
    }
    let log = sshd.read("log");
    assert_eq!(log.matches("Accepted publickey").count(), 1, "{log}");
}

#[tokio::test]
async fn a_server_with_another_host_key_is_refused_before_anything_is_sent_to_it() {
    let mut sshd = Sshd::start(&[]);
    let host = sshd.host();
    host.check(&Command::new("true")).await.unwrap();
    let target = sshd.target();
    sshd.stop();
    sshd.change_host_key();
    sshd.start_again();
    for host in [host, Arc::new(Ssh::new(target))] {
        let error = host.check(&Command::new("true")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Untrusted, "{error:?}");
        assert!(error.message().contains("not the one it should be"), "{error}");
    }
    let log = sshd.read("log");
    assert_eq!(log.matches("Accepted publickey").count(), 1, "{log}");
}

#[tokio::test]
async fn a_server_without_the_pinned_kind_of_key_is_refused() {
    let sshd = Sshd::start(&["HostKeyAlgorithms ssh-ed25519"]);
    let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDB".to_owned();
    let target = SshTarget { host_key: HostKeyPolicy::Pinned(vec![rsa]), ..sshd.target() };
    let host: HostRef = Arc::new(Ssh::new(target));
    let error = host.check(&Command::new("true")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untrusted, "{error:?}");
}

#[tokio::test]
async fn a_key_that_the_server_does_not_know_is_refused_at_once_and_clearly() {
    let sshd = Sshd::start(&[]);
    let target = SshTarget { key: SshKey::File(sshd.path("stranger")), ..sshd.target() };
    let host: HostRef = Arc::new(Ssh::new(target));
    let error = host.check(&Command::new("true")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable, "{error:?}");
    assert!(error.message().contains("does not let"), "{error}");
    assert!(error.hints()[0].contains("authorized_keys"), "{error:?}");
}

#[tokio::test]
async fn a_connection_cut_under_a_command_is_never_a_success_and_the_next_call_connects_again() {
    let sshd = Sshd::start(&[]);
    let host = sshd.host();
    let started = sshd.path("started");
    let command =
        shell(&format!("echo $$ > {started}.part; mv {started}.part {started}; sleep 1000"));
    let running = host.run(&command);
    let cutting = async {
        until(|| started.exists()).await;
        sshd.cut();
    };
    let (ended, ()) = tokio::join!(running, cutting);
    let error = ended.unwrap_err();
    assert_eq!((error.kind(), error.host()), (Kind::Unreachable, Some("guest")), "{error:?}");
    assert_eq!(host.check(&shell("echo back")).await.unwrap().text(), "back\n");
    kill_group(sshd.read("started").trim().parse().unwrap());
}

#[tokio::test]
async fn a_talkative_login_shell_does_not_get_into_a_commands_output() {
    let sshd =
        Sshd::start(&[r#"ForceCommand echo hello; echo hello >&2; eval "$SSH_ORIGINAL_COMMAND""#]);
    let output = sshd.host().check(&shell("echo out; echo err >&2")).await.unwrap();
    assert_eq!((output.text().as_str(), output.error_text().as_str()), ("out\n", "err\n"));
}

#[tokio::test]
async fn an_account_without_a_shell_is_told_with_what_it_says() {
    let sshd = Sshd::start(&["ForceCommand echo this account is not available; exit 1"]);
    let error = sshd.host().check(&Command::new("true")).await.unwrap_err();
    assert_eq!(error.output_tail(), Some("this account is not available"));
}

#[tokio::test]
async fn a_session_is_established_again_after_the_server_was_restarted() {
    let mut sshd = Sshd::start(&[]);
    let host = sshd.host();
    host.check(&Command::new("true")).await.unwrap();
    sshd.stop();
    let calling = tokio::spawn({
        let host = host.clone();
        async move { host.check(&shell("echo back")).await }
    });
    sshd.start_again();
    assert_eq!(calling.await.unwrap().unwrap().text(), "back\n");
}

#[tokio::test]
async fn a_dropped_command_is_ended_on_the_other_side_with_its_children() {
    let sshd = Sshd::start(&[]);
    let host = sshd.host();
    let pids = sshd.path("pids");
    let script = format!("sleep 1000 & echo $! $$ > {pids}.part; mv {pids}.part {pids}; wait");
    let running = tokio::spawn({
        let host = host.clone();
        async move { host.run(&shell(&script)).await }
    });
    until(|| pids.exists()).await;
    running.abort();
    for pid in sshd.read("pids").split_whitespace() {
        let pid = pid.parse().unwrap();
        until(|| !is_alive(pid)).await;
    }
    assert!(host.check(&Command::new("true")).await.is_ok());
}

#[tokio::test]
async fn silence_beyond_the_limit_ends_the_command_on_the_other_side() {
    let sshd = Sshd::start(&[]);
    let command = stubborn(&sshd.path("pid")).silence(Duration::from_secs(2));
    let error = sshd.host().run(&command).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.message().contains("wrote nothing"), "{error}");
    until(|| noted(&sshd.path("pid")).is_none_or(|pid| !is_alive(pid))).await;
}

#[tokio::test]
async fn files_of_64_mib_go_there_and_back_unchanged() {
    let sshd = Sshd::start(&[]);
    let (from, there, back) = (sshd.path("from"), sshd.path("it's there"), sshd.path("back"));
    let mut state = 1u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state.to_le_bytes()
    })
    .take(8 << 20)
    .flatten()
    .collect();
    std::fs::write(&from, &bytes).unwrap();
    let last = Arc::new(Mutex::new(None));
    let events = EventSink::new({
        let last = last.clone();
        move |event| *last.lock().unwrap() = Some(event)
    })
    .for_step("l1/put");
    let host = sshd.host();
    host.put(&from, &there, 0o640, &events).await.unwrap();
    let done = Progress::Bytes { done: 64 << 20, total: Some(64 << 20) };
    let event = Event::StepProgress { step: "l1/put".to_owned(), progress: done };
    assert_eq!(*last.lock().unwrap(), Some(event));
    assert!(std::fs::read(&there).unwrap() == bytes);
    assert_eq!(std::fs::metadata(&there).unwrap().permissions().mode() & 0o7777, 0o640);

    host.get(&there, &back, &EventSink::silent()).await.unwrap();
    assert!(std::fs::read(&back).unwrap() == bytes);
}

#[tokio::test]
async fn a_transfer_that_is_cut_leaves_what_was_there_before() {
    let sshd = Sshd::start(&[]);
    let host = sshd.host();
    let (from, to) = (sshd.path("from"), sshd.path("to"));
    std::fs::File::create(&from).unwrap().set_len(4 << 30).unwrap();
    std::fs::write(&to, "before").unwrap();
    let events = EventSink::silent();
    let part_is_there = || names(&sshd).iter().any(|name| name.ends_with(".part"));
    let cutting = async {
        until(part_is_there).await;
        sshd.cut();
    };
    let (put, ()) = tokio::join!(host.put(&from, &to, 0o600, &events), cutting);
    assert_eq!(put.unwrap_err().kind(), Kind::Unreachable);
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "before");
    until(|| !part_is_there()).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_or_written_is_told_with_the_reason() {
    let sshd = Sshd::start(&[]);
    let host = sshd.host();
    let (none, to) = (sshd.path("none"), sshd.path("to"));
    let error = host.get(&none, &to, &EventSink::silent()).await.unwrap_err();
    assert!(error.output_tail().unwrap().contains("No such file"), "{error:?}");
    assert!(!to.exists());
    let error = host.put(&sshd.path("user"), &none.join("x"), 0o600, &EventSink::silent()).await;
    let error = error.unwrap_err();
    assert!(error.output_tail().unwrap().contains("none"), "{error:?}");
}

#[tokio::test]
async fn a_third_level_is_reached_through_the_second_through_the_first() {
    let (first, second, third) = (Sshd::start(&[]), Sshd::start(&[]), Sshd::start(&[]));
    let l1 = first.host();
    let l2: HostRef = Arc::new(Ssh::new(second.target_through("l2", l1.clone())));
    let l3: HostRef = Arc::new(Ssh::new(third.target_through("l3", l2)));
    let port = third.port();
    let output = l3.check(&shell("echo $SSH_CONNECTION")).await.unwrap().text();
    assert!(output.trim().ends_with(&port.to_string()), "{output}");

    let flood = shell("head -c 8388608 /dev/zero >&2; head -c 8388609 /dev/zero");
    let output = l3.check(&flood).await.unwrap();
    assert_eq!((output.stdout.len(), output.stderr.len()), (8388609, 8388608));

    first.cut();
    assert_eq!(l3.check(&shell("echo back")).await.unwrap().text(), "back\n");
    let stranger =
        Ssh::new(SshTarget { host_key: first.target().host_key, ..third.target_through("l3", l1) });
    let stranger: HostRef = Arc::new(stranger);
    assert_eq!(stranger.check(&Command::new("true")).await.unwrap_err().kind(), Kind::Untrusted);
}

#[tokio::test]
async fn streams_reach_tcp_and_unix_sockets_there_and_carry_both_ends() {
    let sshd = Sshd::start(&[]);
    let host = sshd.host();
    let path = sshd.path("socket");
    let unix = tokio::net::UnixListener::bind(&path).unwrap();
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = tcp.accept().await.unwrap();
        echo(&mut stream).await;
        let (mut stream, _) = unix.accept().await.unwrap();
        echo(&mut stream).await;
    });
    for address in [StreamAddress::Tcp("127.0.0.1".into(), port), StreamAddress::Unix(path.clone())]
    {
        let stream = host.open_stream(&address).await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        let sent = vec![7; 3 << 20];
        let sending = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let (read, ()) = tokio::join!(read.read_to_end(&mut back), sending);
        assert_eq!(read.unwrap(), sent.len());
    }
    let nowhere = StreamAddress::Unix(path.join("none"));
    let error = host.open_stream(&nowhere).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Unreachable, "{error:?}");
}

#[tokio::test]
async fn a_stream_in_a_lost_session_ends_with_an_error_and_not_as_if_complete() {
    let sshd = Sshd::start(&[]);
    let host = sshd.host();
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    let mut stream = host.open_stream(&StreamAddress::Tcp("127.0.0.1".into(), port)).await.unwrap();
    sshd.cut();
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

async fn echo(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let (mut read, mut write) = tokio::io::split(stream);
    tokio::io::copy(&mut read, &mut write).await.unwrap();
    write.shutdown().await.unwrap();
}

/// Returns the names in a server's folder.
fn names(sshd: &Sshd) -> Vec<String> {
    let entries = std::fs::read_dir(sshd.path("")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn keys_are_renegotiated_again_and_again_under_traffic_in_both_directions() {
    let sshd = Sshd::start(&["RekeyLimit 256K", "LogLevel DEBUG1"]);
    let host = sshd.host();
    let input: Vec<u8> = (0..4 << 20).map(|i: u32| (i % 241) as u8).collect();
    let cats = (0..6).map(|_| {
        let (host, input) = (host.clone(), input.clone());
        async move { host.check(&Command::new("cat").stdin(input)).await.unwrap().stdout }
    });
    for output in futures::future::join_all(cats).await {
        assert!(output == input);
    }
    let log = sshd.read("log");
    assert!(log.matches("rekeying in").count() > 50, "{log}");
}

#[tokio::test]
async fn a_session_that_idles_answers_the_servers_keepalives_and_stays() {
    let sshd = Sshd::start(&["ClientAliveInterval 1", "ClientAliveCountMax 2", "LogLevel DEBUG3"]);
    let host = sshd.host();
    host.check(&Command::new("true")).await.unwrap();
    // SSH_MSG_GLOBAL_REQUEST; it would hang up after two that were not answered.
    until(|| sshd.read("log").matches("send packet: type 80").count() >= 5).await;
    host.check(&Command::new("true")).await.unwrap();
    assert_eq!(sshd.read("log").matches("Accepted publickey").count(), 1);
}

/// Returns a job in a server's folder that waits for the file `gate` there, and says so before and after.
fn gated(sshd: &Sshd) -> JobSpec {
    let script = "echo $$; seq 20000
        until [ -e \"$1\" ]; do sleep 0.05; done; echo end; exit 4";
    let gate = sshd.path("gate").into_string();
    JobSpec {
        id: "l1-upgrade".to_owned(),
        command: Command::new("sh").args(["-c", script, "sh", &gate]),
        directory: sshd.path("jobs"),
    }
}

#[tokio::test]
async fn a_job_survives_a_cut_connection_and_its_output_comes_once_and_whole() {
    let sshd = Sshd::start(&[]);
    let host = sshd.host();
    let mut lines = Vec::new();
    let mut on_line = |line: &str| {
        lines.push(line.to_owned());
        if line == "5000" {
            sshd.cut();
            std::fs::write(sshd.path("gate"), "").unwrap();
        }
    };
    let exit = job::run(&*host, &gated(&sshd), &mut on_line, &CancellationToken::new()).await;
    assert_eq!(exit.unwrap(), Exit::Code(4));
    let expected = (1..=20000).map(|n| n.to_string()).chain(["end".to_owned()]);
    assert!(lines[1..].iter().cloned().eq(expected));
    assert_eq!(sshd.read("log").matches("Accepted publickey").count(), 2);
    assert_eq!(std::fs::read_dir(sshd.path("jobs")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_job_whose_nestlab_was_killed_is_taken_up_by_the_next_one() {
    let sshd = Sshd::start(&[]);
    let spec = gated(&sshd);
    // The first run's connection, runtime and all end like those of a killed process.
    let pid: u32 = std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let (told, pid) = std::sync::mpsc::channel();
            let run = async {
                let mut on_line = |line: &str| drop(told.send(line.to_owned()));
                let host = sshd.host();
                job::run(&*host, &spec, &mut on_line, &CancellationToken::new()).await
            };
            let listen = tokio::task::unconstrained(async {
                loop {
                    if let Ok(pid) = pid.try_recv() {
                        return pid;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            let pid = runtime.block_on(async {
                tokio::select! { pid = listen => pid, _ = run => panic!("it waits for the gate") }
            });
            runtime.shutdown_background();
            pid
        });
        first.join().unwrap().parse().unwrap()
    });
    sshd.cut();
    assert!(is_alive(pid));
    std::fs::write(sshd.path("gate"), "").unwrap();
    let mut lines = Vec::new();
    let mut on_line = |line: &str| lines.push(line.to_owned());
    let exit = job::run(&*sshd.host(), &spec, &mut on_line, &CancellationToken::new()).await;
    assert_eq!(exit.unwrap(), Exit::Code(4));
    assert_eq!((lines[0].parse(), lines.last().unwrap().as_str()), (Ok(pid), "end"));
}

#[tokio::test]
async fn a_job_whose_host_was_rebooted_before_is_started_anew() {
    let sshd = Sshd::start(&[]);
    let host = sshd.host();
    let spec = gated(&sshd);
    let folder = sshd.path("jobs/l1-upgrade");
    std::fs::create_dir_all(&folder).unwrap();
    // As it was left before: this boot has another id.
    std::fs::write(folder.join("job"), "1 1 00000000-0000-0000-0000-000000000000\n").unwrap();
    std::fs::write(folder.join("output"), "half way\n").unwrap();
    std::fs::write(sshd.path("gate"), "").unwrap();
    let mut lines = Vec::new();
    let mut on_line = |line: &str| lines.push(line.to_owned());
    let exit = job::run(&*host, &spec, &mut on_line, &CancellationToken::new()).await.unwrap();
    assert_eq!(exit, Exit::Code(4));
    assert_eq!(lines.first().map(String::as_str), Some("half way"));
    assert_eq!((lines.len(), lines.last().map(String::as_str)), (20_003, Some("end")));
    assert!(!folder.exists());
}

#[tokio::test]
async fn an_appliance_with_dropbear_and_busybox_is_as_good_a_host() {
    let dropbear = Dropbear::start();
    let host = dropbear.host();
    let output = host.check(&shell("readlink -f /proc/$$/exe; echo err >&2")).await.unwrap();
    assert!(output.text().contains("busybox"), "{}", output.text());
    assert_eq!(output.error_text(), "err\n");
    assert_eq!(host.run(&shell("exit 7")).await.unwrap().exit, Exit::Code(7));
    let killed = host.run(&shell("kill -KILL $$")).await.unwrap();
    assert_eq!(killed.exit, Exit::Signal("KILL".into()));
    assert_eq!(host.run(&Command::new("qemu-img")).await.unwrap_err().hints().len(), 1);

    let flood = shell("head -c 8388608 /dev/zero >&2; head -c 8388609 /dev/zero");
    let output = host.check(&flood).await.unwrap();
    assert_eq!((output.stdout.len(), output.stderr.len()), (8388609, 8388608));
    let input = vec![7; 4 << 20];
    assert!(host.check(&Command::new("cat").stdin(input.clone())).await.unwrap().stdout == input);

    let (from, there, back) = (dropbear.path("from"), dropbear.path("it's"), dropbear.path("back"));
    std::fs::write(&from, &input).unwrap();
    host.put(&from, &there, 0o640, &EventSink::silent()).await.unwrap();
    host.get(&there, &back, &EventSink::silent()).await.unwrap();
    assert!(std::fs::read(&back).unwrap() == input);

    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = StreamAddress::Tcp("127.0.0.1".into(), tcp.local_addr().unwrap().port());
    tokio::spawn(async move { echo(&mut tcp.accept().await.unwrap().0).await });
    let mut stream = host.open_stream(&address).await.unwrap();
    stream.write_all(b"to and fro").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "to and fro");

    let nowhere = StreamAddress::Unix(dropbear.path("socket"));
    let error = host.open_stream(&nowhere).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Unreachable, "{error:?}");
}

#[tokio::test]
async fn an_appliance_ends_what_is_silent_or_dropped() {
    let dropbear = Dropbear::start();
    let host = dropbear.host();
    let command = stubborn(&dropbear.path("pid")).silence(Duration::from_secs(1));
    let error = host.run(&command).await.unwrap_err();
    assert!(error.message().contains("wrote nothing"), "{error:?}");
    until(|| noted(&dropbear.path("pid")).is_none_or(|pid| !is_alive(pid))).await;
}

#[tokio::test]
async fn an_appliance_runs_jobs() {
    let dropbear = Dropbear::start();
    let spec = JobSpec {
        id: "job".to_owned(),
        command: shell("cat; seq 20000; exit 4").env("A", "b c").stdin("given\n"),
        directory: dropbear.path("jobs"),
    };
    let mut lines = Vec::new();
    let mut on_line = |line: &str| lines.push(line.to_owned());
    let cancel = CancellationToken::new();
    let exit = job::run(&*dropbear.host(), &spec, &mut on_line, &cancel).await;
    assert_eq!(exit.unwrap(), Exit::Code(4));
    assert_eq!((lines.len(), lines[0].as_str(), lines[20000].as_str()), (20001, "given", "20000"));
    let stalling =
        JobSpec { command: shell("exec sleep 1000").silence(Duration::from_secs(1)), ..spec };
    let error = job::run(&*dropbear.host(), &stalling, &mut |_| {}, &cancel).await.unwrap_err();
    assert!(error.message().contains("stalled"), "{error:?}");
    assert_eq!(std::fs::read_dir(dropbear.path("jobs")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_session_at_a_terminal_gets_a_terminal_its_input_and_its_exit_code() {
    const NAME: &str =
        "ssh_host::a_session_at_a_terminal_gets_a_terminal_its_input_and_its_exit_code";
    const INSIDE: &str = "NESTLAB_TEST_SHELL";
    if let Ok(inside) = std::env::var(INSIDE) {
        // This process again, at a terminal that `script` has made.
        let (port, folder) = inside.split_once(' ').unwrap();
        let read = |name| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
        let ssh = Ssh::new(SshTarget {
            name: "guest".to_owned(),
            user: user(),
            key: SshKey::Memory(read("user").into()),
            host_key: HostKeyPolicy::Pinned(vec![read("host.pub")]),
            via: Via::Tcp { host: "127.0.0.1".to_owned(), port: port.parse().unwrap() },
            patience: TimeoutScale::NATIVE,
        });
        let command = shell("tty; read line; echo \"got <$line>\"; exit 6");
        let exit = ssh.shell(Some(&command)).await.unwrap();
        std::process::exit(if exit == Exit::Code(6) { 6 } else { 1 });
    }
    let sshd = Sshd::start(&[]);
    let again =
        format!("{} --exact {NAME} --nocapture", std::env::current_exe().unwrap().display());
    let mut script = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &again, "/dev/null"])
        .env(INSIDE, format!("{} {}", sshd.port(), sshd.path("")))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = script.stdin.take().unwrap();
    stdin.write_all(b"hello\n").unwrap();
    let output = script.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("/dev/pts/") && text.contains("got <hello>"), "{text}");
    assert_eq!(output.status.code(), Some(6), "{text}");
}

#[tokio::test]
async fn a_session_without_a_terminal_is_given_its_input_to_the_end() {
    let sshd = Sshd::start(&[]);
    // Tests have no input.
    let exit = sshd.ssh().shell(Some(&shell("cat; [ ! -t 0 ] && exit 5"))).await.unwrap();
    assert_eq!(exit, Exit::Code(5));
}

/// What a server does instead of speaking SSH.
type Misbehave = fn(std::net::TcpStream);

#[tokio::test]
async fn a_server_that_misbehaves_costs_one_clear_error() {
    let silence: Misbehave = |mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink()));
    let garbage: Misbehave = |stream| repeat(stream, b"", b"\x00\xff\x1b]0;owned\x07\n");
    let lines: Misbehave = |stream| repeat(stream, b"", b"hello\r\n");
    let banner: Misbehave = |stream| repeat(stream, b"SSH-2.0-", b"xxxxxxxx");
    let web: Misbehave =
        |mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let after: Misbehave =
        |stream| repeat(stream, b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x00\x00\x0c\x0a\x02");
    let hangs_up: Misbehave = |mut stream| stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
    let deaf: Misbehave = |mut stream| {
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        drop(std::io::copy(&mut stream, &mut std::io::sink()));
    };
    let sshd = Sshd::start(&[]);
    let all = [silence, garbage, lines, banner, web, after, hangs_up, deaf];
    let attempts = all.into_iter().map(|misbehave| {
        let via = Via::Tcp { host: "127.0.0.1".to_owned(), port: serve(misbehave) };
        let host: HostRef = Arc::new(Ssh::new(SshTarget { via, ..sshd.target() }));
        async move { host.run(&Command::new("true")).await.unwrap_err() }
    });
    for error in futures::future::join_all(attempts).await {
        assert_eq!((error.kind(), error.host()), (Kind::Unreachable, Some("guest")), "{error:?}");
        let report = error.report();
        assert!(!report.contains('\x1b') && report.len() < 1000, "{report}");
    }
}

#[tokio::test]
async fn a_flood_of_well_formed_packets_before_authentication_ends() {
    // SSH_MSG_IGNORE in the clear: packet length, padding length, message 2, an empty string, padding.
    let ignore = [0, 0, 0, 12, 6, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flood: Misbehave = |stream| {
        repeat(
            stream,
            b"SSH-2.0-OpenSSH_9.2\r\n",
            &[0, 0, 0, 12, 6, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        );
    };
    assert_eq!(ignore.len(), 16);
    let sshd = Sshd::start(&[]);
    let via = Via::Tcp { host: "127.0.0.1".to_owned(), port: serve(flood) };
    let host: HostRef = Arc::new(Ssh::new(SshTarget { via, ..sshd.target() }));
    let error = host.run(&Command::new("true")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable, "{error:?}");
}

#[tokio::test]
async fn a_banner_is_waited_for_and_only_a_banner_counts() {
    let sshd = Sshd::start(&[]);
    let banner = sshd.ssh().probe().await.unwrap();
    assert!(banner.starts_with("SSH-2.0-OpenSSH"), "{banner}");
    let closes: Misbehave = drop;
    let via = Via::Tcp { host: "127.0.0.1".to_owned(), port: serve(closes) };
    let error = Ssh::new(SshTarget { via, ..sshd.target() }).probe().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
}

/// Serves every connection to a free port with `misbehave`, and returns the port.
fn serve(misbehave: Misbehave) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || misbehave(stream));
        }
    });
    port
}

/// Says `first`, and then `again` for as long as somebody listens.
fn repeat(mut stream: std::net::TcpStream, first: &[u8], again: &[u8]) {
    let many = again.repeat(1000);
    let mut said = stream.write_all(first);
    while said.is_ok() {
        said = stream.write_all(&many);
    }
}
