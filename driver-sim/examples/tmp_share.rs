//! temp
#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::print_stdout)]
use nowconnect_sim::plan::*;
use nowconnect_sim::profile::Choice;
use nowconnect_sim::run::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let seed: u64 = a[1].parse().unwrap();
    let level = if a[2] == "L1" { Level::L1 } else { Level::L0 };
    let p = plan(seed, Choice::named(a.get(3).map_or("mixed", |s| s.as_str())).unwrap().of(seed), level);
    let Some(Twin::Without(st)) = p.twin.clone() else { panic!() };
    println!(
        "net {:?} agents w {:?} infl {} hubs {:?}",
        p.net,
        p.agents[0].window,
        p.agents[0].inflight,
        p.hubs.iter().map(|h| (h.window, h.inflight, h.queue_depth, h.shards, h.mode)).collect::<Vec<_>>()
    );
    println!("safety {} newer {} v1 {}", p.safety_ns / MS, p.newer, p.v1);
    let with = run(Plan { twin: None, ..p.clone() }, Keep::Story);
    let mut q = Plan { twin: None, ..p.clone() };
    q.clients.retain(|c| !st.contains(&c.id));
    let solo = run(q, Keep::Story);
    for (name, r) in [("with", &with), ("solo", &solo)] {
        let mut m: std::collections::BTreeMap<String, (u64, u64, u64, u64)> = Default::default();
        for l in &r.lines {
            if l.at > p.safety_ns {
                break;
            }
            let t = &l.text;
            if let Some(rest) = t.strip_prefix("conn ") {
                let Some((conn, rest)) = rest.split_once(", message ") else { continue };
                let Some((_, what)) = rest.split_once(": ") else { continue };
                let e = m.entry(conn.to_owned()).or_default();
                if what.starts_with("DATA") {
                    let range = what.rsplit(' ').next().unwrap();
                    if let Some((a, b)) = range.split_once("..") {
                        if let (Ok(a), Ok(b)) = (a.parse::<u64>(), b.parse::<u64>()) {
                            e.0 += 1;
                            e.1 += b - a;
                            e.3 = l.at / MS;
                        }
                    }
                } else {
                    e.2 += 1;
                }
            }
        }

        if let Some(want) = a.get(4) {
            let mut per: std::collections::BTreeMap<(Option<u32>, String), (u64, u64, Vec<u64>)> = Default::default();
            for l in &r.lines {
                if l.at > 32 * 1000 * MS {
                    break;
                }
                if let Some(rest) = l.text.strip_prefix(want.as_str()) {
                    let what = rest.splitn(2, ": ").nth(1).unwrap_or("");
                    if !what.starts_with("DATA") {
                        continue;
                    }
                    let range = what.rsplit(' ').next().unwrap();
                    let Some((x, y)) = range.split_once("..") else { continue };
                    let n = y.parse::<u64>().unwrap() - x.parse::<u64>().unwrap();
                    let _ = rest;
                    let cid = what.split(' ').nth(1).unwrap().to_owned();
                    let e = per.entry((l.client, cid[24..].to_owned())).or_insert((0, 0, vec![]));
                    e.0 += 1;
                    e.1 += n;
                    e.2.push(n);
                }
            }
            let mut tl: std::collections::BTreeMap<u64, (u64, u64, u64, u64)> = Default::default();
            for l in &r.lines {
                if l.at > 34 * 1000 * MS {
                    break;
                }
                if let Some(rest) = l.text.strip_prefix(want.as_str()) {
                    let what = rest.splitn(2, ": ").nth(1).unwrap_or("");
                    let e = tl.entry(l.at / (1000 * MS)).or_default();
                    if !what.starts_with("DATA") {
                        e.2 += 1;
                        continue;
                    }
                    let range = what.rsplit(' ').next().unwrap();
                    let Some((x, y)) = range.split_once("..") else { continue };
                    let n = y.parse::<u64>().unwrap() - x.parse::<u64>().unwrap();
                    if l.client.is_some_and(|c| st.contains(&c)) {
                        e.1 += n;
                    } else {
                        e.0 += n;
                    }
                    e.3 += 1;
                }
            }
            println!("  {name} timeline (active B, stalled B, others, DATA frames): {tl:?}");
            for (k, v) in per {
                println!("  {name} {:?} {} frames {} bytes: {:?}", k, v.0, v.1, v.2);
            }
        }
        for (k, v) in m {
            println!(
                "{name} {k}: {} DATA {} bytes avg {}, {} other, last DATA at {}",
                v.0,
                v.1,
                v.1 / v.0.max(1),
                v.2,
                v.3
            );
        }
    }
    for c in &p.clients {
        let f =
            |r: &Report| r.spans.iter().find(|s| s.client == c.id).map(|s| (s.bytes, s.to.map(|t| (t - s.from) / MS)));
        println!(
            "client {} hub {} at {} stalled {} total {} read {} gap {} buf {} lat {}: with {:?} solo {:?}",
            c.id,
            c.hub,
            c.at / MS,
            st.contains(&c.id),
            c.up.total,
            c.up.read,
            c.up.read_gap / MS,
            c.buffer,
            c.latency / 1000,
            f(&with),
            f(&solo)
        );
    }
}
