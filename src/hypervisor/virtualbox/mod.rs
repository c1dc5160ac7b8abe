//! Placeholder.
/// The driver.
#[derive(Debug, Default)]
pub struct VirtualBox;
impl VirtualBox {
    /// New.
    pub fn new() -> Self {
        VirtualBox
    }
}
