//! Placeholder.
/// The driver.
#[derive(Debug, Default)]
pub struct Qemu;
impl Qemu {
    /// New.
    pub fn new() -> Self {
        Qemu
    }
}
