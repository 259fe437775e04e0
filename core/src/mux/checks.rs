//! What must hold of all sessions between any two calls, for tests and the
//! simulator (B3, B5, B9). Must not change anything.

use super::Mux;
use crate::id::{Cid, SessionKey};

impl Mux {
    /// Checks that DATA waits in no session for a stream that is not bound to it.
    ///
    /// # Panics
    /// When some does.
    pub fn check_waiting(&self, is_bound: impl Fn(Cid, SessionKey) -> bool) {
        for (key, e) in self.sessions.iter() {
            for cid in e.session.waiting_streams() {
                assert!(is_bound(cid, key), "DATA of {cid} waits, and the stream is over (B5)");
            }
        }
    }

    /// Checks what must hold between any two calls.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_invariants(&self) {
        let mut held = 0;
        for (key, e) in self.sessions.iter() {
            e.session.check_invariants();
            held += e.session.held_bytes();
            assert_eq!(e.conn.is_none(), e.suspended_at.is_some(), "a session is carried or suspended");
            if let Some(conn) = e.conn {
                assert_eq!(self.carried.get(&conn), Some(&key), "the connection index agrees");
            }
            if let Some(at) = self.next_deadline(key) {
                assert!(self.deadlines.contains(&(at, key)), "a session's deadline is armed (B9)");
            }
        }
        assert_eq!(held, self.session_held, "held bytes add up (B3)");
        assert_eq!(self.by_id.len(), self.sessions.len(), "one name a session");
    }
}
