//! Headers of HTTP/2: RFC 7541. Only what is told of them is kept, and of the table only what can be referred to by those. A table
//! counts from its newest entry, so after a block that was not seen whole what comes later is right again.

use std::collections::VecDeque;

use super::huffman;

/// Longer values are not read; nor are tables of more entries.
const MAX_VALUE: usize = 256;
const MAX_ENTRIES: usize = 256;
/// Entries of the static table.
const STATIC: usize = 61;
/// Its entries that matter: appendix A.
const KNOWN: [(usize, Name, &str); 13] = [
    (2, Name::Method, "GET"),
    (3, Name::Method, "POST"),
    (4, Name::Path, "/"),
    (5, Name::Path, "/index.html"),
    (8, Name::Status, "200"),
    (9, Name::Status, "204"),
    (10, Name::Status, "206"),
    (11, Name::Status, "304"),
    (12, Name::Status, "400"),
    (13, Name::Status, "404"),
    (14, Name::Status, "500"),
    (6, Name::Other, "http"),
    (7, Name::Other, "https"),
];

/// Headers that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Method,
    Path,
    Status,
    GrpcStatus,
    ContentType,
    Other,
}

impl Name {
    fn of(name: &[u8]) -> Name {
        match name {
            b":method" => Name::Method,
            b":path" => Name::Path,
            b":status" => Name::Status,
            b"grpc-status" => Name::GrpcStatus,
            b"content-type" => Name::ContentType,
            _ => Name::Other,
        }
    }

    fn of_static(index: usize) -> Name {
        const CONTENT_TYPE: usize = 31;
        if index == CONTENT_TYPE {
            return Name::ContentType;
        }
        KNOWN.iter().find(|(at, ..)| *at == index).map_or(Name::Other, |(_, name, _)| *name)
    }
}

/// A header; the value is nothing where it is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: Name,
    pub value: Option<Vec<u8>>,
    /// What it takes in the table, bytes.
    size: usize,
}

/// What one side has said so far that it can refer to, newest first.
#[derive(Debug)]
pub struct Table {
    entries: VecDeque<Header>,
    size: usize,
    limit: usize,
}

impl Default for Table {
    fn default() -> Table {
        /// SETTINGS_HEADER_TABLE_SIZE at first: RFC 9113, 6.5.2.
        const SIZE: usize = 4096;
        Table { entries: VecDeque::new(), size: 0, limit: SIZE }
    }
}

impl Table {
    /// A block was not seen: it may have added entries.
    pub fn lose(&mut self) {
        self.entries.clear();
        self.size = 0;
    }

    /// The headers of a whole block, those that are told apart. Of one that is not as it must be, those up to there; what comes
    /// later cannot refer to it.
    pub fn decode(&mut self, mut block: &[u8]) -> Vec<Header> {
        let mut headers = Vec::new();
        while !block.is_empty() {
            let Some(header) = self.next(&mut block) else {
                self.lose();
                break;
            };
            headers.extend(header.filter(|header| header.name != Name::Other));
        }
        headers
    }

    /// Takes one header off a block; nothing where it only changes the table.
    fn next(&mut self, block: &mut &[u8]) -> Option<Option<Header>> {
        let first = *block.first()?;
        if first & 0x80 != 0 {
            let index = integer(block, 7)?;
            return Some(self.indexed(index));
        }
        if first & 0xe0 == 0x20 {
            self.limit = integer(block, 5)?.min(1 << 16);
            self.evict(0);
            return Some(None);
        }
        let kept = first & 0x40 != 0;
        let index = integer(block, if kept { 6 } else { 4 })?;
        let (name, name_len) = match index {
            0 => {
                let (name, len) = string(block)?;
                (name.map_or(Name::Other, |name| Name::of(&name)), len)
            }
            _ => (self.indexed(index).map_or(Name::Other, |header| header.name), NAME_LEN),
        };
        let (value, value_len) = string(block)?;
        // RFC 7541, 4.1.
        let header = Header { name, value, size: name_len + value_len + 32 };
        if kept {
            self.evict(header.size);
            if header.size <= self.limit {
                self.size += header.size;
                let value = header.value.clone().filter(|_| header.name != Name::Other);
                self.entries.push_front(Header { value, ..header });
            }
            if self.entries.len() > MAX_ENTRIES
                && let Some(oldest) = self.entries.pop_back()
            {
                self.size -= oldest.size;
            }
        }
        Some(Some(header))
    }

