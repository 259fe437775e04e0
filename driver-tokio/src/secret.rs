//! One secret from a file: the agent's token, the admin endpoint's token. The
//! file is read at each use, so that a rotated secret counts at once.

use std::io::Read as _;
use std::path::Path;

/// Reads the secret in `path`, without surrounding white space.
///
/// # Errors
/// When the file cannot be read or does not hold 1 to `max_bytes` bytes; the
/// text names `key` and never what was read.
pub(crate) fn read(key: &str, path: &Path, max_bytes: u64) -> Result<String, String> {
    let problem = |e: std::io::Error| format!("{key}: {}: {e}", path.display());
    let mut text = String::new();
    std::fs::File::open(path).map_err(problem)?.take(max_bytes + 1).read_to_string(&mut text).map_err(problem)?;
    let secret = text.trim();
    if secret.is_empty() || secret.len() as u64 > max_bytes {
        return Err(format!("{key}: {}: expected a token of 1 to {max_bytes} bytes", path.display()));
    }
    Ok(secret.to_owned())
}
