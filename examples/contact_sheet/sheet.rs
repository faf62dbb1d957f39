//! The contact sheet itself: a grid of tiles on dark paper, and a gap for each picture that could not be had.

use std::io::Cursor;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{DynamicImage, ImageResult, Rgba, RgbaImage, imageops};

use crate::lettering;
use crate::thumbnails::{LARGEST, Thumbnail};

/// One place on the sheet.
pub(crate) struct Tile {
    pub(crate) name: String,
    pub(crate) content: Content,
}

/// What is to be seen there.
pub(crate) enum Content {
    Picture(Thumbnail),
    /// Nothing, for this reason.
    Gap(String),
}

const PAPER: Rgba<u8> = Rgba([0x17, 0x18, 0x1c, 0xff]);
const MOUNT: Rgba<u8> = Rgba([0x24, 0x26, 0x2c, 0xff]);
const INK: Rgba<u8> = Rgba([0xe6, 0xe6, 0xe2, 0xff]);
const PALE_INK: Rgba<u8> = Rgba([0x8d, 0x91, 0x9b, 0xff]);
const HATCHING: Rgba<u8> = Rgba([0x3a, 0x22, 0x26, 0xff]);
const ALARM: Rgba<u8> = Rgba([0xff, 0x8a, 0x7a, 0xff]);

/// Between the sheet's edge and the tiles, and between tiles.
const MARGIN: u32 = 28;
/// Between a thumbnail's longest sides and the edge of its mount.
const MAT: u32 = 8;
const MOUNT_SIZE: (u32, u32) = (LARGEST.0 + 2 * MAT, LARGEST.1 + 2 * MAT);
/// The name, and a line about the picture.
const CAPTION: u32 = 2 * lettering::LINE + 6;
/// Between a caption and the tile below it.
const LEAD: u32 = 20;
/// From one tile's corner to the next one's.
const PITCH: (u32, u32) = (MOUNT_SIZE.0 + MARGIN, MOUNT_SIZE.1 + CAPTION + LEAD);

/// Draws the tiles, in their order, line by line from the top.
pub(crate) fn draw(tiles: &[Tile]) -> RgbaImage {
    let columns = columns_for(tiles.len() as u32);
    let rows = (tiles.len() as u32).div_ceil(columns);
    let mut sheet =
        RgbaImage::from_pixel(MARGIN + columns * PITCH.0, MARGIN + rows * PITCH.1, PAPER);
    for (place, tile) in (0..).zip(tiles) {
        let corner = (
            MARGIN + place % columns * PITCH.0,
            MARGIN + place / columns * PITCH.1,
        );
        draw_tile(&mut sheet, corner, tile);
    }
    sheet
}

/// The sheet as the bytes of a PNG file.
pub(crate) fn encode(sheet: RgbaImage) -> ImageResult<Vec<u8>> {
    let mut file = Cursor::new(Vec::new());
    let encoder =
        PngEncoder::new_with_quality(&mut file, CompressionType::Default, FilterType::Adaptive);
    DynamicImage::from(sheet)
        .into_rgb8()
        .write_with_encoder(encoder)?;
    Ok(file.into_inner())
}

/// Five, and more when the sheet would be much higher than wide.
fn columns_for(tiles: u32) -> u32 {
    tiles.isqrt().max(5).min(tiles)
}

fn draw_tile(sheet: &mut RgbaImage, (left, top): (u32, u32), tile: &Tile) {
    let (width, height) = MOUNT_SIZE;
    let (name_ink, about) = match &tile.content {
        Content::Picture(thumbnail) => {
            fill(sheet, (left, top), MOUNT_SIZE, |_, _| MOUNT);
            draw_picture(sheet, (left, top), thumbnail);
            let (w, h) = thumbnail.original;
            (INK, format!("{w} x {h} {}", thumbnail.format))
        }
        Content::Gap(reason) => {
            draw_gap(sheet, (left, top), reason);
            (ALARM, "no picture".to_owned())
        }
    };
    let name = lettering::shortened(&tile.name, lettering::fitting(width));
    let below = top + height + 6;
    lettering::write_centred(sheet, (left, below), width, &name, name_ink);
    lettering::write_centred(
        sheet,
        (left, below + lettering::LINE),
        width,
        &about,
        PALE_INK,
    );
}

/// The thumbnail, in the middle of its mount.
fn draw_picture(sheet: &mut RgbaImage, (left, top): (u32, u32), thumbnail: &Thumbnail) {
    let Thumbnail {
        width,
        height,
        rgba,
        ..
    } = thumbnail;
    let Some(picture) = RgbaImage::from_raw(*width, *height, rgba.clone()) else {
        return draw_gap(sheet, (left, top), "its bytes do not match its size");
    };
    let x = left + MOUNT_SIZE.0.saturating_sub(*width) / 2;
    let y = top + MOUNT_SIZE.1.saturating_sub(*height) / 2;
    imageops::overlay(sheet, &picture, x.into(), y.into());
}

/// A hatched place with a border, and the reason in it.
fn draw_gap(sheet: &mut RgbaImage, (left, top): (u32, u32), reason: &str) {
    const MOST_LINES: usize = 6;
    let (width, height) = MOUNT_SIZE;
    fill(sheet, (left, top), MOUNT_SIZE, |x, y| {
        let on_border = x == 0 || y == 0 || x == width - 1 || y == height - 1;
        let dashed = on_border && (x + y) % 12 < 7;
        match () {
            () if dashed => ALARM,
            () if (x + y) % 14 < 2 => HATCHING,
            () => PAPER,
        }
    });
    let mut lines = lettering::wrapped(reason, lettering::fitting(LARGEST.0));
    lines.truncate(MOST_LINES);
    let text_height = lines.len() as u32 * lettering::LINE;
    let first = top + (height - text_height) / 2;
    for (line, y) in lines
        .iter()
        .zip((first..).step_by(lettering::LINE as usize))
    {
        lettering::write_centred(sheet, (left, y), width, line, ALARM);
    }
}

/// Colours a rectangle; `paint` is told the place within it.
fn fill(
    sheet: &mut RgbaImage,
    (left, top): (u32, u32),
    (width, height): (u32, u32),
    paint: impl Fn(u32, u32) -> Rgba<u8>,
) {
    for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
        sheet.put_pixel(left + x, top + y, paint(x, y));
    }
}
