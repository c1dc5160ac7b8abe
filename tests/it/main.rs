//! Every test of nestlab from outside, in one program: what they share is compiled and linked once.
#![allow(unreachable_pub, reason = "a test program has no outside")]

mod build_images;
mod chain;
mod chain_kvm;
mod cli;
mod doctor;
mod engine_faults;
mod full;
mod guest_apt;
mod hostile;
mod image_attacks;
mod image_differential;
mod image_fetch;
mod lab;
mod old_state;
mod owning;
mod plan_bench;
mod qemu_driver;
mod ssh_host;
mod support;
mod up_contract;
mod virtualbox_native;
