//! The QEMU driver on the real QEMU, with guests of one boot sector, and with the appliance where two
//! guests have to talk.

mod appliances;
mod bench;
mod confining;
mod defining;
mod leaving;
mod loopback;
mod power;
mod probing;
mod reaching;
mod readiness;
mod snapshots;
