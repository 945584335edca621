//! Hosts on one machine: network namespaces on a bridge, with links that can be cut, slowed, made lossy or deaf.
//!
//! All of it belongs to the thread that made the [`Net`], inside a [`super::Lab`]'s private mounts, and is gone when
//! its process ends. Addresses are 10.77.0.0/24 and lead nowhere else.

use std::ffi::OsStr;
use std::marker::PhantomData;
use std::process::Command;

use super::{Lab, Skip};

const BRIDGE: &str = "br0";
const HOSTS_MAX: u8 = 250;

/// A switch that hosts are plugged into.
pub struct Net {
    hosts: std::cell::Cell<u8>,
    /// Not to be sent: another thread has another namespace.
    here: PhantomData<*const ()>,
}

/// A host: its programs see its own network, and the files of the calling thread.
#[derive(Debug, Clone)]
pub struct Host {
    pub name: String,
    /// Such as `10.77.0.1`.
    pub address: String,
    number: u8,
}

impl Lab {
    /// Puts this thread into a network namespace of its own, with a switch in it.
    pub fn net(&self) -> Result<Net, Skip> {
        let skip = |what: &str| {
            let what = what.to_owned();
            move |e: std::io::Error| Skip(format!("{what}: {e}"))
        };
        for tool in ["ip", "nft", "tc"] {
            Command::new(tool)
                .arg("-V")
                .output()
                .map_err(skip(&format!("no {tool}")))?;
        }
        crate::sys::unshare_net().map_err(skip("no network namespace"))?;
        // Where `ip netns` keeps names; ours are seen by nobody else.
        std::fs::create_dir_all("/run/netns").map_err(skip("no /run/netns"))?;
        let mounted = rustix::mount::mount(
            "none",
            "/run/netns",
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            None::<&std::ffi::CStr>,
        );
        mounted.map_err(|e| skip("no tmpfs on /run/netns")(e.into()))?;
        ip("link set lo up")?;
        ip(&format!("link add {BRIDGE} type bridge"))?;
        ip(&format!("link set {BRIDGE} up"))?;
        Ok(Net {
            hosts: std::cell::Cell::new(0),
            here: PhantomData,
        })
    }
}

impl Net {
    pub fn host(&self, name: &str) -> Result<Host, Skip> {
        let number = self.hosts.get() + 1;
        if number > HOSTS_MAX {
            return Err(Skip(format!("more than {HOSTS_MAX} hosts")));
        }
        self.hosts.set(number);
        let host = Host {
            name: name.to_owned(),
            address: format!("10.77.0.{number}"),
            number,
        };
        let (port, address) = (host.port(), &host.address);
        ip(&format!("netns add {name}"))?;
        ip(&format!(
            "link add {port} type veth peer name eth0 netns {name}"
        ))?;
        ip(&format!("link set {port} master {BRIDGE} up"))?;
        for line in [
            format!("addr add {address}/24 dev eth0"),
            "link set eth0 up".into(),
            "link set lo up".into(),
        ] {
            ip(&format!("-n {name} {line}"))?;
        }
        Ok(host)
    }

    /// Pulls the cable, or puts it in again.
    pub fn plugged(&self, host: &Host, plugged: bool) -> Result<(), Skip> {
        let state = if plugged { "up" } else { "down" };
        ip(&format!("link set {} {state}", host.port()))
    }

    /// What goes into and out of a host at most, in `tc`'s words (`1mbit`); `None`: as fast as it goes.
    pub fn rate(&self, host: &Host, rate: Option<&str>) -> Result<(), Skip> {
        let inside = (format!("-n {} ", host.name), "eth0".to_owned());
        for (place, device) in [inside, (String::new(), host.port())] {
            // There may be none.
            let _ = tc(&format!("{place}qdisc del dev {device} root"));
            if let Some(rate) = rate {
                tc(&format!(
                    "{place}qdisc add dev {device} root tbf rate {rate} burst 64kb latency 100ms"
                ))?;
            }
        }
        Ok(())
    }

    /// Drops so many of a hundred packets that come in and go out.
    pub fn lossy(&self, host: &Host, percent: u8) -> Result<(), Skip> {
        match percent {
            0..100 => self.rules(host, &format!("numgen random mod 100 < {percent} drop")),
            _ => self.rules(host, "drop"),
        }
    }

    /// Half open: what comes in is lost, what goes out is not.
    pub fn deaf(&self, host: &Host) -> Result<(), Skip> {
        self.nft(host, "flush ruleset")?;
        self.nft(host, "add table ip lab")?;
        self.nft(
            host,
            "add chain ip lab input { type filter hook input priority 0; }",
        )?;
        self.nft(host, "add rule ip lab input iifname eth0 drop")
    }

    /// Whoever connects to this host is refused, and what is connected is reset.
    pub fn refuses(&self, host: &Host) -> Result<(), Skip> {
        self.rules(host, "meta l4proto tcp reject with tcp reset")
    }

    /// All packets pass again.
    pub fn healed(&self, host: &Host) -> Result<(), Skip> {
        self.nft(host, "flush ruleset")?;
        self.rate(host, None)?;
        self.plugged(host, true)
    }

    fn rules(&self, host: &Host, rule: &str) -> Result<(), Skip> {
        self.nft(host, "flush ruleset")?;
        self.nft(host, "add table ip lab")?;
        for hook in ["input", "output"] {
            self.nft(
                host,
                &format!("add chain ip lab {hook} {{ type filter hook {hook} priority 0; }}"),
            )?;
            let side = if hook == "input" {
                "iifname"
            } else {
                "oifname"
            };
            self.nft(host, &format!("add rule ip lab {hook} {side} eth0 {rule}"))?;
        }
        Ok(())
    }

    fn nft(&self, host: &Host, line: &str) -> Result<(), Skip> {
        done(host.command("nft").arg(line), line)
    }
}

impl Host {
    fn port(&self) -> String {
        format!("veth{}", self.number)
    }

    /// A program on this host; `hostname` there says its name. The process started becomes the program.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name, "unshare", "--uts", "sh", "-c"])
            .arg(format!("hostname {} && exec \"$@\"", self.name))
            .arg("sh")
            .arg(program);
        command
    }
}

fn ip(line: &str) -> Result<(), Skip> {
    done(Command::new("ip").args(line.split(' ')), line)
}

fn tc(line: &str) -> Result<(), Skip> {
    done(Command::new("tc").args(line.split(' ')), line)
}

fn done(command: &mut Command, line: &str) -> Result<(), Skip> {
    let output = command.output().map_err(|e| Skip(format!("{line}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Skip(format!("{line}: {}", said.trim())))
}
