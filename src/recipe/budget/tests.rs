//! The rules on examples, and on random trees and hosts: no budget that comes out ever breaks one.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::recipe::model::RecipeOrigin;

fn recipe(text: &str) -> Recipe {
    Recipe::parse(text, RecipeOrigin::Shipped).unwrap_or_else(|error| panic!("{}", error.report()))
}

/// A recipe whose guests are `guests`, which begin at line 3.
fn with_guests(guests: &str) -> Recipe {
    recipe(&format!("schema = 1\nname = \"lab\"\n{guests}"))
}

fn machine(cores: u32, gib: u32) -> Resources {
    Resources {
        cores: Cpus::new(cores).expect("not zero"),
        memory: Mebibytes::gib(gib),
        free_disk: Some(Mebibytes::gib(200)),
        networks: Vec::new(),
        hypervisor: HypervisorKind::VirtualBox,
        platform: Platform::Linux,
        host_key: Some(HostKey::default_on(Platform::Linux)),
    }
}

fn budget(recipe: &Recipe, host: &Resources) -> Budget {
    derive(recipe, host, &BTreeMap::new()).unwrap_or_else(|error| panic!("{}", error.report()))
}

fn refused(
    recipe: &Recipe,
    host: &Resources,
    images: &BTreeMap<GuestName, ImageDefaults>,
) -> Error {
    derive(recipe, host, images).map(|_| ()).expect_err("a rule is broken")
}

fn offers(guest: &str, image: ImageDefaults) -> BTreeMap<GuestName, ImageDefaults> {
    BTreeMap::from([(guest.parse().expect("a name"), image)])
}

/// The number of CPUs, which is known of every guest but an existing VM.
fn cpus(guest: &GuestBudget) -> Cpus {
    guest.cpus.value.known().expect("is known")
}

fn memory(guest: &GuestBudget) -> Mebibytes {
    guest.memory.value.known().expect("is known")
}

const CHAIN: &str = "[[guest]]\nname = \"l1\"\nimage = \"i\"\nhypervisor = \"virtualbox\"\n\
                     [[guest]]\nname = \"l2\"\nimage = \"i\"\n";

#[test]
fn every_shipped_recipe_has_a_budget_on_a_common_machine() {
    for shipped in crate::recipe::shipped() {
        let recipe = shipped.recipe().unwrap_or_else(|error| panic!("{}", error.report()));
        assert_eq!(recipe.name.as_str(), shipped.name);
        let mut host = machine(4, 16);
        host.hypervisor = recipe.host.hypervisor.kind().unwrap_or(HypervisorKind::Qemu);
        assert_eq!(budget(&recipe, &host).guests.len(), recipe.guests().len());
    }
}

#[test]
fn four_cores_give_l1_three_and_l2_starts_with_one_of_at_most_two() {
    let both = |guests: &str| {
        let budget = budget(&with_guests(guests), &machine(4, 16));
        (cpus(&budget.guests[0]).get(), cpus(&budget.guests[1]).get())
    };
    assert_eq!(both(CHAIN), (3, 1));
    assert_eq!(both(&format!("{CHAIN}cpus = 2\n")), (3, 2));
    assert_eq!(both(&format!("{CHAIN}cpus = 3\novercommit = true\n")), (3, 3));
    let recipe = with_guests(&format!("{CHAIN}cpus = 3\n"));
    let error = refused(&recipe, &machine(4, 16), &BTreeMap::new());
    assert!(
        error
            .message()
            .contains(":10:8: l2 is to have 3 CPUs, and one fewer than l1's 3 CPUs is 2")
    );
    assert!(
        error.report().contains("`cpus = 2`, or add `overcommit = true`"),
        "{}",
        error.report()
    );
}

#[test]
fn one_core_still_gives_every_guest_one_cpu() {
    let budget = budget(&with_guests(CHAIN), &machine(1, 16));
    assert!(budget.guests.iter().all(|guest| cpus(guest) == Cpus::ONE));
}

