#![allow(clippy::print_stdout, missing_docs)]
use nowconnect_sim::{diff, plan::Level, profile::Profile};
fn main() {
    let p = Profile::named("swarm").unwrap();
    std::panic::set_hook(Box::new(|_| {}));
    let mut bad = 0;
    for s in 0..200 {
        if let Err(v) = diff::diff(s, p, Level::L0) {
            bad += 1;
            if bad < 12 {
                println!("{s}: {} {}", v.id, v.text.chars().take(330).collect::<String>());
            }
        }
    }
    println!("bad {bad}");
}
