//! What is on the shipped pictures: each is a function from a place to a colour.
//!
//! A place is `(x, y)`: `y` goes from 1 at the top to -1 at the bottom, `x` as far to both sides as the shape of the
//! picture allows. Colours are red, green, blue and opacity, each from 0 to 1.

use std::f32::consts::{PI, TAU};

/// Red, green, blue, opacity.
pub(crate) type Colour = [f32; 4];

pub(crate) fn aurora(x: f32, y: f32) -> Colour {
    let sky = mix(rgb(0.02, 0.03, 0.10), rgb(0.05, 0.12, 0.22), 0.5 - y / 2.0);
    let mut colour = mix(sky, rgb(1.0, 1.0, 1.0), star(x, y, 26.0));
    for (curtain, hue) in [(0.0, 0.0), (2.7, 0.35), (5.1, 0.8)] {
        let hem = 0.25 * (x * 1.7 + curtain).sin() + 0.12 * (x * 4.1 + curtain * 2.0).sin() - 0.15;
        let height = y - hem;
        let rays = 0.45 + 0.55 * fbm(x * 9.0 + curtain, y * 0.4, 3);
        let glow = smooth(-0.03, 0.10, height) * (-height.max(0.0) * 2.4).exp() * rays;
        let light = mix(
            rgb(0.15, 1.0, 0.55),
            rgb(0.65, 0.25, 0.95),
            (height * 1.3 + hue * 0.5).clamp(0.0, 1.0),
        );
        colour = add(colour, light, glow * 0.75);
    }
    let hills = -0.72 + 0.16 * fbm(x * 2.2 + 9.0, 0.5, 5) + 0.05 * (x * 2.0).sin();
    mix(
        colour,
        rgb(0.01, 0.02, 0.04),
        smooth(0.01, -0.01, y - hills),
    )
}

pub(crate) fn bubbles(x: f32, y: f32) -> Colour {
    let mut colour = mix(rgb(0.06, 0.30, 0.48), rgb(0.55, 0.85, 0.90), y / 2.0 + 0.5);
    for i in 0..14 {
        let (cx, cy) = (hash(i, 1) * 2.4 - 1.2, hash(i, 2) * 2.2 - 1.1);
        let radius = 0.12 + 0.26 * hash(i, 3);
        let distance = (x - cx).hypot(y - cy) / radius;
        if distance < 1.0 {
            let film = rainbow(hash(i, 4) + distance * 0.35 + (y - cy) * 0.4);
            colour = mix(colour, film, 0.12 + 0.65 * distance.powi(5));
            let shine = (-((x - cx + radius * 0.4).powi(2) + (y - cy - radius * 0.45).powi(2))
                * 60.0
                / radius)
                .exp();
            colour = add(colour, rgb(1.0, 1.0, 1.0), shine * 0.9);
        }
    }
    colour
}

pub(crate) fn checkers(x: f32, y: f32) -> Colour {
    let horizon = 0.25;
    let sky = mix(
        rgb(0.98, 0.80, 0.62),
        rgb(0.30, 0.47, 0.78),
        smooth(horizon, 1.0, y),
    );
    if y > horizon {
        return sky;
    }
    let depth = 0.55 / (horizon - y + 0.015);
    let (fx, fz) = (x * depth * 1.5 + 0.3, depth * 1.9);
    let dark = (fx.floor() + fz.floor()).rem_euclid(2.0) < 1.0;
    let tile = if dark {
        rgb(0.16, 0.17, 0.26)
    } else {
        rgb(0.96, 0.93, 0.86)
    };
    mix(tile, rgb(0.98, 0.80, 0.62), smooth(1.5, 12.0, depth))
}

pub(crate) fn crossing(x: f32, y: f32) -> Colour {
    let stripes = ((x + y) * 7.0).sin() * ((x - y) * 7.0).sin();
    mix(
        rgb(0.85, 0.15, 0.15),
        rgb(1.0, 0.80, 0.20),
        smooth(-0.05, 0.05, stripes),
    )
}

