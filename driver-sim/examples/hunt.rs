//! scratch
#![allow(clippy::print_stdout, missing_docs)]
use nowconnect_core::planted::BUGS;
use nowconnect_sim::plan::Level;
use nowconnect_sim::profile::Profile;
use nowconnect_sim::table::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let p = Profile::named(&a[1]).unwrap();
    let n: u64 = a[2].parse().unwrap();
    if let Ok(seed) = std::env::var("SEED") {
        let r = nowconnect_sim::run::run_planted(
            nowconnect_sim::run::plan(seed.parse().unwrap(), p, Level::L0),
            a[3].parse().unwrap(),
            nowconnect_sim::run::Keep::Story,
        )
        .unwrap();
        for l in &r.lines {
            println!("{l}");
        }
        println!("{:?}", r.violation);
        return;
    }
    let ids: Vec<u16> = if a.len() > 3 {
        a[3].split(',').map(|s| s.parse().unwrap()).collect()
    } else {
        BUGS.iter().map(|b| b.id).collect()
    };
    std::panic::set_hook(Box::new(|_| {}));
    for id in ids {
        let r = hunt(nowconnect_core::planted::find(id).unwrap(), p, Level::L0, 0..n);
        match &r.outcome {
            Outcome::Caught { seed, after, violation } => println!(
                "{id:5} caught after {after:5} seed {seed} {}{} {}",
                violation.id,
                if r.as_expected() { "" } else { " (unexpected)" },
                violation.text.chars().take(150).collect::<String>().replace('\n', " | ")
            ),
            Outcome::Missed { after } => println!("{id:5} MISSED in {after}: {}", r.bug.what),
            Outcome::Elsewhere(w) => println!("{id:5} elsewhere: {w}"),
        }
    }
}
