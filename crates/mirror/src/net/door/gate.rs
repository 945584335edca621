//! Connections of whom nothing is known yet: so many at once, and the oldest that stalls makes room for the next.

use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::sync::lock;

pub struct Gate {
    all_max: usize,
    per_address_max: usize,
    /// In the order they came.
    waiting: Mutex<Vec<Waiting>>,
    next: AtomicU64,
    /// How many had to make room.
    ousted: AtomicU64,
}

struct Waiting {
    id: u64,
    from: IpAddr,
    heard: Arc<AtomicBool>,
    socket: TcpStream,
}

/// Given up when it is dropped.
pub struct Seat {
    gate: Arc<Gate>,
    id: u64,
    /// The other side said something.
    pub heard: Arc<AtomicBool>,
}

impl Gate {
    pub fn new(all_max: usize, per_address_max: usize) -> Gate {
        Gate {
            all_max: all_max.max(1),
            per_address_max: per_address_max.max(1),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            ousted: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        lock(&self.waiting)
    }

    /// There is always room: somebody who stalls has to go if there was none.
    pub fn enter(self: &Arc<Gate>, from: IpAddr, socket: &TcpStream) -> std::io::Result<Seat> {
        let from = whose(from);
        let heard = Arc::new(AtomicBool::new(false));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let socket = socket.try_clone()?;
        let mut waiting = self.lock();
        let same = waiting.iter().filter(|one| one.from == from).count();
        let of_same = same >= self.per_address_max;
        if of_same || waiting.len() >= self.all_max {
            let may_go = |one: &Waiting| !of_same || one.from == from;
            let silent = |one: &Waiting| may_go(one) && !one.heard.load(Ordering::Acquire);
            let found = waiting.iter().position(silent);
            if let Some(at) = found.or_else(|| waiting.iter().position(may_go)) {
                let gone = waiting.remove(at);
                let _ = gone.socket.shutdown(Shutdown::Both);
                self.ousted.fetch_add(1, Ordering::Relaxed);
            }
        }
        waiting.push(Waiting {
            id,
            from,
            heard: heard.clone(),
            socket,
        });
        Ok(Seat {
            gate: self.clone(),
            id,
            heard,
        })
    }

    /// How many had to make room since this was asked last.
    pub fn ousted(&self) -> u64 {
        self.ousted.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gate.lock().retain(|one| one.id != self.id);
    }
}

/// One customer's network counts as one address.
fn whose(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(six) => {
            let net = u128::from(six) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(net))
        }
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    #[test]
    fn the_oldest_silent_one_makes_room() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let gate = Arc::new(Gate::new(3, 2));
        let enter = |from: &str| {
            let near = TcpStream::connect(at).unwrap();
            let (far, _) = listener.accept().unwrap();
            let seat = gate.enter(from.parse().unwrap(), &far).unwrap();
            (seat, near)
        };
        let is_out = |near: &mut TcpStream| {
            near.set_read_timeout(Some(std::time::Duration::from_millis(50)))
                .unwrap();
            near.read(&mut [0]).is_ok_and(|n| n == 0)
        };
        let (one, mut a) = enter("10.0.0.1");
        let (_two, mut b) = enter("10.0.0.1");
        one.heard.store(true, Ordering::Release);
        // Of one address: the silent one goes, though the other is older.
        let (_three, mut c) = enter("10.0.0.1");
        assert!(!is_out(&mut a) && is_out(&mut b) && !is_out(&mut c));
        let (_four, mut d) = enter("2001:db8::1");
        let (_five, mut e) = enter("2001:db8::2");
        assert!(!is_out(&mut a) && is_out(&mut c) && !is_out(&mut d) && !is_out(&mut e));
        // Two of one network are of one address.
        let (_six, mut f) = enter("2001:db8::3");
        assert!(is_out(&mut d) && !is_out(&mut e) && !is_out(&mut f) && !is_out(&mut a));
        assert_eq!(gate.ousted(), 3);
        drop(one);
        let (_seven, mut g) = enter("10.0.0.9");
        assert!(!is_out(&mut e) && !is_out(&mut g));
        assert_eq!(gate.ousted(), 0);
    }
}
