//! What `up` may do with what is there (docs/up.md): kept, restarted or replaced, on real guests of one boot
//! sector in QEMU, and in the native VBoxManage, through the program as a user runs it.

mod bench;
mod keeping;
mod nesting;
mod replacing;
mod restarting;
mod virtualbox;
