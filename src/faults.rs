//! Faults on purpose: `NESTLAB_FAULT=kill@7` ends the process with SIGKILL at the seventh point that
//! it passes. Points stand at every write of the journal and at every command that a host runs.
//!
//! | fault | at its point |
//! |---|---|
//! | `kill@N` | the process is gone, as by SIGKILL |
//! | `cut@N` | the power is cut: so is the process, and what it wrote and did not make durable |
//! | `fail@N` | the operation fails |
//! | `hang@N` | the operation never ends; `nestlab: hangs at N` is written to standard error |
//! | `full@N` | the operation fails because the disk is full |
//!
//! `NESTLAB_FAULT_TRACE` names a file that gets a line for each point: its number, the step that passes it
//! (`-` outside of all steps) and its name, with tabs between.
//!
//! Only builds with the feature `faults` (the tests' builds) have them; in every other build a point
//! is an empty function.

#[cfg(any(test, feature = "faults"))]
pub(crate) use enabled::{create, in_step, point, rename, sync, sync_directory, write_all};
#[cfg(any(test, feature = "faults"))]
pub use enabled::{host, passed};
#[cfg(any(test, feature = "faults"))]
mod power;

#[cfg(not(any(test, feature = "faults")))]
pub use disabled::host;
#[cfg(not(any(test, feature = "faults")))]
pub(crate) use disabled::{create, in_step, point, rename, sync, sync_directory, write_all};

#[cfg(not(any(test, feature = "faults")))]
mod disabled {
    use std::fs;
    use std::io::{self, Write as _};

    use camino::Utf8Path;

    use crate::host::HostRef;

    #[inline]
    pub(crate) fn point(_name: &str) -> io::Result<()> {
        Ok(())
    }

    /// Opens the file at `path`, which may be made by that.
    #[inline]
    pub(crate) fn create(options: &fs::OpenOptions, path: &Utf8Path) -> io::Result<fs::File> {
        options.open(path)
    }

    #[inline]
    pub(crate) fn write_all(file: &mut fs::File, _: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    #[inline]
    pub(crate) async fn in_step<T>(_step: String, work: impl Future<Output = T>) -> T {
        work.await
    }

    /// Makes what is in `file` durable.
    #[inline]
    pub(crate) fn sync(file: &fs::File, _: &Utf8Path) -> io::Result<()> {
        file.sync_data()
    }

    #[inline]
    pub(crate) fn rename(from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Makes the names in `directory` durable.
    #[inline]
    pub(crate) fn sync_directory(directory: &Utf8Path) -> io::Result<()> {
        fs::File::open(directory)?.sync_all()
    }

    /// Returns `host` as it is: this build injects no faults.
    #[inline]
    pub fn host(host: HostRef) -> HostRef {
        host
    }
}

#[cfg(any(test, feature = "faults"))]
mod enabled {
    use std::fs;
    use std::io::{self, Write as _};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;
    use camino::Utf8Path;

    use super::power;
    use crate::error::{Error, Result};
    use crate::event::EventSink;
    use crate::host::{Command, Exit, Host, HostRef, OnOutput, Stream, StreamAddress};

    #[derive(Clone, Copy)]
    enum InjectedFault {
        Kill,
        Cut,
        Fail,
        Hang,
        Full,
    }

    static PASSED: AtomicU64 = AtomicU64::new(0);

    tokio::task_local! {
        static STEP: String;
    }

    /// Does `work`, whose points belong to `step`.
    pub(crate) async fn in_step<T>(step: String, work: impl Future<Output = T>) -> T {
        STEP.scope(step, work).await
    }

    /// Returns how many points this process has passed.
    pub fn passed() -> u64 {
        PASSED.load(Ordering::SeqCst)
    }

    /// Returns the fault wanted by the environment and the number of its point.
    fn wanted() -> Option<(InjectedFault, u64)> {
        static WANTED: OnceLock<Option<(InjectedFault, u64)>> = OnceLock::new();
        *WANTED.get_or_init(|| {
            let text = std::env::var("NESTLAB_FAULT").ok()?;
            Some(parse(&text).expect("NESTLAB_FAULT is kill@N, cut@N, fail@N, hang@N or full@N"))
        })
    }

    fn parse(text: &str) -> Option<(InjectedFault, u64)> {
        let (fault, at) = text.split_once('@')?;
        let fault = match fault {
            "kill" => InjectedFault::Kill,
            "cut" => InjectedFault::Cut,
            "fail" => InjectedFault::Fail,
            "hang" => InjectedFault::Hang,
            "full" => InjectedFault::Full,
            _ => return None,
        };
        Some((fault, at.parse().ok()?))
    }

    /// Counts this point and returns the fault, if it is the one that was asked for.
    fn due(name: &str) -> Option<(InjectedFault, u64)> {
        let at = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
        trace(at, name);
        wanted().filter(|(_, wanted)| *wanted == at)
    }

    fn trace(at: u64, name: &str) {
        let Some(path) = std::env::var_os("NESTLAB_FAULT_TRACE") else { return };
        let step = STEP.try_with(String::clone).unwrap_or_else(|_| "-".to_owned());
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("NESTLAB_FAULT_TRACE can be written");
        // In one write, so that no two lines mix.
        let line = format!("{at}\t{step}\t{name}\n");
        io::Write::write_all(&mut file, line.as_bytes()).expect("the trace can be written");
    }

    #[allow(clippy::print_stderr, reason = "the test that asked for it reads it")]
    fn failure(fault: InjectedFault, at: u64, name: &str) -> io::Result<()> {
        match fault {
            InjectedFault::Kill => end(),
            InjectedFault::Cut => {
                power::cut()?;
                end()
            }
            InjectedFault::Fail => {
                Err(io::Error::other(format!("fault {at} was injected at {name}")))
            }
            InjectedFault::Full => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("no space left on device (injected as fault {at} at {name})"),
            )),
            InjectedFault::Hang => {
                eprintln!("nestlab: hangs at {at}");
                Ok(())
            }
        }
    }

