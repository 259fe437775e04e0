#![allow(clippy::print_stdout, missing_docs)]
use nowconnect_sim::{marks::*, plan::Level, profile::Profile, run::*};
fn main() {
    let p = Profile::named("swarm").unwrap();
    std::panic::set_hook(Box::new(|_| {}));
    let mut m = Marks::default();
    let n: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut bad = 0;
    for s in 0..n {
        let r = run(plan(s, p, Level::L0), Keep::Outcome);
        m.merge(&r.marks);
        if let Some(v) = r.violation {
            if !v.id.starts_with("L3") && !v.id.starts_with("L2") {
                println!("seed {s} {} {}", v.id, v.text.chars().take(250).collect::<String>().replace('\n', "|"));
            }
            bad += 1;
        }
    }
    println!("{bad} failures");
    for x in Mark::ALL {
        println!("{:>10} {:?}{}", m.count(*x), x, if x.later().is_some() { " (later)" } else { "" });
    }
}
