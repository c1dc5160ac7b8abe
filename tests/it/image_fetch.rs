//! Fetching from a publisher that behaves, mostly: what is got, kept, resumed, shared and updated.

mod commands;
mod place;
mod proofs;
mod resume;
mod store;
mod ways;
