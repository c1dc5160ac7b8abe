//! What belongs to whom, and taking it away: by the real binary, over the real QEMU and VBoxManage.

mod asking;
mod leavings;
mod user;
