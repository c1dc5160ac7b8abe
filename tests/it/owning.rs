//! What belongs to whom, and taking it away: by the real binary, over the real QEMU and VBoxManage.

mod adopted;
mod asking;
mod leavings;
mod orphans;
mod recipes;
mod runners;
mod user;
