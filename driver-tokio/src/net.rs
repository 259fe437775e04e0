//! Socket options and the accept loop's temper. Owns every `setsockopt` of the
//! driver; knows nothing of what the sockets carry.
//!
//! Two classes of socket: *session* sockets (tunnels, links) carry traffic that
//! is acknowledged end to end, so a peer that stops acknowledging TCP is dead
//! and `TCP_USER_TIMEOUT` says so; *client* and *target* sockets belong to
//! applications, and one that merely does not read is not dead (S1, L7): they
//! never get a user timeout.
//!
//! Running out of descriptors (fault P5) must neither spin nor end the accept
//! loop, so [`accept`] pauses and goes on.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

/// Idle time before the first keepalive probe.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// Time between keepalive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Unanswered probes until the kernel gives up.
const KEEPALIVE_RETRIES: u32 = 3;
/// Least user timeout of a session socket: sent bytes unacknowledged for this
/// long end the connection, unless [`session_user_timeout`] says more.
pub const SESSION_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a session the kernel may hold unsent before the socket stops being
/// writable, so that control frames do not wait behind megabytes in the kernel.
const SESSION_NOTSENT_BYTES: u32 = 128 * 1024;
/// Pause of [`accept`] after an error that another try at once would repeat.
const ACCEPT_PAUSE: Duration = Duration::from_millis(75);

/// Binds and listens with `SO_REUSEADDR`, so that a restart does not wait for
/// TIME_WAIT. `backlog` counts connections not accepted yet.
///
/// # Errors
/// Those of socket, bind and listen, unchanged (`AddrInUse`,
/// `PermissionDenied` ...).
pub fn listen(addr: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    TcpListener::from_std(socket.into())
}

fn tune_common(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES))
}

/// Options of a client or target socket: no delay, keepalive. No user timeout
/// (see the module's header).
///
/// # Errors
/// Those of `setsockopt`; the socket is usable all the same.
pub fn tune_client(stream: &TcpStream) -> io::Result<()> {
    tune_common(&SockRef::from(stream))
}

/// User timeout of a session whose peer is dead after `dead` without a word
/// (semantics 9, `liveness.dead`): the kernel does not give up before that.
#[must_use]
pub fn session_user_timeout(dead: Duration) -> Duration {
    dead.max(SESSION_USER_TIMEOUT)
}

/// Options of a socket that carries a tunnel or a link: those of a client,
/// plus `user_timeout` and a small unsent backlog where the system has them.
///
/// # Errors
/// Those of `setsockopt`; the socket is usable all the same.
pub fn tune_session(stream: &TcpStream, user_timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    tune_common(&socket)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        socket.set_tcp_user_timeout(Some(user_timeout))?;
        socket.set_tcp_notsent_lowat(SESSION_NOTSENT_BYTES)?;
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = user_timeout;
    Ok(())
}

/// Closes with RST: the other side sees an abort, never a clean end (S2, S5).
/// Bytes the kernel has not sent are discarded.
pub fn abort(stream: TcpStream) {
    reset_on_drop(&stream);
    drop(stream);
}

/// Undoes [`reset_on_drop`]: the socket closes in the ordinary way.
pub fn close_on_drop(stream: &TcpStream) {
    // On failure the drop still closes, with RST; the peer may lose the end.
    let _ = SockRef::from(stream).set_linger(None);
}

/// Makes the coming drop of `stream` an RST.
pub fn reset_on_drop(stream: &TcpStream) {
    // On failure the drop still closes, with FIN; there is nothing better left.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// What to do after `accept` failed: go on at once, because only that one
/// connection is gone, or after a pause, because the process or the system is
/// out of something (descriptors, memory).
fn pause_after(error: &io::Error) -> Option<Duration> {
    let gone = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if gone.contains(&error.kind()) { None } else { Some(ACCEPT_PAUSE) }
}

/// Next connection of `listener`. Errors of `accept` never end it: they are
/// logged and waited out. Cancel safe.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if let Some(pause) = pause_after(&error) {
                    tracing::warn!(event = "accept_failed", kind = ?error.kind(), code = error.raw_os_error(),
                        "cannot accept connections (out of file descriptors? see LimitNOFILE); trying again");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::AsyncReadExt as _;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into(), 16).unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (dialled, accept(&listener).await.0)
    }

    #[tokio::test]
    async fn client_sockets_have_no_user_timeout_and_session_sockets_do() {
        let (a, b) = pair().await;
        tune_client(&a).unwrap();
        tune_session(&b, SESSION_USER_TIMEOUT).unwrap();
        for stream in [&a, &b] {
            let socket = SockRef::from(stream);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        }
        #[cfg(target_os = "linux")]
        {
            assert_eq!(SockRef::from(&a).tcp_user_timeout().unwrap(), None);
            assert_eq!(SockRef::from(&b).tcp_user_timeout().unwrap(), Some(SESSION_USER_TIMEOUT));
            assert_eq!(SockRef::from(&b).tcp_notsent_lowat().unwrap(), SESSION_NOTSENT_BYTES);
        }
    }

    #[tokio::test]
    async fn abort_is_seen_as_a_reset() {
        let (mut a, b) = pair().await;
        abort(b);
        let error = a.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn accept_pauses_only_when_the_next_try_would_fail_too() {
        assert_eq!(pause_after(&io::ErrorKind::ConnectionAborted.into()), None);
        let emfile = io::Error::from_raw_os_error(24);
        assert_eq!(pause_after(&emfile), Some(ACCEPT_PAUSE));
    }
}
