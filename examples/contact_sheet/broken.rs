//! The pictures that are none, and how each is broken.

use std::io::{self, Write};

use flate2::Crc;
use flate2::write::ZlibEncoder;

use crate::marker::{MARKER, SIGNATURE, is_marked};

/// The width and the height of the decompression bomb.
const BOMB_SIDE: u32 = 30_000;

/// A file that stops early, as after a broken download.
pub(crate) fn truncated(mut file: Vec<u8>, keep: usize) -> Vec<u8> {
    file.truncate(keep);
    file
}

/// Something else under a picture's name.
pub(crate) fn not_a_picture() -> Vec<u8> {
    b"This is a text. Somebody gave it the name of a picture.\n".to_vec()
}

/// A small file and a huge picture: 30,000 pixels square, each of which is one zero bit here, and three bytes in the
/// memory of whoever decodes it. A worker that tries needs 2.7 GB.
pub(crate) fn decompression_bomb() -> io::Result<Vec<u8>> {
    const BIT_DEPTH: u8 = 1;
    const INDEXED: u8 = 3;
    let mut header = [BOMB_SIDE.to_be_bytes(), BOMB_SIDE.to_be_bytes()].concat();
    header.extend([BIT_DEPTH, INDEXED, 0, 0, 0]);
    let black_and_white = [0, 0, 0, 255, 255, 255];

    let mut file = SIGNATURE.to_vec();
    put_chunk(&mut file, *b"IHDR", &header);
    put_chunk(&mut file, *b"PLTE", &black_and_white);
    put_chunk(&mut file, *b"IDAT", &bomb_pixels()?);
    put_chunk(&mut file, *b"IEND", &[]);
    Ok(file)
}

/// Every line is a zero for 'no filter', and then a bit for each pixel.
fn bomb_pixels() -> io::Result<Vec<u8>> {
    let line = vec![0; 1 + BOMB_SIDE.div_ceil(8) as usize];
    let mut pixels = ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..BOMB_SIDE {
        pixels.write_all(&line)?;
    }
    pixels.finish()
}

/// A sound PNG with our marker chunk (see `marker.rs`), right after its header.
pub(crate) fn marked(png: &[u8]) -> Vec<u8> {
    const HEADER: usize = 8 + 12 + 13; // the signature, and an IHDR chunk with its 13 bytes
    let (header, rest) = png.split_at(HEADER);
    let mut file = header.to_vec();
    put_chunk(&mut file, MARKER, b"the contact sheet's task aborts here");
    file.extend(rest);
    assert!(is_marked(&file), "the task finds what we hide");
    file
}

fn put_chunk(file: &mut Vec<u8>, kind: [u8; 4], data: &[u8]) {
    let mut crc = Crc::new(); // of the type and the data
    crc.update(&kind);
    crc.update(data);
    file.extend((data.len() as u32).to_be_bytes());
    file.extend(kind);
    file.extend(data);
    file.extend(crc.sum().to_be_bytes());
}
