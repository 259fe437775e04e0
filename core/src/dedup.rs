//! Terminal causes and high-water marks.