pub(crate) fn dunes(x: f32, y: f32) -> Colour {
    let mut colour = mix(
        rgb(0.99, 0.86, 0.66),
        rgb(0.40, 0.62, 0.80),
        smooth(-0.1, 1.0, y),
    );
    let sun = (x - 0.7).hypot(y - 0.62);
    colour = add(colour, rgb(1.0, 0.9, 0.6), (-sun * 5.0).exp() * 0.8);
    for layer in 0..6 {
        let near = layer as f32 / 5.0;
        let crest = |x: f32| {
            let wave = (x * (2.6 - near) + near * 11.0).sin() + 0.6 * (x * 4.3 - near * 23.0).sin();
            0.22 - 1.05 * near + (0.10 + 0.06 * near) * (1.0 - wave.abs())
        };
        let (ridge, slope) = (crest(x), crest(x + 0.02) - crest(x));
        let lit = mix(rgb(0.93, 0.72, 0.55), rgb(0.84, 0.45, 0.18), near);
        let shaded = mix(rgb(0.70, 0.50, 0.50), rgb(0.36, 0.13, 0.12), near);
        let sand = mix(
            shaded,
            lit,
            smooth(-0.008, 0.008, -slope) * 0.75 + (ridge - y) * 0.4,
        );
        colour = mix(colour, sand, smooth(0.008, -0.008, y - ridge));
    }
    colour
}

pub(crate) fn interference(x: f32, y: f32) -> Colour {
    let wave = |cx: f32, cy: f32| ((x - cx).hypot(y - cy) * 32.0).sin();
    let height = (wave(-0.5, 0.45) + wave(0.6, -0.1) + wave(-0.3, -0.8)) / 3.0;
    mix(
        rgb(0.02, 0.10, 0.30),
        rgb(0.70, 0.95, 1.0),
        smooth(-0.9, 0.9, height),
    )
}

pub(crate) fn julia(x: f32, y: f32) -> Colour {
    match escape_time(x * 1.25, y * 1.25, -0.79, 0.156) {
        Some(time) => spectrum(time * 0.035 + 0.52),
        None => rgb(0.02, 0.01, 0.05),
    }
}

pub(crate) fn mandelbrot(x: f32, y: f32) -> Colour {
    match escape_time(0.0, 0.0, -0.7435 + x * 0.0042, 0.1318 + y * 0.0042) {
        Some(time) => spectrum(time.sqrt() * 0.17 + 0.62),
        None => rgb(0.0, 0.0, 0.0),
    }
}

pub(crate) fn moire(x: f32, y: f32) -> Colour {
    let rings = |cx: f32, cy: f32| ((x - cx).hypot(y - cy) * 20.0).fract() < 0.5;
    match (rings(-0.28, 0.0), rings(0.28, 0.0)) {
        (true, true) => rgb(0.10, 0.08, 0.20),
        (true, false) => rgb(0.95, 0.30, 0.35),
        (false, true) => rgb(0.20, 0.55, 0.85),
        (false, false) => rgb(0.98, 0.96, 0.90),
    }
}

pub(crate) fn moonrise(x: f32, y: f32) -> Colour {
    let horizon = -0.25;
    let sky = |y: f32| {
        let dusk = mix(
            rgb(0.40, 0.30, 0.48),
            rgb(0.04, 0.05, 0.16),
            smooth(horizon, 0.9, y),
        );
        let moon = x.hypot(y - 0.35) / 0.22;
        let craters = 0.80 + 0.20 * fbm(x * 9.0 + 3.0, y * 9.0, 4);
        let face = mix(rgb(0.72, 0.68, 0.60), rgb(1.0, 0.97, 0.88), craters);
        let halo = add(
            dusk,
            rgb(0.9, 0.85, 0.7),
            (-(moon - 1.0).max(0.0) * 1.6).exp() * 0.35,
        );
        mix(halo, face, smooth(1.02, 0.98, moon))
    };
    if y > horizon {
        return mix(
            sky(y),
            rgb(1.0, 1.0, 1.0),
            star(x, y, 30.0) * smooth(0.4, 0.6, x.hypot(y - 0.35)),
        );
    }
    let depth = horizon - y;
    let ripple = (fbm(x * 3.0 / (depth + 0.1), 3.0 / (depth + 0.06), 3) - 0.5) * 2.0;
    let mirrored = sky(2.0 * horizon - y + ripple * 0.35);
    mix(
        scale(mirrored, 0.75),
        rgb(0.03, 0.05, 0.14),
        smooth(0.0, 1.1, depth),
    )
}

pub(crate) fn plasma(x: f32, y: f32) -> Colour {
    let a = (x * 3.1).sin() + (y * 2.7 + 1.0).sin();
    let b = ((x * 1.3 + 0.8).hypot(y * 1.7 - 0.4) * 4.2).sin();
    rainbow((a + b + (x * 2.0 + y * 3.0).sin()) * 0.14)
}

