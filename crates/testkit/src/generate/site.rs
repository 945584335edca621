//! One virtual host with a CMS in it.

use rustix::fs::{FileType, makedev};

use super::Made;
use super::maker::{Finish, Maker};
use crate::rng::Rng;

const CORE: &[&str] = &[
    "admin",
    "admin/css",
    "admin/css/colors",
    "admin/js",
    "admin/js/widgets",
    "admin/includes",
    "admin/images",
    "admin/network",
    "admin/user",
    "lib",
    "lib/blocks",
    "lib/blocks/gallery",
    "lib/blocks/table",
    "lib/css",
    "lib/css/dist",
    "lib/js",
    "lib/js/vendor",
    "lib/js/vendor/ui",
    "lib/rest",
    "lib/rest/endpoints",
    "lib/rest/fields",
    "lib/mail",
    "lib/sitemaps",
    "lib/fonts",
    "lib/images",
    "lib/images/media",
    "lib/widgets",
    "content",
    "content/languages",
    "content/upgrade",
    "content/cache",
    "content/cache/page",
    "content/plugins",
    "content/themes",
    "content/uploads",
];
const PLUGINS: &[&str] = &[
    "shop", "seo", "forms", "builder", "firewall", "cache-it", "gallery", "antispam",
];
const PLUGIN_DIRS: &[&str] = &[
    "",
    "/includes",
    "/admin",
    "/admin/css",
    "/assets",
    "/assets/js",
    "/languages",
    "/templates",
];
const THEMES: &[&str] = &["seventeen", "storefront", "paper"];
const THEME_DIRS: &[&str] = &["", "/assets", "/assets/css", "/inc", "/parts"];
const WORDS: &[&str] = &[
    "user", "post", "meta", "query", "block", "theme", "option", "cache", "rest", "admin", "media",
    "widget", "hook", "route", "token", "cart", "order", "mail", "image", "feed",
];
/// The owner may write, the user of the web server read; others read.
pub const ACL: &[u8] =
    b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x21\0\0\0\x04\0\x04\0\xff\xff\xff\xff\
                         \x10\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
/// `cap_net_bind_service=ep`, revision 2.
pub const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const WEB_SERVER: u32 = 33;

/// Bytes that files are cut from.
pub struct Pools {
    text: Vec<u8>,
    binary: Vec<u8>,
}

impl Pools {
    pub fn new() -> Pools {
        let mut rng = Rng::new(0);
        let mut text = Vec::new();
        while text.len() < 1 << 20 {
            let [a, b, c, d] = [(); 4].map(|()| *rng.pick(WORDS));
            let number = rng.below(999);
            text.extend_from_slice(
                format!(
                    "    ${a} = filter('{b}_{c}', $this->{d}[{number}]); // {c} {a} of the {b}\n"
                )
                .as_bytes(),
            );
        }
        let mut binary = vec![0; 4 << 20];
        rng.fill(&mut binary);
        Pools { text, binary }
    }
    fn cut(&self, rng: &mut Rng, size: usize, binary: bool) -> &[u8] {
        let pool = if binary { &self.binary } else { &self.text };
        let size = size.min(pool.len());
        let start = rng.below((pool.len() - size + 1) as u64) as usize;
        &pool[start..start + size]
    }
}

pub fn site(mut maker: Maker<'_>, pools: &Pools, number: u64, files: u64) -> anyhow::Result<Made> {
    let owner = Some((10_000 + number as u32, WEB_SERVER));
    maker.owner = owner;
    let host = format!("vhosts/www.example-{number:04}.test");
    let docs = format!("{host}/httpdocs");
    let dirs = directories(&mut maker, &host, &docs, files)?;
    let mut regular: Vec<Vec<u8>> = Vec::new();
    for n in 0..files {
        let dir = maker.rng.pick(&dirs).clone();
        let image = maker.rng.chance(0.01);
        let uploads = dir.contains("/uploads/");
        let mut path = format!("{dir}/").into_bytes();
        path.extend_from_slice(&name(&mut maker, n, image, uploads));
        if !maker.plain && other_than_file(&mut maker, &path, &regular, owner, n)? {
            continue;
        }
        let size = size(&mut maker.rng, image, maker.size_bytes_median);
        let bytes = pools.cut(&mut maker.rng, size, image || uploads);
        let sparse = !maker.plain && maker.rng.chance(0.001);
        let file = if sparse {
            // Two pieces with holes before, between and behind.
            let half = bytes.split_at(bytes.len() / 2);
            maker.file(&path, 3 << 20, &[(1 << 16, half.0), (2 << 20, half.1)])?
        } else {
            maker.file(&path, 0, &[(0, bytes)])?
        };
        let mode = *maker
            .rng
            .pick(&[0o644, 0o644, 0o644, 0o644, 0o600, 0o664, 0o755, 0o444]);
        let mut finish = Finish {
            mode,
            owner,
            mtime: maker.mtime(),
        };
        match n {
            1 => finish.mtime = (-(maker.rng.below(1 << 30) as i64) - 1, 500_000_000),
            2 => finish.mtime = ((1 << 31) + maker.rng.below(1 << 30) as i64, 250_000_000),
            _ => {}
        }
        if !maker.plain {
            if maker.rng.chance(0.0005) {
                finish.mode = 0o4755;
            }
            if maker.rng.chance(0.02) {
                maker.xattr_of(&file, b"user.origin", b"https://example.test/upload?id=1")?;
            }
            if maker.rng.chance(0.002) {
                maker.xattr_of(&file, b"system.posix_acl_access", ACL)?;
                finish.mode = 0o644;
            }
        }
        maker.finish_file(&file, finish)?;
        if !maker.plain && maker.rng.chance(0.0005) {
            // After the owner, because a new owner takes capabilities away.
            maker.xattr_of(&file, b"security.capability", CAPABILITY)?;
        }
        regular.push(path);
    }
    maker.finish()
}

