//! Networks and ports, and, only when asked, whether mirrors and image hosts can be reached.

use std::time::Duration;

use super::{not_applicable, resources};
use crate::host::{Host, StreamAddress, facts};
use crate::preflight::look::Look;
use crate::preflight::needs::{Destination, Needs};
use crate::preflight::survey::Survey;
use crate::preflight::{Finding, Verdict};
use crate::recipe::budget::{self, Network, Resources};

const ROUTES: &str = "/proc/net/route";

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

pub(super) fn subnets(look: &Look, needs: &Needs) -> Finding {
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

pub(super) fn ports(look: &Look, _needs: &Needs) -> Finding {
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
fn networks(survey: &Survey) -> Vec<Network> {
    let routes = survey.text(ROUTES).unwrap_or_default();
    let network = |found: facts::Network| Network { address: found.address, prefix: found.prefix };
    facts::networks(&routes).into_iter().map(network).collect()
}
