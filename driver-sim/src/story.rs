//! What a run's story tells of each event, for whoever reads it: the event, and
//! what a delivered message holds. Payload is told by offset and length only.
//! Decides nothing; a run that nobody reads makes none of these texts.

use nowconnect_core::wire::{Body, Frame};

use crate::check::wire::Told;
use crate::event::Event;
use crate::world::World;

/// Characters of an event; requests of the registry have lines of their own.
const EVENT_CHARS_MAX: usize = 120;

/// A frame in a few words.
fn in_words(frame: &Frame) -> String {
    let Frame::Stream { cid, epoch, body } = frame else { return format!("{frame:?}") };
    let what = match body {
        Body::Open(open) => format!("connector {:?} of {:?}, limit {}", open.connector, open.agent_id, open.limit),
        Body::OpenAck { result } => format!("{result:?}"),
        Body::Data { off, bytes } => format!("{off}..{}", off + bytes.len() as u64),
        Body::Credit { consumed, limit } => format!("consumed {consumed}, limit {limit}"),
        Body::Fin { final_off } => format!("at {final_off}"),
        Body::Rst { code, final_off } => format!("{code} at {final_off}"),
        Body::Resume(_) => String::new(),
    };
    format!("{} {cid} under {}: {what}", body.kind(), epoch.0)
}

impl World {
    /// An event is about to be handled.
    pub(crate) fn show_event(&mut self, event: &Event) {
        if let Event::Deliver { .. } | Event::Actor { .. } | Event::Sock { .. } = event {
            // What they do is told by lines of their own.
            return;
        }
        self.line(None, || {
            let mut text = format!("  {event:?}");
            if let Some((end, _)) = text.char_indices().nth(EVENT_CHARS_MAX) {
                text.truncate(end);
                text.push('…');
            }
            text
        });
    }

    /// A message arrives at end `to` of a connection.
    pub(crate) fn show_message(&mut self, conn: u32, to: usize, told: &Told) {
        if !self.trace.is_verbose() {
            return;
        }
        let c = &self.conns[conn as usize];
        let (from, to, number) = (c.nodes[1 - to], c.nodes[to], told.number);
        for frame in &told.frames {
            let client = if let Frame::Stream { cid, .. } = frame { self.cids.get(cid).copied() } else { None };
            self.line(client, || format!("conn {conn}, node {from} to {to}, message {number}: {}", in_words(frame)));
        }
    }
}
