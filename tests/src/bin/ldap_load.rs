//! A load of short LDAP conversations against one or more addresses, judged:
//! connect, bind, read an entry, unbind, again and again. What it prints are the
//! times of whole conversations; it fails when their 99th percentile or the share
//! of those that failed is above what was allowed (the seeds' perf runner).
//!
//! `cargo run --release -p nowconnect-tests --bin ldap_load -- HOST:PORT...`; an
//! address for the directory itself beside those of the hubs' listeners shows
//! what the way costs. Nothing but the addresses need be nowconnect's.

#![allow(clippy::print_stdout, reason = "a tool whose output is its result")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use ldap3::{LdapConnAsync, LdapConnSettings, Scope};
use tokio::task::JoinSet;

/// Short LDAP conversations against each address in turn, judged by p99 and error budget
#[derive(Clone, Debug, Parser)]
#[command(name = "ldap_load")]
struct Args {
    /// Where to connect to; each gets the whole load, one after the other
    #[arg(required = true, value_name = "HOST:PORT")]
    addresses: Vec<String>,
    /// Conversations at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    clients: u16,
    /// Seconds of load for each address
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// Largest 99th percentile allowed, in milliseconds
    #[arg(long, default_value_t = 100.0, value_name = "MS")]
    p99: f64,
    /// Largest share of conversations that may fail, in percent
    #[arg(long, default_value_t = 0.1, value_name = "PERCENT")]
    errors: f64,
    /// Whom to bind as; nobody when empty
    #[arg(long, default_value = "")]
    bind_dn: String,
    /// File with the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<std::path::PathBuf>,
    /// Entry that is read, by name; the server's own when empty
    #[arg(long, default_value = "")]
    entry: String,
}

/// One conversation takes no longer; then it has failed.
const LIMIT: Duration = Duration::from_secs(10);

async fn converse(address: &str, args: &Args, password: &str) -> ldap3::result::Result<()> {
    let settings = LdapConnSettings::new().set_conn_timeout(LIMIT);
    let (conn, mut ldap) = LdapConnAsync::with_settings(settings, &format!("ldap://{address}")).await?;
    let driving = tokio::spawn(conn.drive());
    ldap.simple_bind(&args.bind_dn, password).await?.success()?;
    ldap.search(&args.entry, Scope::Base, "(objectClass=*)", vec!["1.1"]).await?.success()?;
    ldap.unbind().await?;
    driving.await.map_err(std::io::Error::from)??;
    Ok(())
}

/// Times of the conversations that came to their end, and how many did not, with
/// the last reason.
#[derive(Default)]
struct Seen {
    times: Vec<Duration>,
    failed: usize,
    why: Option<String>,
}

async fn load(address: &str, args: &Args, password: &str) -> Seen {
    let end = Instant::now() + Duration::from_secs(args.seconds.into());
    let mut clients = JoinSet::new();
    for _ in 0..args.clients {
        let (address, args, password) = (address.to_owned(), args.clone(), password.to_owned());
        clients.spawn(async move {
            let mut seen = Seen::default();
            while Instant::now() < end {
                let began = Instant::now();
                let done = tokio::time::timeout(LIMIT, converse(&address, &args, &password)).await;
                match done.map_err(|_| format!("no end within {LIMIT:?}")).and_then(|d| d.map_err(|e| e.to_string())) {
                    Ok(()) => seen.times.push(began.elapsed()),
                    Err(why) => {
                        seen.failed += 1;
                        seen.why = Some(why);
                        // A server that is away is not asked as fast as it refuses.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
            seen
        });
    }
    let mut all = Seen::default();
    while let Some(Ok(seen)) = clients.join_next().await {
        all.times.extend(seen.times);
        all.failed += seen.failed;
        all.why = seen.why.or(all.why);
    }
    all.times.sort_unstable();
    all
}

fn main() -> ExitCode {
    let args = Args::parse();
    let password = match args.password_file.as_ref().map(std::fs::read_to_string).transpose() {
        Ok(password) => password.unwrap_or_default().trim_end().to_owned(),
        Err(e) => {
            eprintln!("--password-file: {e}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("no runtime: {e}");
            return ExitCode::from(2);
        }
    };
    println!(
        "| address | conversations a second | p50 ms | p95 ms | p99 ms | slowest ms | failed | |\n|---|---|---|---|---|---|---|---|"
    );
    let mut held = true;
    for address in &args.addresses {
        let seen = runtime.block_on(load(address, &args, &password));
        let all = seen.times.len() + seen.failed;
        let ms = |share: f64| {
            let ix = ((seen.times.len() as f64 * share).ceil() as usize).clamp(1, seen.times.len().max(1)) - 1;
            seen.times.get(ix).map_or(f64::NAN, |t| t.as_secs_f64() * 1000.0)
        };
        let failed = seen.failed as f64 * 100.0 / all.max(1) as f64;
        // NaN, where nothing came to its end, is no success.
        let good = ms(0.99) <= args.p99 && failed <= args.errors;
        held &= good;
        println!(
            "| {address} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {} of {all} ({failed:.2} %) | {} |",
            seen.times.len() as f64 / f64::from(args.seconds),
            ms(0.5),
            ms(0.95),
            ms(0.99),
            ms(1.0),
            seen.failed,
            if good { "held" } else { "NOT HELD" },
        );
        if let Some(why) = seen.why {
            eprintln!("{address}: the last failure: {why}");
        }
    }
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