#[test]
fn what_a_larger_l0_could_run_is_the_host_s_failure_and_the_rest_the_recipe_s() {
    let kind = |guests: &str, host: &Resources| {
        refused(&with_guests(guests), host, &BTreeMap::new()).kind()
    };
    let l1_cpus = "[[guest]]\nname = \"l1\"\nimage = \"i\"\ncpus = 4\n";
    assert_eq!(kind(l1_cpus, &machine(4, 16)), Kind::HostCannot);
    assert_eq!(kind(&format!("{CHAIN}cpus = 3\n"), &machine(3, 16)), Kind::HostCannot);
    let settled = CHAIN.replacen("image", "cpus = 2\nimage", 1);
    assert_eq!(kind(&format!("{settled}cpus = 2\n"), &machine(8, 16)), Kind::Recipe);
    assert_eq!(kind(&format!("{CHAIN}memory = \"16GiB\"\n"), &machine(8, 16)), Kind::HostCannot);
    let small = CHAIN.replacen("image", "memory = \"2GiB\"\nimage", 1);
    assert_eq!(kind(&format!("{small}memory = \"2GiB\"\n"), &machine(8, 16)), Kind::Recipe);
}

#[test]
fn a_host_s_memory_follows_from_what_its_guests_need() {
    let budget = budget(&with_guests(&format!("{CHAIN}memory = \"6GiB\"\n")), &machine(8, 32));
    let (l1, own) = (&budget.guests[0].memory, memory(&budget.guests[0]));
    assert!(!l1.given && own.get() - reserve(own).get() >= 6 * 1024, "{l1:?}");
    assert!(l1.why.contains("6GiB"), "{}", l1.why);
}

#[test]
fn guests_that_do_not_fit_together_are_told_at_the_largest_amount() {
    let guests = "[[guest]]\nname = \"l1\"\nimage = \"i\"\nmemory = \"4GiB\"\nhypervisor = \"qemu\"\n\
                  [[guest]]\nname = \"a\"\nimage = \"i\"\nmemory = \"1GiB\"\n\
                  [[guest]]\nname = \"b\"\nparent = \"l1\"\nimage = \"i\"\nmemory = \"3GiB\"\n";
    let error = refused(&with_guests(guests), &machine(8, 16), &BTreeMap::new());
    let report = error.report();
    for part in [
        ":16:10:",
        "the 2 guests of l1 are together to have 4GiB",
        "512MiB",
        "memory = \"4864MiB\"",
    ] {
        assert!(report.contains(part), "{part} is missing in:\n{report}");
    }
}

#[test]
fn an_image_s_wishes_count_where_the_recipe_says_nothing() {
    let image = ImageDefaults {
        memory: Some(Mebibytes::gib(2)),
        cpus: Cpus::new(3),
        firmware: Some(Firmware::Efi),
        ready: Some(Readiness::GuestAdditions),
        ssh: false,
        ..ImageDefaults::default()
    };
    let budget = derive(&with_guests(CHAIN), &machine(4, 16), &offers("l2", image))
        .unwrap_or_else(|error| panic!("{}", error.report()));
    let l2 = &budget.guests[1];
    assert_eq!((memory(l2), cpus(l2)), (Mebibytes::gib(2), Cpus::ONE));
    assert!(l2.cpus.why.contains("comes with 3"), "{}", l2.cpus.why);
    assert_eq!(l2.firmware.value, Some(Firmware::Efi));
    assert_eq!(l2.ready.value, Readiness::GuestAdditions);
}

