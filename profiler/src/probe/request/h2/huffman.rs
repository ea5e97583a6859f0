//! The Huffman code of headers: RFC 7541, appendix B. It is canonical: codes of one length count up in the order of their bytes. What
//! is written in methods, paths and statuses has at most 15 bits; other bytes are longer, and nothing that is told has them.

/// Bytes of each length, from 5 bits on, in order.
const BY_LENGTH: [&[u8]; 11] = [
    b"012aceiost",
    b" %-./3456789=A_bdfghlmnpru",
    b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    b"&*,;XZ",
    b"",
    b"!\"()?",
    b"'+|",
    b"#>",
    b"\0$@[]~",
    b"^}",
    b"<`{",
];
const SHORTEST: usize = 5;

/// Decodes a text of at most `most` bytes; `None` if it has other bytes, is longer, or does not end as it must.
pub fn decode(coded: &[u8], most: usize) -> Option<Vec<u8>> {
    let (mut text, mut code, mut bits) = (Vec::new(), 0usize, 0);
    for bit in coded.iter().flat_map(|byte| (0..8).rev().map(move |at| usize::from(byte >> at & 1))) {
        code = code << 1 | bit;
        bits += 1;
        if let Some(byte) = byte_of(code, bits)? {
            if text.len() >= most {
                return None;
            }
            text.push(byte);
            (code, bits) = (0, 0);
        }
    }
    // It is filled up with ones: the beginning of the end of texts.
    (bits < 8 && code == (1 << bits) - 1).then_some(text)
}

/// The byte with this code, if one is so long; `None` if none is, however long.
fn byte_of(code: usize, bits: usize) -> Option<Option<u8>> {
    if bits < SHORTEST {
        return Some(None);
    }
    let mut first = 0;
    for (longer, bytes) in BY_LENGTH.iter().enumerate() {
        if SHORTEST + longer == bits {
            return Some(code.checked_sub(first).and_then(|at| bytes.get(at)).copied());
        }
        first = (first + bytes.len()) << 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, C.4 and C.6.
    #[test]
    fn texts_of_the_specification() {
        let coded: [(&[u8], &str); 5] = [
            (b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff", "www.example.com"),
            (b"\xa8\xeb\x10\x64\x9c\xbf", "no-cache"),
            (b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf", "custom-value"),
            (b"\x64\x02", "302"),
            (
                b"\x9d\x29\xad\x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3",
                "https://www.example.com",
            ),
        ];
        for (coded, text) in coded {
            assert_eq!(decode(coded, 100).as_deref(), Some(text.as_bytes()));
            assert_eq!(decode(coded, text.len() - 1), None, "it is longer");
        }
        // The first and the last code of each length from 8 bits on.
        let longer: [(u8, u16, u32); 11] = [
            (b'&', 0xf8, 8),
            (b'Z', 0xfd, 8),
            (b'!', 0x3f8, 10),
            (b'?', 0x3fc, 10),
            (b'\'', 0x7fa, 11),
            (b'|', 0x7fc, 11),
            (b'#', 0xffa, 12),
            (b'~', 0x1ffd, 13),
            (b'^', 0x3ffc, 14),
            (b'<', 0x7ffc, 15),
            (b'{', 0x7ffe, 15),
        ];
        for (byte, code, bits) in longer {
            let filled_up = (u32::from(code) << (32 - bits) | u32::MAX >> bits).to_be_bytes();
            let len = bits.div_ceil(8) as usize;
            assert_eq!(decode(&filled_up[..len], 100), Some(vec![byte]), "{}", char::from(byte));
        }
        assert_eq!(decode(b"\xff\xff\xff\xff", 100), None, "nothing that has so many bits is read");
        assert_eq!(decode(b"\x00", 100), None, "it ends in ones");
    }
}
