//! One machine (hub or agent) on one thread: the only way into it, and the
//! execution of what it wants.
//!
//! Everything of a node runs on one `current_thread` runtime inside a
//! `LocalSet`; a socket never changes threads and no lock is taken per frame.
//! [`Node::enter`] borrows the machine, calls it, and carries out its output
//! before it returns: there is no `.await` inside. Pumps are
//! woken, never called. Must not know what a frame, a stream or a peer means.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use nowconnect_core::agent::Agent;
use nowconnect_core::error::CloseCode;
use nowconnect_core::hub::Hub;
use nowconnect_core::id::{ConnKey, Name, SessionKey, SockKey, StreamKey, TargetIx};
use nowconnect_core::identity::Proof;
use nowconnect_core::mux::{Check, Input, Mux, NodeOut};
use nowconnect_core::observed::Observed;
use nowconnect_core::registry::{RegistryOp, Token};
use nowconnect_core::session::{TxBatch, TxState};
use nowconnect_core::shard::SockOp;
use nowconnect_core::slots::Slots;
use nowconnect_core::time::{Deadline, Instant};
use nowconnect_core::wire::SecretText;
use rustls::pki_types::CertificateDer;

use crate::certs::Chain;
use crate::clock::Monotonic;
#[cfg(test)]
use crate::journal::Call;

/// What hub and agent have in common for a driver.
pub trait Machine: 'static {
    /// Takes one input.
    fn handle(&mut self, now: Instant, input: Input, out: &mut NodeOut);
    /// Does what is due.
    fn handle_timeout(&mut self, now: Instant, out: &mut NodeOut);
    /// When `handle_timeout` is due.
    fn poll_timeout(&self) -> Option<Deadline>;
    /// Takes messages for a connection.
    fn poll_transmit(
        &mut self,
        now: Instant,
        conn: ConnKey,
        budget: usize,
        batch: &mut TxBatch,
        out: &mut NodeOut,
    ) -> TxState;
    /// How many bytes may be read from a stream's socket.
    fn read_budget(&mut self, stream: StreamKey) -> usize;
    /// Its sessions.
    fn mux(&self) -> &Mux;
}

macro_rules! machine {
    ($t:ty) => {
        impl Machine for $t {
            fn handle(&mut self, now: Instant, input: Input, out: &mut NodeOut) {
                Self::handle(self, now, input, out);
            }
            fn handle_timeout(&mut self, now: Instant, out: &mut NodeOut) {
                Self::handle_timeout(self, now, out);
            }
            fn poll_timeout(&self) -> Option<Deadline> {
                Self::poll_timeout(self)
            }
            fn poll_transmit(
                &mut self,
                now: Instant,
                conn: ConnKey,
                budget: usize,
                batch: &mut TxBatch,
                out: &mut NodeOut,
            ) -> TxState {
                Self::poll_transmit(self, now, conn, budget, batch, out)
            }
            fn read_budget(&mut self, stream: StreamKey) -> usize {
                Self::read_budget(self, stream)
            }
            fn mux(&self) -> &Mux {
                Self::mux(self)
            }
        }
    };
}
machine!(Hub);
machine!(Agent);

/// What a node's owner does for it besides sockets.
pub trait Effects<M: Machine>: 'static {
    /// Dials a target and reports with `Connected` or `DialFailed`.
    fn dial(&self, node: &Node<M>, target: TargetIx);
    /// Connects a stream's target and reports with `Target`.
    fn connect(&self, node: &Node<M>, stream: StreamKey, connector: Name);
    /// Checks a target and reports with `Checked`; agents only.
    fn check(&self, _node: &Node<M>, _check: Check) {}
    /// Executes a registry operation and reports with `Registry`.
    fn registry(&self, node: &Node<M>, token: Token, op: RegistryOp);
    /// Signs or judges and reports with `Signed` or `Verified`, at once: what
    /// the peer says next must find the verdict.
    fn prove(&self, node: &Node<M>, conn: ConnKey, proof: Proof);
    /// Whether a chain that a peer showed in TLS reaches the CAs of this moment.
    fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool;
    /// Judges a fresh token of a live tunnel and reports with `Judged`.
    fn judge(&self, node: &Node<M>, session: SessionKey, token: SecretText);
    /// Closes the sockets on which clients are accepted.
    fn close_listeners(&self);
    /// Logs and samples.
    fn observe(&self, node: &Node<M>, event: Observed);
}

