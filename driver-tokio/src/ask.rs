//! The client side of the command line: one HTTP/1.0 request by hand, for
//! `healthcheck` and `status`. It must work in an image without any other
//! program, and outside a runtime.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::cli::RunError;

/// Largest answer that is read, bytes: thousands of tunnels.
const ANSWER_MAX_BYTES: u64 = 16 << 20;

/// Where to ask.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// `http://HOST:PORT[/PATH]`, and the bearer token to show.
    Url(&'a str, Option<&'a str>),
    /// A Unix socket.
    Socket(&'a Path),
}

/// The body at `place`, asked for with the path of its URL or else `path`.
///
/// # Errors
/// For a URL of another form (exit code 2), when nobody answers in time, or
/// with another status than 200 (exit code 1).
pub(crate) fn get(place: Place<'_>, path: &str, timeout: Duration) -> Result<String, RunError> {
    let (status, body) = request("GET", place, path, timeout)?;
    if status == "200" { Ok(body) } else { Err(RunError::Failed(format!("{}: status {status}", place.name()))) }
}

/// Status and body of what a POST to `path` is answered with.
///
/// # Errors
/// As [`get`], but for the status.
pub(crate) fn post(place: Place<'_>, path: &str, timeout: Duration) -> Result<(String, String), RunError> {
    request("POST", place, path, timeout)
}

impl Place<'_> {
    fn name(&self) -> String {
        match self {
            Self::Url(url, _) => (*url).to_owned(),
            Self::Socket(path) => path.display().to_string(),
        }
    }
}

fn request(method: &str, place: Place<'_>, path: &str, timeout: Duration) -> Result<(String, String), RunError> {
    match place {
        Place::Socket(socket) => {
            let name = socket.display().to_string();
            let failed = |e: std::io::Error| RunError::Failed(format!("{name}: {e}"));
            let stream = UnixStream::connect(socket).map_err(failed)?;
            stream.set_read_timeout(Some(timeout)).map_err(failed)?;
            stream.set_write_timeout(Some(timeout)).map_err(failed)?;
            exchange(stream, &name, "localhost", &format!("{method} {path}"), None)
        }
        Place::Url(url, token) => {
            let usage = || RunError::Config(format!("--url: expected http://HOST:PORT/PATH, got {url:?}"));
            let uri: http::Uri = url.parse().map_err(|_| usage())?;
            let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(usage()) };
            let failed = |e: std::io::Error| RunError::Failed(format!("{url}: {e}"));
            let host = authority.host().trim_start_matches('[').trim_end_matches(']');
            let mut addresses = (host, authority.port_u16().unwrap_or(80)).to_socket_addrs().map_err(failed)?;
            let address = addresses.next().ok_or_else(usage)?;
            let stream = TcpStream::connect_timeout(&address, timeout).map_err(failed)?;
            stream.set_read_timeout(Some(timeout)).map_err(failed)?;
            stream.set_write_timeout(Some(timeout)).map_err(failed)?;
            let own = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
            let path = if own == "/" { path } else { own };
            exchange(stream, url, authority.as_str(), &format!("{method} {path}"), token)
        }
    }
}

