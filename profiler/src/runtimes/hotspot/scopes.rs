//! What the compiler has put into a method's code. For each place at which the VM may have to look at a frame (calls above
//! all), a piece of compiled code tells which methods run there, and where in their bytecode.
//!
//! ```text
//! address -> table of places, sorted (16 bytes each) -> scope -> method, position -> the scope around it -> ...
//! ```

use crate::runtimes::{
    hotspot::{
        layout::{Layout, Tables},
        packing::Packing,
    },
    memory::ForeignMemory,
};

/// Methods inside of each other.
const MOST_SCOPES: usize = 64;
/// Bytes of a place in the table: its offset in the code, and where its scope is told; the rest is not needed.
const PLACE_BYTES: usize = 16;
/// The most that is read of one piece's tables, bytes.
const LARGEST_TABLE: u64 = 1024 * 1024;

/// A method at some place of compiled code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The method.
    pub method: u64,
    /// Where in its bytecode it is; negative if at no instruction.
    pub position: i32,
}

/// The tables of a piece of compiled code.
#[derive(Debug, Default)]
pub struct Scopes {
    /// First instruction.
    code: u64,
    /// Offset in the code, and where its scope is told; sorted.
    places: Vec<(i32, u32)>,
    scopes: Vec<u8>,
    /// Methods, by number less one.
    methods: Vec<u64>,
}