#[test]
fn an_existing_vm_keeps_what_it_has_unless_its_guests_demand_more() {
    let alone = with_guests("[[guest]]\nname = \"l1\"\nvm = \"Mine\"\n");
    let l1 = &budget(&alone, &machine(4, 16)).guests[0];
    assert_eq!((l1.cpus.value, l1.memory.value), (Constraint::Unchanged, Constraint::Unchanged));
    assert_eq!((l1.disk.value, l1.firmware.value), (None, None));

    let login = "vm = \"Mine\"\nssh = { user = \"user\" }";
    let text = CHAIN.replacen("image = \"i\"", login, 1) + "memory = \"4GiB\"\n";
    let host = with_guests(&text);
    let budget = budget(&host, &machine(4, 16));
    let l1 = &budget.guests[0];
    assert_eq!(l1.cpus.value, Constraint::AtMost { most: Cpus::new(3).expect("not zero") });
    assert_eq!(
        l1.memory.value,
        Constraint::AtLeast { least: Mebibytes::new(4864).expect("not zero") }
    );
    assert!(l1.memory.why.contains("its guests need 4GiB"), "{}", l1.memory.why);
    let view = &budget.view(&host)[0];
    assert_eq!(view.kept["cpus"], "3 or fewer");
    assert_eq!(view.kept["memory_mib"], "4864MiB or more");

    let given = with_guests(&text.replacen("vm =", "cpus = 2\nmemory = \"8GiB\"\nvm =", 1));
    let l1 = &self::budget(&given, &machine(4, 16)).guests[0];
    assert_eq!(l1.cpus.value, Constraint::Exactly(Cpus::new(2).expect("not zero")));
    assert_eq!(l1.memory.value, Constraint::Exactly(Mebibytes::gib(8)));
}

#[test]
fn nesting_comes_with_guests_or_by_the_recipe_s_word() {
    let budget = budget(&with_guests(&format!("{CHAIN}nested = true\n")), &machine(4, 16));
    let (l1, l2) = (&budget.guests[0].nested, &budget.guests[1].nested);
    assert_eq!((l1.value, l1.given), (true, false));
    assert_eq!((l2.value, l2.given), (true, true));
}

#[test]
fn guest_additions_that_qemu_cannot_see_give_way_to_the_screen() {
    let image = ImageDefaults {
        ready: Some(Readiness::GuestAdditions),
        ssh: false,
        ..ImageDefaults::default()
    };
    let chain = CHAIN.replace("virtualbox", "qemu");
    let budget = derive(&with_guests(&chain), &machine(4, 16), &offers("l2", image)).expect("fits");
    assert_eq!(budget.guests[1].ready.value, Readiness::Screen);
}

#[test]
fn a_guest_that_nestlab_cannot_enter_cannot_be_a_host_or_get_packages() {
    let closed = ImageDefaults { ssh: false, ..ImageDefaults::default() };
    let error = refused(&with_guests(CHAIN), &machine(4, 16), &offers("l1", closed.clone()));
    assert!(
        error.report().contains("a hypervisor cannot be installed in l1"),
        "{}",
        error.report()
    );
    let packages = format!("{CHAIN}packages = [\"htop\"]\n");
    let error = refused(&with_guests(&packages), &machine(4, 16), &offers("l2", closed.clone()));
    assert!(error.report().contains("packages cannot be installed in l2"), "{}", error.report());
    let login = format!("{packages}ssh = {{ user = \"user\" }}\n");
    assert!(derive(&with_guests(&login), &machine(4, 16), &offers("l2", closed)).is_ok());
}

#[test]
fn serial_readiness_needs_a_line_to_look_for() {
    let serial = format!("{CHAIN}ready = \"serial\"\n");
    let error = refused(&with_guests(&serial), &machine(4, 16), &BTreeMap::new());
    assert!(error.report().contains("serial-pattern = \"login:\""), "{}", error.report());
    let ready = Readiness::Serial { pattern: "ready".to_owned() };
    let image = ImageDefaults { ready: Some(ready.clone()), ..ImageDefaults::default() };
    let budget =
        derive(&with_guests(&serial), &machine(4, 16), &offers("l2", image)).expect("fits");
    assert_eq!(budget.guests[1].ready.value, ready);
}

#[test]
fn a_disk_smaller_than_its_image_or_its_guests_is_refused() {
    let image = ImageDefaults { disk: Some(Mebibytes::gib(100)), ..ImageDefaults::default() };
    let small = format!("{CHAIN}disk = \"40GiB\"\n");
    let error = refused(&with_guests(&small), &machine(4, 16), &offers("l2", image));
    assert!(error.report().contains("`disk = \"100GiB\"` or more"), "{}", error.report());
    let image = ImageDefaults { room: Some(Mebibytes::gib(30)), ..ImageDefaults::default() };
    let small = CHAIN.replacen("image", "disk = \"20GiB\"\nimage", 1);
    let error = refused(&with_guests(&small), &machine(4, 16), &offers("l2", image.clone()));
    assert!(error.message().contains("l1 and its guests take 35GiB"), "{}", error.message());
    let mut full = machine(4, 16);
    full.free_disk = Some(Mebibytes::gib(20));
    let error = refused(&with_guests(CHAIN), &full, &offers("l2", image));
    assert_eq!(error.kind(), Kind::HostCannot);
    assert!(error.message().contains("L0 has 20GiB free"), "{}", error.message());
}

