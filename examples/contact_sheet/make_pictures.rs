//! Makes the pictures that the contact sheet ships with: `cargo run --release --example make_pictures`.
//!
//! Fifteen that are in order, painted by the formulas in `paintings.rs`, and five that are not (`broken.rs`). There is no
//! chance in it: the same program writes the same bytes. They go to `examples/contact_sheet/pictures`, or to the folder
//! that is given as argument.

mod broken;
mod marker;
mod paintings;

use std::error::Error;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};

use paintings::Colour;

type Paint = fn(f32, f32) -> Colour;

/// File name, width, height, and what is on it.
const PAINTINGS: [(&str, u32, u32, Paint); 15] = [
    ("aurora.jpg", 480, 320, paintings::aurora),
    ("bubbles.webp", 320, 320, paintings::bubbles),
    ("checkers.png", 480, 320, paintings::checkers),
    ("dunes.jpg", 480, 300, paintings::dunes),
    ("interference.gif", 320, 320, paintings::interference),
    ("julia.png", 400, 260, paintings::julia),
    ("mandelbrot.jpg", 480, 360, paintings::mandelbrot),
    ("moire.gif", 480, 320, paintings::moire),
    ("moonrise.jpg", 320, 480, paintings::moonrise),
    ("plasma.webp", 360, 240, paintings::plasma),
    ("sphere.png", 320, 320, paintings::sphere),
    ("spiral.gif", 400, 300, paintings::spiral),
    ("stained-glass.png", 270, 400, paintings::stained_glass),
    ("sunset.jpg", 520, 300, paintings::sunset),
    ("terrain.webp", 300, 300, paintings::terrain),
];

fn main() -> Result<(), Box<dyn Error>> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/contact_sheet/pictures");
    let folder = std::env::args_os().nth(1).map_or(shipped, PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    for (name, file) in good_pictures()?.into_iter().chain(broken_pictures()?) {
        println!("{:>8} bytes  {name}", file.len());
        std::fs::write(folder.join(name), file)?;
    }
    Ok(())
}

type Files = Vec<(&'static str, Vec<u8>)>;

fn good_pictures() -> Result<Files, Box<dyn Error>> {
    let file =
        |(name, width, height, paint)| Ok((name, encoded(name, &painted(width, height, paint))?));
    PAINTINGS.into_iter().map(file).collect()
}

fn broken_pictures() -> Result<Files, Box<dyn Error>> {
    let picture = painted(240, 180, paintings::crossing);
    Ok(vec![
        (
            "crashes-decoder.png",
            broken::marked(&encoded("x.png", &picture)?),
        ),
        ("decompression-bomb.png", broken::decompression_bomb()?),
        ("not-a-picture.png", broken::not_a_picture()),
        (
            "truncated.jpg",
            broken::truncated(encoded("x.jpg", &picture)?, 300),
        ),
        (
            "truncated.png",
            broken::truncated(encoded("x.png", &picture)?, 900),
        ),
    ])
}

/// The picture, with four places looked at for each pixel so that edges come out smooth.
fn painted(width: u32, height: u32, paint: Paint) -> RgbaImage {
    let half = height as f32 / 2.0;
    RgbaImage::from_fn(width, height, |column, row| {
        let places = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)];
        let colours = places.map(|(dx, dy)| {
            let x = (column as f32 + dx - width as f32 / 2.0) / half;
            let y = (half - row as f32 - dy) / half;
            paint(x, y)
        });
        blended(colours)
    })
}

/// The mean, in which a colour counts for as much as it is opaque.
fn blended(colours: [Colour; 4]) -> Rgba<u8> {
    let opacity: f32 = colours.iter().map(|colour| colour[3]).sum();
    let byte = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
    let channel = |i: usize| {
        let sum: f32 = colours
            .iter()
            .map(|colour| colour[i].clamp(0.0, 1.0) * colour[3])
            .sum();
        byte(sum / opacity.max(f32::EPSILON))
    };
    Rgba([channel(0), channel(1), channel(2), byte(opacity / 4.0)])
}

/// The file's bytes, in the format that its name says.
fn encoded(name: &str, picture: &RgbaImage) -> Result<Vec<u8>, Box<dyn Error>> {
    let format = ImageFormat::from_path(name)?;
    let transparent = picture.pixels().any(|pixel| pixel.0[3] < 255);
    let picture = DynamicImage::from(picture.clone());
    let picture = if transparent {
        picture
    } else {
        picture.to_rgb8().into()
    };
    let mut file = Cursor::new(Vec::new());
    match format {
        ImageFormat::Jpeg => {
            picture.write_with_encoder(JpegEncoder::new_with_quality(&mut file, 88))?
        }
        _ => picture.write_to(&mut file, format)?,
    }
    Ok(file.into_inner())
}
