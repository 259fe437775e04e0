//! stub
use super::{Frame, WireLimits};
use crate::error::ProtocolError;
use bytes::{Bytes, BytesMut};
pub(super) fn decode(_m: &Bytes, _l: &WireLimits, _f: &mut Vec<Frame>) -> Result<u64, ProtocolError> {
    unimplemented!()
}
pub(super) fn encode_message_start(_n: u64, _h: &mut BytesMut) {}
pub(super) fn encode_frame(_f: &Frame, _h: &mut BytesMut) -> Option<Bytes> {
    None
}