    fn indexed(&self, index: usize) -> Option<Header> {
        if index > STATIC {
            return self.entries.get(index - STATIC - 1).cloned();
        }
        let name = Name::of_static(index);
        let value = KNOWN.iter().find(|(at, ..)| *at == index).map(|(.., value)| value.as_bytes().to_vec());
        Some(Header { name, value, size: 0 })
    }

    fn evict(&mut self, more: usize) {
        while self.size + more > self.limit
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

/// How long a name that is referred to is at least, bytes. Lengths only say when the oldest entries must go for want of room, and nobody
/// refers to what he has thrown away: those that are too short do no harm.
const NAME_LEN: usize = 3;
/// The longest code of a byte, bits.
const LONGEST_CODE: usize = 30;

/// RFC 7541, 5.1.
fn integer(block: &mut &[u8], bits: u32) -> Option<usize> {
    let mask = (1usize << bits) - 1;
    let (first, mut rest) = block.split_first()?;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (next, more) = rest.split_first()?;
            rest = more;
            value = value.checked_add(usize::from(next & 0x7f) << shift)?;
            shift += 7;
            if next & 0x80 == 0 {
                break;
            }
            if shift > 21 {
                return None;
            }
        }
    }
    *block = rest;
    Some(value)
}

/// A text, if it can be read, and how long it is at least when it is not compressed: RFC 7541, 5.2.
fn string(block: &mut &[u8]) -> Option<(Option<Vec<u8>>, usize)> {
    let compressed = *block.first()? & 0x80 != 0;
    let len = integer(block, 7)?;
    let bytes = block.get(..len)?;
    *block = &block[len..];
    let text = match compressed {
        true => huffman::decode(bytes, MAX_VALUE),
        false => Some(bytes.to_vec()).filter(|bytes| bytes.len() <= MAX_VALUE),
    };
    let least = text.as_ref().map_or(len * 8 / LONGEST_CODE, Vec::len);
    Some((text, least))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(headers: &[Header]) -> Vec<(Name, String)> {
        let text = |of: &Header| String::from_utf8(of.value.clone().unwrap()).unwrap();
        headers.iter().map(|of| (of.name, text(of))).collect()
    }

    /// Blocks of one connection: RFC 7541, C.4 with a path that is kept, and what refers to it.
    #[test]
    fn what_was_said_before_is_referred_to() {
        let mut table = Table::default();
        let path = b"\x82\x86\x44\x06/users\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        let told = [(Name::Method, "GET".to_owned()), (Name::Path, "/users".to_owned())];
        assert_eq!(texts(&table.decode(path)), told);
        assert_eq!(table.entries.len(), 2);
        // The path is the second newest.
        assert_eq!(texts(&table.decode(b"\x82\x86\xbf\xbe")), told);
        assert_eq!(texts(&table.decode(b"\x88")), [(Name::Status, "200".to_owned())]);
        assert_eq!(texts(&table.decode(b"\x48\x82\x64\x02")), [(Name::Status, "302".to_owned())]);
        assert_eq!(
            texts(&table.decode(b"\x40\x0bgrpc-status\x01\x35")),
            [(Name::GrpcStatus, "5".to_owned())]
        );
        assert_eq!(
            texts(&table.decode(b"\xbe\xbf")),
            [(Name::GrpcStatus, "5".to_owned()), (Name::Status, "302".to_owned())]
        );
        table.lose();
        assert_eq!(
            texts(&table.decode(b"\x83\xbe")),
            [(Name::Method, "POST".to_owned())],
            "it is not known any more"
        );
        assert_eq!(table.decode(b"\x44\x06/use"), [], "it is cut off");
    }

    #[test]
    fn a_table_has_a_limit() {
        let mut table = Table::default();
        table.decode(b"\x3f\x45"); // 100 bytes
        for _ in 0..9 {
            table.decode(b"\x44\x06/users");
        }
        assert_eq!(table.entries.len(), 2);
        table.decode(b"\x20");
        assert!(table.entries.is_empty() && table.size == 0);
    }

    proptest! {
        #[test]
        fn any_block_is_survived(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..9)) {
            let mut table = Table::default();
            for block in blocks {
                table.decode(&block);
                prop_assert!(table.entries.len() <= MAX_ENTRIES && table.size <= 1 << 16);
            }
        }
    }
}
