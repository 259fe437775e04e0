//! The way of bytes through a stream: from a source to its sink, as far as the
//! sink's limit allows, then the end (S1, S2, B4). Payload is split by
//! reference, never copied.

use bytes::Bytes;

use super::{Shard, ShardOut, SockOp};
use crate::id::StreamKey;
use crate::planted;
use crate::stream::{End, HalfEvent, HalfState};
use crate::wire::{Body, Frame};

impl Shard {
    /// Takes bytes that continue half `h` and passes on what its sink allows.
    pub(super) fn take(&mut self, key: StreamKey, h: usize, bytes: Bytes, out: &mut ShardOut) {
        let Some(s) = self.streams.get_mut(key) else { return };
        let len = bytes.len() as u64;
        let keeps = h == 0 && s.keeps();
        let half = &mut s.halves[h];
        half.next += len;
        self.socket_held += len;
        self.room = self.room.saturating_sub(len);
        if half.waiting.is_empty() {
            match s.ends[1 - h] {
                End::Socket(sock) => {
                    half.sent += len;
                    out.socks.push((sock, SockOp::Write(bytes)));
                    return;
                }
                End::Session(session) if half.sent + len <= half.limit && (!keeps || len <= self.room) => {
                    let off = half.sent;
                    half.sent += len;
                    half.queued += len;
                    if keeps {
                        self.room -= len;
                    } else {
                        self.socket_held -= len;
                    }
                    out.frames.push((session, Frame::stream(s.cid, s.fence.epoch, Body::Data { off, bytes })));
                    return;
                }
                End::Session(_) | End::Pending => {}
            }
        }
        half.waiting.push_back(bytes);
        self.pass_on(key, h, out);
    }

    /// Passes on what waits in half `h`, then its end.
    pub(super) fn pass_on(&mut self, key: StreamKey, h: usize, out: &mut ShardOut) {
        let Some(s) = self.streams.get_mut(key) else { return };
        let sink = s.ends[1 - h];
        let keeps = h == 0 && s.keeps();
        let half = &mut s.halves[h];
        while let Some(mut bytes) = half.waiting.pop_front() {
            match sink {
                End::Pending => {
                    half.waiting.push_front(bytes);
                    return;
                }
                End::Socket(sock) => {
                    half.sent += bytes.len() as u64;
                    out.socks.push((sock, SockOp::Write(bytes)));
                }
                End::Session(session) => {
                    let mut room = half.limit.saturating_sub(half.sent);
                    if keeps {
                        // Kept here and held by the session: twice for a while
                        // (B3). Without room for that they wait for the answer.
                        room = room.min(self.room);
                    }
                    if room == 0 {
                        half.waiting.push_front(bytes);
                        if planted::on(2003) {
                            break;
                        }
                        return;
                    }
                    if room < bytes.len() as u64 {
                        let rest = bytes.split_off(room as usize);
                        half.waiting.push_front(rest);
                    }
                    let off = half.sent;
                    let len = bytes.len() as u64;
                    half.sent += len;
                    half.queued += len;
                    if keeps {
                        self.room -= len;
                    } else {
                        self.socket_held -= len;
                    }
                    out.frames.push((session, Frame::stream(s.cid, s.fence.epoch, Body::Data { off, bytes })));
                }
            }
        }
        half.waiting.release();
        if half.state == HalfState::Ending {
            match sink {
                End::Pending => return,
                End::Socket(sock) if planted::on(18) => out.socks.push((sock, SockOp::Close)),
                End::Socket(sock) => out.socks.push((sock, SockOp::ShutDown)),
                End::Session(session) => {
                    let final_off = if planted::on(2003) { half.sent } else { half.next };
                    out.frames.push((session, Frame::stream(s.cid, s.fence.epoch, Body::Fin { final_off })));
                }
            }
            half.state = half.state.after(HalfEvent::Passed);
        }
    }
}