pub(crate) fn sphere(x: f32, y: f32) -> Colour {
    let radius = 0.86;
    let inside = 1.0 - (x * x + y * y) / (radius * radius);
    if inside < 0.0 {
        return [0.0; 4]; // transparent
    }
    let (nx, ny, nz) = (x / radius, y / radius, inside.sqrt());
    let (longitude, latitude) = (
        nx.atan2(nz) + 0.5,
        (ny * 0.96 + nz * 0.28).clamp(-1.0, 1.0).asin(),
    );
    let band =
        ((longitude * 6.0 / PI).floor() + (latitude * 6.0 / PI).floor()).rem_euclid(2.0) < 1.0;
    let paint = if band {
        rgb(0.93, 0.24, 0.22)
    } else {
        rgb(0.98, 0.97, 0.94)
    };
    let light = (nx * -0.45 + ny * 0.60 + nz * 0.66).max(0.0);
    let shine = (light.powi(3) * 0.9).powi(14) * 2.2;
    add(scale(paint, 0.16 + 0.86 * light), rgb(1.0, 1.0, 1.0), shine)
}

pub(crate) fn spiral(x: f32, y: f32) -> Colour {
    let (radius, angle) = (x.hypot(y), y.atan2(x));
    let arm = (angle / TAU * 5.0 + radius.max(0.02).ln() * 2.4).rem_euclid(1.0);
    let colours = [
        rgb(0.11, 0.23, 0.33),
        rgb(0.16, 0.62, 0.56),
        rgb(0.91, 0.77, 0.42),
        rgb(0.96, 0.64, 0.38),
        rgb(0.91, 0.44, 0.32),
    ];
    colours[(arm * 5.0) as usize % 5]
}

pub(crate) fn stained_glass(x: f32, y: f32) -> Colour {
    let (mut nearest, mut second, mut pane) = (f32::MAX, f32::MAX, 0);
    for i in 0..46 {
        let distance = (x - (hash(i, 11) * 1.8 - 0.9)).hypot(y - (hash(i, 12) * 2.4 - 1.2));
        if distance < nearest {
            (second, nearest, pane) = (nearest, distance, i);
        } else if distance < second {
            second = distance;
        }
    }
    let glass = scale(
        rainbow(hash(pane, 13)),
        0.75 + 0.45 * hash(pane, 14) - nearest * 0.7,
    );
    mix(
        rgb(0.06, 0.06, 0.07),
        glass,
        smooth(0.016, 0.030, second - nearest),
    )
}

pub(crate) fn sunset(x: f32, y: f32) -> Colour {
    let horizon = -0.30;
    let sun = (x + 0.25).hypot(y - horizon - 0.16);
    let dusk = mix(
        rgb(1.0, 0.55, 0.25),
        rgb(0.22, 0.16, 0.42),
        smooth(horizon, 1.0, y),
    );
    let clouds = fbm(x * 1.3 + 4.0, y * 5.0, 5);
    let dusk = mix(
        dusk,
        rgb(0.98, 0.40, 0.38),
        smooth(0.48, 0.75, clouds) * smooth(horizon, 0.3, y) * 0.8,
    );
    let dusk = add(dusk, rgb(1.0, 0.75, 0.35), (-sun * 2.6).exp() * 0.8);
    let sky = mix(dusk, rgb(1.0, 0.95, 0.75), smooth(0.205, 0.195, sun));
    if y > horizon {
        return sky;
    }
    let depth = horizon - y;
    let glints = fbm(x * 5.0, 2.2 / (depth + 0.05), 3);
    let path = (-((x + 0.25) / (0.16 + depth * 0.55)).powi(2)).exp() * smooth(0.42, 0.62, glints);
    let sea = mix(
        rgb(0.62, 0.30, 0.30),
        rgb(0.09, 0.08, 0.22),
        smooth(0.0, 0.6, depth),
    );
    add(sea, rgb(1.0, 0.70, 0.35), path * 0.9)
}

pub(crate) fn terrain(x: f32, y: f32) -> Colour {
    let height = fbm(x * 1.6 + 3.0, y * 1.6 + 7.0, 6);
    let bands = [
        (0.00, rgb(0.10, 0.22, 0.44)),
        (0.38, rgb(0.26, 0.52, 0.70)),
        (0.45, rgb(0.90, 0.84, 0.62)),
        (0.49, rgb(0.52, 0.68, 0.36)),
        (0.57, rgb(0.28, 0.48, 0.26)),
        (0.65, rgb(0.52, 0.46, 0.38)),
        (0.73, rgb(0.97, 0.97, 0.98)),
    ];
    let (_, colour) = bands
        .into_iter()
        .rfind(|(from, _)| *from <= height)
        .unwrap_or(bands[0]);
    let slope = height - fbm(x * 1.6 + 2.97, y * 1.6 + 7.03, 6);
    scale(colour, 1.0 + (slope * 9.0).clamp(-0.35, 0.25))
}

