//! demo.
/// What `nowconnect demo` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DemoOptions {
    /// HOST:PORT of one's own server; an embedded one when absent.
    pub target: Option<String>,
    /// First of the loopback ports to use; chosen by the system when absent.
    pub port_base: Option<u16>,
}
/// Runs the demonstration.
///
/// # Errors
/// When it cannot be run.
pub fn run(_options: DemoOptions) -> Result<(), crate::cli::RunError> {
    Err(crate::cli::RunError::Failed("not in this build".to_owned()))
}
