//! Subnets: a guest's NAT network differs from every network on the way to the world, since two with
//! the same addresses on one path break routing. Guests beside each other may have the same one: their
//! NATs do not meet. A network that guests of one host share has a subnet of its own, and each of its
//! guests an address in it: there is no DHCP server.

use std::net::Ipv4Addr;

use super::{Derived, Ipv4Network, Limit, Link, Resolver, SettledValues};
use crate::recipe::MAX_LEVEL;
use crate::recipe::keywords::Subnet;
use crate::recipe::model::Guest;
use crate::recipe::units::{GuestName, NetworkName};

impl Ipv4Network {
    /// Returns whether the two share addresses. A network of everything is a default route, which is
    /// no network to avoid.
    pub fn overlaps(self, subnet: Subnet) -> bool {
        let bits = self.prefix.min(24);
        if bits == 0 {
            return false;
        }
        let mask = u32::MAX << (32 - u32::from(bits));
        u32::from(self.address) & mask == u32::from(subnet.address(0)) & mask
    }
}

/// Subnets in the order in which they are tried: the hypervisors' own default first, then its
/// neighbours, then other private ranges (RFC 1918) for machines whose network is all of 10.0.0.0/8;
/// 192.168.56.0/21 is left to VirtualBox's host-only networks.
fn candidates() -> impl Iterator<Item = Subnet> {
    let ten = (2..=254).map(|c| Subnet::new(10, 0, c));
    let other = (1..=254).map(|c| Subnet::new(172, 30, c));
    let home = (100..=254).map(|c| Subnet::new(192, 168, c));
    ten.chain(other).chain(home)
}

/// Returns the subnets that no network of L0 overlaps, and that no guest was built with, in order.
fn free<'a>(work: &Resolver<'a>) -> impl Iterator<Item = Subnet> + use<'a> {
    let (networks, kept) = (&work.host.networks, work.kept);
    candidates()
        .filter(|subnet| !networks.iter().any(|network| network.overlaps(*subnet)))
        .filter(|subnet| !is_kept(kept, *subnet))
}

fn is_kept(kept: &SettledValues, subnet: Subnet) -> bool {
    kept.guests().any(|guest| {
        let within = |address: &Ipv4Addr| of_address(*address) == subnet;
        guest.subnet == Some(subnet) || guest.addresses.values().any(within)
    })
}

/// Returns the subnet of a guest's address.
fn of_address(address: Ipv4Addr) -> Subnet {
    let [a, b, c, _] = address.octets();
    Subnet::new(a, b, c)
}

pub(super) fn derive(work: &mut Resolver<'_>) -> Vec<Derived<Subnet>> {
    let free: Vec<Subnet> = free(work).take(MAX_LEVEL as usize).collect();
    let default = candidates().next();
    let guests = work.recipe.guests();
    let mut derived = Vec::new();
    for guest in guests {
        let index = guest.level as usize - 1;
        if let Some(kept) = work.kept(guest).subnet {
            derived.push(Derived::because(kept, "as the lab was built"));
            continue;
        }
        let Some(&subnet) = free.get(index) else {
            let message = "L0's networks leave no private subnet for this guest";
            work.refuse(
                guest.name.span(),
                Limit::Host,
                message,
                "disconnect a VPN that routes all",
            );
            derived.push(Derived::because(Subnet::new(10, 0, 2), message));
            continue;
        };
        let why = match index {
            0 if Some(subnet) == default => "the default, free on L0".to_owned(),
            0 => "free on L0".to_owned(),
            _ => "differs from every network around it".to_owned(),
        };
        derived.push(Derived::because(subnet, why));
    }
    derived
}

/// Returns each guest's addresses in the networks that it shares. Their subnets come behind those that a
/// NAT at any level may have, one for each network of each host, in the recipe's order; so do the
/// addresses, from 1. A guest whose image takes no address is left out.
pub(super) fn links(work: &mut Resolver<'_>) -> Vec<Vec<Link>> {
    let mut seen: Vec<(Option<&GuestName>, &NetworkName)> = Vec::new();
    let mut links = Vec::new();
    for guest in work.recipe.guests() {
        let mut links_of_guest = Vec::new();
        for network in &guest.networks {
            let key = (guest.parent.as_ref(), network);
            let index = seen.iter().position(|other| *other == key).unwrap_or_else(|| {
                seen.push(key);
                seen.len() - 1
            });
            if !work.image(guest).seeded {
                continue;
            }
            let built = addresses(work, guest, network);
            let subnet = match built.first() {
                Some(one) => Some(of_address(*one)),
                None => free(work).nth(MAX_LEVEL as usize + index),
            };
            let taken: Vec<u8> = built.iter().map(|address| address.octets()[3]).collect();
            let own = work.kept(guest).addresses.get(network).map(|address| address.octets()[3]);
            let last = own.or_else(|| {
                let from = place(work, guest, network)?;
                (from..255).chain(1..from).find(|last| !taken.contains(last))
            });
            let address = subnet.zip(last);
            let Some((subnet, last)) = address else {
                let message = format!("no private address is left for this guest on `{network}`");
                let help = "disconnect a VPN that routes all, or split the network";
                work.refuse(guest.name.span(), Limit::Host, message, help);
                continue;
            };
            let (network, address) = (network.clone(), subnet.address(last));
            links_of_guest.push(Link { network, subnet, address });
        }
        links.push(links_of_guest);
    }
    links
}

/// Returns the addresses that the guests of one host which share `network` with `guest` were built with.
fn addresses(work: &Resolver<'_>, guest: &Guest, network: &NetworkName) -> Vec<Ipv4Addr> {
    let beside = work.recipe.guests().iter().filter(|other| other.parent == guest.parent);
    beside.filter_map(|other| work.kept(other).addresses.get(network).copied()).collect()
}

/// Returns the guest's place, from 1, among those of its host that share `network`.
fn place(work: &Resolver<'_>, guest: &Guest, network: &NetworkName) -> Option<u8> {
    let mut sharing = work.recipe.guests().iter().filter(|other| {
        other.parent == guest.parent && other.networks.contains(network) && work.image(other).seeded
    });
    let before = sharing.position(|other| other.name.value == guest.name.value)?;
    u8::try_from(before + 1).ok().filter(|last| *last < 255)
}
