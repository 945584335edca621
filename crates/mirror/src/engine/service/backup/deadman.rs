//! The dead-man URL: asked for each minute while all is well, so that somebody else notices when nobody asks any more.
//!
//! Plain HTTP, one GET, of whose answer the first line counts.

use std::fmt;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use mirror_core::escape;

const WITHIN: Duration = Duration::from_secs(15);
const URL_BYTES_MAX: usize = 2000;
/// Of the answer, to find its first line.
const ANSWER_BYTES_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    host: String,
    port: u16,
    path: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

impl Url {
    pub fn parse(text: &str) -> Result<Url, String> {
        let shown = || escape(text.as_bytes());
        if text.starts_with("https://") {
            return Err(
                "https is not spoken here: use an http:// address, of a relay on this host for one"
                    .into(),
            );
        }
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(format!(
                "{} is no address: write http://host[:port]/path",
                shown()
            ));
        };
        let plain = |b: u8| (0x21..0x7f).contains(&b);
        if text.len() > URL_BYTES_MAX || !text.bytes().all(plain) {
            return Err(format!(
                "{} is no address: letters, digits and signs only",
                shown()
            ));
        }
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => v6.split_once(']').unwrap_or(("", "")),
            None => match authority.find(':') {
                Some(at) => authority.split_at(at),
                None => (authority, ""),
            },
        };
        let port = match port.strip_prefix(':') {
            Some(digits) => digits.parse().ok().filter(|port| *port > 0),
            None => port.is_empty().then_some(80),
        };
        let named = !host.is_empty() && !host.contains(['@', '[', ']']);
        match port {
            Some(port) if named => Ok(Url {
                host: host.to_owned(),
                port,
                path,
            }),
            _ => Err(format!(
                "{} is no address: write http://host[:port]/path",
                shown()
            )),
        }
    }

    fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port {
            80 => host,
            port => format!("{host}:{port}"),
        }
    }

    /// Asks once. `Err`: one line.
    pub fn get(&self) -> Result<(), String> {
        let until = Instant::now() + WITHIN;
        let left = || {
            until
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1))
        };
        let failed = |e: std::io::Error| format!("{self}: {e}");
        let addresses = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(failed)?;
        let mut stream = Err(std::io::Error::other("the host has no address"));
        for address in addresses.take(8) {
            stream = TcpStream::connect_timeout(&address, left());
            if stream.is_ok() {
                break;
            }
        }
        let mut stream = stream.map_err(failed)?;
        stream.set_write_timeout(Some(left())).map_err(failed)?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: fs_mirror/{}\r\nConnection: close\r\n\r\n",
            self.path,
            self.authority(),
            env!("CARGO_PKG_VERSION")
        );
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut answer = Vec::new();
        let mut buffer = [0u8; 256];
        while !answer.contains(&b'\n') && answer.len() < ANSWER_BYTES_MAX && Instant::now() < until
        {
            stream.set_read_timeout(Some(left())).map_err(failed)?;
            match stream.read(&mut buffer).map_err(failed)? {
                0 => break,
                n => answer.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            }
        }
        match code(&answer) {
            Some(200..=299) => Ok(()),
            Some(code) => Err(format!("{self}: answered {code}")),
            None => Err(format!("{self}: that is no answer in HTTP")),
        }
    }
}

/// The number in the first line of an answer.
fn code(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|b| *b == b'\r' || *b == b'\n').next()?).ok()?;
    let mut words = line.split(' ');
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn addresses() {
        for (text, want) in [
            ("http://hc.example/ping/1", "http://hc.example/ping/1"),
            ("http://hc.example", "http://hc.example/"),
            ("http://hc.example:8080?x=1", "http://hc.example:8080/?x=1"),
            ("http://[::1]:81/a#b", "http://[::1]:81/a"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), want, "{text}");
        }
        for (text, why) in [
            ("https://hc.example/", "https is not spoken here"),
            ("hc.example", "is no address"),
            ("http://", "is no address"),
            ("http://a:0/", "is no address"),
            ("http://a:b/", "is no address"),
            ("http://me@a/", "is no address"),
            ("http://a/\r\nX: y", "is no address"),
            ("http://[::1/", "is no address"),
        ] {
            let said = Url::parse(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn the_first_line_of_the_answer_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.0 503 no\r\n\r\n",
            "what?\r\n",
            "",
        ];
        let serving = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0u8; 1000];
                let n = stream.read(&mut asked).unwrap();
                let asked = String::from_utf8_lossy(&asked[..n]).into_owned();
                assert!(
                    asked.starts_with("GET /ping HTTP/1.1\r\nHost: 127.0.0.1:"),
                    "{asked}"
                );
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let url = Url::parse(&format!("http://127.0.0.1:{port}/ping")).unwrap();
        assert_eq!(url.get(), Ok(()));
        assert_eq!(url.get(), Err(format!("{url}: answered 503")));
        assert_eq!(url.get(), Err(format!("{url}: that is no answer in HTTP")));
        assert_eq!(url.get(), Err(format!("{url}: that is no answer in HTTP")));
        serving.join().unwrap();
        // Nobody listens any more.
        assert!(url.get().is_err());
    }
}
