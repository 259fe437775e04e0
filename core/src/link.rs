//! Link state machine.
