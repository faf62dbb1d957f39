//! Text on pictures, in Noto Sans Mono.

use image::{Pixel, Rgba, RgbaImage};
use noto_sans_mono_bitmap::{
    FontWeight, RasterHeight, RasterizedChar, get_raster, get_raster_width,
};

const WEIGHT: FontWeight = FontWeight::Regular;
const SIZE: RasterHeight = RasterHeight::Size16;

/// The height of a line, in pixels.
pub(crate) const LINE: u32 = 17;

/// The width of a text in one line, in pixels. All characters have the same.
pub(crate) fn width(text: &str) -> u32 {
    (text.chars().count() * get_raster_width(WEIGHT, SIZE)) as u32
}

/// How many characters fit into so many pixels.
pub(crate) fn fitting(pixels: u32) -> usize {
    pixels as usize / get_raster_width(WEIGHT, SIZE)
}

/// Writes a line of text; `(left, top)` is the corner of its first character.
pub(crate) fn write(onto: &mut RgbaImage, (left, top): (u32, u32), text: &str, colour: Rgba<u8>) {
    let mut x = left;
    for character in text.chars() {
        let shape = shape_of(character);
        draw(onto, (x, top), &shape, colour);
        x += shape.width() as u32;
    }
}

/// A text in the middle of a line that is `room` pixels wide.
pub(crate) fn write_centred(
    onto: &mut RgbaImage,
    (left, top): (u32, u32),
    room: u32,
    text: &str,
    colour: Rgba<u8>,
) {
    let margin = room.saturating_sub(width(text)) / 2;
    write(onto, (left + margin, top), text, colour);
}

/// The text, or its beginning and its end if it has more than `most` characters: file names differ at either.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    const CUT: &str = "..";
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= most {
        return text.to_owned();
    }
    let end = most.saturating_sub(CUT.len()) / 2;
    let beginning = most.saturating_sub(CUT.len() + end);
    let (head, tail) = (
        &characters[..beginning],
        &characters[characters.len() - end..],
    );
    head.iter()
        .chain(&CUT.chars().collect::<Vec<_>>())
        .chain(tail)
        .collect()
}

/// The text in lines of up to `most` characters, broken at spaces.
pub(crate) fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word = shortened(word, most);
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= most => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

fn shape_of(character: char) -> RasterizedChar {
    get_raster(character, WEIGHT, SIZE)
        .or_else(|| get_raster('?', WEIGHT, SIZE))
        .expect("the font has a question mark")
}

fn draw(onto: &mut RgbaImage, (left, top): (u32, u32), shape: &RasterizedChar, colour: Rgba<u8>) {
    for (y, line) in (top..).zip(shape.raster()) {
        for (x, strength) in (left..).zip(*line) {
            if let Some(pixel) = onto.get_pixel_mut_checked(x, y) {
                let Rgba([red, green, blue, _]) = colour;
                pixel.blend(&Rgba([red, green, blue, *strength]));
            }
        }
    }
}
