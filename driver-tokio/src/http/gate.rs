//! Admission of connections that have not finished their HTTP exchange
//! (attack 3): a global cap that sheds the oldest, and a cap per address that
//! refuses the newest, so that one address cannot shed everybody else.
//!
//! Owns counts and the means to end a connection's task; knows nothing of what
//! the connections say.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use tokio::task::AbortHandle;

/// What counts as one address. An IPv6 site owns at least a /64: one host could
/// show any address in it.
pub(super) fn site(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// By age.
    waiting: BTreeMap<u64, (IpAddr, Option<AbortHandle>)>,
    per_address: BTreeMap<IpAddr, usize>,
    next: u64,
}

impl Inner {
    fn leave(&mut self, id: u64) -> Option<AbortHandle> {
        let (ip, task) = self.waiting.remove(&id)?;
        if let Some(count) = self.per_address.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.per_address.remove(&ip);
            }
        }
        task
    }
}

/// The connections in their HTTP exchange.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    inner: Rc<RefCell<Inner>>,
    total_max: usize,
    per_address_max: usize,
}

/// One admitted connection; leaves when dropped.
#[derive(Debug)]
pub(super) struct Pass {
    id: u64,
    inner: Rc<RefCell<Inner>>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.inner.borrow_mut().leave(self.id);
    }
}

impl Gate {
    pub(super) fn new(total_max: usize, per_address_max: usize) -> Self {
        Self { inner: Rc::default(), total_max: total_max.max(1), per_address_max: per_address_max.max(1) }
    }

    /// Admits a connection from `ip`, or not when its address has too many.
    /// The second value says whether the oldest connection had to go for it.
    pub(super) fn admit(&self, ip: IpAddr) -> Option<(Pass, bool)> {
        let ip = site(ip);
        let mut inner = self.inner.borrow_mut();
        if inner.per_address.get(&ip).is_some_and(|count| *count >= self.per_address_max) {
            return None;
        }
        let mut shed = None;
        if inner.waiting.len() >= self.total_max
            && let Some(oldest) = inner.waiting.keys().next().copied()
        {
            shed = inner.leave(oldest);
        }
        let id = inner.next;
        inner.next += 1;
        inner.waiting.insert(id, (ip, None));
        *inner.per_address.entry(ip).or_default() += 1;
        drop(inner);
        let had_to_shed = shed.is_some();
        if let Some(task) = shed {
            task.abort();
        }
        Some((Pass { id, inner: Rc::clone(&self.inner) }, had_to_shed))
    }

    /// Tells which task `id` runs in, so that it can be shed.
    pub(super) fn runs_in(&self, id: u64, task: AbortHandle) {
        if let Some((_, slot)) = self.inner.borrow_mut().waiting.get_mut(&id) {
            *slot = Some(task);
        }
    }

    /// Connections admitted and not gone.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.inner.borrow().waiting.len()
    }
}

impl Pass {
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_refused_at_its_cap_and_admitted_when_one_leaves() {
        let gate = Gate::new(10, 2);
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let (a, _) = gate.admit(ip).unwrap();
        let _b = gate.admit(mapped).unwrap();
        assert!(gate.admit(ip).is_none());
        assert!(gate.admit("10.0.0.2".parse().unwrap()).is_some());
        drop(a);
        assert!(gate.admit(ip).is_some());
        assert_eq!(gate.len(), 1, "passes that were dropped at once have left");
    }

    #[test]
    fn addresses_of_one_ipv6_site_count_together() {
        let gate = Gate::new(10, 1);
        let _a = gate.admit("2001:db8::1".parse().unwrap()).unwrap();
        assert!(gate.admit("2001:db8::ffff:2".parse().unwrap()).is_none());
        assert!(gate.admit("2001:db8:0:1::1".parse().unwrap()).is_some());
    }

    #[tokio::test]
    async fn the_oldest_goes_when_the_total_is_reached() {
        let gate = Gate::new(2, 10);
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let (first, _) = gate.admit(ip).unwrap();
        let id = first.id();
        let task = tokio::task::LocalSet::new();
        task.run_until(async {
            let handle = tokio::task::spawn_local(async move {
                let _first = first;
                std::future::pending::<()>().await;
            });
            gate.runs_in(id, handle.abort_handle());
            let (_second, shed) = gate.admit(ip).unwrap();
            assert!(!shed);
            let (_third, shed) = gate.admit(ip).unwrap();
            assert!(shed);
            assert!(handle.await.unwrap_err().is_cancelled());
            assert_eq!(gate.len(), 2);
        })
        .await;
    }
}
