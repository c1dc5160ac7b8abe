//! The plan and the commands, held by what they do to the world: real recipes through the real binary, on
//! guests that are up within a second (see `support::bench`).

mod happy;
mod warnings;
