//! What happened: a rolling hash of every event and output (D1), and lines of
//! text when somebody wants to read it. A run is repeated to be read, so that
//! nobody pays for text in the millions of runs that pass.

use crate::tape::mix;

/// A line of the story.
#[derive(Clone, Debug)]
pub struct Line {
    /// Number of the event it belongs to.
    pub event: u64,
    /// Virtual time, nanoseconds.
    pub at: u64,
    /// The client whose stream it concerns.
    pub client: Option<u32>,
    /// What happened.
    pub text: String,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (s, us) = (self.at / 1_000_000_000, self.at / 1000 % 1_000_000);
        write!(f, "#{:<7} {s:>4}.{us:06}  {}", self.event, self.text)
    }
}

/// A hash that is written to, eight bytes at a time however they come.
struct Words {
    hash: u64,
    word: u64,
    bytes: u64,
}

impl Words {
    const fn word(&mut self) {
        self.hash = (self.hash ^ self.word).wrapping_mul(0x9fb2_1c65_1e98_df25);
        self.hash ^= self.hash >> 32;
        self.word = 0;
    }

    const fn finish(mut self) -> u64 {
        self.word();
        self.hash ^ self.bytes
    }
}

impl std::fmt::Write for Words {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            self.word = self.word << 8 | u64::from(byte);
            self.bytes += 1;
            if self.bytes.is_multiple_of(8) {
                self.word();
            }
        }
        Ok(())
    }
}

/// The hash and, if wanted, the lines.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    /// Events so far.
    pub events: u64,
    lines: Option<Vec<Line>>,
    steps: Option<Vec<u64>>,
}

impl Trace {
    /// A trace that also keeps lines.
    #[must_use]
    pub fn verbose() -> Self {
        Self { lines: Some(Vec::new()), ..Self::default() }
    }

    /// A trace that also keeps the hash after each event, to find the first
    /// event at which two runs differ.
    #[must_use]
    pub fn stepping() -> Self {
        Self { steps: Some(Vec::new()), ..Self::default() }
    }

    /// Whether lines are kept; ask before making one.
    #[must_use]
    pub const fn is_verbose(&self) -> bool {
        self.lines.is_some()
    }

    /// Mixes a word into the hash.
    pub const fn mix(&mut self, word: u64) {
        self.hash = mix(self.hash ^ word);
    }

    /// Mixes bytes into the hash: all of them, eight at a time.
    pub fn mix_bytes(&mut self, bytes: &[u8]) {
        let mut state = self.hash ^ bytes.len() as u64;
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            state = (state ^ u64::from_le_bytes(word)).wrapping_mul(0x9fb2_1c65_1e98_df25);
            state ^= state >> 32;
        }
        self.mix(state);
    }

    /// Mixes what a value says of itself into the hash, without making a text of
    /// it. For what happens now and then: a word costs a call.
    pub fn mix_debug(&mut self, value: &impl std::fmt::Debug) {
        use std::fmt::Write as _;
        let mut words = Words { hash: self.hash, word: 0, bytes: 0 };
        let told = write!(words, "{value:?}");
        self.mix(words.finish() ^ u64::from(told.is_err()));
    }

    /// An event is over.
    pub fn step(&mut self) {
        self.events += 1;
        if let Some(steps) = &mut self.steps {
            steps.push(self.hash);
        }
    }

    /// The hash so far.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// The hash after each event.
    #[must_use]
    pub fn steps(&self) -> &[u64] {
        self.steps.as_deref().unwrap_or(&[])
    }

    /// Keeps a line.
    pub fn line(&mut self, at: u64, client: Option<u32>, text: String) {
        let event = self.events;
        if let Some(lines) = &mut self.lines {
            lines.push(Line { event, at, client, text });
        }
    }

    /// The lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        self.lines.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_value_says_counts_in_full_and_only_that() {
        let hash = |value: &dyn std::fmt::Debug| {
            let mut t = Trace::default();
            t.mix_debug(&value);
            t.hash()
        };
        assert_eq!(hash(&Some("a")), hash(&Some("a")));
        assert_ne!(hash(&Some("a")), hash(&Some("b")));
        assert_ne!(hash(&(1, 2)), hash(&(2, 1)));
        // Longer than a word, and different in its last byte alone.
        assert_ne!(hash(&"abcdefghijkl"), hash(&"abcdefghijkm"));
    }
}
