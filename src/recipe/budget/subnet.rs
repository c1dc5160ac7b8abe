//! Subnets: a guest's NAT network differs from every network on the way to the world, since two with
//! the same addresses on one path break routing. Guests beside each other may have the same one: their
//! NATs do not meet.

use super::{Derived, Limit, Network, Work};
use crate::recipe::words::Subnet;

impl Network {
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

pub(super) fn derive(work: &mut Work<'_>) -> Vec<Derived<Subnet>> {
    let networks = &work.host.networks;
    let free: Vec<Subnet> = candidates()
        .filter(|subnet| !networks.iter().any(|network| network.overlaps(*subnet)))
        .take(crate::recipe::MAX_LEVEL as usize)
        .collect();
    let default = candidates().next();
    let guests = work.recipe.guests();
    let mut derived = Vec::new();
    for guest in guests {
        let index = guest.level as usize - 1;
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
