//! The marker chunk `crSh`: a stand-in for a bug in a decoder, which we have to plant since we know of none.
//!
//! A PNG file is a signature and then chunks: four bytes of length, four letters of type, the data, a CRC. The case of
//! each letter of the type is a property (PNG specification, 5.4, chunk naming conventions):
//!
//! | letter | case | meaning |
//! | --- | --- | --- |
//! | `c` | lower | ancillary: a decoder that does not know the chunk may skip it |
//! | `r` | lower | private: in no public registry, so it is ours to define |
//! | `S` | upper | reserved, must be upper |
//! | `h` | lower | safe to copy: it says nothing about the pixels |
//!
//! So a file that carries `crSh` is a sound PNG picture, which any other program shows. `thumbnails.rs` aborts at it.
//! The data of the chunk is a text without meaning to us.

/// The first bytes of every PNG file.
pub(crate) const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// The type of the marker chunk.
pub(crate) const MARKER: [u8; 4] = *b"crSh";

/// Whether a file's bytes are a PNG with a marker chunk.
pub(crate) fn is_marked(file: &[u8]) -> bool {
    let Some(chunks) = file.strip_prefix(&SIGNATURE) else {
        return false;
    };
    chunk_types(chunks).any(|kind| kind == MARKER)
}

/// The types of the chunks, in their order, as far as they are whole: nobody vouched for these bytes.
fn chunk_types(mut chunks: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    std::iter::from_fn(move || {
        let (length, rest) = chunks.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let data_and_crc = (u32::from_be_bytes(*length) as usize).checked_add(4)?;
        chunks = rest.get(data_and_crc..).unwrap_or_default();
        Some(*kind)
    })
}
