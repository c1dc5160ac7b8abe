//! Watching a guest from outside while it is waited for: what is waited for is told, and a guest that is
//! gone or shows no sign of life ends the wait, also in the middle of a question that it never answers.

use std::time::{Duration, Instant};

use super::readiness::VmView;
use super::{ExecContext, StallDetector};
use crate::error::{Error, Kind, Result};

/// How many times as long as a look took is waited before the next: in an emulated host a look costs
/// seconds of the one processor that the guest boots on.
const REST: u32 = 5;

/// A watch over a guest.
pub(super) struct LivenessMonitor<'a> {
    exec: ExecContext<'a>,
    view: Option<VmView<'a>>,
    vigil: StallDetector,
    what: String,
    sign: String,
    /// The life of the console when it told of trouble: what says no more since then has stopped there.
    troubled: Option<String>,
    /// How long the last look took.
    cost: Duration,
}

impl<'a> LivenessMonitor<'a> {
    /// Begins to watch for `what`; `silence` without a sign of life ends it.
    pub(super) fn new(
        exec: ExecContext<'a>,
        view: Option<VmView<'a>>,
        silence: Duration,
        what: &str,
    ) -> Self {
        let (what, sign) = (what.to_owned(), String::new());
        let (vigil, cost) = (StallDetector::new(silence), Duration::ZERO);
        LivenessMonitor { exec, view, vigil, what, sign, troubled: None, cost }
    }

    /// Returns the answer to `question`. A machine that boots can leave it open for long: meanwhile it is
    /// looked at again and again.
    ///
    /// # Errors
    /// As [`LivenessMonitor::turn`].
    pub(super) async fn until<T>(
        &mut self,
        question: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::pin!(question);
        loop {
            tokio::select! {
                biased;
                answer = &mut question => return answer,
                rested = self.rest() => rested?,
            }
            self.look().await?;
        }
    }

    /// Waits until it is time to look again.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] as soon as the work is to end.
    pub(super) async fn rest(&self) -> Result<()> {
        self.exec.look_again_after(self.cost * REST).await
    }

    /// Tells that it is `what` that is waited for now, and looks at the guest; `sign` changes while it
    /// lives.
    ///
    /// # Errors
    /// [`Kind::NotReady`] if its VM does not run any more, it has stopped in a panic or at a prompt, or it shows no
    /// sign of life, [`Kind::Interrupted`] if the work is to end.
    pub(super) async fn turn(&mut self, what: impl Into<String>, sign: String) -> Result<()> {
        (self.what, self.sign) = (what.into(), sign);
        self.look().await
    }

    async fn look(&mut self) -> Result<()> {
        let began = Instant::now();
        let looked = self.look_once().await;
        self.cost = began.elapsed();
        looked
    }

    async fn look_once(&mut self) -> Result<()> {
        self.exec.proceed()?;
        self.exec.events.doing(&self.what);
        let mut life = String::new();
        if let Some(view) = self.view {
            let console = view.console().await?;
            view.still_runs().await?;
            life = console.life;
            self.goes_on(view, &life, console.trouble).await?;
        }
        let stalled = self.vigil.stalled(format!("{} {life}", self.sign));
        let Some(still) = stalled else { return Ok(()) };
        let message = format!("no sign of life for {} s while {}", still.as_secs(), self.what);
        let error = Error::new(Kind::NotReady, message)
            .hint("`nestlab logs` and `nestlab screenshot` show what it does");
        Err(match &self.view {
            Some(view) => error.on_host(&view.spec.vm).tail(&view.console_tail().await),
            None => error.on_host(self.exec.host.name()),
        })
    }
}

impl LivenessMonitor<'_> {
    /// Returns an error if the console told of `trouble` at the last look, and has not grown since.
    async fn goes_on(
        &mut self,
        view: VmView<'_>,
        life: &str,
        trouble: Option<String>,
    ) -> Result<()> {
        let before = self.troubled.take();
        let Some(trouble) = trouble else { return Ok(()) };
        if before.as_deref() == Some(life) {
            return Err(view.stuck(&trouble).await);
        }
        self.troubled = Some(life.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::test_support::Bench;
    use crate::host::scripted::Scripted;

    #[tokio::test]
    async fn a_question_that_is_never_answered_ends_with_the_silence() {
        let host = Scripted::new("l1");
        let bench = Bench::new();
        let mut watch =
            LivenessMonitor::new(bench.exec(&host), None, Duration::ZERO, "waiting for it");
        let never = std::future::pending::<Result<()>>();
        let error = watch.until(never).await.expect_err("silence");
        assert_eq!(error.kind(), Kind::NotReady);
        assert!(error.message().contains("while waiting for it"), "{error}");
    }

    #[tokio::test]
    async fn an_answer_that_is_there_is_taken_before_anything_is_looked_at() {
        let host = Scripted::new("l1");
        let bench = Bench::new();
        let mut watch =
            LivenessMonitor::new(bench.exec(&host), None, Duration::ZERO, "waiting for it");
        assert_eq!(watch.until(async { Ok(1) }).await.expect("answers"), 1);
        assert_eq!(bench.doings(), Vec::<String>::new());
    }
}
