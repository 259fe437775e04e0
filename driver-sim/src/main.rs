//! The command `nowconnect-sim`.
#![allow(clippy::print_stdout, reason = "a command line prints")]

use nowconnect_sim::plan::Level;
use nowconnect_sim::profile::Profile;
use nowconnect_sim::run::{Keep, plan, run};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let profile = Profile::named(args.get(1).map_or("swarm", |s| s)).expect("profile");
    let from: u64 = args.get(2).and_then(|s| s.parse().ok()).unwrap_or(0);
    let to: u64 = args.get(3).and_then(|s| s.parse().ok()).unwrap_or(100);
    let start = std::time::SystemTime::now();
    let (mut events, mut virt, mut faults, mut fails) = (0, 0, 0, 0);
    if std::env::var("STORY").is_err() {
        std::panic::set_hook(Box::new(|_| {}));
    }
    for seed in from..to {
        let verbose = std::env::var("STORY").is_ok();
        let r = run(plan(seed, profile, Level::L0), if verbose { Keep::Story } else { Keep::Outcome });
        if verbose {
            println!("{:#?}", r.plan);
            for l in &r.lines {
                println!("{l}");
            }
        }
        events += r.events;
        virt += r.virtual_ns;
        faults += r.faults;
        if let Some(v) = r.violation {
            fails += 1;
            println!("seed {seed}: {} {}", v.id, v.text);
        }
    }
    let t = start.elapsed().map_or(0.0, |d| d.as_secs_f64());
    println!(
        "{events} events, {faults} faults, {fails} failures in {t:.2} s: {:.0}x real time, {:.0} events/s",
        virt as f64 / 1e9 / t,
        events as f64 / t
    );
}
