//! Writes what the targets begin with, made of the hex examples of `docs/protocol.md`: `seeds DIRECTORY`, for
//! directories `DIRECTORY/TARGET`.

use std::fs;
use std::path::Path;

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

fn main() {
    let directory = std::env::args_os().nth(1).expect("a directory");
    for (number, frame) in examples().iter().enumerate() {
        let body = frame.get(4..).unwrap_or_default();
        // In the form of the decisions that `bytes::frames` reads: pieces of raw bytes.
        let decided: Vec<u8> = frame
            .chunks(31)
            .flat_map(|piece| [&[(piece.len() as u8) << 3][..], piece].concat())
            .collect();
        let shown = [&SHOWN[..], &says(&packets()), &sends(body)].concat();
        let seeds = [
            ("frames", [&[0x5f][..], &decided].concat()),
            ("host_reads", body.to_vec()),
            ("worker_reads", body.to_vec()),
            ("host_is_shown", shown.clone()),
            ("worker_is_shown", shown),
            ("comes_back", frame.clone()),
            ("mutated", frame.clone()),
        ];
        for (target, seed) in seeds {
            let target = Path::new(&directory).join(target);
            fs::create_dir_all(&target).expect("a directory that can be made");
            fs::write(target.join(format!("example-{number}")), seed).expect("a file");
        }
    }
}

/// In the form of the decisions of `arenas::Peer`: sound memory is shown under the number that the examples refer to, and
/// then all of it is referred to. The first byte is whether a worker is trusted.
const SHOWN: [u8; 12] = [0, 1, 0x1f, 0x11, 0, 0xff, 5, 5, 1, 0, 0xff, 5];

/// Packets, each with memory.
fn says(packets: &[Vec<u8>]) -> Vec<u8> {
    let say =
        |packet: &Vec<u8>| [&[0, packet.len() as u8 - 1], &packet[..], &[0, 0x1f, 0x11]].concat();
    packets.iter().flat_map(say).collect()
}

/// A message as it is.
fn sends(body: &[u8]) -> Vec<u8> {
    [&[7][..], &(body.len() as u16).to_be_bytes(), body].concat()
}

/// The examples of what is said about memory.
fn packets() -> Vec<Vec<u8>> {
    let blocks = DOCUMENT.split("```hex-packet ").skip(1);
    let lines = blocks.map(|block| block.lines().nth(2).expect("bytes"));
    lines.map(|line| hex(line).collect()).collect()
}

/// The blocks of hex, good and bad, as bytes.
fn examples() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut lines = DOCUMENT.lines();
    while lines.by_ref().any(|line| line.starts_with("```hex")) {
        let block = lines.by_ref().take_while(|line| !line.starts_with("```"));
        found.push(block.flat_map(hex).collect());
    }
    assert!(found.len() > 5, "the document has examples");
    found
}

fn hex(line: &str) -> impl Iterator<Item = u8> {
    let digits = line.split('#').next().unwrap_or_default();
    digits
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).expect("a block of hex"))
}