#[test]
fn subnets_begin_with_the_default_and_avoid_l0_s_networks() {
    let subnets = |networks: &[(&str, u8)]| -> Vec<String> {
        let mut host = machine(4, 16);
        host.networks = networks
            .iter()
            .map(|(address, prefix)| Ipv4Network {
                address: address.parse().expect("an address"),
                prefix: *prefix,
            })
            .collect();
        let budget = budget(&with_guests(CHAIN), &host);
        budget.guests.iter().map(|guest| guest.subnet.value.to_string()).collect()
    };
    assert_eq!(subnets(&[("0.0.0.0", 0), ("192.168.1.7", 24)]), ["10.0.2.0/24", "10.0.3.0/24"]);
    assert_eq!(subnets(&[("10.0.2.15", 24)]), ["10.0.3.0/24", "10.0.4.0/24"]);
    assert_eq!(subnets(&[("10.0.3.99", 32)]), ["10.0.2.0/24", "10.0.4.0/24"]);
    assert_eq!(subnets(&[("10.20.0.1", 8)]), ["172.30.1.0/24", "172.30.2.0/24"]);
    assert_eq!(subnets(&[("10.0.0.1", 8), ("172.16.0.1", 12)])[0], "192.168.100.0/24");
}

#[test]
fn guests_of_one_network_have_addresses_in_a_subnet_that_no_nat_around_them_has() {
    let guests = "[[guest]]\nname = \"l1\"\nimage = \"i\"\nhypervisor = \"qemu\"\n\
                  [[guest]]\nname = \"a\"\nimage = \"i\"\nnetworks = [\"lan\", \"dmz\"]\n\
                  [[guest]]\nname = \"foreign\"\nparent = \"l1\"\nimage = \"i\"\nnetworks = [\"lan\"]\n\
                  [[guest]]\nname = \"b\"\nparent = \"l1\"\nimage = \"i\"\nnetworks = [\"dmz\", \"lan\"]\n";
    let recipe = with_guests(guests);
    let own = ImageDefaults { seeded: true, ..ImageDefaults::default() };
    let images: BTreeMap<GuestName, ImageDefaults> =
        ["a", "b"].map(|guest| (guest.parse().expect("a name"), own.clone())).into();
    let budget = derive(&recipe, &machine(4, 16), &images).expect("a budget");
    let links = |guest: usize| -> Vec<String> {
        let links = budget.guests[guest].links.iter();
        links.map(|link| format!("{} {} {}", link.network, link.subnet, link.address)).collect()
    };
    assert_eq!(links(1), ["lan 10.0.14.0/24 10.0.14.1", "dmz 10.0.15.0/24 10.0.15.1"]);
    assert_eq!(links(2), Vec::<String>::new(), "its image takes no address");
    assert_eq!(links(3), ["dmz 10.0.15.0/24 10.0.15.2", "lan 10.0.14.0/24 10.0.14.2"]);
    let view = budget.view(&recipe);
    assert_eq!(view[3].addresses["lan"], "10.0.14.2/24");
    assert!(budget.guests.iter().all(|guest| {
        let mut all = budget.guests.iter().flat_map(|other| &other.links);
        all.all(|link| link.subnet != guest.subnet.value)
    }));
}

