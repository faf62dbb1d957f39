//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
usage: contact_sheet [FOLDER] [-o FILE]

Draws all pictures of a folder (PNG, JPEG, GIF, WebP) on one sheet.

  FOLDER              where the pictures are; those that come with the example if there is none
  -o, --output FILE   where the sheet goes, as PNG; contact_sheet.png if not given
  -h, --help          this text
";

/// What is asked for.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) folder: PathBuf,
    pub(crate) output: PathBuf,
}

/// Why there is nothing to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Usage {
    Help,
    Wrong(String),
}

impl Options {
    pub(crate) fn from_args() -> Result<Options, Usage> {
        parse(std::env::args_os().skip(1))
    }
}

impl Usage {
    /// Tells the user, and says how the program is to end.
    pub(crate) fn print(self) -> ExitCode {
        match self {
            Usage::Help => {
                print!("{HELP}");
                ExitCode::SUCCESS
            }
            Usage::Wrong(what) => {
                eprint!("{what}\n\n{HELP}");
                ExitCode::from(2)
            }
        }
    }
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Options, Usage> {
    let (mut folder, mut output) = (None, None);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-h" | "--help") => return Err(Usage::Help),
            Some("-o" | "--output") => match args.next() {
                Some(file) => output = Some(PathBuf::from(file)),
                None => return Err(Usage::Wrong("-o needs the name of a file".to_owned())),
            },
            Some(option) if option.starts_with('-') => {
                return Err(Usage::Wrong(format!("there is no option {option}")));
            }
            _ if folder.is_some() => {
                return Err(Usage::Wrong("there can be only one folder".to_owned()));
            }
            _ => folder = Some(PathBuf::from(arg)),
        }
    }
    Ok(Options {
        folder: folder.unwrap_or_else(shipped_pictures),
        output: output.unwrap_or_else(|| PathBuf::from("contact_sheet.png")),
    })
}

fn shipped_pictures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/contact_sheet/pictures")
}
