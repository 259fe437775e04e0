//! `dedup_lru` (verification (e) 13): [`nowconnect_core::dedup`] against a model
//! that keeps everything in lists: which OPENs are admitted (S4, S6), and which
//! ends of streams are remembered (B6).

use nowconnect_core::dedup::{Dedup, LANES_PER_SESSION_MAX, Refusal, Terminal};
use nowconnect_core::error::RstCode;
use nowconnect_core::id::{Cid, Incarnation, SessionKey};

use crate::tape::Tape;

/// Everything ever told, in lists.
struct Model {
    /// Session, incarnation, lane, highest counter.
    lanes: Vec<(SessionKey, Incarnation, u8, u64)>,
    /// The latest last.
    graves: Vec<(Cid, Terminal)>,
    room: usize,
}

impl Model {
    fn highest(&self, session: SessionKey, cid: Cid) -> Option<u64> {
        let of = |l: &&(SessionKey, Incarnation, u8, u64)| (l.0, l.1, l.2) == (session, cid.incarnation(), cid.lane());
        self.lanes.iter().filter(of).map(|l| l.3).max()
    }

    fn admit(&mut self, session: SessionKey, cid: Cid) -> Result<(), Refusal> {
        let highest = self.highest(session, cid);
        if highest.is_some_and(|n| cid.counter() <= n) {
            return Err(Refusal::Replay);
        }
        if highest.is_none() && self.lanes.iter().filter(|l| l.0 == session).count() >= LANES_PER_SESSION_MAX {
            return Err(Refusal::TooManyLanes);
        }
        self.lanes.retain(|l| (l.0, l.1, l.2) != (session, cid.incarnation(), cid.lane()));
        self.lanes.push((session, cid.incarnation(), cid.lane(), cid.counter()));
        Ok(())
    }

    fn bury(&mut self, cid: Cid, how: Terminal) {
        self.graves.retain(|(c, _)| *c != cid);
        self.graves.push((cid, how));
        if self.graves.len() > self.room {
            self.graves.remove(0);
        }
    }
}

/// The two memories of a shard and the model agree on every answer.
pub fn dedup_lru(data: &[u8]) {
    let mut tape = Tape::new(data);
    let room = u32::from(tape.byte()) % 9;
    let mut dedup = Dedup::new(room);
    let mut model = Model { lanes: Vec::new(), graves: Vec::new(), room: room.max(1) as usize };
    let mut many = 0;
    for _ in 0..500 {
        if tape.is_at_end() {
            break;
        }
        let session = SessionKey { ix: tape.below(2) as u32, generation: tape.below(2) as u32 };
        let lane = if tape.one_in(4) { tape.byte() } else { 0 };
        let cid = Cid::new(Incarnation(tape.below(3) as u64), lane, u64::from(tape.byte()));
        match tape.below(8) {
            0..=3 => assert_eq!(dedup.admit(session, cid), model.admit(session, cid), "{cid} on {session:?} (S6)"),
            4 | 5 => {
                let code = tape.pick(RstCode::ALL).unwrap_or(RstCode::Abort);
                let how = if tape.one_in(2) { Terminal::Reset(code) } else { Terminal::Finished };
                dedup.bury(cid, how);
                model.bury(cid, how);
            }
            6 => {
                dedup.forget_session(session);
                model.lanes.retain(|l| l.0 != session);
            }
            _ if many < 2 => {
                // As many lanes as one session may name, and a few more.
                many += 1;
                for n in 0..LANES_PER_SESSION_MAX as u64 + 3 {
                    let cid = Cid::new(Incarnation(1000 + n), 0, 1);
                    let known = dedup.admit(session, cid).is_ok();
                    // The model's own way would take a second.
                    if known {
                        model.lanes.push((session, cid.incarnation(), 0, 1));
                    } else {
                        let lanes = model.lanes.iter().filter(|l| l.0 == session).count();
                        let replay = model.highest(session, cid).is_some();
                        assert!(replay || lanes == LANES_PER_SESSION_MAX, "refused without need");
                    }
                }
                let lanes = model.lanes.iter().filter(|l| l.0 == session).count();
                assert_eq!(lanes, LANES_PER_SESSION_MAX, "a session names as many lanes as allowed");
            }
            _ => {}
        }
        assert_eq!(dedup.was_opened(session, cid), model.highest(session, cid).is_some_and(|n| cid.counter() <= n));
        let grave = model.graves.iter().find(|(c, _)| *c == cid).map(|(_, how)| *how);
        assert_eq!(dedup.terminal(cid), grave, "{cid}");
        assert_eq!(dedup.tombstones(), model.graves.len(), "tombstones are bounded (B6)");
    }
}
