//! Replays every corpus, and seeded mutations of its entries, through its
//! target under plain `cargo test`, so what a fuzzer once found stays found on
//! every machine.

use std::path::{Path, PathBuf};

use nowconnect_fuzz::TARGETS;

/// A small generator of its own: the mutations of a commit never change.
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound.max(1)).expect("a length")).expect("below a length")
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).expect("below 256")
    }
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).expect("the corpus is there").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files.into_iter().map(|f| (f.clone(), std::fs::read(&f).expect("a seed"))).collect()
}

fn mutate(rng: &mut Xorshift, seeds: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    const TOKENS: &[&[u8]] = &[
        b"\"",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"9007199254740991",
        b"9007199254740992",
        b"-1",
        b"\"n\":0",
        b"\"optional\":true",
        b"\\u0000",
        b"\xff",
        b"\x80",
        b"\x00",
        b"====",
    ];
    let mut bytes = seeds[rng.below(seeds.len())].1.clone();
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        match rng.below(8) {
            0 if at < bytes.len() => bytes[at] = rng.byte(),
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 => bytes.insert(at, rng.byte()),
            3 => bytes.truncate(at),
            4 => {
                bytes.splice(at..at, TOKENS[rng.below(TOKENS.len())].iter().copied());
            }
            5 => {
                let end = at + rng.below(bytes.len() - at + 1);
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            // A number in a longer form than needed.
            6 if at < bytes.len() => {
                bytes[at] |= 0x80;
                bytes.insert(at + 1, 0);
            }
            _ => {
                let other = &seeds[rng.below(seeds.len())].1;
                let from = rng.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

/// Names the input when a target panics inside.
struct Input<'a>(&'a str, &'a [u8]);

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} fails on {}", self.0, self.1.escape_ascii());
        }
    }
}

fn replay(name: &str, mutations: usize) {
    let target = TARGETS.iter().find(|(n, _)| *n == name).expect("a target").1;
    let seeds = corpus(name);
    assert!(seeds.len() >= 8, "{name} has {} seeds", seeds.len());
    for (_, seed) in &seeds {
        let _input = Input(name, seed);
        target(seed);
    }
    let mut rng = Xorshift(0x9e37_79b9_7f4a_7c15);
    for _ in 0..mutations {
        let bytes = mutate(&mut rng, &seeds);
        let _input = Input(name, &bytes);
        target(&bytes);
    }
}

/// A test a target: the corpus, then this many mutations of it.
macro_rules! replayed {
    ($($name:ident: $mutations:literal,)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name), $mutations);
        })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|(name, _)| *name).eq(replayed), "{replayed:?}");
        }
    };
}

replayed! {
    frame_decode: 20_000,
    frame_split: 20_000,
    hello_json: 20_000,
    differential_v1_v2: 20_000,
    hub_machine: 10_000,
    agent_machine: 10_000,
    pair: 5_000,
    stream_window: 10_000,
    dedup_lru: 2_000,
    config_yaml: 5_000,
    jwt: 10_000,
    mesh3: 300,
}

#[test]
fn every_target_has_a_fuzzer_of_its_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(root.join("cargo-fuzz/Cargo.toml")).expect("the nested manifest");
    for (name, _) in TARGETS {
        assert!(root.join(format!("fuzz_targets/{name}.rs")).is_file(), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
