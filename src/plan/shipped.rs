//! The steps of every recipe that ships, on a machine that is always the same.

use std::fmt::Write as _;
use std::sync::Arc;

use camino::Utf8Path;

use super::{Blueprint, Images, Machines, World, chain, l0};
use crate::hypervisor::Drivers;
use crate::image::Store;
use crate::lab::Labs;
use crate::recipe::budget::{self, Resources};
use crate::recipe::{Cpus, HostKey, HypervisorKind, Mebibytes, Platform, shipped};

/// Eight cores and 64 GiB, with the hypervisor that the recipe names or QEMU.
fn machine(hypervisor: Option<HypervisorKind>) -> Resources {
    Resources {
        cores: Cpus::new(8).expect("not zero"),
        memory: Mebibytes::gib(64),
        free_disk: None,
        networks: Vec::new(),
        hypervisor: hypervisor.unwrap_or(HypervisorKind::Qemu),
        platform: Platform::Linux,
        host_key: (hypervisor == Some(HypervisorKind::VirtualBox))
            .then(|| HostKey::default_on(Platform::Linux)),
    }
}

#[test]
fn every_recipe_that_ships_has_the_steps_that_it_had() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = Utf8Path::from_path(folder.path()).expect("UTF-8");
    for recipe in shipped::shipped() {
        let name = recipe.name;
        let recipe = recipe.recipe().expect("it ships");
        let lab = Labs::at(&folder.join("state")).create(&recipe.name, "").expect("a lab");
        let images = Images::of(&recipe).expect("they ship");
        let resources = machine(recipe.host.hypervisor.kind());
        let budget = budget::derive(&recipe, &resources, &images.defaults()).expect("it fits");
        let blueprint = Blueprint::draw(&recipe, &budget, &images, &lab).expect("drawn");
        let machines = Machines::new(lab, blueprint, l0::local(), Drivers::new());
        let store = Store::open(&folder.join("images")).expect("a store");
        let world = World { recipe, budget, images, lock: None, store, machines };
        let plan = chain::plan(Arc::new(world), None).expect("a plan");
        let mut text = String::new();
        for step in plan.steps() {
            let needs: Vec<&str> = step.needs().iter().map(super::StepId::as_str).collect();
            let _ = writeln!(text, "{}: {}, after {}", step.id(), step.title(), needs.join(" "));
        }
        insta::assert_snapshot!(name, text);
    }
}
