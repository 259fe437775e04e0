//! Throughput of one WebSocket connection over loopback, both ends on one
//! thread: MiB/s and CPU seconds per GiB for sender and receiver together.
//! `cargo run --release --example ws_throughput [MiB per row]`

#![allow(clippy::print_stdout, reason = "a program that prints its result")]

use std::future::{Future, poll_fn};
use std::net::Ipv4Addr;
use std::task::Poll;

use bytes::Bytes;
use nowconnect::net;
use nowconnect::ws::{Io, READ_BUFFER_LINK_BYTES, WsConn, WsEvent, WsOptions};
use nowconnect_core::wire::MESSAGE_MAX_BYTES;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tungstenite::protocol::Role;

const OPTIONS: WsOptions =
    WsOptions { text: false, read_buffer_bytes: READ_BUFFER_LINK_BYTES, message_max_bytes: MESSAGE_MAX_BYTES };
/// Queue the sender keeps.
const HIGH_WATER_BYTES: usize = 256 * 1024;

/// CPU time of this process in seconds, user and system, from `/proc`.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 14 and 15, counted after the parenthesised name; 100 ticks a second on Linux.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}

fn send(conn: &mut WsConn, total: usize, size: usize) -> impl Future<Output = ()> {
    let head = Bytes::from_static(&[0; 24]);
    let body = Bytes::from(vec![7; size - head.len()]);
    let mut left = total / size;
    poll_fn(move |cx| {
        loop {
            while left > 0 && conn.queued_bytes() < HIGH_WATER_BYTES {
                conn.queue([head.clone(), body.clone()], size);
                left -= 1;
            }
            match conn.poll_flush(cx) {
                Poll::Ready(Ok(())) if left > 0 => {}
                Poll::Ready(Ok(())) => return Poll::Ready(()),
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
}

fn receive(conn: &mut WsConn, total: usize) -> impl Future<Output = ()> {
    let mut left = total;
    poll_fn(move |cx| {
        while left > 0 {
            match conn.poll_recv(cx) {
                Poll::Ready(Ok(WsEvent::Message(bytes))) => left = left.saturating_sub(bytes.len()),
                Poll::Ready(Ok(WsEvent::Partial)) => {}
                Poll::Ready(other) => panic!("{other:?}"),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    })
}

async fn row(mib: usize, size: usize, sender: Role) {
    let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into(), 1).expect("loopback");
    let a = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connect");
    let b = net::accept(&listener).await.0;
    for tcp in [&a, &b] {
        net::tune_session(tcp, net::SESSION_USER_TIMEOUT).expect("socket options");
    }
    let receiver = if sender == Role::Client { Role::Server } else { Role::Client };
    let mut a = WsConn::new(Io::Plain(a), sender, Bytes::new(), OPTIONS);
    let mut b = WsConn::new(Io::Plain(b), receiver, Bytes::new(), OPTIONS);
    let total = mib << 20;
    let (cpu, start) = (cpu_seconds(), Instant::now());
    tokio::join!(send(&mut a, total, size), receive(&mut b, total));
    let wall = start.elapsed().as_secs_f64();
    let cpu = cpu_seconds().zip(cpu).map_or(f64::NAN, |(after, before)| after - before);
    let masked = if sender == Role::Client { "masked" } else { "plain" };
    println!("{size:>6} B  {masked:<6}  {:>6.0} MiB/s  {:.3} CPU s/GiB", mib as f64 / wall, cpu * 1024.0 / mib as f64);
}

fn main() {
    let mib = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(4096);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        for size in [1024, 16 * 1024, 64 * 1024] {
            for sender in [Role::Server, Role::Client] {
                row(mib, size, sender).await;
            }
        }
    });
}