#[derive(Debug, Default)]
pub(crate) struct ConnSlot {
    pub(crate) waker: Option<Waker>,
    pub(crate) dirty: bool,
    pub(crate) close: Option<CloseCode>,
    /// What the peer's TLS showed.
    pub(crate) chain: Option<Chain>,
}

/// What waits for a socket's pump.
#[derive(Debug, Default)]
pub(crate) struct SockSlot {
    pub(crate) ops: VecDeque<SockOp>,
    waker: Option<Waker>,
}

struct Inner<M, E> {
    machine: RefCell<M>,
    out: RefCell<NodeOut>,
    clock: Monotonic,
    conns: RefCell<Slots<ConnKey, ConnSlot>>,
    socks: RefCell<Slots<SockKey, SockSlot>>,
    read_block: RefCell<BytesMut>,
    armed: Cell<Option<Instant>>,
    timer: RefCell<Option<Waker>>,
    drained: Cell<bool>,
    drained_waker: RefCell<Option<Waker>>,
    flushed_waker: RefCell<Option<Waker>>,
    #[cfg(test)]
    journal: RefCell<crate::journal::Journal>,
    effects: E,
}

/// A handle to a node; clones name the same one.
pub struct Node<M: Machine>(Rc<Inner<M, Box<dyn Effects<M>>>>);

impl<M: Machine> std::fmt::Debug for Node<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Node")
    }
}

impl<M: Machine> Clone for Node<M> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<M: Machine> Node<M> {
    /// A node around a machine that was just made; `out` is what it wanted then.
    /// Its timer runs from now on (in the current `LocalSet`).
    pub fn start(machine: M, out: NodeOut, clock: Monotonic, effects: Box<dyn Effects<M>>) -> Self {
        let node = Self(Rc::new(Inner {
            machine: RefCell::new(machine),
            out: RefCell::new(out),
            clock,
            conns: RefCell::default(),
            socks: RefCell::default(),
            read_block: RefCell::default(),
            armed: Cell::new(None),
            timer: RefCell::new(None),
            drained: Cell::new(false),
            drained_waker: RefCell::new(None),
            flushed_waker: RefCell::new(None),
            #[cfg(test)]
            journal: RefCell::default(),
            effects,
        }));
        #[cfg(test)]
        node.journal().wants(&node.0.out.borrow());
        tokio::task::spawn_local(node.clone().run_timer());
        node.enter(|_, _, _| ());
        node
    }

