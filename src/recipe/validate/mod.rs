//! Tables → recipe: what each value means beside the others. Every problem is collected; a recipe comes
//! out only if there is none.

mod guest;
mod tree;

use std::ops::Range;

use super::diagnostic::SourceText;
use super::keywords::{HypervisorChoice, ReadyKind};
use super::model::{Guest, GuestSource, Recipe, RecipeHost, RecipeOrigin};
use super::read::SCHEMA;
use super::tables::{At, RecipeTable};
use super::units::{GuestName, LabName, NetworkName};
use crate::error::Problem;

/// What `parent` names to mean this machine; no guest can be called so, since guests' names are in
/// lower case.
const L0: &str = "L0";

/// Returns the recipe that `tables`, read from `source`, describe.
pub(crate) fn recipe(
    tables: RecipeTable,
    source: SourceText,
    origin: RecipeOrigin,
) -> Result<Recipe, Vec<Problem>> {
    let mut check =
        Validator { source: &source, origin: &origin, names: Vec::new(), problems: Vec::new() };
    let name = check.head(&tables);
    let patience = check.patience(&tables);
    check.l0(&tables);
    let mut host = host(&tables);
    let mut guests = check.guests(tables.guest);
    check.tree(&host, &mut guests);
    settle_auto(&mut host, &guests);
    check.networks(&guests);
    let problems = check.problems;
    match name {
        Some(name) if problems.is_empty() => Ok(Recipe {
            name,
            description: tables.description,
            mirror: tables.mirror.map(|at| at.value),
            proxy: tables.proxy.map(|at| at.value),
            patience,
            host,
            guests: guests.into_iter().map(|drafted| drafted.guest).collect(),
            source,
            origin,
        }),
        _ => Err(problems),
    }
}

fn host(tables: &RecipeTable) -> RecipeHost {
    let host = tables.host.as_ref();
    let given = host.and_then(|host| host.hypervisor.as_ref());
    RecipeHost {
        hypervisor: given.map_or(HypervisorChoice::Auto, |at| at.first()),
        further: given.into_iter().flat_map(|at| at.further()).filter_map(|it| it.kind()).collect(),
        ssh: host.and_then(|host| host.ssh.as_ref()).map(|at| at.value.clone()),
        host_key: host.and_then(|host| host.host_key.clone()),
    }
}

/// What only VirtualBox can do, right on L0, settles which hypervisor L0 uses.
fn settle_auto(host: &mut RecipeHost, guests: &[GuestDraft]) {
    let only_virtualbox = guests.iter().map(|drafted| &drafted.guest).any(|guest| {
        let additions = guest.ready.as_ref().is_some_and(|r| r.value == ReadyKind::GuestAdditions);
        guest.level == 1 && (additions || matches!(guest.source, GuestSource::Existing { .. }))
    });
    if host.hypervisor == HypervisorChoice::Auto && (only_virtualbox || host.host_key.is_some()) {
        host.hypervisor = HypervisorChoice::VirtualBox;
    }
}

/// A guest, and what is needed of its table until the tree stands.
struct GuestDraft {
    guest: Guest,
    /// Where the table begins.
    table: Range<usize>,
    /// Where its parent is named.
    parent_span: Option<Range<usize>>,
    networks: Vec<At<NetworkName>>,
}

struct Validator<'a> {
    source: &'a SourceText,
    origin: &'a RecipeOrigin,
    /// The names of all guests, those included that are wrong otherwise.
    names: Vec<GuestName>,
    problems: Vec<Problem>,
}

impl Validator<'_> {
    fn refuse(&mut self, span: Range<usize>, message: impl Into<String>, help: &str) {
        self.problems.push(self.source.problem(span, message).help(help));
    }

    fn head(&mut self, tables: &RecipeTable) -> Option<LabName> {
        match &tables.schema {
            None => self.refuse(
                0..0,
                "the recipe does not say which schema it has",
                "begin it with `schema = 1`",
            ),
            Some(at) if at.value != SCHEMA => self.refuse(
                at.span(),
                format!("there is no recipe schema {}", at.value),
                "write `schema = 1`",
            ),
            Some(_) => {}
        }
        if tables.name.is_none() {
            self.refuse(0..0, "the recipe has no name", "add `name = \"my-lab\"` at its top");
        }
        if tables.guest.is_empty() {
            let end = self.source.text().len();
            self.refuse(end..end, "the recipe has no guest", "add a `[[guest]]` table");
        }
        tables.name.as_ref().map(|at| at.value.clone())
    }

    /// Refuses a list of hypervisors in which one is to be chosen.
    fn l0(&mut self, tables: &RecipeTable) {
        let given = tables.host.as_ref().and_then(|host| host.hypervisor.as_ref());
        if let Some(at) = given
            && at.contains(HypervisorChoice::Auto)
            && !at.further().is_empty()
        {
            let message = "`auto` chooses one hypervisor, and this is a list";
            self.refuse(at.span(), message, "name them: `[\"virtualbox\", \"qemu\"]`");
        }
    }

    fn patience(&mut self, tables: &RecipeTable) -> f64 {
        let given = tables.limits.as_ref().and_then(|limits| limits.patience.as_ref());
        if let Some(at) = given
            && !(1.0..=1000.0).contains(&at.value)
        {
            self.refuse(
                at.span(),
                format!("a patience of {} is not between 1 and 1000", at.value),
                "it is a factor on every limit: 2.0 waits twice as long",
            );
        }
        given.map_or(1.0, |at| at.value)
    }
}
