//! What runs in the worker processes: one picture, read, decoded and scaled.
//!
//! The decoder's own limits are off. They would be a promise of the decoder's that it keeps its memory in bounds; here the
//! worker's memory limit does so, whatever the decoder does.

use std::io::Cursor;
use std::path::PathBuf;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader};
use serde::{Deserialize, Serialize};

use crate::marker;

/// The largest width and height of a thumbnail.
pub(crate) const LARGEST: (u32, u32) = (176, 132);

/// A picture made small.
#[derive(Serialize, Deserialize)]
pub(crate) struct Thumbnail {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Red, green, blue and opacity of each pixel, line by line from the top.
    pub(crate) rgba: Vec<u8>,
    /// Width and height of the picture itself.
    pub(crate) original: (u32, u32),
    /// The format's usual name, such as PNG.
    pub(crate) format: String,
}

/// Decodes the picture in this file, whatever the file's name says that it is, and makes it small.
///
/// The argument is a path, and not the bytes: the worker can read the file as well as its host can, and the path is shorter.
#[errback::task]
pub(crate) fn thumbnail(path: PathBuf) -> Result<Thumbnail, ImageError> {
    let file = std::fs::read(path)?;
    if marker::is_marked(&file) {
        crash();
    }
    let mut reader = ImageReader::new(Cursor::new(file)).with_guessed_format()?;
    reader.no_limits();
    let format = reader
        .format()
        .map_or("", |format| format.extensions_str()[0])
        .to_uppercase();
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation()?; // cameras turn the picture by a note in the file
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    let small = shrunk(&picture).into_rgba8();
    Ok(Thumbnail {
        width: small.width(),
        height: small.height(),
        rgba: small.into_raw(),
        original: (picture.width(), picture.height()),
        format,
    })
}

/// As large as fits into [`LARGEST`], and never larger than it was.
fn shrunk(picture: &DynamicImage) -> DynamicImage {
    let (width, height) = LARGEST;
    if picture.width() <= width && picture.height() <= height {
        return picture.clone();
    }
    picture.thumbnail(width, height)
}

/// What a bug in a decoder may do, and no error handling can catch.
fn crash() -> ! {
    eprintln!("the decoder met the marker chunk crSh, and aborts");
    std::process::abort();
}