    /// What it was asked and answered so far.
    #[cfg(test)]
    pub(crate) fn journal(&self) -> std::cell::RefMut<'_, crate::journal::Journal> {
        self.0.journal.borrow_mut()
    }

    /// The clock of this node.
    #[must_use]
    pub fn clock(&self) -> Monotonic {
        self.0.clock
    }

    /// The machine, to look at.
    pub fn look<R>(&self, f: impl FnOnce(&M) -> R) -> R {
        f(&self.0.machine.borrow())
    }

    /// Calls the machine and carries out what it wants.
    pub fn enter<R>(&self, f: impl FnOnce(&mut M, Instant, &mut NodeOut) -> R) -> R {
        let now = self.0.clock.now();
        let mut machine = self.0.machine.borrow_mut();
        let mut out = std::mem::take(&mut *self.0.out.borrow_mut());
        let result = f(&mut machine, now, &mut out);
        #[cfg(test)]
        self.journal().done(now, &out);
        let deadline = machine.poll_timeout().map(|d| d.at);
        drop(machine);
        self.execute(&mut out);
        *self.0.out.borrow_mut() = out;
        self.arm(deadline);
        result
    }

    /// Gives the machine one input.
    pub fn input(&self, input: Input) {
        #[cfg(test)]
        self.journal().calls(Call::Input(input.clone()));
        self.enter(|m, now, out| m.handle(now, input, out));
    }

    fn execute(&self, out: &mut NodeOut) {
        if !out.wake.is_empty() || !out.close.is_empty() {
            let mut conns = self.0.conns.borrow_mut();
            for key in out.wake.drain(..) {
                if let Some(slot) = conns.get_mut(key)
                    && !std::mem::replace(&mut slot.dirty, true)
                    && let Some(w) = slot.waker.take()
                {
                    w.wake();
                }
            }
            for (key, code) in out.close.drain(..) {
                if let Some(slot) = conns.get_mut(key) {
                    slot.close = Some(code);
                    if let Some(w) = slot.waker.take() {
                        w.wake();
                    }
                }
            }
        }
        if !out.socks.is_empty() {
            let mut socks = self.0.socks.borrow_mut();
            for (key, op) in out.socks.drain(..) {
                if let Some(slot) = socks.get_mut(key) {
                    slot.ops.push_back(op);
                    if let Some(w) = slot.waker.take() {
                        w.wake();
                    }
                }
            }
        }
        for target in out.dial.drain(..) {
            self.0.effects.dial(self, target);
        }
        for (stream, connector) in out.targets.drain(..) {
            self.0.effects.connect(self, stream, connector);
        }
        for check in out.checks.drain(..) {
            self.0.effects.check(self, check);
        }
        for (token, op) in out.registry.drain(..) {
            self.0.effects.registry(self, token, op);
        }
        for (conn, proof) in out.proofs.drain(..) {
            self.0.effects.prove(self, conn, proof);
        }
        for (session, token) in out.tokens.drain(..) {
            self.0.effects.judge(self, session, token);
        }
        for event in out.observed.drain(..) {
            self.0.effects.observe(self, event);
        }
        if std::mem::take(&mut out.close_listeners) {
            self.0.effects.close_listeners();
        }
        if std::mem::take(&mut out.drained) {
            self.0.drained.set(true);
            if let Some(w) = self.0.drained_waker.borrow_mut().take() {
                w.wake();
            }
        }
    }

    fn arm(&self, deadline: Option<Instant>) {
        let earlier = match (deadline, self.0.armed.get()) {
            (Some(at), Some(armed)) => at < armed,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if earlier && let Some(w) = self.0.timer.borrow_mut().take() {
            w.wake();
        }
    }

    /// One sleep for the whole machine, re-armed when it fires or a deadline
    /// moves before it.
    async fn run_timer(self) {
        let mut sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
        std::future::poll_fn(move |cx| {
            loop {
                let now = self.0.clock.now();
                let due = self.look(Machine::poll_timeout).map(|d| d.at);
                self.0.armed.set(due);
                *self.0.timer.borrow_mut() = Some(cx.waker().clone());
                let Some(at) = due else { return Poll::<()>::Pending };
                if at <= now {
                    #[cfg(test)]
                    self.journal().calls(Call::Timeout);
                    self.enter(|m, now, out| m.handle_timeout(now, out));
                    // Chunked work comes back at once: let others run between.
                    if self.look(Machine::poll_timeout).is_some_and(|d| d.at <= now) {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    continue;
                }
                // Never early: whole milliseconds, rounded up.
                let wait = at.since(now) + Duration::from_micros(999);
                sleep.as_mut().reset(tokio::time::Instant::now() + wait);
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    /// Resolves once every stream is gone after `Drain`.
    pub async fn drained(&self) {
        std::future::poll_fn(|cx| {
            if self.0.drained.get() {
                return Poll::Ready(());
            }
            *self.0.drained_waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Connections that have a pump.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.conns.borrow().len()
    }

    pub(crate) fn add_conn(&self) -> ConnKey {
        self.0.conns.borrow_mut().insert(ConnSlot::default())
    }

    /// The connections whose peer showed a certificate, with its chain.
    pub(crate) fn chains(&self) -> Vec<(ConnKey, Chain)> {
        let conns = self.0.conns.borrow();
        conns.iter().filter_map(|(key, slot)| Some((key, slot.chain.clone()?))).collect()
    }

    /// Whether a chain that a peer showed in TLS reaches the CAs of this moment.
    pub(crate) fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        self.0.effects.trusts(chain)
    }

    /// Ends a connection; its session lives on.
    pub(crate) fn close(&self, key: ConnKey, code: CloseCode) {
        let waker = self.with_conn(key, |slot| {
            slot.close = Some(code);
            slot.waker.take()
        });
        if let Some(w) = waker.flatten() {
            w.wake();
        }
    }

    pub(crate) fn remove_conn(&self, key: ConnKey) {
        self.0.conns.borrow_mut().remove(key);
        if let Some(w) = self.0.flushed_waker.borrow_mut().take() {
            w.wake();
        }
    }

    /// Resolves once no connection has a pump any more, or after `limit`.
    pub async fn flushed(&self, limit: Duration) {
        let gone = std::future::poll_fn(|cx| {
            if self.connections() == 0 {
                return Poll::Ready(());
            }
            *self.0.flushed_waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        });
        let _ = tokio::time::timeout(limit, gone).await;
    }

    pub(crate) fn with_conn<R>(&self, key: ConnKey, f: impl FnOnce(&mut ConnSlot) -> R) -> Option<R> {
        self.0.conns.borrow_mut().get_mut(key).map(f)
    }

    pub(crate) fn transmit(&self, key: ConnKey, budget: usize, batch: &mut TxBatch) -> TxState {
        #[cfg(test)]
        self.journal().calls(Call::Transmit(key, budget));
        self.enter(|m, now, out| {
            let state = m.poll_transmit(now, key, budget, batch, out);
            #[cfg(test)]
            self.journal().says(crate::journal::sent(state, batch));
            state
        })
    }

    /// A place for a socket's operations; its pump follows.
    pub(crate) fn add_sock(&self) -> SockKey {
        self.0.socks.borrow_mut().insert(SockSlot::default())
    }

    pub(crate) fn remove_sock(&self, key: SockKey) {
        self.0.socks.borrow_mut().remove(key);
    }

    /// The next operation for a socket.
    pub(crate) fn next_op(&self, key: SockKey) -> Option<SockOp> {
        self.0.socks.borrow_mut().get_mut(key)?.ops.pop_front()
    }

    /// Resolves when an operation waits for a socket.
    pub(crate) const fn ops(&self, key: SockKey) -> Ops<'_, M> {
        Ops { node: self, key }
    }

    /// The buffer that sockets of this thread are read into (idle sockets own none).
    pub(crate) fn with_read_block<R>(&self, f: impl FnOnce(&mut BytesMut) -> R) -> R {
        f(&mut self.0.read_block.borrow_mut())
    }

    pub(crate) fn read_budget(&self, stream: StreamKey) -> usize {
        let budget = self.0.machine.borrow_mut().read_budget(stream);
        #[cfg(test)]
        {
            self.journal().calls(Call::Read(stream));
            self.journal().says(budget);
            self.journal().done(self.0.clock.now(), &NodeOut::default());
        }
        budget
    }
}

pub(crate) struct Ops<'a, M: Machine> {
    node: &'a Node<M>,
    key: SockKey,
}

impl<M: Machine> Future for Ops<'_, M> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut socks = self.node.0.socks.borrow_mut();
        match socks.get_mut(self.key) {
            Some(slot) if slot.ops.is_empty() => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(_) | None => Poll::Ready(()),
        }
    }
}
