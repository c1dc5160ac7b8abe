//! Fetching from a publisher that behaves, mostly: what is got, kept, resumed, shared and updated.
#![allow(unreachable_pub, reason = "a test binary has no outside")]

#[path = "image_fetch/commands.rs"]
mod commands;
#[path = "image_fetch/place.rs"]
mod place;
#[path = "image_fetch/proofs.rs"]
mod proofs;
#[path = "support/publisher.rs"]
mod publisher;
#[path = "image_fetch/resume.rs"]
mod resume;
#[path = "image_fetch/ways.rs"]
mod ways;
