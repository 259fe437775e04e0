//! Flow control arithmetic.
