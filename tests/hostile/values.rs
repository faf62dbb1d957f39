//! Values and messages made of arbitrary bytes: what proptest and the fuzzer feed is read as decisions. Shared with
//! `fuzz/`.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// Bytes that are used up as they are read; at their end there are only zeros.
pub struct Source<'a> {
    rest: &'a [u8],
}

impl<'a> Source<'a> {
    pub fn new(bytes: &'a [u8]) -> Source<'a> {
        Source { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Up to so many bytes.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 0
    }

    pub fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// A number of any width: small ones, and those beside a power of two, are as likely as others.
    pub fn number(&mut self) -> u64 {
        let shape = self.byte();
        match shape >> 6 {
            0 => u64::from(shape & 0x3f),
            1 => 1_u64.rotate_left(u32::from(shape & 0x3f)).wrapping_sub(1),
            2 => 1_u64.rotate_left(u32::from(shape & 0x3f)),
            _ => self
                .take(8)
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        }
    }

    /// A text, not all of it ASCII. Its length may be at the edge of a form of string.
    pub fn text(&mut self) -> String {
        let length = usize::from(self.byte());
        match length {
            250.. => "é".repeat(usize::from(self.short())),
            _ => String::from_utf8_lossy(self.take(length)).into_owned(),
        }
    }

    pub fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte());
        match length {
            250.. => vec![0xc1; usize::from(self.short())],
            _ => self.take(length).to_vec(),
        }
    }
}

/// One value of each kind that serde's data model has.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Tree {
    Nothing,
    Unit(()),
    Flag(bool),
    Tiny(i8, u8),
    Signed(i64),
    Unsigned(u64),
    Wide(u128, i128),
    Floats(Float, Double),
    Letter(char),
    Text(String),
    Bytes(Vec<u8>),
    Maybe(Option<Box<Tree>>),
    Many(Vec<Tree>),
    Named(BTreeMap<String, Tree>),
    Numbered(BTreeMap<i16, bool>),
    Pair(Box<(Tree, Tree)>),
    Fields {
        first: u32,
        second: Option<String>,
        rest: Vec<u16>,
    },
}

/// Floats that are equal when their bits are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Float(f32);
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Double(f64);

impl PartialEq for Float {
    fn eq(&self, other: &Float) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl PartialEq for Double {
    fn eq(&self, other: &Double) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Tree {
    pub fn new(source: &mut Source<'_>) -> Tree {
        Tree::below(source, 8)
    }

    /// A tree of so many levels at the most.
    fn below(source: &mut Source<'_>, levels: u32) -> Tree {
        let kind = source.byte() % if levels == 0 { 11 } else { 17 };
        let count = |source: &mut Source<'_>| match source.byte() {
            // The edge of a form of array, in one of 256.
            255 => 16,
            byte => usize::from(byte % 5),
        };
        match kind {
            0 => Tree::Nothing,
            1 => Tree::Unit(()),
            2 => Tree::Flag(source.flag()),
            3 => Tree::Tiny(source.byte() as i8, source.byte()),
            4 => Tree::Signed(source.number() as i64),
            5 => Tree::Unsigned(source.number()),
            6 => Tree::Wide(
                u128::from(source.number()) << 64 | u128::from(source.number()),
                -i128::from(source.number()),
            ),
            7 => Tree::Floats(
                Float(f32::from_bits(source.number() as u32)),
                Double(f64::from_bits(source.number())),
            ),
            8 => Tree::Letter(char::from_u32(source.number() as u32).unwrap_or('é')),
            9 => Tree::Text(source.text()),
            10 => Tree::Bytes(source.bytes()),
            11 => Tree::Maybe(
                source
                    .flag()
                    .then(|| Box::new(Tree::below(source, levels - 1))),
            ),
            12 => Tree::Many(
                (0..count(source))
                    .map(|_| Tree::below(source, levels - 1))
                    .collect(),
            ),
            13 => Tree::Named(
                (0..count(source))
                    .map(|_| (source.text(), Tree::below(source, levels - 1)))
                    .collect(),
            ),
            14 => Tree::Numbered(
                (0..count(source))
                    .map(|_| (source.short() as i16, source.flag()))
                    .collect(),
            ),
            15 => Tree::Pair(Box::new((
                Tree::below(source, levels - 1),
                Tree::below(source, levels - 1),
            ))),
            _ => Tree::Fields {
                first: source.number() as u32,
                second: source.flag().then(|| source.text()),
                rest: (0..count(source)).map(|_| source.short()).collect(),
            },
        }
    }
}

/// Types that serde buffers, or looks at twice.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Untagged {
    Number(u32),
    Text(String),
    Point { x: i8, y: i8 },
    Many(Vec<Untagged>),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Tagged {
    Empty,
    One { value: String },
    Inside(BTreeMap<String, u8>),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Flattened {
    #[serde(default)]
    first: u8,
    #[serde(flatten)]
    rest: HashMap<String, Untagged>,
}
