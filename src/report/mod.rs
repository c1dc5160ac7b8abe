//! Events → what a person or a program reads: terminal bars, plain lines, JSON lines.
//!
//! This module must not know what a step does; it sees [`Event`](crate::event::Event)s only.
