//! Loopback ports for processes that must be told their port before they
//! bind it. A [`Port`] is bound by us (port 0, so the OS chose it) and never
//! listens: with SO_REUSEADDR on both sides Linux lets the process listen on
//! it, while no other test and no outgoing connection can be given it. So
//! there is no window in which it could be lost, and a killed process can be
//! started again on the same port.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A reserved port on 127.0.0.1; held until dropped.
pub struct Port {
    /// Where the process is to listen.
    pub addr: SocketAddr,
    _reservation: Socket,
}

impl Port {
    /// Reserves a port.
    ///
    /// # Panics
    /// When the OS has none left.
    #[must_use]
    pub fn reserve() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let addr = socket.local_addr().unwrap().as_socket().unwrap();
        Self { addr, _reservation: socket }
    }

    /// The number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.addr.port()
    }
}
