//! The bad link, itself.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testkit::proc::wait_until;
use testkit::proxy::{Control, Proxy, Settings, Way};

const LONG: Duration = Duration::from_secs(30);

/// A link, and both its ends.
fn link(words: &str) -> (Proxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let control = Control::new(Settings::parse(words).unwrap());
    let proxy = Proxy::start(listener.local_addr().unwrap(), control).unwrap();
    let near = TcpStream::connect(proxy.address).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(LONG)).unwrap();
    near.set_read_timeout(Some(LONG)).unwrap();
    (proxy, near, far)
}

fn hears(stream: &mut TcpStream, what: &[u8]) {
    let mut heard = vec![0; what.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(heard, what);
}

#[test]
fn what_is_said_arrives_later_and_in_order() {
    let (proxy, mut near, mut far) = link("latency=60ms");
    let began = Instant::now();
    near.write_all(b"there").unwrap();
    hears(&mut far, b"there");
    far.write_all(b"back").unwrap();
    hears(&mut near, b"back");
    assert!(began.elapsed() >= Duration::from_millis(120));
    wait_until("it is counted", LONG, || proxy.control.bytes(Way::In) == 4).unwrap();
    assert_eq!(proxy.control.bytes(Way::Out), 5);
}

#[test]
fn no_more_goes_through_than_the_rate() {
    let (_proxy, mut near, mut far) = link("rate=1mib");
    let began = Instant::now();
    let bytes: Vec<u8> = (0..400 << 10).map(|n: u32| (n * 7) as u8).collect();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || near.write_all(&sent).map(|()| near));
    hears(&mut far, &bytes);
    assert!(began.elapsed() >= Duration::from_millis(350));
    writer.join().unwrap().unwrap();
}

#[test]
fn a_stall_holds_one_way_and_loses_nothing() {
    let (proxy, mut near, mut far) = link("stall=in");
    far.write_all(b"late").unwrap();
    near.write_all(b"soon").unwrap();
    hears(&mut far, b"soon");
    near.set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    assert!(near.read(&mut [0; 4]).is_err());
    proxy.control.change(|now| now.stall = [false; 2]);
    near.set_read_timeout(Some(LONG)).unwrap();
    hears(&mut near, b"late");
}

#[test]
fn a_cut_is_felt_at_both_ends_and_lasts() {
    let (proxy, mut near, mut far) = link("");
    near.write_all(b"once").unwrap();
    hears(&mut far, b"once");
    proxy.control.change(|now| now.cut = true);
    assert_eq!(near.read(&mut [0; 4]).unwrap_or(0), 0);
    assert_eq!(far.read(&mut [0; 4]).unwrap_or(0), 0);
    let mut again = TcpStream::connect(proxy.address).unwrap();
    again.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(again.read(&mut [0; 4]).unwrap_or(0), 0);
}

#[test]
fn a_command_is_run_over_it() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_linkproxy"))
        .args([
            "latency=20ms",
            "--",
            "sh",
            "-c",
            "read line; echo \"heard $line\"; exit 3",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"this\n").unwrap();
    let done = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stdout), "heard this\n");
    assert_eq!(done.status.code(), Some(3));
}
