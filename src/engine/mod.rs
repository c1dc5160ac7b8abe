//! Runs a plan: what no arrow orders runs at once, every act is in the journal before it happens, and
//! an interrupted step is checked, not believed.
//!
//! The engine knows steps only through the trait; it must not know what they do.
