//! Images that are built instead of downloaded: a Debian system, or an appliance small enough for the
//! deepest level; and the seed volume that gives a guest its keys.