    /// Ends this process as SIGKILL does.
    fn end() -> ! {
        let me = rustix::process::getpid();
        // If it cannot be killed, it ends all the same.
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        std::process::abort()
    }

    /// Returns whether the run is to end with a power cut, so that what is durable must be known.
    fn may_be_cut() -> bool {
        matches!(wanted(), Some((InjectedFault::Cut, _)))
    }

    /// Passes a point in code that blocks its thread.
    pub(crate) fn point(name: &str) -> io::Result<()> {
        let Some((fault, at)) = due(name) else { return Ok(()) };
        failure(fault, at, name)?;
        loop {
            std::thread::park();
        }
    }

    /// Passes a point in asynchronous code, which can be cancelled while it hangs.
    async fn point_in_command(name: &str) -> Result<()> {
        let Some((fault, at)) = due(name) else { return Ok(()) };
        failure(fault, at, name).map_err(|error| Error::failed(error.to_string()))?;
        std::future::pending().await
    }

    /// Opens the file at `path`, which may be made by that.
    pub(crate) fn create(options: &fs::OpenOptions, path: &Utf8Path) -> io::Result<fs::File> {
        if may_be_cut() && !path.exists() {
            power::naming(path);
        }
        options.open(path)
    }

    /// Writes `bytes` to the file at `path` with a point in their middle, so that a line can be torn.
    pub(crate) fn write_all(file: &mut fs::File, path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
        if may_be_cut() {
            power::writing(file, path)?;
        }
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.write_all(first)?;
        point("the middle of a write")?;
        file.write_all(second)
    }

    /// Makes what is in `file` durable.
    pub(crate) fn sync(file: &fs::File, path: &Utf8Path) -> io::Result<()> {
        file.sync_data()?;
        power::synced(path);
        Ok(())
    }

    pub(crate) fn rename(from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        if may_be_cut() {
            power::naming(to);
        }
        fs::rename(from, to)?;
        power::renamed(from, to);
        Ok(())
    }

    /// Makes the names in `directory` durable.
    pub(crate) fn sync_directory(directory: &Utf8Path) -> io::Result<()> {
        fs::File::open(directory)?.sync_all()?;
        power::names_synced(directory);
        Ok(())
    }

    /// Returns `host` with a point before and one after every command and transfer.
    pub fn host(host: HostRef) -> HostRef {
        std::sync::Arc::new(Faulty(host))
    }

    #[derive(Debug)]
    struct Faulty(HostRef);

    #[async_trait]
    impl Host for Faulty {
        fn name(&self) -> &str {
            self.0.name()
        }

        async fn run_streaming(&self, command: &Command, on_output: OnOutput<'_>) -> Result<Exit> {
            let name = command.argv()[0].as_str();
            point_in_command(name).await?;
            let exit = self.0.run_streaming(command, on_output).await?;
            point_in_command(name).await?;
            Ok(exit)
        }

        async fn put(
            &self,
            from: &Utf8Path,
            to: &Utf8Path,
            mode: u32,
            events: &EventSink,
        ) -> Result<()> {
            point_in_command("put").await?;
            self.0.put(from, to, mode, events).await?;
            point_in_command("put").await
        }

        async fn get(&self, from: &Utf8Path, to: &Utf8Path, events: &EventSink) -> Result<()> {
            point_in_command("get").await?;
            self.0.get(from, to, events).await?;
            point_in_command("get").await
        }

        async fn open_stream(&self, address: &StreamAddress) -> Result<Box<dyn Stream>> {
            point_in_command("open a stream").await?;
            self.0.open_stream(address).await
        }

        fn is_root(&self) -> bool {
            self.0.is_root()
        }

        fn is_local(&self) -> bool {
            self.0.is_local()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fault_is_a_kind_and_the_number_of_its_point() {
            assert!(matches!(parse("kill@12"), Some((InjectedFault::Kill, 12))));
            for bad in ["kill", "kill@", "kill@x", "melt@1", "@1", ""] {
                assert!(parse(bad).is_none(), "{bad}");
            }
        }

        #[test]
        fn every_point_is_counted_and_without_a_fault_nothing_happens() {
            let before = passed();
            let folder = tempfile::tempdir().expect("a folder");
            let path = Utf8Path::from_path(folder.path()).expect("UTF-8").join("file");
            let mut file = fs::File::create(&path).expect("makes a file");
            write_all(&mut file, &path, b"whole").expect("no fault was asked for");
            point("here").expect("no fault was asked for");
            assert_eq!(fs::read(&path).expect("is there"), b"whole");
            assert!(passed() >= before + 2);
        }
    }
}