/// Makes the directories, and gives those that get files (uploads more often). A small site has fewer of them.
fn directories(
    maker: &mut Maker<'_>,
    host: &str,
    docs: &str,
    files: u64,
) -> anyhow::Result<Vec<String>> {
    for path in [host, docs] {
        maker.dir(path.as_bytes())?;
    }
    for name in ["logs", "private", "tmp", "statistics"] {
        maker.dir(format!("{host}/{name}").as_bytes())?;
    }
    let mut wanted: Vec<String> = CORE.iter().map(|&dir| dir.to_owned()).collect();
    let first = maker.rng.below(PLUGINS.len() as u64) as usize;
    for plugin in [PLUGINS[first], PLUGINS[(first + 3) % PLUGINS.len()]] {
        wanted.extend(
            PLUGIN_DIRS
                .iter()
                .map(|dir| format!("content/plugins/{plugin}{dir}")),
        );
    }
    let theme = *maker.rng.pick(THEMES);
    wanted.extend(
        THEME_DIRS
            .iter()
            .map(|dir| format!("content/themes/{theme}{dir}")),
    );
    for year in [2024, 2025] {
        wanted.push(format!("content/uploads/{year}"));
        wanted.extend(
            (1..=12)
                .step_by(2)
                .map(|month| format!("content/uploads/{year}/{month:02}")),
        );
    }
    wanted.truncate((files as usize / 4).max(10));
    let mut dirs = vec![docs.to_owned()];
    for dir in wanted {
        let path = format!("{docs}/{dir}");
        maker.dir(path.as_bytes())?;
        let weight = if path.contains("/uploads/") { 2 } else { 1 };
        // Some stay empty.
        if !path.ends_with("upgrade") && !path.ends_with("cache") {
            dirs.extend(std::iter::repeat_n(path, weight));
        }
    }
    Ok(dirs)
}

fn size(rng: &mut Rng, image: bool, median: f64) -> usize {
    if image {
        // 50 KiB to 2 MiB, each doubling as likely.
        return (51_200.0 * (rng.unit() * (2_097_152.0f64 / 51_200.0).ln()).exp()) as usize;
    }
    if rng.chance(0.005) {
        return 0;
    }
    ((median.ln() + rng.normal()).exp() as usize).min(256 << 10)
}

fn name(maker: &mut Maker<'_>, n: u64, image: bool, uploads: bool) -> Vec<u8> {
    let word = *maker.rng.pick(WORDS);
    let width = 100 * maker.rng.range(1, 12);
    let name = match maker.rng.below(10) {
        _ if image || uploads => format!("{word}-{n}-{width}x{width}.jpg"),
        0..6 => format!("class-{word}-{n}.php"),
        6 => format!("{word}-{n}.min.js"),
        7 => format!("{word}-{n}.css"),
        8 => format!("{word}-{n}.json"),
        _ => format!("index-{n}.php"),
    };
    if maker.plain || !maker.rng.chance(0.01) {
        return name.into_bytes();
    }
    let mut odd = match maker.rng.below(10) {
        0 => format!("{word} with spaces ({n}).txt").into_bytes(),
        1 => format!("über-größe-{n} ☃.jpg").into_bytes(),
        2 => format!("line\nbreak-{n}").into_bytes(),
        3 => format!("-rf {n}").into_bytes(),
        4 => format!("'\"`$(id);{n}").into_bytes(),
        5 => format!(".hidden-{n}").into_bytes(),
        6 => format!("tab\tbell\x07escape\x1b[31m{n}").into_bytes(),
        7 => [format!("{n}-").as_bytes(), b"caf\xe9\xff\xfe.html"].concat(),
        8 => format!("back\\slash*?[{n}]").into_bytes(),
        _ => format!("{n}-").into_bytes(),
    };
    if odd.ends_with(b"-") {
        odd.resize(255, b'x');
    }
    odd
}

/// Now and then a name stands for something else than a new file. `true`: it was made.
fn other_than_file(
    maker: &mut Maker<'_>,
    path: &[u8],
    regular: &[Vec<u8>],
    owner: Option<(u32, u32)>,
    n: u64,
) -> anyhow::Result<bool> {
    if maker.rng.chance(0.01) {
        let target = match maker.rng.below(4) {
            0 => "../index.php".to_owned(),
            1 => format!("/nonexistent/{n}"),
            2 => "class-that-is-not-there.php".to_owned(),
            _ => "../../content".to_owned(),
        };
        maker.symlink(path, target.as_bytes(), owner)?;
        return Ok(true);
    }
    if maker.rng.chance(0.01) && !regular.is_empty() {
        let old = maker.rng.pick(regular).clone();
        maker.link(&old, path)?;
        return Ok(true);
    }
    if maker.rng.chance(0.0004) {
        let finish = Finish {
            mode: 0o660,
            owner,
            mtime: maker.mtime(),
        };
        return match maker.rng.below(3) {
            0 => maker.node(path, FileType::Fifo, 0, finish),
            1 => maker.node(path, FileType::Socket, 0, finish),
            _ => maker.node(path, FileType::CharacterDevice, makedev(1, 3), finish),
        };
    }
    Ok(false)
}
