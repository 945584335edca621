//! The names of one directory in byte order, in one piece of memory: a million of them take what their bytes take and
//! ten bytes each.

use mirror_core::Name;

#[derive(Default)]
pub struct Names {
    /// Each with its length before it, and whether the directory says that it is a regular file.
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Names {
    /// Takes what is a name.
    pub fn push(&mut self, name: &[u8], regular: bool) {
        let Ok(length) = u8::try_from(name.len()) else {
            return;
        };
        self.starts.push(self.bytes.len());
        self.bytes.extend_from_slice(&[u8::from(regular), length]);
        self.bytes.extend_from_slice(name);
    }

    /// In byte order from now on, each once.
    pub fn sort(&mut self) {
        let mut starts = std::mem::take(&mut self.starts);
        starts.sort_unstable_by(|a, b| self.at(*a).cmp(self.at(*b)));
        starts.dedup_by(|a, b| self.at(*a) == self.at(*b));
        self.starts = starts;
    }

    fn at(&self, start: usize) -> &[u8] {
        match self.bytes.get(start..) {
            Some([_, length, rest @ ..]) => rest.get(..usize::from(*length)).unwrap_or_default(),
            _ => &[],
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Name> + '_ {
        self.iter_kinds().map(|(name, _)| name)
    }

    /// With what the directory said: whether it is a regular file. Look before you trust that.
    pub fn iter_kinds(&self) -> impl Iterator<Item = (Name, bool)> + '_ {
        self.starts.iter().filter_map(|start| {
            let regular = self.bytes.get(*start) == Some(&1);
            Some((Name::new(self.at(*start)).ok()?, regular))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_and_each_once() {
        let mut names = Names::default();
        let long = [b'x'; 255];
        for name in [
            &b"b"[..],
            b"a",
            &long,
            b"\xff",
            b"a",
            b"ab",
            &[b'y'; 256],
            b"",
        ] {
            names.push(name, name == b"b");
        }
        names.sort();
        let got: Vec<Name> = names.iter().collect();
        let want: Vec<Name> = [&b"a"[..], b"ab", b"b", &long, b"\xff"]
            .iter()
            .map(|name| Name::new(name).unwrap())
            .collect();
        assert_eq!(got, want);
        let regular: Vec<bool> = names.iter_kinds().map(|(_, regular)| regular).collect();
        assert_eq!(regular, [false, false, true, false, false]);
    }
}
