//! The main example, on the pictures that it ships with: the decoders crash, the program does not.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The example's program, which `cargo test` and `cargo nextest` build beside this test's own.
fn contact_sheet() -> Command {
    let test = std::env::current_exe().expect("this test's own path");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps/<test>");
    let program = profile.join("examples/contact_sheet");
    assert!(
        program.exists(),
        "{} is not there: cargo build --example contact_sheet",
        program.display()
    );
    let mut command = Command::new(program);
    command.env_remove("RUST_BACKTRACE");
    command
}

/// A folder of this test's own, empty.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("contact_sheet")
        .join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/contact_sheet/pictures")
        .join(name)
}

#[track_caller]
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("it writes UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn only_the_broken_pictures_are_gaps() {
    let folder = folder("shipped");
    let (code, said, _) = run(contact_sheet().current_dir(&folder));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("15 of 20 pictures"), "{said}");
    for (file, reason) in [
        (
            "crashes-decoder.png",
            "worker died of signal 6 (SIGABRT): the decoder met the marker chunk crSh",
        ),
        (
            "decompression-bomb.png",
            "worker died of signal 6 (SIGABRT): memory allocation of 2700000000 bytes failed",
        ),
        (
            "not-a-picture.png",
            "The image format could not be determined",
        ),
        ("truncated.jpg", "Not enough bytes"),
        ("truncated.png", "unexpected end of file"),
    ] {
        let line = said
            .lines()
            .find(|line| line.trim_start().starts_with(file));
        assert!(
            line.is_some_and(|line| line.contains(reason)),
            "{file}, {reason}: {said}"
        );
    }
    let sheet = image::open(folder.join("contact_sheet.png")).expect("the sheet is a picture");
    assert_eq!(
        (sheet.width(), sheet.height()),
        (1128, 860),
        "five columns and four rows"
    );
}

#[test]
fn the_sheet_in_the_readme_is_what_the_example_draws() {
    let folder = folder("documented");
    let (code, _, complaints) = run(contact_sheet().current_dir(&folder));
    assert_eq!(code, Some(0), "{complaints}");
    let documented = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/contact_sheet.png");
    let [drawn, documented] = [folder.join("contact_sheet.png"), documented]
        .map(|path| image::open(path).expect("a sheet").into_rgb8());
    assert_eq!(drawn.dimensions(), documented.dimensions());
    // Decoders may round differently on another machine; a changed picture, place or word is much more than that.
    let differs = |(a, b): &(&u8, &u8)| a.abs_diff(**b) > 16;
    let different = drawn.iter().zip(documented.iter()).filter(differs).count();
    assert!(
        different < 500,
        "{different} values differ: run the example with -o docs/contact_sheet.png"
    );
}

#[test]
fn the_marker_chunk_is_legal_png() {
    let file = std::fs::read(shipped("crashes-decoder.png")).expect("the marked picture");
    assert!(file.windows(4).any(|window| window == b"crSh"));
    assert!(
        image::load_from_memory(&file).is_ok(),
        "any other program shows it"
    ); // CRCs included
}

#[test]
fn a_folder_of_hostile_names_is_a_sheet_too() {
    let folder = folder("names");
    for name in [
        "a\x1b[31mred.png",
        "two\nlines.gif",
        "ünïcödé \u{1f600} with a name that is much too long for its tile.JPG",
    ] {
        std::fs::copy(shipped("julia.png"), folder.join(name)).expect("a copy");
    }
    std::fs::copy(shipped("truncated.png"), folder.join("b\x1b[31mroken.png")).expect("a copy");
    std::fs::create_dir(folder.join("folder.png")).expect("a folder");
    std::fs::write(folder.join("notes.txt"), "not looked at").expect("a file");
    let (code, said, complaints) = run(contact_sheet().current_dir(&folder).arg("."));
    assert_eq!(code, Some(0), "{complaints}");
    assert!(said.contains("3 of 4 pictures"), "{said}");
    assert!(!said.contains('\x1b'), "{said:?}");
}

#[test]
fn what_cannot_be_done_is_said_in_a_sentence() {
    let empty = folder("empty");
    let file = shipped("julia.png");
    let cases: [(&[&str], i32, &str); 6] = [
        (
            &["no/such/folder"],
            1,
            "cannot read the folder no/such/folder",
        ),
        (
            &[file.to_str().expect("UTF-8")],
            1,
            "cannot read the folder",
        ),
        (&["."], 1, "there are no pictures"),
        (
            &["-o", "no/such/folder/sheet.png"],
            1,
            "cannot write the sheet to no/such/folder/sheet.png",
        ),
        (&["-o"], 2, "-o needs the name of a file"),
        (&["--frobnicate"], 2, "there is no option --frobnicate"),
    ];
    for (args, exit_code, sentence) in cases {
        let (code, said, complaints) = run(contact_sheet().current_dir(&empty).args(args));
        assert_eq!(code, Some(exit_code), "{args:?}: {complaints}");
        assert!(complaints.contains(sentence), "{args:?}: {complaints}");
        assert_eq!(said, "", "{args:?}");
    }
}
