//! The engine with steps that are closures over a small world in memory.

mod checking;
mod removing;
mod running;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8Path;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Options, Retry, Summary, run};
use crate::error::Result;
use crate::event::{Event, EventSink};
use crate::host::Command;
use crate::lab::{Journal, Lab, Labs};
use crate::plan::{Check, Context, Plan, Step, StepId};

/// What exists: names.
type LabContext = Arc<Mutex<BTreeSet<String>>>;

type Apply = Arc<dyn Fn(Context) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// A step that is satisfied when its id is in the world, and otherwise does what it is told.
struct Fake {
    id: StepId,
    needs: Vec<StepId>,
    world: LabContext,
    /// What a look at it waits for, if it does not see at once.
    sight: Option<Arc<Notify>>,
    apply: Apply,
}

#[async_trait]
impl Step for Fake {
    fn id(&self) -> &StepId {
        &self.id
    }

    fn guest(&self) -> Option<&str> {
        None
    }

    fn title(&self) -> String {
        format!("do {}", self.id)
    }

    fn needs(&self) -> &[StepId] {
        &self.needs
    }

    async fn check(&self, _context: &Context) -> Result<Check> {
        if let Some(sight) = &self.sight {
            sight.notified().await;
        }
        let there = self.world.lock().expect("no test panics with it").contains(self.id.as_str());
        Ok(if there { Check::Satisfied } else { Check::Needed("not there".into()) })
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        (self.apply)(context.clone()).await
    }

    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        Ok(Vec::new())
    }
}

/// A lab in a scratch directory, a world, and the steps that change it.
struct Bench {
    _scratch: tempfile::TempDir,
    lab: Lab,
    world: LabContext,
    steps: Vec<Arc<dyn Step>>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Bench {
    fn new() -> Self {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let state = Utf8Path::from_path(scratch.path()).expect("UTF-8").join("state");
        let lab = Labs::at(state).create(&"demo".parse().expect("a name"), "").expect("makes");
        Bench {
            _scratch: scratch,
            lab,
            world: LabContext::default(),
            steps: Vec::new(),
            events: Arc::default(),
        }
    }

    /// Adds a step that makes itself true.
    fn step(&mut self, what: &str, needs: &[&str]) {
        let (world, id) = (self.world.clone(), format!("fake/{what}"));
        self.step_that(what, needs, move |_| {
            let (world, id) = (world.clone(), id.clone());
            async move {
                world.lock().expect("no test panics with it").insert(id);
                Ok(())
            }
        });
    }

    /// Adds a step that does `apply`.
    fn step_that<F>(
        &mut self,
        what: &str,
        needs: &[&str],
        apply: impl Fn(Context) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.steps.push(Arc::new(Fake {
            id: StepId::new("fake", what),
            needs: needs.iter().map(|need| StepId::new("fake", need)).collect(),
            world: self.world.clone(),
            sight: None,
            apply: Arc::new(move |context| Box::pin(apply(context))),
        }));
    }

    fn plan(&self) -> Plan {
        Plan::new(self.steps.clone()).expect("a sound plan")
    }

    fn journal(&self) -> Journal {
        self.lab.lock(["test"]).and_then(|lock| lock.journal()).expect("nobody else is at work")
    }

    fn sink(&self) -> EventSink {
        let events = self.events.clone();
        EventSink::new(move |event| events.lock().expect("no test panics with it").push(event))
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().expect("no test panics with it").clone()
    }

    async fn run(&self, cancel: &CancellationToken) -> Summary {
        let retry = Retry {
            times: 3,
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_millis(2),
        };
        let options = Options { command: vec!["test".into()], retry };
        run(&self.plan(), options, self.journal(), self.sink(), cancel.clone()).await
    }
}
