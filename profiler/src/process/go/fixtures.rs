//! Tables as Go's linker writes them, and ELF files around them.

/// Where the code begins.
pub(crate) const TEXT: u64 = 0x1000;

/// By which version of Go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    By1_16,
    By1_18,
    By1_20,
}

/// A function; it begins where the one before it ends.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) name: &'static str,
    pub(crate) flags: u8,
    /// Bytes of code and the size of the frame there; none for a function that is not Go's.
    pub(crate) sizes: Vec<(u64, i64)>,
    pub(crate) code: Vec<u8>,
}

impl Made {
    pub(crate) fn new(name: &'static str, sizes: &[(u64, i64)], code: &[u8]) -> Made {
        Made { name, flags: 0, sizes: sizes.to_vec(), code: code.to_vec() }
    }

    pub(crate) fn flagged(self, flags: u8) -> Made {
        Made { flags, ..self }
    }
}

/// A function with a frame as versions before 1.21 have it, 32 bytes: SUBQ, MOVQ BP, LEAQ, the rest.
pub(crate) fn framed(name: &'static str) -> Made {
    let code = [0x48, 0x83, 0xec, 0x18, 0x48, 0x89, 0x6c, 0x24, 0x10, 0x48, 0x8d, 0x6c, 0x24, 0x10];
    let end = [0x48, 0x83, 0xc4, 0x18, 0xc3];
    let code = [&code[..], &[0x90; 13], &end].concat();
    Made::new(name, &[(4, 0), (27, 24), (1, 0)], &code)
}

/// Some functions.
pub(crate) fn some() -> Vec<Made> {
    vec![framed("main.main"), Made::new("main.leaf", &[(32, 0)], &[0x90; 32])]
}

fn varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn steps(into: &mut Vec<u8>, sizes: &[(u64, i64)]) {
    let mut before = -1;
    for &(bytes, size) in sizes {
        let change: i64 = size - before;
        varint(into, ((change << 1) ^ (change >> 63)) as u64);
        varint(into, bytes);
        before = size;
    }
    into.push(0);
}

/// Their table, and their code.
pub(crate) fn table(by: Written, functions: &[Made]) -> (Vec<u8>, Vec<u8>) {
    let words = by == Written::By1_16;
    let head = if words { 64 } else { 72 };
    let (mut names, mut sizes, mut index, mut infos) = (Vec::new(), vec![0], Vec::new(), Vec::new());
    let entry = if words { 16 } else { 8 };
    let index_bytes = (functions.len() + 1) * entry;
    let mut code = Vec::new();
    for made in functions {
        let offset = code.len() as u64;
        let place = |into: &mut Vec<u8>| match words {
            true => into.extend((TEXT + offset).to_le_bytes()),
            false => into.extend((offset as u32).to_le_bytes()),
        };
        place(&mut index);
        let info = index_bytes + infos.len();
        match words {
            true => index.extend((info as u64).to_le_bytes()),
            false => index.extend((info as u32).to_le_bytes()),
        }
        place(&mut infos);
        let mut fields = [0u32; 8];
        fields[0] = names.len() as u32;
        if !made.sizes.is_empty() {
            fields[3] = sizes.len() as u32;
            steps(&mut sizes, &made.sizes);
        }
        infos.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        if by == Written::By1_20 {
            infos.extend(7u32.to_le_bytes());
        }
        infos.extend([0, made.flags, 0, 0]);
        names.extend(made.name.as_bytes());
        names.push(0);
        code.extend(&made.code);
    }
    match words {
        true => index.extend((TEXT + code.len() as u64).to_le_bytes()),
        false => index.extend((code.len() as u32).to_le_bytes()),
    }
    index.resize(index_bytes, 0);

    let magic: u32 = match by {
        Written::By1_16 => 0xffff_fffa,
        Written::By1_18 => 0xffff_fff0,
        Written::By1_20 => 0xffff_fff1,
    };
    let mut table = magic.to_le_bytes().to_vec();
    table.extend([0, 0, 1, 8]);
    let mut word = |value: usize| table.extend((value as u64).to_le_bytes());
    word(functions.len());
    word(0);
    if !words {
        word(TEXT as usize);
    }
    let sizes_at = head + names.len();
    let index_at = (sizes_at + sizes.len()).next_multiple_of(8);
    for place in [head, head, head, sizes_at, index_at] {
        word(place);
    }
    table.extend(names);
    table.extend(sizes);
    table.resize(index_at, 0);
    table.extend(index);
    table.extend(infos);
    (table, code)
}

/// An ELF file for x86_64 with sections of these names, types, addresses and contents. What is called `.text` is code.
pub(crate) fn file(sections: &[(&str, u32, u64, &[u8])]) -> Vec<u8> {
    let mut names = b"\0".to_vec();
    let mut contents = vec![0; 64 + 56];
    let mut headers = vec![0; 64];
    let mut code = (0, 0, 0);
    for (name, kind, address, bytes) in sections {
        let at = contents.len() as u64;
        if *name == ".text" {
            code = (at, *address, bytes.len() as u64);
        }
        headers.extend((names.len() as u32).to_le_bytes());
        headers.extend(kind.to_le_bytes());
        for word in [2, *address, at, bytes.len() as u64] {
            headers.extend(word.to_le_bytes());
        }
        headers.extend([0; 24]);
        names.extend(name.as_bytes());
        names.push(0);
        contents.extend(*bytes);
    }
    headers.extend([0, 0, 0, 0, 3, 0, 0, 0]);
    for word in [0, 0, contents.len() as u64, names.len() as u64] {
        headers.extend(word.to_le_bytes());
    }
    headers.extend([0; 24]);
    contents.extend(names);
    let headers_at = contents.len() as u64;
    contents.extend(headers);

    let count = sections.len() as u16 + 2;
    let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0".to_vec();
    for word in [0, 64, headers_at] {
        head.extend(word.to_le_bytes());
    }
    head.extend(0u32.to_le_bytes());
    for half in [64, 56, 1, 64, count, count - 1] {
        head.extend(half.to_le_bytes());
    }
    head.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [code.0, code.1, code.1, code.2, code.2, 0x1000] {
        head.extend(word.to_le_bytes());
    }
    contents[..64 + 56].copy_from_slice(&head);
    contents
}
