//! Connections of the small world: proofs of hubs that hold in it, dials, and
//! messages from one end to the other. Must not know streams.

use super::*;

/// Stands for a signature: what was signed, under the names of a certificate.
fn signed(names: &[String], statement: &[u8]) -> Signature {
    let text = |bytes: &[u8]| STANDARD.encode(bytes);
    Signature { chain: vec![text(names.join(",").as_bytes())], scheme: name("ed25519"), signature: text(statement) }
}

/// The verdict on such a signature.
fn judged(statements: &[Vec<u8>], signature: &Signature) -> Result<Verified, &'static str> {
    let said = STANDARD.decode(&signature.signature).map_err(|_| "no base64")?;
    let statement = statements.iter().position(|s| *s == said).ok_or("the signature does not fit")?;
    let names =
        signature.chain.first().and_then(|c| String::from_utf8(STANDARD.decode(c).ok()?).ok()).ok_or("no chain")?;
    Ok(Verified { names: names.split(',').map(str::to_owned).collect(), statement })
}

impl World {
    /// The names in a hub's certificate.
    fn certificate(&self, n: usize) -> Vec<String> {
        self.certificates.get(&n).cloned().unwrap_or_else(|| vec![self.nodes[n].name.clone()])
    }

    pub(super) fn prove(&mut self, n: usize, conn: ConnKey, proof: &Proof) {
        let input = match proof {
            Proof::Sign { statement } => Input::Signed { conn, result: Ok(signed(&self.certificate(n), statement)) },
            Proof::Verify { statements, signature } => Input::Verified { conn, result: judged(statements, signature) },
        };
        self.input(n, input);
    }

    pub(super) fn dial(&mut self, n: usize, ix: usize) {
        self.dials += 1;
        let mut to_name = self.nodes[n].dial_names[ix].clone();
        if let Some((_, real)) = self.aliases.iter().find(|(alias, _)| *alias == to_name) {
            to_name.clone_from(real);
        }
        let from = self.nodes[n].name.clone();
        let target = TargetIx(u16::try_from(ix).unwrap());
        let to = self.nodes.iter().position(|x| x.name == to_name && !x.down);
        let blocked =
            self.unreachable.iter().any(|(a, b)| (*a == from && *b == to_name) || (*b == from && *a == to_name));
        let Some(to) = to.filter(|_| !blocked) else {
            self.input(n, Input::DialFailed { target });
            return;
        };
        let key = |w: &mut Self| {
            w.next_conn += 1;
            ConnKey { ix: w.next_conn, generation: 0 }
        };
        let (a, b) = (key(self), key(self));
        let is_agent = matches!(self.nodes[n].machine, Machine::Agent(_));
        let plane = if is_agent { Plane::Tunnel } else { Plane::Mesh };
        let dialect = Dialect { codec: self.codec, plane };
        self.conns.push(Conn { ends: [(n, a), (to, b)], queues: [VecDeque::new(), VecDeque::new()], open: true });
        let principal = if is_agent {
            Principal::Agent(AgentGrant {
                subject: from,
                connectors: self.token_connectors.clone(),
                expires: self.token_expires,
            })
        } else {
            // Where TLS ends at the acceptor, both see each other's certificate.
            Principal::Hub(HubGrant {
                dns_names: self.exporters[1].map(|_| self.certificate(n)),
                exporter: self.exporters[1],
            })
        };
        let peer = HubGrant { dns_names: self.exporters[0].map(|_| self.certificate(to)), exporter: self.exporters[0] };
        self.input(to, Input::Accepted { conn: b, dialect, principal });
        self.input(n, Input::Connected { target, conn: a, dialect, peer });
    }

    fn distance(&self, conn: usize) -> Duration {
        let ends = self.conns[conn].ends.map(|(n, _)| &self.nodes[n].name);
        let between = |pair: &[String; 2]| pair.iter().all(|name| ends.contains(&name));
        self.distances.iter().find(|(pair, _)| between(pair)).map_or(Duration::ZERO, |(_, d)| *d)
    }

    /// When the next message that is under way arrives.
    pub(super) fn next_arrival(&self) -> Option<Instant> {
        let open = self.conns.iter().filter(|c| self.deliver && c.open);
        open.flat_map(|c| &c.queues).filter_map(|q| q.front()).map(|(at, _)| *at).filter(|at| *at > self.now).min()
    }

    pub(super) fn transmit(&mut self, n: usize, conn: ConnKey) -> bool {
        let node = &mut self.nodes[n];
        if node.down {
            return false;
        }
        let mut batch = std::mem::take(&mut self.batch);
        match &mut node.machine {
            Machine::Hub(h) => h.poll_transmit(self.now, conn, usize::MAX, &mut batch, &mut node.out),
            Machine::Agent(a) => a.poll_transmit(self.now, conn, usize::MAX, &mut batch, &mut node.out),
        };
        let mut sent = false;
        for m in batch.messages.drain(..) {
            sent = true;
            if let Some(i) = self.conns.iter().position(|c| c.open && c.ends.contains(&(n, conn))) {
                let side = usize::from(self.conns[i].ends[0] == (n, conn));
                let arrives = self.now.after(self.distance(i));
                self.conns[i].queues[side].push_back((arrives, m.to_bytes()));
            }
        }
        batch.bytes = 0;
        self.batch = batch;
        sent
    }
}
