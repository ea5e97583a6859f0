//! Enumerations that the kernel programs, recordings and outputs share: each is one table, from which all of them derive.

/// Declares an enumeration as a table. A row has a name, a number, an id and words: the number is what the kernel programs
/// send, the id what machine-readable output and recordings have, the words are for people. A table can have one column
/// more, with a name and a type. The numbers follow one another, which is checked when this is compiled.
macro_rules! table {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident($column:ident: $type:ty) {
            $($(#[$row_attribute:meta])* $row:ident = $number:literal, $id:literal, $words:literal, $value:expr;)+
        }
    ) => {
        $crate::table::table! {
            $(#[$attribute])*
            pub enum $name {
                $($(#[$row_attribute])* $row = $number, $id, $words;)+
            }
        }

        impl $name {
            #[doc = concat!("The column `", stringify!($column), "` of the table.")]
            #[inline(always)]
            pub const fn $column(self) -> $type {
                match self {
                    $(Self::$row => $value,)+
                }
            }
        }
    };
    (
        $(#[$attribute:meta])*
        pub enum $name:ident {
            $($(#[$row_attribute:meta])* $row:ident = $number:literal, $id:literal, $words:literal;)+
        }
    ) => {
        $(#[$attribute])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
        pub enum $name {
            $(
                $(#[$row_attribute])*
                #[cfg_attr(feature = "user", serde(rename = $id))]
                $row = $number,
            )+
        }

        impl $name {
            /// Every row, in the order of the numbers.
            pub const ALL: [$name; [$($number),+].len()] = [$($name::$row),+];
            /// Number of rows.
            pub const COUNT: usize = Self::ALL.len();

            /// The row with a number.
            pub const fn from_number(number: u32) -> Option<$name> {
                match number {
                    $($number => Some(Self::$row),)+
                    _ => None,
                }
            }

            /// Name in machine-readable output.
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$row => $id,)+
                }
            }

            /// Words for people.
            pub const fn words(self) -> &'static str {
                match self {
                    $(Self::$row => $words,)+
                }
            }
        }

        const _: () = {
            let mut i = 0;
            while i < $name::COUNT {
                assert!($name::ALL[i] as usize == $name::ALL[0] as usize + i, "numbers follow one another");
                i += 1;
            }
        };
    };
}

pub(crate) use table;
