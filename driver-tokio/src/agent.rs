//! agent.
/// Runs an agent until it is told to stop.
///
/// # Errors
/// When it cannot be run.
pub fn run(_setup: crate::config::AgentSetup) -> Result<(), crate::cli::RunError> {
    Err(crate::cli::RunError::Failed("not in this build".to_owned()))
}
