//! The networks that guests of one host share: what the hypervisor calls them, and what each guest is told
//! of its place in them.

use super::blueprint::GuestResolver;
use crate::hypervisor::GuestSpec;
use crate::hypervisor::spec::mac;
use crate::image::build::seed;
use crate::recipe::NetworkName;
use crate::recipe::budget::GuestBudget;

impl GuestResolver<'_> {
    /// Returns the guest's place in the networks that it shares.
    pub(super) fn network(&self, spec: &GuestSpec) -> seed::SeedNetwork {
        let mut place = seed::SeedNetwork::default();
        for link in &self.values.links {
            place.cards.push(seed::Card {
                network: link.network.to_string(),
                mac: mac(spec.uuid(), &self.name_of(&link.network)),
                address: link.address,
            });
            let others = self.sharing(&link.network);
            for other in others.filter(|other| other.name != self.values.name) {
                let its = other.links.iter().find(|its| its.network == link.network);
                let known = place.neighbours.iter().any(|neighbour| neighbour.name == other.name);
                if let Some(its) = its.filter(|_| !known) {
                    let (name, address) = (other.name.clone(), its.address);
                    place.neighbours.push(seed::Neighbour { name, address });
                }
            }
        }
        place
    }

    /// Returns the guests that share `network` with this one, itself included.
    fn sharing<'a>(&'a self, network: &'a NetworkName) -> impl Iterator<Item = &'a GuestBudget> {
        let guests = self.recipe.guests().iter().zip(&self.budget.guests);
        let beside = guests.filter(|(guest, _)| guest.parent == self.guest.parent);
        beside.filter(|(guest, _)| guest.networks.contains(network)).map(|(_, values)| values)
    }

    /// Returns what the hypervisor calls `network`: the lab's own name for it, unless a guest is in it
    /// whose image may expect the recipe's, as Whonix does.
    pub(super) fn name_of(&self, network: &NetworkName) -> String {
        let own = |values: &GuestBudget| values.links.iter().any(|link| link.network == *network);
        if self.sharing(network).all(own) {
            format!("{}-{network}", self.prefix())
        } else {
            network.to_string()
        }
    }
}