impl Scopes {
    /// Reads those of a piece.
    pub fn read<M: ForeignMemory>(memory: &M, layout: &Layout, piece: u64) -> Option<Scopes> {
        let word = |at: u64| memory.u64(piece.wrapping_add(at));
        let offset = |at: u64| memory.u32(piece.wrapping_add(at)).map(u64::from);
        let ([places, places_end], [scopes, scopes_end], [methods, methods_end]) = match layout.tables? {
            Tables::InCode { scopes, places, behind, methods } => {
                let scopes = word(scopes)?;
                let places = piece.wrapping_add(offset(places)?);
                let behind = piece.wrapping_add(offset(behind)?);
                let methods = piece.wrapping_add(offset(methods)?);
                ([places, behind], [scopes, places], [methods, scopes])
            }
            Tables::Apart { constant, constant_size, places, scopes, mutable, mutable_size, relocations } => {
                let (constant, size) = (word(constant)?, offset(constant_size)?);
                let (places, scopes) = (offset(places)?, offset(scopes)?);
                let (mutable, mutable_size) = (word(mutable)?, offset(mutable_size)?);
                let at = |offset: u64| constant.wrapping_add(offset);
                let methods = mutable.wrapping_add(offset(relocations)?);
                (
                    [at(places), at(scopes)],
                    [at(scopes), at(size)],
                    [methods, mutable.wrapping_add(mutable_size)],
                )
            }
        };
        let bytes = |[begin, end]: [u64; 2]| {
            let len = end.checked_sub(begin).filter(|len| *len <= LARGEST_TABLE)?;
            memory.bytes(begin, len as usize)
        };
        let number = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
        let table = bytes([places, places_end])?;
        let places = table.chunks_exact(PLACE_BYTES);
        let places: Option<Vec<(i32, u32)>> =
            places.map(|place| Some((number(&place[..4])? as i32, number(&place[4..8])?))).collect();
        let methods = bytes([methods, methods_end])?;
        let methods =
            methods.chunks_exact(8).filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)));
        Some(Scopes {
            code: layout.code.begin(memory, piece)?,
            places: places.filter(|places| places.is_sorted_by_key(|(offset, _)| *offset))?,
            scopes: bytes([scopes, scopes_end])?,
            methods: methods.collect(),
        })
    }

    /// Bytes of memory that they take.
    pub fn bytes(&self) -> usize {
        self.places.len() * 8 + self.scopes.len() + self.methods.len() * 8
    }

    /// The methods that run at an address, which is one of the next instruction: innermost first. The outermost must be
    /// `compiled`: else the tables are not what they seem.
    pub fn at(&self, next: u64, compiled: u64, packing: Packing) -> Option<Vec<Scope>> {
        let offset = i32::try_from(next.checked_sub(self.code)?).ok()?;
        let index = self.places.partition_point(|(place, _)| *place < offset);
        let mut told = self.places.get(index)?.1;
        let mut scopes = Vec::new();
        while scopes.len() < MOST_SCOPES {
            let mut bytes = self.scopes.get(told as usize..)?;
            let around = packing.unsigned(&mut bytes)?;
            let method = packing.unsigned(&mut bytes)?;
            let position = packing.unsigned(&mut bytes)? as i32;
            let method = *self.methods.get((method as usize).checked_sub(1)?)?;
            scopes.push(Scope { method, position: position.wrapping_sub(1) });
            if around == 0 {
                return (method == compiled).then_some(scopes);
            }
            if around >= told {
                return None; // what is around is told before
            }
            told = around;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the VM packs.
    fn pack(mut value: u32, packing: Packing, into: &mut Vec<u8>) {
        let last = 256 - 64 - u32::from(packing.excluded);
        for _ in 0..4 {
            if value < last {
                break;
            }
            value -= last;
            into.push((last + value % 64) as u8 + packing.excluded);
            value >>= 6;
        }
        into.push(value as u8 + packing.excluded);
    }

    #[test]
    fn numbers_are_as_the_vm_packs_them() {
        let numbers = |bytes: &[u8], packing: Packing| {
            let mut rest = bytes;
            std::iter::from_fn(|| packing.unsigned(&mut rest)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&[0, 191, 192, 0, 255, 1], Packing::ALL[0]), [0, 191, 192, 255 + 64]);
        assert_eq!(numbers(&[1, 191, 192, 1], Packing::ALL[1]), [0, 190, 191]);
        let signed = |byte: u8| Packing::ALL[0].signed(&mut &[byte][..]);
        assert_eq!([0, 1, 2, 3].map(signed), [0, -1, 1, -2].map(Some));
    }

    fn scopes(packing: Packing) -> Scopes {
        let mut told = vec![0xff]; // zero is no scope's place
        let mut put = |around: u32, method: u32, position: u32| {
            let at = told.len() as u32;
            for value in [around, method, position + 1] {
                pack(value, packing, &mut told);
            }
            at
        };
        let outer = put(0, 1, 300);
        let inner = put(outer, 2, 7);
        let places = vec![(-1, 0), (0x20, outer), (0x40, inner), (i32::MAX, 0)];
        Scopes { code: 0x1000, places, scopes: told, methods: vec![0xa000, 0xb000] }
    }

    #[test]
    fn a_place_has_its_methods() {
        for packing in Packing::ALL {
            let scopes = scopes(packing);
            let (outer, inner) =
                (Scope { method: 0xa000, position: 300 }, Scope { method: 0xb000, position: 7 });
            let at = |next: u64| scopes.at(next, 0xa000, packing);
            assert_eq!(at(0x1020), Some(vec![outer]));
            assert_eq!([0x1021, 0x1040].map(at), [(); 2].map(|()| Some(vec![inner, outer])));
            assert_eq!([0x1041, 0xfff].map(at), [None, None]);
            assert_eq!(scopes.at(0x1020, 0xb000, packing), None, "another method's code");
        }
    }

    proptest! {
        #[test]
        fn packed_numbers_come_back(value: u32, which in 0usize..2) {
            let packing = Packing::ALL[which];
            let mut bytes = Vec::new();
            pack(value, packing, &mut bytes);
            prop_assert_eq!(packing.unsigned(&mut &bytes[..]), Some(value));
        }

        #[test]
        fn any_tables_are_survived(
            places in proptest::collection::vec(any::<(i32, u32)>(), 0..8),
            bytes in proptest::collection::vec(any::<u8>(), 0..64), next: u64, which in 0usize..2
        ) {
            let places = places.into_iter().map(|(offset, told)| (offset, told % 64)).collect();
            let scopes = Scopes { code: 0, places, scopes: bytes, methods: vec![1; 8] };
            scopes.at(next & 0xffff, 1, Packing::ALL[which]);
        }
    }
}
