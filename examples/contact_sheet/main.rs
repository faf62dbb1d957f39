//! A contact sheet of a folder of pictures that nobody vouched for. The decoder may crash, the program may not.
//!
//! ```text
//! cargo run --release --example contact_sheet                      the pictures that come with it
//! cargo run --release --example contact_sheet -- ~/Pictures        your own
//! cargo run --release --example contact_sheet -- ~/Pictures -o sheet.png
//! ```
//!
//! Decoders of pictures are large programs that are fed by strangers. They return errors, which is well; they also panic,
//! abort, run off the stack, and take all the memory there is, and no `match` catches those. So each picture is decoded in a
//! worker process ([`thumbnails`]), and whatever becomes of that process is a failure of one Deferred: its tile on the sheet
//! is a gap with the reason in it. The others do not notice.
//!
//! Five of the twenty pictures that ship with it are broken, each in another way:
//!
//! | file | what happens |
//! | --- | --- |
//! | `truncated.jpg`, `truncated.png` | the file ends early; the decoder returns an error |
//! | `not-a-picture.png` | a text under a picture's name; an error too |
//! | `decompression-bomb.png` | 107 kB that become 2.7 GB; the worker's memory limit stops it, and it dies |
//! | `crashes-decoder.png` | a sound picture with a marker chunk at which the task aborts, as a decoder with a bug would ([`marker`]) |
//!
//! `make_pictures.rs` makes them all anew.
//!
//! How to read it: this file is the program, from its arguments to the summary. [`thumbnails`] is what runs elsewhere,
//! [`sheet`] and [`lettering`] draw, [`reason`] says what went wrong in a few words.

mod lettering;
mod marker;
mod options;
mod progress;
mod reason;
mod sheet;
mod summary;
mod thumbnails;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use errback::{
    Deferred, Failure, Pool, Reactor, defer_to_process, ensure, gather_results, react,
    set_process_pool, try_deferred,
};

use options::Options;
use progress::Progress;
use sheet::{Content, Tile};
use thumbnails::thumbnail;

/// How much address space a decoder may have: enough for pictures of 100 megapixels, and not for the bomb.
const MEMORY_LIMIT: u64 = 1 << 30;

/// The files that count as pictures; what they are is seen when they are decoded.
const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "gif", "webp"];

fn main() -> ExitCode {
    match Options::from_args() {
        Ok(options) => react(|reactor| try_deferred(|| contact_sheet(reactor, options))),
        Err(usage) => usage.print(),
    }
}

/// The program: a Deferred for each picture, and when all have fired, the sheet.
fn contact_sheet(reactor: &Reactor, options: Options) -> Result<Deferred<()>, Failure> {
    let Options { folder, output } = options;
    let pictures = pictures_in(&folder)?;
    let decoders = Pool::builder().name("decoders").memory_limit(MEMORY_LIMIT);
    // What they print would run through the progress bar; their last words are in the summary.
    set_process_pool(reactor, decoders.pass_output(false).build()?)?;
    let progress = Rc::new(Progress::new(pictures.len()));
    let tiles = pictures.into_iter().map(|path| {
        let progress = Rc::clone(&progress);
        tile(reactor, path).add_callback(move |tile| {
            progress.step();
            Ok(tile)
        })
    });
    let tiles = gather_results(tiles);
    let reactor = reactor.clone();
    Ok(tiles.add_callback(move |tiles| {
        drop(progress); // the bar makes room for the summary
        let summary = summary::of(&tiles, &output);
        save(&reactor, tiles, output).add_callback(move |()| print!("{summary}"))
    }))
}

/// The pictures of a folder, by file name.
fn pictures_in(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let shown = folder.display();
    let unreadable = |why| Failure::msg(format_args!("cannot read the folder {shown}: {why}"));
    let mut pictures = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if has_picture_name(&path) && path.is_file() {
            pictures.push(path);
        }
    }
    let known = EXTENSIONS.join(", ");
    ensure!(
        !pictures.is_empty(),
        "there are no pictures ({known}) in {shown}"
    );
    pictures.sort();
    Ok(pictures)
}

fn has_picture_name(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    let mut known = EXTENSIONS.iter();
    known.any(|known| extension.eq_ignore_ascii_case(known))
}

/// One picture, decoded in a worker process. It fires with a tile even if that comes to nothing: the errback makes a gap of
/// what is the picture's own fault, and lets pass what is not.
fn tile(reactor: &Reactor, path: PathBuf) -> Deferred<Tile> {
    let name = path.file_name().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    defer_to_process(reactor, thumbnail, (path,))
        .add_callback(|small| Ok(Content::Picture(small)))
        .add_errback(|failure| Ok(Content::Gap(reason::of_gap(&failure)?)))
        .add_callback(|content| Ok(Tile { name, content }))
}

/// Draws the sheet and writes it. In a thread: to compress a large sheet takes seconds, in which the reactor should still
/// hear a Ctrl-C.
fn save(reactor: &Reactor, tiles: Vec<Tile>, output: PathBuf) -> Deferred<()> {
    reactor.defer_to_thread(move || {
        let file = sheet::encode(sheet::draw(&tiles))?;
        let written = std::fs::write(&output, file);
        let shown = output.display();
        written
            .map_err(|why| Failure::msg(format_args!("cannot write the sheet to {shown}: {why}")))
    })
}
