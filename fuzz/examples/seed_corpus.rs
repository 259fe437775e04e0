//! Writes the seeds that are not grown: those of the codecs from the golden
//! vectors, those of configuration files from the examples that users get.
//! `cargo run -p nowconnect-fuzz --example seed_corpus`. Files that a fuzzer
//! added stay.

use std::path::Path;

use serde_json::Value;

fn unhex(digits: &str) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok()).unwrap_or(0);
    digits.as_bytes().chunks_exact(2).map(|p| digit(p[0]) << 4 | digit(p[1])).collect()
}

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file| -> std::io::Result<Value> {
        Ok(serde_json::from_str(&std::fs::read_to_string(root.join("../core/vectors").join(file))?)?)
    };
    // Name of the seed, selector of the dialect, message.
    let mut messages: Vec<(String, u8, Vec<u8>)> = Vec::new();
    let slug = |name: &str| name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    for v in read("frames.json")?.as_array().into_iter().flatten() {
        let text = |key: &str| v[key].as_str();
        let plane = if text("plane") == Some("mesh") { 2 } else { 0 };
        let name = format!("{}_{}", slug(text("name").unwrap_or_default()), text("plane").unwrap_or_default());
        messages.push((format!("{name}_v2"), plane | 1, unhex(text("v2").unwrap_or_default())));
        if let Some(v1) = text("v1") {
            messages.push((format!("{name}_v1"), plane, v1.as_bytes().to_vec()));
        }
    }
    let malformed = read("malformed.json")?;
    for (version, codec) in [("v1", 0), ("v2", 1)] {
        for (i, v) in malformed[version].as_array().into_iter().flatten().enumerate() {
            // Those that only repeat something would be large.
            if !v["repeat"].is_null() {
                continue;
            }
            let bytes = match (v["text"].as_str(), v["hex"].as_str()) {
                (Some(text), _) => text.as_bytes().to_vec(),
                (None, hex) => unhex(hex.unwrap_or_default()),
            };
            messages.push((format!("malformed_{version}_{i:02}"), codec, bytes));
        }
    }
    for target in ["frame_decode", "frame_split", "hello_json", "differential_v1_v2"] {
        let folder = root.join("corpus").join(target);
        std::fs::create_dir_all(&folder)?;
        for (name, selector, message) in &messages {
            let handshake = ["hello", "welcome", "auth"].iter().any(|h| name.starts_with(h));
            let seed = match target {
                "hello_json" if selector & 1 == 0 && handshake => message.clone(),
                "hello_json" => continue,
                "frame_split" => [&[*selector, 3], message.as_slice()].concat(),
                _ => [&[*selector], message.as_slice()].concat(),
            };
            std::fs::write(folder.join(name), seed)?;
        }
    }
    let folder = root.join("corpus/config_yaml");
    std::fs::create_dir_all(&folder)?;
    for (name, file, selector) in [
        ("example_hub", "../deploy/examples/hub.yaml", 0),
        ("example_agent", "../deploy/examples/agent.yaml", 2),
        ("example_cloud", "../deploy/examples/cloud.yaml", 0),
        ("fixture_architecture", "../driver-tokio/tests/fixtures/cloud-architecture.yaml", 0),
        ("fixture_enable_ha", "../driver-tokio/tests/fixtures/cloud-enable-ha.yaml", 1),
    ] {
        std::fs::write(folder.join(name), [&[selector], std::fs::read(root.join(file))?.as_slice()].concat())?;
    }
    Ok(())
}