fn exchange(
    mut stream: impl Read + Write,
    place: &str,
    host: &str,
    line: &str,
    token: Option<&str>,
) -> Result<(String, String), RunError> {
    let failed = |e: std::io::Error| RunError::Failed(format!("{place}: {e}"));
    let bearer = token.map_or(String::new(), |t| format!("Authorization: Bearer {t}\r\n"));
    let request = format!("{line} HTTP/1.0\r\nHost: {host}\r\n{bearer}Content-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX_BYTES).read_to_end(&mut answer).map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split_whitespace().nth(1).unwrap_or("no HTTP answer");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
    Ok((status.to_owned(), body.to_owned()))
}

/// `/status` for a person: a line of facts, then a table for each kind of thing.
pub(crate) fn table(status: &Value) -> String {
    let at = |path: &str| show(status.pointer(path).unwrap_or(&Value::Null));
    let hub = status["role"] == "hub";
    let (name, run) = if hub { ("/replica", "/incarnation") } else { ("/agent", "/instance") };
    let mut out = format!("{} {}, nowconnect {}, run {}", at("/role"), at(name), at("/version"), at(run));
    if hub {
        out += &format!(", mode {}, registry {}", at("/mode"), at("/registry/status"));
    }
    out += &format!("\nstatus   {}", at("/status"));
    for reason in status["reasons"].as_array().into_iter().flatten() {
        out += &format!("\n         {}", show(reason));
    }
    if status["drain"].is_object() {
        out += &format!("\ndrain    {}", crate::drain::progress(&status["drain"]));
    }
    out += &format!("\nstreams  {}", at("/streams"));
    out += &format!("\nmemory   {} of {} bytes held", at("/memory/held_bytes"), at("/memory/budget_bytes"));
    let session = [
        ("SESSION", "/session/state"),
        ("RTT ms", "/session/rtt_ms"),
        ("QUEUE", "/session/queue_frames"),
        ("IN FLIGHT", "/session/inflight_bytes"),
    ];
    let with_session = |own: &[(&'static str, &'static str)]| [own, &session].concat();
    let tables = [
        ("links", with_session(&[("LINK", "/peer"), ("URL", "/url"), ("STATE", "/state")])),
        ("tunnels", with_session(&[("TUNNEL", "/agent"), ("EPOCH", "/epoch"), ("FIRM", "/firm")])),
        ("hubs", with_session(&[("HUB", "/url"), ("REPLICA", "/replica"), ("STATE", "/state"), ("EPOCH", "/epoch")])),
        (
            "listeners",
            vec![
                ("LISTENER", "/name"),
                ("BIND", "/bind"),
                ("CONNECTOR", "/connector"),
                ("STATUS", "/status"),
                ("CLIENTS", "/clients"),
            ],
        ),
        ("connectors", vec![("CONNECTOR", "/name"), ("TARGET", "/target")]),
    ];
    for (key, columns) in &tables {
        if let Some(rows) = status[*key].as_array().filter(|rows| !rows.is_empty()) {
            out += &section(columns, rows);
        }
    }
    out
}

fn section(columns: &[(&str, &str)], rows: &[Value]) -> String {
    let cell = |row: &Value, path: &str| show(row.pointer(path).unwrap_or(&Value::Null));
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|(head, _)| (*head).to_owned()).collect()];
    lines.extend(rows.iter().map(|row| columns.iter().map(|(_, path)| cell(row, path)).collect()));
    let width = |ix: usize| lines.iter().filter_map(|l| l.get(ix)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = String::from("\n");
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}", w = *w)).collect();
        out.push('\n');
        out.push_str(padded.join("  ").trim_end());
    }
    out
}

/// Text from another process must not steer a terminal; lines stay lines.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

/// A value in a cell. Text from another process must not steer a terminal.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text).replace('\n', " "),
        Value::Number(n) if n.is_f64() => format!("{:.1}", n.as_f64().unwrap_or_default()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_is_a_table_of_aligned_columns() {
        let session = json!({"state": "connected", "rtt_ms": 0.25, "queue_frames": 3, "inflight_bytes": 70_000});
        let status = json!({
            "role": "hub", "replica": "hub-a", "version": "1.2.3", "incarnation": "7", "mode": "active",
            "registry": {"status": "healthy"}, "status": "degraded", "reasons": ["mesh: the link to hub-b is backoff"],
            "streams": 2, "memory": {"held_bytes": 5, "budget_bytes": 10},
            "links": [
                {"peer": "hub-b", "url": null, "state": "backoff", "session": null},
                {"peer": null, "url": "wss://c/mesh", "state": "backoff", "session": null},
            ],
            "tunnels": [{"agent": "plant-7\u{1b}[2J", "epoch": "12", "firm": true, "session": session}],
            "listeners": [],
        });
        let expected = "\
hub hub-a, nowconnect 1.2.3, run 7, mode active, registry healthy
status   degraded
         mesh: the link to hub-b is backoff
streams  2
memory   5 of 10 bytes held

LINK   URL           STATE    SESSION  RTT ms  QUEUE  IN FLIGHT
hub-b  -             backoff  -        -       -      -
-      wss://c/mesh  backoff  -        -       -      -

TUNNEL      EPOCH  FIRM  SESSION    RTT ms  QUEUE  IN FLIGHT
plant-7[2J  12     true  connected  0.2     3      70000";
        assert_eq!(table(&status), expected);
    }
}
