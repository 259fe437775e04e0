//! What an operator may ask of a process by POST: the closed set, and its paths.

use std::future::Future;
use std::pin::Pin;

/// An action under way: the status and JSON of its answer.
pub type Acting = Pin<Box<dyn Future<Output = (u16, String)>>>;

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the configuration file and put it in force.
    Reload,
    /// Leave, as after the first SIGTERM.
    Drain,
    /// Stay after all.
    Undrain,
}

impl Action {
    /// The action of a path.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/reload" => Some(Self::Reload),
            "/drain" => Some(Self::Drain),
            "/undrain" => Some(Self::Undrain),
            _ => None,
        }
    }
}
