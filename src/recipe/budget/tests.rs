use super::*;
use crate::recipe::tree::RecipeOrigin;

fn recipe(text: &str) -> Recipe {
    Recipe::parse(text, RecipeOrigin::Shipped).unwrap_or_else(|error| panic!("{}", error.report()))
}

fn machine() -> Resources {
    Resources {
        cores: Cpus::new(4).expect("not zero"),
        memory: Mebibytes::gib(16),
        free_disk: Some(Mebibytes::gib(200)),
        networks: Vec::new(),
        hypervisor: HypervisorKind::VirtualBox,
        platform: Platform::Linux,
        host_key: Some(HostKey::default_on(Platform::Linux)),
    }
}

#[test]
fn every_shipped_recipe_has_a_budget_on_a_common_machine() {
    for shipped in crate::recipe::shipped() {
        let recipe = shipped.recipe().unwrap_or_else(|error| panic!("{}", error.report()));
        assert_eq!(recipe.name.as_str(), shipped.name);
        let mut machine = machine();
        machine.hypervisor = recipe.host.hypervisor.kind().unwrap_or(HypervisorKind::Qemu);
        let budget = derive(&recipe, &machine, &BTreeMap::new())
            .unwrap_or_else(|error| panic!("{}: {}", shipped.name, error.report()));
        assert_eq!(budget.guests.len(), recipe.guests().len());
    }
}

#[test]
fn the_document_s_example_comes_out_as_the_document_says() {
    let recipe = recipe(include_str!("../../../recipes/quickstart.toml"));
    let budget = derive(&recipe, &machine(), &BTreeMap::new()).expect("fits");
    assert_eq!(budget.guests[0].cpus.value.get(), 3, "4 physical cores → 3");
    assert_eq!(budget.guests[1].cpus.value, Cpus::ONE, "L2 starts with 1");
    assert_eq!(budget.guests[0].subnet.value, Subnet::new(10, 0, 2));
    assert_eq!(budget.guests[1].subnet.value, Subnet::new(10, 0, 3));
    assert_ne!(
        budget.host_key.expect("VirtualBox").value,
        budget.guests[0].host_key.as_ref().expect("VirtualBox").value
    );
}
