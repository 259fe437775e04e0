//! What an operator may ask of a process by POST: the closed set, and its paths.

use std::future::Future;
use std::pin::Pin;

use crate::answers::{self, DrainAnswer, Failed, ReloadAnswer, UndrainAnswer};

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

/// Does `work` to its end, in a task of its own: whoever asked may go away in
/// the middle of it.
pub(crate) fn acting(action: Action, work: impl Future<Output = (u16, String)> + 'static) -> Acting {
    let task = tokio::task::spawn_local(work);
    Box::pin(async move { task.await.unwrap_or_else(|e| (500, failed(action, &e.to_string()))) })
}

/// The answer of an action that did not come to its end.
fn failed(action: Action, why: &str) -> String {
    let why = Failed::because(why);
    match action {
        Action::Reload => answers::text(&ReloadAnswer::Failed(why)),
        Action::Drain => answers::text(&DrainAnswer::Failed(why)),
        Action::Undrain => answers::text(&UndrainAnswer::Failed(why)),
    }
}
