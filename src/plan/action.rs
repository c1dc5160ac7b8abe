//! What a step does, apart from its name and its arrows: an [`Action`] at a [`Node`] is a [`Step`].

use async_trait::async_trait;

use super::step::{Check, Context, Step, StepId};
use crate::error::Result;
use crate::host::Command;

/// A step's place in the graph.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) id: StepId,
    /// The guest it belongs to.
    pub(crate) guest: Option<String>,
    /// What it does, in the imperative.
    pub(crate) title: String,
    /// What must be satisfied before.
    pub(crate) needs: Vec<StepId>,
}

/// What a step does.
#[async_trait]
pub(crate) trait Action: Send + Sync {
    /// As [`Step::may_disturb`].
    fn may_disturb(&self) -> bool {
        false
    }

    /// Looks at the real world; changes nothing.
    async fn check(&self, context: &Context) -> Result<Check>;

    /// Makes it so.
    async fn apply(&self, context: &Context) -> Result<()>;

    /// Returns the exact commands that `apply` would run on the guest's host.
    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        Ok(Vec::new())
    }
}

/// An action at its place in the graph.
pub(crate) struct Placed<A> {
    /// The place.
    pub(crate) node: Node,
    /// The action.
    pub(crate) action: A,
}

#[async_trait]
impl<A: Action> Step for Placed<A> {
    fn id(&self) -> &StepId {
        &self.node.id
    }

    fn guest(&self) -> Option<&str> {
        self.node.guest.as_deref()
    }

    fn title(&self) -> String {
        self.node.title.clone()
    }

    fn needs(&self) -> &[StepId] {
        &self.node.needs
    }

    fn may_disturb(&self) -> bool {
        self.action.may_disturb()
    }

    async fn check(&self, context: &Context) -> Result<Check> {
        self.action.check(context).await
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        self.action.apply(context).await
    }

    async fn commands(&self, context: &Context) -> Result<Vec<Command>> {
        self.action.commands(context).await
    }
}