#[test]
fn a_host_key_that_the_level_around_takes_is_refused() {
    let given = CHAIN.replacen("image", "host-key = \"Right Ctrl\"\nimage", 1);
    let error = refused(&with_guests(&given), &machine(4, 16), &BTreeMap::new());
    assert!(error.report().contains("L0, around it, takes `Right Ctrl`"), "{}", error.report());
    let mut host = machine(4, 16);
    host.host_key = Some("F12".parse().expect("a key"));
    assert_eq!(
        budget(&with_guests(&given), &host).guests[0].host_key.as_ref().map(|k| k.given),
        Some(true)
    );
}

#[test]
fn a_derived_host_key_leaves_those_of_deeper_guests_alone() {
    let guests = "[[guest]]\nname = \"l1\"\nimage = \"i\"\nhypervisor = \"virtualbox\"\n\
                  [[guest]]\nname = \"l2\"\nimage = \"i\"\nhypervisor = \"virtualbox\"\nhost-key = \"F12\"\n";
    let budget = budget(&with_guests(guests), &machine(8, 32));
    let key = |index: usize| {
        budget.guests[index].host_key.as_ref().map(|key| key.value.to_string()).unwrap_or_default()
    };
    assert_eq!((key(0).as_str(), key(1).as_str()), ("F11", "F12"));
}

#[test]
fn each_of_three_levels_of_virtualbox_has_a_key_of_its_own() {
    let given = CHAIN.replace("name = \"l2\"", "name = \"l2\"\nhypervisor = \"virtualbox\"")
        + "[[guest]]\nname = \"l3\"\nimage = \"i\"\nhost-key = \"F9\"\nhypervisor = \"virtualbox\"\n\
           [[guest]]\nname = \"l4\"\nimage = \"i\"\n";
    let recipe = with_guests(&given);
    let ways = budget(&recipe, &machine(16, 64)).host_key_bindings(&recipe);
    let told: Vec<(&str, &str, Vec<&str>)> = ways
        .iter()
        .map(|way| {
            let leaves = way.leaves.iter().map(String::as_str).collect();
            (way.host.as_str(), way.key.as_str(), leaves)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("L0", "Right Ctrl", vec!["l1"]),
            ("l1", "F12", vec!["l2"]),
            ("l2", "F11", vec!["l3"]),
            ("l3", "F9", vec!["l4"]),
        ]
    );
}

#[test]
fn a_mac_s_host_key_counts_by_its_physical_key() {
    let mut host = machine(4, 16);
    host.platform = Platform::MacOs;
    host.host_key = HostKey::from_codes(None, Platform::MacOs).expect("the default");
    let given = CHAIN.replacen("image", "host-key = \"Left Win\"\nimage", 1);
    let error = refused(&with_guests(&given), &host, &BTreeMap::new());
    assert!(error.report().contains("cannot be left"), "{}", error.report());
}

#[test]
fn the_json_view_tells_why_of_what_was_derived_and_of_nothing_else() {
    let recipe = with_guests(&format!("{CHAIN}cpus = 1\n"));
    let views = budget(&recipe, &machine(4, 16)).view(&recipe);
    assert_eq!(views[0].parent, "L0");
    assert!(views[0].derived.contains_key("cpus") && !views[1].derived.contains_key("cpus"));
    let json = serde_json::to_value(&views[1]).expect("serializes");
    for field in ["name", "level", "parent", "hypervisor", "cpus", "memory_mib", "image", "derived"]
    {
        assert!(json.get(field).is_some(), "{field}, which the design settles, is missing");
    }
}

/// What a random guest asks for.
#[derive(Debug, Clone)]
struct Wish {
    parent: prop::sample::Index,
    cpus: Option<u32>,
    memory: Option<u64>,
    disk: Option<u64>,
    overcommit: bool,
    virtualbox: bool,
    host_key: Option<&'static str>,
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let key =
        prop::sample::select(vec!["Right Ctrl", "F12", "F11", "Menu", "Left Ctrl + Left Alt"]);
    let wish =
        (
            any::<prop::sample::Index>(),
            prop::option::weighted(0.3, 1u32..9),
            prop::option::weighted(0.3, 64u64..20_000),
            prop::option::weighted(0.2, 1_000u64..200_000),
            prop::bool::weighted(0.2),
            any::<bool>(),
            prop::option::weighted(0.2, key),
        )
            .prop_map(|(parent, cpus, memory, disk, overcommit, virtualbox, host_key)| {
                Wish { parent, cpus, memory, disk, overcommit, virtualbox, host_key }
            });
    prop::collection::vec(wish, 1..9)
}