// ---------------------------------------------------------------- colours

fn rgb(red: f32, green: f32, blue: f32) -> Colour {
    [red, green, blue, 1.0]
}

fn mix(from: Colour, to: Colour, share: f32) -> Colour {
    std::array::from_fn(|i| from[i] + (to[i] - from[i]) * share.clamp(0.0, 1.0))
}

/// Light on top of light; the opacity stays.
fn add(colour: Colour, light: Colour, much: f32) -> Colour {
    std::array::from_fn(|i| {
        if i < 3 {
            colour[i] + light[i] * much
        } else {
            colour[i]
        }
    })
}

fn scale(colour: Colour, by: f32) -> Colour {
    std::array::from_fn(|i| if i < 3 { colour[i] * by } else { colour[i] })
}

/// All hues, once round from 0 to 1.
fn rainbow(turn: f32) -> Colour {
    let channel = |phase: f32| 0.55 + 0.45 * (TAU * (turn + phase)).cos();
    rgb(channel(0.0), channel(0.67), channel(0.33))
}

/// Blue, white, gold, brown, and round again: for fractals.
fn spectrum(turn: f32) -> Colour {
    let channel = |phase: f32| 0.5 + 0.5 * (TAU * (turn + phase)).cos();
    rgb(channel(0.0), channel(0.10), channel(0.22))
}

// ---------------------------------------------------------------- numbers

/// 0 below one edge, 1 beyond the other, and a smooth step between (downwards when the edges are the other way round).
fn smooth(from: f32, to: f32, at: f32) -> f32 {
    let t = ((at - from) / (to - from)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// How long `z` stays bounded under z² + c, without steps; `None` when it does for good.
fn escape_time(zx: f32, zy: f32, cx: f32, cy: f32) -> Option<f32> {
    let (mut zx, mut zy) = (f64::from(zx), f64::from(zy));
    let (cx, cy) = (f64::from(cx), f64::from(cy));
    for turn in 0..400 {
        let size = zx * zx + zy * zy;
        if size > 256.0 {
            return Some(turn as f32 + 1.0 - (size.ln() / 256_f64.ln()).log2() as f32);
        }
        (zx, zy) = (zx * zx - zy * zy + cx, 2.0 * zx * zy + cy);
    }
    None
}

/// A number from 0 to 1 that looks like chance and is always the same.
fn hash(a: i32, b: i32) -> f32 {
    let mut bits = (a as u32).wrapping_mul(0x9e37_79b1) ^ (b as u32).wrapping_mul(0x85eb_ca77);
    for (shift, factor) in [(15, 0x2c1b_3c6d_u32), (12, 0x297a_2d39), (15, 1)] {
        bits = (bits ^ (bits >> shift)).wrapping_mul(factor);
    }
    bits as f32 / u32::MAX as f32
}

/// Smooth chance: `hash` at whole places, and between them what lies between.
fn noise(x: f32, y: f32) -> f32 {
    let (left, bottom) = (x.floor(), y.floor());
    let corner = |dx: i32, dy: i32| hash(left as i32 + dx, bottom as i32 + dy);
    let (right, up) = (smooth(0.0, 1.0, x - left), smooth(0.0, 1.0, y - bottom));
    let low = corner(0, 0) + (corner(1, 0) - corner(0, 0)) * right;
    let high = corner(0, 1) + (corner(1, 1) - corner(0, 1)) * right;
    low + (high - low) * up
}

/// Noise of many sizes on top of each other: hills, clouds, coasts. From 0 to 1.
fn fbm(x: f32, y: f32, octaves: i32) -> f32 {
    let (mut sum, mut size, mut total) = (0.0, 1.0, 0.0);
    for octave in 0..octaves {
        let fine = 2_f32.powi(octave);
        sum += size
            * noise(
                x * fine + octave as f32 * 13.7,
                y * fine - octave as f32 * 7.3,
            );
        total += size;
        size *= 0.5;
    }
    sum / total
}

/// How bright a star shines here, in a sky with `density` places for stars on each unit of length.
fn star(x: f32, y: f32, density: f32) -> f32 {
    let (cell_x, cell_y) = ((x * density).floor(), (y * density).floor());
    let chance = hash(cell_x as i32, cell_y as i32 + 500);
    let off_centre = (x * density - cell_x - 0.5).hypot(y * density - cell_y - 0.5);
    smooth(0.35, 0.05, off_centre) * smooth(0.90, 1.0, chance)
}
