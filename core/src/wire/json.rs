//! stub
use super::{Frame, Plane, WireLimits};
use crate::error::ProtocolError;
use bytes::{Bytes, BytesMut};
pub(super) fn decode(_p: Plane, _m: &Bytes, _l: &WireLimits, _f: &mut Vec<Frame>) -> Result<u64, ProtocolError> {
    unimplemented!()
}
pub(super) fn encode(_p: Plane, _n: u64, _f: &Frame, _h: &mut BytesMut) {}
