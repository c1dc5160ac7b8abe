//! Networks and ports, and, only when asked, whether mirrors and image hosts can be reached.

use std::time::Duration;

use super::{not_applicable, resources};
use crate::host::{Host, StreamAddress, facts};
use crate::hypervisor::virtualbox;
use crate::preflight::host_files::HostFiles;
use crate::preflight::host_report::HostReport;
use crate::preflight::needs::{Destination, Needs};
use crate::preflight::{Finding, Verdict};
use crate::recipe::budget::{self, Ipv4Network, Resources};
use crate::recipe::{Guest, HypervisorKind};

const ROUTES: &str = "/proc/net/route";

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

pub(super) fn subnets(look: &HostReport, needs: &Needs) -> Finding {
    let id = "subnets";
    let source = ROUTES;
    let networks = networks(&look.survey);
    let Some(demand) = &needs.recipe else {
        let plural = if networks.len() == 1 { "" } else { "s" };
        let found = format!("{} network{plural} here", networks.len());
        return Finding::new(id, Verdict::Ok, found).from(source);
    };
    let resources = Resources { networks, ..resources::abundant(needs) };
    match budget::derive(&demand.recipe, &resources, &demand.images) {
        Ok(budget) => {
            let guests = budget.guests.iter();
            let guests: Vec<_> =
                guests.map(|guest| format!("{} {}", guest.name, guest.subnet.value)).collect();
            Finding::new(id, Verdict::Ok, guests.join(", ")).from(source)
        }
        Err(error) => Finding::new(id, Verdict::Fail, error.message()).from(source).remedy(
            "10.0.0.0/8 is taken by the networks around; leave a /24 of it free, or use another machine",
        ),
    }
}

pub(super) fn loopback(look: &HostReport, needs: &Needs) -> Finding {
    let id = "host-loopback";
    let source = "the recipe's mirror and proxy";
    let Some(demand) = &needs.recipe else { return not_applicable(id, "no recipe") };
    let recipe = &demand.recipe;
    if let Some(Ok(probe)) = look.probe(HypervisorKind::VirtualBox)
        && needs.requires(HypervisorKind::VirtualBox)
        && !virtualbox::closes_loopback(&probe.version)
        && recipe.children(None).any(|guest| !guest.reach_host && !guest.is_existing())
    {
        let found = format!("guests of VirtualBox {} reach services on it", probe.version);
        return Finding::new(id, Verdict::Warn, found)
            .from("VBoxManage --version")
            .remedy("VirtualBox can keep them from it from 7.0 on; stop what must not be reached");
    }
    let mirror = recipe.mirror.as_ref().is_some_and(|mirror| is_loopback(mirror.as_url()));
    let proxy = recipe.proxy.as_ref().is_some_and(|proxy| is_loopback(proxy.as_url()));
    let installs = |guest: &&Guest| guest.hypervisor.is_some() || !guest.packages.is_empty();
    let without: Vec<_> = recipe
        .guests()
        .iter()
        .filter(installs)
        .filter(|guest| !(guest.is_existing() || guest.level == 1 && guest.reach_host))
        .map(|guest| guest.name.as_str())
        .collect();
    if without.is_empty() || !(mirror || proxy) {
        return Finding::new(id, Verdict::Ok, "no guest needs what is on it").from(source);
    }
    let (what, who) = (if mirror { "mirror" } else { "proxy" }, without.join(", "));
    let finding = Finding::new(
        id,
        Verdict::Warn,
        format!(
            "the {what} is on the loopback of the machine that nestlab runs on: {who} cannot use it"
        ),
    );
    finding.from(source).remedy(if mirror {
        "name the mirror by an address that guests reach, too; with `reach-host = true` a guest of L0 reaches the loopback at its gateway's address, `10.0.2.2` or the like"
    } else {
        "nestlab's own downloads go through it, and what guests install does not. Nothing to do if that is what is wanted"
    })
}

/// Returns whether `url` leads to the machine that looks it up.
fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        // An address is a name to `url` in what is not http, such as socks5.
        Some(url::Host::Domain(name)) => match name.parse::<std::net::IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => name == "localhost" || name.ends_with(".localhost"),
        },
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

pub(super) fn ports(look: &HostReport, _needs: &Needs) -> Finding {
    let id = "ports";
    let source = "/proc/net/tcp";
    let Some(table) = look.survey.text(source) else {
        return not_applicable(id, "the kernel does not tell").from(source);
    };
    // Column 4 is the state; 0A is LISTEN (include/net/tcp_states.h).
    let listening =
        table.lines().skip(1).filter(|line| line.split_whitespace().nth(3) == Some("0A")).count();
    Finding::new(id, Verdict::Ok, format!("{listening} in use; each forward takes a free one"))
        .from(source)
}

/// Tries to reach what `needs` asks for.
pub(in crate::preflight) async fn reach(host: &dyn Host, needs: &Needs) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Destination { host: name, port } in &needs.reach {
        let address = StreamAddress::Tcp(name.clone(), *port);
        let source = format!("a connection to {address}");
        let failed = match tokio::time::timeout(CONNECT, host.open_stream(&address)).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.message().to_owned()),
            Err(_) => Some(format!("no answer within {} s", CONNECT.as_secs())),
        };
        findings.push(match failed {
            None => Finding::new("reachable", Verdict::Ok, format!("{name} answers")).from(source),
            Some(why) => Finding::new("reachable", Verdict::Warn, format!("{name}: {why}"))
                .from(source)
                .remedy("look at the network, at the proxy (`proxy` in the recipe) and at the name servers"),
        });
    }
    findings
}

/// Returns the networks that the host is in or routes to, without the default route.
fn networks(survey: &HostFiles) -> Vec<Ipv4Network> {
    let routes = survey.text(ROUTES).unwrap_or_default();
    let network =
        |found: facts::HostNetwork| Ipv4Network { address: found.address, prefix: found.prefix };
    facts::networks(&routes).into_iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Recipe, RecipeOrigin};

    fn told(top: &str, guest: &str) -> Finding {
        let text = format!(
            "schema = 1\nname = \"x\"\n{top}\n[[guest]]\nname = \"l1\"\nimage = \"debian-sid\"\n{guest}\n"
        );
        let recipe = Recipe::parse(&text, RecipeOrigin::Shipped).expect("a recipe");
        let look = HostReport::of(HostFiles::of(&[]), &[]);
        loopback(&look, &Needs::of_l0(&recipe, Default::default(), "/"))
    }

    #[test]
    fn a_mirror_or_a_proxy_that_guests_do_not_reach_is_told() {
        let packages = "packages = [\"htop\"]";
        for mirror in
            ["http://127.0.0.1:3142/debian", "http://localhost/debian", "http://[::1]/debian"]
        {
            let finding = told(&format!("mirror = \"{mirror}\""), packages);
            assert_eq!(finding.verdict, Verdict::Warn, "{mirror}");
            assert!(finding.remedy.expect("explained").contains("reach-host"), "{mirror}");
        }
        let tor = "proxy = \"socks5h://127.0.0.1:9050\"";
        assert_eq!(told(tor, packages).verdict, Verdict::Warn);
        for (top, guest) in [
            ("mirror = \"http://192.168.1.5/debian\"", packages),
            (tor, ""),
            (tor, "packages = [\"htop\"]\nreach-host = true"),
        ] {
            assert_eq!(told(top, guest).verdict, Verdict::Ok, "{top} {guest}");
        }
    }
}