fn hosts() -> impl Strategy<Value = Resources> {
    let network = (any::<u32>(), 0u8..=32, any::<bool>()).prop_map(|(bits, prefix, ten)| {
        let address = if ten { 0x0a00_0000 | (bits & 0x0000_ffff) } else { bits };
        Ipv4Network { address: address.into(), prefix }
    });
    let key = prop::option::of(prop::sample::select(vec!["Right Ctrl", "F12", "Left Win"]));
    (
        1u32..65,
        1u64..200_000,
        prop::option::of(1u64..1_000_000),
        prop::collection::vec(network, 0..6),
        any::<bool>(),
        key,
    )
        .prop_map(|(cores, memory, disk, networks, virtualbox, key)| Resources {
            cores: Cpus::new(cores).expect("not zero"),
            memory: Mebibytes::new(memory).expect("not zero"),
            free_disk: disk.and_then(Mebibytes::new),
            networks,
            hypervisor: if virtualbox { HypervisorKind::VirtualBox } else { HypervisorKind::Qemu },
            platform: Platform::Linux,
            host_key: key.filter(|_| virtualbox).map(|key| key.parse().expect("a key")),
        })
}

/// Writes `wishes` as a recipe: guest `gN`'s parent is L0 or one before it.
fn written(wishes: &[Wish], bare: bool) -> String {
    let parents: Vec<usize> =
        wishes.iter().enumerate().map(|(at, wish)| wish.parent.index(at + 1)).collect();
    let mut text = "schema = 1\nname = \"lab\"\n".to_owned();
    for (at, wish) in wishes.iter().enumerate() {
        let parent = match parents[at] {
            0 => "L0".to_owned(),
            above => format!("g{}", above - 1),
        };
        let _ = write!(text, "[[guest]]\nname = \"g{at}\"\nparent = \"{parent}\"\nimage = \"i\"\n");
        let hosts = parents.contains(&(at + 1));
        if hosts {
            let word = if wish.virtualbox { "virtualbox" } else { "qemu" };
            let _ = writeln!(text, "hypervisor = \"{word}\"");
        }
        if bare {
            continue;
        }
        for (key, value) in [
            ("cpus", wish.cpus.map(|cpus| cpus.to_string())),
            ("memory", wish.memory.map(|mib| format!("\"{mib}MiB\""))),
            ("disk", wish.disk.map(|mib| format!("\"{mib}MiB\""))),
            ("overcommit", wish.overcommit.then(|| "true".to_owned())),
            (
                "host-key",
                wish.host_key.filter(|_| hosts && wish.virtualbox).map(|k| format!("\"{k}\"")),
            ),
        ] {
            if let Some(value) = value {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
    }
    text
}

/// Returns whether `network` and `subnet`, a /24, have an address in common. A default route is no network
/// to avoid.
fn share_addresses(network: &Ipv4Network, subnet: Subnet) -> bool {
    let prefix = u32::from(network.prefix.min(24));
    let beyond = 32 - prefix;
    prefix > 0 && u32::from(network.address) >> beyond == u32::from(subnet.address(0)) >> beyond
}

/// Checks every rule of the design on a budget that came out, without the code that made it.
fn keeps_every_rule(
    recipe: &Recipe,
    host: &Resources,
    budget: &Budget,
) -> Result<(), TestCaseError> {
    let of = |name: &GuestName| budget.guest(name).expect("every guest has one");
    for guest in recipe.guests() {
        let own = of(&guest.name.value);
        let parent = guest.parent.as_ref().map(&of);
        let around = parent.map_or(host.cores, cpus);
        let most = (around.get() - 1).max(1);
        prop_assert!(cpus(own).get() <= most || guest.overcommit, "{}: CPUs", own.name);
        prop_assert_eq!(own.cpus.given, guest.cpus.is_some());
        if guest.cpus.is_none() && parent.is_some() {
            prop_assert_eq!(cpus(own).get(), 1);
        }
        let ancestors: Vec<_> = recipe.ancestors(guest).map(|a| of(&a.name.value)).collect();
        for network in &host.networks {
            prop_assert!(!share_addresses(network, own.subnet.value), "{}: subnet", own.name);
        }
        for ancestor in &ancestors {
            prop_assert_ne!(ancestor.subnet.value, own.subnet.value);
        }
        if let Some(key) = &own.host_key {
            let above =
                ancestors.iter().filter_map(|a| a.host_key.as_ref()).chain(&budget.host_key);
            for other in above {
                prop_assert!(!key.value.clashes_with(&other.value), "{}: Host Key", own.name);
            }
        }
        prop_assert_eq!(
            own.nested.value,
            recipe.children(Some(&guest.name.value)).next().is_some()
        );
        prop_assert_eq!(
            own.nested.value && own.hypervisor == Some(HypervisorKind::VirtualBox),
            own.host_key.is_some()
        );
    }
    let hosts = recipe.guests().iter().map(|g| (Some(&g.name.value), memory(of(&g.name.value))));
    for (parent, total) in hosts.chain([(None, host.memory)]) {
        let wanted: u64 = recipe.children(parent).map(|g| memory(of(&g.name.value)).get()).sum();
        // Its own system keeps an eighth, at least 512 MiB; more than 2 GiB it does not need.
        let kept = total.get().saturating_sub(wanted);
        let keeps_enough = kept >= 2048 || (kept >= 512 && kept * 8 + 7 >= total.get());
        prop_assert!(wanted == 0 || keeps_enough, "{parent:?}: {wanted} of {total}");
    }
    Ok(())
}

#[test]
fn a_hosts_own_system_keeps_an_eighth_of_its_memory_within_limits() {
    for (total, kept) in [(1024, 512), (4096, 512), (8192, 1024), (12_288, 1536), (65_536, 2048)] {
        let total = Mebibytes::new(total).expect("not zero");
        assert_eq!(reserve(total).get(), kept, "of {total}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_budget_that_comes_out_breaks_a_rule(wishes in wishes(), host in hosts()) {
        let text = written(&wishes, false);
        let recipe = Recipe::parse(&text, RecipeOrigin::Shipped)
            .map_err(|error| TestCaseError::fail(error.report()))?;
        match derive(&recipe, &host, &BTreeMap::new()) {
            Ok(budget) => keeps_every_rule(&recipe, &host, &budget)?,
            Err(error) => {
                prop_assert!(matches!(error.kind(), Kind::Recipe | Kind::HostCannot));
                prop_assert!(!error.problems().is_empty());
            }
        }
    }

    #[test]
    fn a_recipe_that_leaves_everything_out_fits_any_machine_that_is_large_enough(wishes in wishes(), host in hosts()) {
        let recipe = Recipe::parse(&written(&wishes, true), RecipeOrigin::Shipped)
            .map_err(|error| TestCaseError::fail(error.report()))?;
        let large = Resources {
            memory: Mebibytes::gib(1024),
            free_disk: None,
            networks: vec![Ipv4Network { address: [10, 0, 2, 15].into(), prefix: 24 }],
            ..host
        };
        let budget = derive(&recipe, &large, &BTreeMap::new())
            .map_err(|error| TestCaseError::fail(error.report()))?;
        keeps_every_rule(&recipe, &large, &budget)?;
    }
}

/// What the guests of a lab with this budget were built with.
fn built(budget: &Budget, old: &Recipe, new: &Recipe) -> SettledValues {
    let guests = budget.guests.iter().map(|guest| {
        let address = |link: &Link| (link.network.clone(), link.address);
        let kept = SettledGuest {
            cpus: Some(guest.cpus.value),
            memory: Some(guest.memory.value),
            subnet: Some(guest.subnet.value),
            addresses: guest.links.iter().map(address).collect(),
        };
        (guest.name.clone(), kept)
    });
    SettledValues::of(guests, Some(old), new)
}

#[test]
fn a_lab_that_was_built_stays_as_it_is_whatever_l0_looks_like_now() {
    let lan = "[[guest]]\nname = \"a\"\nparent = \"l1\"\nimage = \"i\"\nnetworks = [\"lan\"]\n";
    let recipe = with_guests(&format!("{CHAIN}{lan}{}", lan.replace("\"a\"", "\"b\"")));
    let seeded = ImageDefaults { seeded: true, ..ImageDefaults::default() };
    let images: BTreeMap<GuestName, ImageDefaults> =
        ["a", "b"].map(|name| (name.parse().expect("a name"), seeded.clone())).into();
    let mut host = machine(8, 32);
    let before = derive(&recipe, &host, &images).expect("it fits");
    host.cores = Cpus::new(4).expect("not zero");
    host.networks = vec![Ipv4Network { address: Ipv4Addr::new(10, 0, 0, 0), prefix: 8 }];
    let larger = ImageDefaults { memory: Some(Mebibytes::gib(2)), ..seeded };
    let images: BTreeMap<GuestName, ImageDefaults> =
        ["a", "b"].map(|name| (name.parse().expect("a name"), larger.clone())).into();
    let kept = built(&before, &recipe, &recipe);
    let after = derive_for(&recipe, &host, &images, &kept).expect("it stays");
    for (before, after) in before.guests.iter().zip(&after.guests) {
        assert_eq!(before.cpus.value, after.cpus.value, "{}", before.name);
        assert_eq!(before.memory.value, after.memory.value, "{}", before.name);
        assert_eq!(before.subnet.value, after.subnet.value, "{}", before.name);
        assert_eq!(before.links, after.links, "{}", before.name);
    }
    let anew = derive(&recipe, &host, &images).expect("it fits");
    assert_ne!(anew.guests[0].subnet.value, before.guests[0].subnet.value, "L0 did not change");
}

#[test]
fn what_the_recipe_says_otherwise_is_derived_anew_and_the_rest_stays() {
    let with = |words: &str| with_guests(&CHAIN.replacen("image", &format!("{words}image"), 1));
    let (old, new) = (with("cpus = 3\nmemory = \"8GiB\"\n"), with(""));
    let before = budget(&old, &machine(8, 32));
    let kept = built(&before, &old, &new);
    let derive = |recipe: &Recipe, kept: &SettledValues| {
        derive_for(recipe, &machine(8, 32), &BTreeMap::new(), kept).expect("it fits")
    };
    let after = derive(&new, &kept);
    assert_eq!(after.guests[0], budget(&new, &machine(8, 32)).guests[0].clone().kept_subnet());
    let given = derive(&old, &built(&before, &old, &old));
    assert_eq!(cpus(&given.guests[0]), Cpus::new(3).expect("not zero"));
    assert!(given.guests[0].cpus.given, "the recipe says so still");
}

impl GuestBudget {
    /// Returns it with the reason that a subnet has which stays.
    fn kept_subnet(mut self) -> Self {
        self.subnet.why = "as the lab was built".to_owned();
        self
    }
}

#[test]
fn a_guest_that_is_new_in_a_lab_gets_what_no_other_has() {
    let old = with_guests(CHAIN);
    let more = "[[guest]]\nname = \"l3\"\nparent = \"l2\"\nimage = \"i\"\n";
    let nests = CHAIN.replacen("name = \"l2\"", "name = \"l2\"\nhypervisor = \"virtualbox\"", 1);
    let new = with_guests(&format!("{nests}{more}"));
    let mut host = machine(8, 32);
    // Without these the third level's would be what the second one got.
    host.networks = vec![Ipv4Network { address: Ipv4Addr::new(10, 0, 2, 0), prefix: 24 }];
    let before = budget(&old, &host);
    host.networks = Vec::new();
    let kept = built(&before, &old, &new);
    let after = derive_for(&new, &host, &BTreeMap::new(), &kept).expect("it fits");
    let subnets: Vec<Subnet> = after.guests.iter().map(|guest| guest.subnet.value).collect();
    assert_eq!(subnets[..2], [before.guests[0].subnet.value, before.guests[1].subnet.value]);
    assert!(!subnets[..2].contains(&subnets[2]), "{subnets:?}");
}
