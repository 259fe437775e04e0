//! Sessions and streams of one node.
