//! What the program says at its end.

use std::path::Path;

use crate::reason::one_line;
use crate::sheet::{Content, Tile};

/// Where the sheet is, how many pictures are on it, and a line for each gap.
pub(crate) fn of(tiles: &[Tile], output: &Path) -> String {
    let gaps: Vec<(String, &str)> = tiles.iter().filter_map(gap).collect();
    let (shown, all) = (tiles.len() - gaps.len(), tiles.len());
    let output = std::path::absolute(output).unwrap_or_else(|_| output.to_owned());
    let mut text = format!("{shown} of {all} pictures are on {}\n", output.display());
    if !gaps.is_empty() {
        text += "the others failed, and left gaps:\n";
    }
    let longest = gaps
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    for (name, reason) in gaps {
        text += &format!("  {name:longest$}  {reason}\n");
    }
    text
}

fn gap(tile: &Tile) -> Option<(String, &str)> {
    match &tile.content {
        Content::Gap(reason) => Some((one_line(&tile.name), reason)), // a file's name may hold anything
        Content::Picture(_) => None,
    }
}
